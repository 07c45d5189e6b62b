//! Turns descriptors that arrive as bare numbers into owned values; no other module does.
#![expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use serde::{Deserialize, Serialize};

/// The number at which a process finds its channel after exec.
pub const CHANNEL_NUMBER: RawFd = 3;
/// Descriptors that must survive until an exec in a forked child have this number or a higher one,
/// out of the way of those that the child puts in fixed places.
pub(crate) const HIGH_NUMBER: RawFd = 10;

/// Owns descriptors that the kernel has just installed for this process (`SCM_RIGHTS`).
///
/// To be called once, with the numbers of one control message, by its receiver.
#[must_use]
pub(crate) fn own(numbers: &[RawFd]) -> Vec<OwnedFd> {
    let own_one = |&number: &RawFd| {
        // SAFETY: `recvmsg` returned this number: the kernel installed it as a new, open
        // descriptor of this process, that nothing else knows of and nothing else will close.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    numbers.iter().map(own_one).collect()
}

/// Makes every descriptor from number `first` up close-on-exec, whatever opened it: programs that
/// this process starts must not inherit what its own launcher left open. Best effort: without a
/// readable `/proc` they stay as they are.
pub(crate) fn close_on_exec_from(first: RawFd) {
    let Ok(listing) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<RawFd> = listing
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&number| number >= first)
        .collect();
    for number in numbers {
        // SAFETY: the number is not -1; it is only handed to the one call below, and if it is not
        // open any more (the listing's own descriptor is not) that fails and nothing happens.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// Clears close-on-exec on the descriptors, or sets it again. All or none.
///
/// # Errors
/// What `fcntl` returned for the first one that failed; those before it are as they were.
pub(crate) fn pass_on(descriptors: &[BorrowedFd<'_>], on: bool) -> io::Result<()> {
    let flags = |on| {
        if on {
            FdFlag::empty()
        } else {
            FdFlag::FD_CLOEXEC
        }
    };
    for (done, fd) in descriptors.iter().enumerate() {
        if let Err(errno) = fcntl(fd, FcntlArg::F_SETFD(flags(on))) {
            for earlier in &descriptors[..done] {
                // Worked a moment ago on the same descriptor.
                let _ = fcntl(earlier, FcntlArg::F_SETFD(flags(!on)));
            }
            return Err(errno.into());
        }
    }
    Ok(())
}

/// Duplicates an inherited descriptor, which stays as it is. Close-on-exec.
///
/// # Errors
/// The number is not open.
pub(crate) fn duplicate_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is not -1; it is only handed to the one call below, and if it is not open
    // the kernel says so.
    duplicate(unsafe { BorrowedFd::borrow_raw(number) })
}

/// A duplicate, close-on-exec, out of the way of [`CHANNEL_NUMBER`].
fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(own(&[fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(HIGH_NUMBER))?]).remove(0))
}

/// A descriptor as a saved state names it: by its number, which an exec keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    fd: RawFd,
}

impl From<RawFd> for Descriptor {
    fn from(fd: RawFd) -> Self {
        Self { fd }
    }
}

impl Descriptor {
    pub(crate) const fn number(self) -> RawFd {
        self.fd
    }
}

/// The descriptors that a saved state names, and that stay open through the exec.
#[derive(Debug, Default)]
pub(crate) struct Kept<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Kept<'a> {
    /// Keeps `fd` open, and returns its name in the state.
    pub(crate) fn keep(&mut self, fd: &'a impl AsFd) -> Descriptor {
        let fd = fd.as_fd();
        self.0.push(fd);
        fd.as_raw_fd().into()
    }

    /// Returns all of them.
    pub(crate) fn as_slice(&self) -> &[BorrowedFd<'a>] {
        &self.0
    }
}

/// The descriptors that came through an exec, taken by the numbers that a saved state names.
///
/// Invariants: what is taken is a duplicate, so until [`Inherited::close`] every descriptor is open
/// at the number at which it came, and can go through another exec; each is taken once.
#[derive(Debug, Default)]
pub(crate) struct Inherited(BTreeSet<RawFd>);

