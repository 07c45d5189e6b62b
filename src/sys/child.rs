//! Children that do not outlive their parent.

use std::io;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Makes the kernel kill this process when `parent` ends.
///
/// # Errors
/// The kernel refused, or `parent` has ended already.
pub fn end_with_parent(parent: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before that call.
    match getppid() {
        Some(now) if now.as_raw_nonzero().get() == parent => Ok(()),
        _ => Err(io::Error::other("the process that started it has ended")),
    }
}

/// Whether this is the first process of its namespace, which becomes the parent of every orphan there.
#[must_use]
pub fn is_first_process() -> bool {
    std::process::id() == 1
}
