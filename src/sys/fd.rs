//! Turns bare descriptor numbers into owned values; no other module does.
#![expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use rustix::io::{DupFlags, dup3};
use serde::{Deserialize, Serialize};

/// The number of a process's channel after exec.
pub const CHANNEL_NUMBER: RawFd = 3;
/// Minimum number of descriptors that must survive in a forked child until exec: higher than those
/// that the child puts in fixed places.
pub(crate) const HIGH_NUMBER: RawFd = 10;

/// Takes ownership of descriptors just installed by the kernel (`SCM_RIGHTS`).
///
/// The receiver calls it once, with the numbers of one control message.
#[must_use]
pub(crate) fn own(numbers: &[RawFd]) -> Vec<OwnedFd> {
    let own_one = |&number: &RawFd| {
        // SAFETY: `recvmsg` returned this number: the kernel installed it as a new, open descriptor
        // of this process, which no other code knows of or closes.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    numbers.iter().map(own_one).collect()
}

/// Makes every descriptor from number `first` up close-on-exec: programs started by this process
/// must not inherit descriptors that its launcher left open. Best effort: without a readable
/// `/proc` they are unchanged.
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
        // SAFETY: the number is not -1; it is only passed to the one call below, which fails
        // without effect if it is not open any more (as the listing's own descriptor).
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// Clears close-on-exec on the descriptors, or sets it again: on all or none.
///
/// # Errors
/// The error of `fcntl` for the first that failed; the earlier ones are restored.
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
                // The same call just succeeded on this descriptor.
                let _ = fcntl(earlier, FcntlArg::F_SETFD(flags(!on)));
            }
            return Err(errno.into());
        }
    }
    Ok(())
}

/// Duplicates an inherited descriptor, which is unchanged. The duplicate is close-on-exec.
///
/// # Errors
/// The number is not open.
pub(crate) fn duplicate_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is not -1; it is only passed to the one call below, which fails if it is
    // not open.
    duplicate(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Puts a duplicate of `new` in the place of `old`: the number stays, the former file is closed.
///
/// # Errors
/// What `dup3` returned; nothing has changed then.
pub(crate) fn replace(old: &mut OwnedFd, new: &OwnedFd) -> io::Result<()> {
    Ok(dup3(new, old, DupFlags::CLOEXEC)?)
}

/// Returns a close-on-exec duplicate with a number above [`CHANNEL_NUMBER`].
fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(own(&[fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(HIGH_NUMBER))?]).remove(0))
}

/// A descriptor in a saved state: its number, which exec keeps.
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

/// The descriptors in a saved state, which stay open through exec.
#[derive(Debug, Default)]
pub(crate) struct Kept<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Kept<'a> {
    /// Keeps `fd` open and returns its entry for the state.
    pub(crate) fn keep(&mut self, fd: &'a impl AsFd) -> Descriptor {
        let fd = fd.as_fd();
        self.0.push(fd);
        fd.as_raw_fd().into()
    }

    /// Returns all kept descriptors.
    pub(crate) fn as_slice(&self) -> &[BorrowedFd<'a>] {
        &self.0
    }
}

/// The descriptors inherited through exec, taken by their numbers in the saved state.
///
/// Invariants: a taken descriptor is a duplicate, so until [`Inherited::close`] every descriptor
/// stays open at its inherited number and can go through another exec; each is taken once.
#[derive(Debug, Default)]
pub(crate) struct Inherited(BTreeSet<RawFd>);

impl Inherited {
    /// Returns a close-on-exec duplicate of one of them.
    ///
    /// # Errors
    /// The number is not an inherited descriptor, or it has been taken.
    pub(crate) fn take(&mut self, Descriptor { fd: number }: Descriptor) -> io::Result<OwnedFd> {
        let refused = |why: &str| {
            let why = format!("inherited descriptor {number} {why}");
            io::Error::new(io::ErrorKind::InvalidData, why)
        };
        if number <= 2 {
            return Err(refused("is a standard stream"));
        }
        // SAFETY: the number is not -1; it is only passed to the calls below, which fail if it is
        // not open.
        let inherited = unsafe { BorrowedFd::borrow_raw(number) };
        let flags = fcntl(inherited, FcntlArg::F_GETFD).map_err(|_| refused("is not open"))?;
        // Descriptors opened by this program itself are always close-on-exec.
        if FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC) {
            return Err(refused("was not inherited"));
        }
        if !self.0.insert(number) {
            return Err(refused("is listed twice"));
        }
        duplicate(inherited)
    }

    /// Closes every taken descriptor at its inherited number.
    pub(crate) fn close(self) {
        for number in self.0 {
            // SAFETY: it was found open and without close-on-exec, unlike every descriptor opened
            // by this program itself: so no value in this process owned it, and this set has it
            // once.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
}

/// Returns the channel that the supervisor passed at [`CHANNEL_NUMBER`], close-on-exec again;
/// `None` if no sequenced-packet socket is there, so the program was not started by a supervisor.
///
/// To be called once, before anything else in the process.
#[must_use]
pub(crate) fn inherited_channel() -> Option<OwnedFd> {
    // SAFETY: the number is not -1; it is only queried here, which fails if it is not open.
    let inherited = unsafe { BorrowedFd::borrow_raw(CHANNEL_NUMBER) };
    if getsockopt(&inherited, sockopt::SockType) != Ok(SockType::SeqPacket) {
        return None;
    }
    fcntl(inherited, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is an open socket inherited through exec, so no value in this process owns it, and
    // this function is called once per process.
    Some(unsafe { OwnedFd::from_raw_fd(CHANNEL_NUMBER) })
}

/// Returns the listening TCP socket at `number`, which a dead process with the same descriptor
/// table owned; `None` if there is none.
///
/// To be called once for each number, by the process that takes the dead one's place.
#[must_use]
pub(crate) fn inherited_listener(number: u32) -> Option<OwnedFd> {
    let number = RawFd::try_from(number).ok()?;
    // SAFETY: the number is not -1; it is only queried here, which fails if it is not open.
    let listener = unsafe { BorrowedFd::borrow_raw(number) };
    if getsockopt(&listener, sockopt::AcceptConn) != Ok(true) {
        return None;
    }
    // SAFETY: it is open; the values that owned it are the dead process's, or copies of them that
    // this process forgets.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Returns the sequenced-packet socket at `number`, other than the channel, which a dead process
/// with the same descriptor table owned; `None` if there is none.
///
/// To be called once for each number, by the process that takes the dead one's place.
#[must_use]
pub(crate) fn inherited_link(number: u32) -> Option<OwnedFd> {
    let number = RawFd::try_from(number).ok()?;
    // SAFETY: the number is not -1; it is only queried here, which fails if it is not open.
    let link = unsafe { BorrowedFd::borrow_raw(number) };
    if number == CHANNEL_NUMBER || getsockopt(&link, sockopt::SockType) != Ok(SockType::SeqPacket) {
        return None;
    }
    // SAFETY: it is open; the values that owned it are the dead process's, or copies of them that
    // this process forgets.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
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
