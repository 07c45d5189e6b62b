//! Children that do not outlive their parent.

use std::io;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Makes the kernel kill this process when `parent` exits.
///
/// # Errors
/// The kernel refused, or `parent` has already exited.
pub fn end_with_parent(parent: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have exited before that call.
    match getppid() {
        Some(now) if now.as_raw_nonzero().get() == parent => Ok(()),
        _ => Err(io::Error::other("the process that started it has ended")),
    }
}

/// Returns whether this is the first process of its namespace, which orphans are reparented to.
#[must_use]
pub fn is_first_process() -> bool {
    std::process::id() == 1
}
