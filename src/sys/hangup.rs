//! Finds the sender of a SIGHUP: the kernel (a terminal was closed), the session leader (a shell
//! that forwards its own SIGHUP), or another process.
//!
//! Other handlers only learn that a signal arrived. This one runs before them and records the
//! sender.
#![expect(unsafe_code, reason = "siginfo is a union, read in a signal handler")]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc::{SI_KERNEL, SI_USER, siginfo_t};
use nix::sys::signal::Signal;
use nix::unistd::getsid;
use serde::{Deserialize, Serialize};

/// Whether SIGHUP came from the kernel, the session leader, or another process.
static SENDERS: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// The senders of SIGHUP since the last check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Senders {
    /// The kernel.
    pub kernel: bool,
    /// The session leader of this process.
    pub leader: bool,
    /// Another process, or the session leader if that is this process.
    pub others: bool,
}

/// Starts recording the sender of every SIGHUP. Call it before installing other handlers of SIGHUP,
/// so that the sender is known when they have run.
///
/// # Errors
/// The error of `sigaction` or `getsid`.
pub fn watch() -> io::Result<()> {
    let leader = getsid(None)?.as_raw();
    let note = move |info: &siginfo_t| {
        let sender = match info.si_code {
            SI_KERNEL => &SENDERS[0],
            SI_USER if sender_of(info) == leader => &SENDERS[1],
            _ => &SENDERS[2],
        };
        sender.store(true, Ordering::Release);
    };
    // SAFETY: the handler reads its argument and stores to an atomic, and calls nothing else, so it
    // is async-signal-safe.
    unsafe { signal_hook_registry::register_sigaction(Signal::SIGHUP as i32, note) }?;
    Ok(())
}

/// Returns the process that sent a signal whose code is `SI_USER`.
fn sender_of(info: &siginfo_t) -> i32 {
    // SAFETY: with this code the kernel has filled in the sender's number.
    unsafe { info.si_pid() }
}

/// Returns the senders of SIGHUP and resets them.
#[must_use]
pub fn take() -> Senders {
    read(|sender| sender.swap(false, Ordering::AcqRel))
}

/// Returns the senders of SIGHUP without resetting them.
#[must_use]
pub fn seen() -> Senders {
    read(|sender| sender.load(Ordering::Acquire))
}

fn read(read_one: fn(&AtomicBool) -> bool) -> Senders {
    let [kernel, leader, others] = SENDERS.each_ref().map(read_one);
    Senders {
        kernel,
        leader,
        others,
    }
}

/// Adds these senders: the previous program of this process has [`seen`] them.
pub fn note(senders: Senders) {
    let flags = [senders.kernel, senders.leader, senders.others];
    for (sender, flag) in SENDERS.iter().zip(flags) {
        sender.fetch_or(flag, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn sender_of_hangup_is_reported_once() {
        watch().unwrap();
        raise(Signal::SIGHUP).unwrap();
        let seen = seen();
        let senders = take();
        assert_eq!(seen, senders);
        assert!(senders.others && !senders.kernel, "{senders:?}");
        assert_eq!(take(), Senders::default());
        // During an upgrade the old program passes it to the new one.
        let closed = Senders {
            kernel: true,
            ..Senders::default()
        };
        note(closed);
        assert_eq!(take(), closed);
    }
}
