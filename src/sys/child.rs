//! Children that do not outlive their parent.
#![expect(unsafe_code, reason = "a call between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Has the kernel send `signal` to the process that `command` starts when the thread that starts it
/// ends.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    let order = move || set_parent_process_death_signal(Some(signal)).map_err(io::Error::from);
    // SAFETY: between fork and exec only what is safe in a signal handler may be done: this is one
    // system call, and the error it may return is made of a number, without memory or locks.
    unsafe { command.pre_exec(order) };
}

/// Has the kernel kill this process when `parent` ends.
///
/// # Errors
/// The kernel refused, or `parent` has ended already.
pub fn end_with_parent(parent: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the kernel was told.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_starts_all_the_same() {
        let mut command = Command::new("true");
        die_with_parent(&mut command, Signal::TERM);
        assert!(command.status().unwrap().success());
    }
}
