//! Loopback addresses used by only one test.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};

/// Returns a loopback address that no other test uses.
///
/// For a test that needs a free port, to listen on it again or to find no listener there: another
/// test may get a port of 127.0.0.1 at any moment after its release.
pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    // Concurrent tests differ in the process ID or in the last octet. All other tests use
    // 127.0.x.x.
    let [.., high, low] = std::process::id().to_be_bytes();
    let mixed = 1 + high % 250;
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(next > 0, "more than 255 tests need an address of their own");
    Ipv4Addr::new(127, mixed, low, next)
}
