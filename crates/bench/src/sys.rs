//! The only module with `unsafe`: children that do not outlive their parent.
#![expect(unsafe_code, reason = "a call between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Makes the kernel send `signal` to the process started by `command` when the starting thread
/// exits.
pub(crate) fn die_with_parent(command: &mut Command, signal: Signal) {
    let request = move || set_parent_process_death_signal(Some(signal)).map_err(io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe operations are allowed: this is one
    // system call, and its error is made of a number, without memory or locks.
    unsafe { command.pre_exec(request) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_starts_despite_failure() {
        let mut command = Command::new("true");
        die_with_parent(&mut command, Signal::TERM);
        assert!(command.status().unwrap().success());
    }
}
