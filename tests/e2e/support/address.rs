//! Addresses that are one test's own.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};

/// A loopback address that no other test uses.
///
/// For who needs a port to be free: one that is to be listened on again, or on which nobody is to
/// listen. A port of 127.0.0.1 that was just given up may be given to any other test at once.
pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    // Two tests that run at once differ in their process numbers or in the last octet. The first
    // octet of all others is followed by 0, and those of loads by 0.1.
    let [.., high, low] = std::process::id().to_be_bytes();
    let mixed = 1 + high % 250;
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(next > 0, "more than 255 tests need an address of their own");
    Ipv4Addr::new(127, mixed, low, next)
}
