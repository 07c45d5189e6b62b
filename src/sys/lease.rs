//! The lease of a server: a pipe that ends when the service manager gives the server up.
//!
//! The service manager keeps the writing end in its store, and each worker has the reading end. The
//! end of the pipe alone proves nothing: there may be no service manager, or one without a store. So
//! a byte in the pipe marks a lease of which the supervisor knows that it was stored.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};

/// Creates a lease. Returns the workers' end and the service manager's.
///
/// # Errors
/// The error of `pipe2`.
pub fn create() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?)
}

/// Marks a lease as stored by the service manager, given its end. The end is closed.
///
/// # Errors
/// The error of `write`; the lease never counts as ended then.
pub fn confirm(end: OwnedFd) -> io::Result<()> {
    write(end, &[0])?;
    Ok(())
}

/// Returns whether the service manager has let go of a lease that it had stored.
pub fn has_ended(lease: &impl AsFd) -> bool {
    let both = PollFlags::POLLIN | PollFlags::POLLHUP;
    let mut fds = [PollFd::new(lease.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|it| it.contains(both))
}

/// Voids a lease if it has ended, for all that have it: it never counts as ended again. Returns
/// whether it had ended.
pub fn void(lease: &impl AsFd) -> bool {
    has_ended(lease) && read(lease, &mut [0]) == Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_confirmed_lease_ends() {
        let (lease, end) = create().unwrap();
        assert!(!has_ended(&lease));
        drop(end);
        assert!(!has_ended(&lease), "it was never stored");
        let (lease, end) = create().unwrap();
        let stored = end.try_clone().unwrap();
        confirm(end).unwrap();
        assert!(!has_ended(&lease) && !void(&lease));
        drop(stored);
        let other = lease.try_clone().unwrap();
        assert!(has_ended(&lease) && has_ended(&other));
        assert!(void(&lease));
        assert!(!has_ended(&other) && !void(&other));
    }
}