impl Inherited {
    /// Takes one of them: a duplicate, close-on-exec.
    ///
    /// # Errors
    /// Why the number names none; or it has been taken.
    pub(crate) fn take(&mut self, Descriptor { fd: number }: Descriptor) -> io::Result<OwnedFd> {
        let refused = |why: &str| {
            let why = format!("inherited descriptor {number} {why}");
            io::Error::new(io::ErrorKind::InvalidData, why)
        };
        if number <= 2 {
            return Err(refused("is a standard stream"));
        }
        // SAFETY: the number is not -1; it is only handed to the calls below, and if it is not open
        // the kernel says so.
        let inherited = unsafe { BorrowedFd::borrow_raw(number) };
        let flags = fcntl(inherited, FcntlArg::F_GETFD).map_err(|_| refused("is not open"))?;
        // Whatever this program has opened itself is close-on-exec from birth.
        if FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC) {
            return Err(refused("was not inherited"));
        }
        if !self.0.insert(number) {
            return Err(refused("is listed twice"));
        }
        duplicate(inherited)
    }

    /// Closes every descriptor that has been taken, at the number at which it came.
    pub(crate) fn close(self) {
        for number in self.0 {
            // SAFETY: it was found open and not close-on-exec, as nothing is that this program has
            // opened itself: so no value in this process owned it, and this set has it once.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
}

/// The channel that the supervisor left for this process at [`CHANNEL_NUMBER`]; close-on-exec
/// again. `None` if there is no sequenced-packet socket: the program was not started by a
/// supervisor.
///
/// To be called once, first thing in a process's life.
#[must_use]
pub(crate) fn inherited_channel() -> Option<OwnedFd> {
    // SAFETY: the number is not -1; it is only queried here, and if it is not open the kernel
    // says so.
    let inherited = unsafe { BorrowedFd::borrow_raw(CHANNEL_NUMBER) };
    if getsockopt(&inherited, sockopt::SockType) != Ok(SockType::SeqPacket) {
        return None;
    }
    fcntl(inherited, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is an open socket that came through exec, so no value in this process owns it,
    // and this function is called once in a process's life.
    Some(unsafe { OwnedFd::from_raw_fd(CHANNEL_NUMBER) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    fn is_passed_on(fd: &OwnedFd) -> bool {
        fcntl(fd, FcntlArg::F_GETFD).unwrap() == 0
    }

    #[test]
    fn close_on_exec_is_cleared_and_set() {
        let (one, other) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        pass_on(&[one.as_fd(), other.as_fd()], true).unwrap();
        assert!(is_passed_on(&one) && is_passed_on(&other));
        pass_on(&[one.as_fd(), other.as_fd()], false).unwrap();
        assert!(!is_passed_on(&one) && !is_passed_on(&other));
    }

    #[test]
    fn inherited_descriptor_is_taken_once_by_number() {
        let (one, other) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (low, high) = (one.as_raw_fd(), other.as_raw_fd());
        let mut inherited = Inherited::default();
        let refused = inherited.take(low.into()).unwrap_err().to_string();
        assert!(refused.contains("was not inherited"), "{refused}");
        pass_on(&[one.as_fd(), other.as_fd()], true).unwrap();
        let numbers = [one.into_raw_fd(), other.into_raw_fd()];
        for wrong in [2, -1, 1_000_000] {
            inherited.take(wrong.into()).unwrap_err();
        }
        let owned = inherited.take(high.into()).unwrap();
        assert!(owned.as_raw_fd() >= HIGH_NUMBER && !is_passed_on(&owned));
        let twice = inherited.take(high.into()).unwrap_err().to_string();
        assert!(twice.contains("is listed twice"), "{twice}");
        drop(owned);
        for number in numbers {
            duplicate_inherited(number).unwrap();
        }
        drop(inherited.take(low.into()).unwrap());
        inherited.close();
        duplicate_inherited(-1).unwrap_err();
        duplicate_inherited(1_000_000).unwrap_err();
    }
}
