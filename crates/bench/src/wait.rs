//! Waits with a deadline.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::Child;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Waits until `fd` is readable, or the process of a pidfd has exited; returns whether that
/// happened `within` this time.
#[must_use]
pub(super) fn is_readable(fd: BorrowedFd<'_>, within: Duration) -> bool {
    is_ready(fd, PollFlags::POLLIN, within)
}

/// Waits for one of `flags`, an error or an end; returns whether that happened `within` this time.
#[must_use]
pub(super) fn is_ready(fd: BorrowedFd<'_>, flags: PollFlags, within: Duration) -> bool {
    let mut watched = [PollFd::new(fd, flags)];
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    poll(&mut watched, timeout).is_ok_and(|ready| ready > 0)
}

/// Waits for `child`, which must not be reaped yet; returns whether it exited `within` this time.
#[must_use]
pub(super) fn has_ended(child: &Child, within: Duration) -> bool {
    pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .is_ok_and(|process| is_readable(process.as_fd(), within))
}
