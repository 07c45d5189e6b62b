//! Limits the number of heaps of the C library's allocator.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "a parameter of the C library")
)]

/// Makes all threads that are started later share the first thread's heap.
///
/// Otherwise glibc gives each thread its own heap, and opens a file in `/proc` before it first
/// returns memory of such a heap, possibly after the sandbox has forbidden opening files. Other C
/// libraries have one heap and open nothing.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it accepts two numbers and sets a limit under the allocator's own lock.
        let accepted = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
        debug_assert_eq!(accepted, 1, "glibc knows its own parameter");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The effect is tested with an admin process that sends large responses.
    #[test]
    fn heap_limit_can_be_set_twice() {
        share_one_heap();
        share_one_heap();
    }
}
