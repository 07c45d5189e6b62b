//! The C library's allocator, told how many heaps it may have.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "a parameter of the C library")
)]

/// Has all threads that are yet to be started share the first thread's heap.
///
/// Otherwise glibc gives threads heaps of their own, and opens a file of `/proc` before it gives
/// memory of such a heap back for the first time: whenever that is, so also once no file may be
/// opened any more. Other C libraries have one heap and open nothing.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes two numbers and sets a limit under the allocator's own lock.
        let told = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
        debug_assert_eq!(told, 1, "glibc knows its own parameter");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That it helps is seen where an admin process gives large answers.
    #[test]
    fn it_can_be_told_twice() {
        share_one_heap();
        share_one_heap();
    }
}
