//! Signal state that a process inherits: its mask, and the signals that its parent ignored.
//!
//! Both survive exec. A launcher that blocks signals around `fork`, or ignores `SIGCHLD` so that
//! its own children leave no zombies, would otherwise determine how this program stops and whether
//! it receives the exit status of its workers.
#![expect(unsafe_code, reason = "a disposition is set by a raw call")]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
pub use nix::sys::signal::Signal;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};

/// Makes the kernel keep the exit status of every child until it is waited for.
///
/// # Errors
/// The error of `sigaction`.
pub fn keep_exit_statuses() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default disposition runs no code of this process.
    unsafe { sigaction(Signal::SIGCHLD, &default) }?;
    Ok(())
}

/// Unblocks every signal for this thread, whatever its parent had blocked.
///
/// # Errors
/// The error of `pthread_sigmask`.
pub fn unblock_all() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Makes `signal` end this process at once, with exit code 0, while `armed` is true.
///
/// # Errors
/// The signal does not exist or cannot be handled.
pub fn exit_on(signal: i32, armed: &'static AtomicBool) -> io::Result<()> {
    let action = move || {
        if armed.load(Ordering::Relaxed) {
            signal_hook::low_level::exit(0);
        }
    };
    // SAFETY: the action only reads an atomic and calls `_exit`, both of which are
    // async-signal-safe.
    unsafe { signal_hook::low_level::register(signal, action) }?;
    Ok(())
}

/// Takes one of `signals`, which this process blocks, if one is pending.
pub fn take_pending(signals: &[Signal]) -> Option<Signal> {
    let set: SigSet = signals.iter().copied().collect();
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let no_details = std::ptr::null_mut();
    // SAFETY: the set and the time outlive the call, which stores nothing: it is given no place.
    let taken = unsafe { libc::sigtimedwait(set.as_ref(), no_details, &raw const at_once) };
    Signal::try_from(taken).ok()
}

/// Ends this process at once with `code`: nothing is dropped, flushed or unwound.
pub fn end_process(code: i32) -> ! {
    signal_hook::low_level::exit(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_is_empty_after_unblocking() {
        SigSet::all().thread_block().unwrap();
        unblock_all().unwrap();
        assert_eq!(SigSet::thread_get_mask().unwrap(), SigSet::empty());
    }

    #[test]
    fn pending_signal_is_taken_once() {
        let signals = [Signal::SIGUSR1, Signal::SIGUSR2];
        SigSet::all().thread_block().unwrap();
        assert_eq!(take_pending(&signals), None);
        nix::sys::signal::raise(Signal::SIGUSR2).unwrap();
        assert_eq!(take_pending(&signals[..1]), None);
        assert_eq!(take_pending(&signals), Some(Signal::SIGUSR2));
        assert_eq!(take_pending(&signals), None);
        unblock_all().unwrap();
    }

    #[test]
    fn exit_status_is_kept() {
        keep_exit_statuses().unwrap();
        let status = std::process::Command::new("false").status().unwrap();
        assert_eq!(status.code(), Some(1));
    }
}
