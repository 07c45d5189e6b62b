//! Descriptors that arrive as bare numbers become owned values here, and nowhere else.
#![expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

/// The number at which a process finds its channel after exec.
pub const CHANNEL_NUMBER: RawFd = 3;

/// Owns descriptors that the kernel has just installed for this process (`SCM_RIGHTS`).
///
/// To be called once, with the numbers of one control message, by whoever received it.
#[must_use]
pub(crate) fn own(numbers: &[RawFd]) -> Vec<OwnedFd> {
    let own_one = |&number: &RawFd| {
        // SAFETY: `recvmsg` returned this number: the kernel installed it as a new, open
        // descriptor of this process, that nothing else knows of and nothing else will close.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    numbers.iter().map(own_one).collect()
}

/// Makes every descriptor from number `first` up close-on-exec, whoever opened it: what the shell
/// that started us left open is not for the programs that we start. Best effort: without a readable
/// `/proc` they stay as they are.
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

/// Lets the descriptors through exec, or keeps them from it again. All or none.
///
/// # Errors
/// What `fcntl` returned for the first one that refused; those before it are as they were.
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

/// A duplicate of a descriptor that came through exec, which stays as it is. Close-on-exec.
///
/// # Errors
/// The number is not open.
pub(crate) fn duplicate_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is not -1; it is only handed to the one call below, and if it is not open
    // the kernel says so.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(own(&[fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3))?]).remove(0))
}

/// Descriptors that this process's earlier program left open through exec: open, above the standard
/// streams, each named once, and nobody's yet.
#[derive(Debug)]
pub(crate) struct Inherited(BTreeSet<RawFd>);

impl Inherited {
    /// Checks `numbers`. Nothing is owned and nothing changes.
    ///
    /// To be called once in a process's life, before it has opened what could have such a number.
    ///
    /// # Errors
    /// Which number cannot be one.
    pub(crate) fn check(numbers: &[RawFd]) -> io::Result<Self> {
        let refused = |number: RawFd, why: &str| {
            let why = format!("inherited descriptor {number} {why}");
            io::Error::new(io::ErrorKind::InvalidData, why)
        };
        let mut checked = BTreeSet::new();
        for &number in numbers {
            if number <= 2 {
                return Err(refused(number, "is a standard stream"));
            }
            // SAFETY: the number is not -1; it is only asked about, and if it is not open the
            // kernel says so.
            let asked = unsafe { BorrowedFd::borrow_raw(number) };
            let flags = fcntl(asked, FcntlArg::F_GETFD);
            let flags = flags.map_err(|_| refused(number, "is not open"))?;
            // Whatever this program has opened itself is close-on-exec from birth.
            if FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC) {
                return Err(refused(number, "was not inherited"));
            }
            if !checked.insert(number) {
                return Err(refused(number, "is listed twice"));
            }
        }
        Ok(Self(checked))
    }

    /// One of them, to be looked at.
    ///
    /// # Panics
    /// If it is none of them, or owned by now.
    pub(crate) fn borrow(&self, number: RawFd) -> BorrowedFd<'_> {
        assert!(self.0.contains(&number), "an inherited descriptor");
        // SAFETY: it was found open, and nobody else knows of it: it stays open until `own` gives
        // it away, which needs this borrow to have ended.
        unsafe { BorrowedFd::borrow_raw(number) }
    }

    /// Owns one of them, close-on-exec from now on.
    ///
    /// # Panics
    /// If it is none of them, or owned by now.
    #[must_use]
    pub(crate) fn own(&mut self, number: RawFd) -> OwnedFd {
        assert!(self.0.remove(&number), "an inherited descriptor");
        // SAFETY: it was found open, no value in this process owned it, and it has just left the
        // set, so it is owned once.
        let owned = unsafe { OwnedFd::from_raw_fd(number) };
        // Fails for a descriptor that is not open, and for nothing else.
        let _ = fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        owned
    }

    /// Closes those that nobody has taken.
    pub(crate) fn close(mut self) {
        while let Some(&number) = self.0.first() {
            drop(self.own(number));
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
    // SAFETY: the number is not -1; it is only asked about here, and if it is not open the kernel
    // says so.
    let asked = unsafe { BorrowedFd::borrow_raw(CHANNEL_NUMBER) };
    if getsockopt(&asked, sockopt::SockType) != Ok(SockType::SeqPacket) {
        return None;
    }
    fcntl(asked, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is an open socket that came through exec, so no value in this process owns it,
    // and this function is called once in a process's life.
    Some(unsafe { OwnedFd::from_raw_fd(CHANNEL_NUMBER) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

    use super::*;

    fn is_passed_on(fd: &OwnedFd) -> bool {
        fcntl(fd, FcntlArg::F_GETFD).unwrap() == 0
    }

    #[test]
    fn descriptors_are_let_through_exec_and_kept_from_it_again() {
        let (one, other) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        pass_on(&[one.as_fd(), other.as_fd()], true).unwrap();
        assert!(is_passed_on(&one) && is_passed_on(&other));
        pass_on(&[one.as_fd(), other.as_fd()], false).unwrap();
        assert!(!is_passed_on(&one) && !is_passed_on(&other));
    }

    #[test]
    fn inherited_descriptors_are_checked_before_any_is_owned() {
        let (one, other) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (low, high) = (one.as_raw_fd(), other.as_raw_fd());
        Inherited::check(&[low]).unwrap_err();
        pass_on(&[one.as_fd(), other.as_fd()], true).unwrap();
        for wrong in [vec![low, low], vec![2], vec![-1], vec![low, 1_000_000]] {
            Inherited::check(&wrong).unwrap_err();
        }
        let numbers = [one.into_raw_fd(), other.into_raw_fd()];
        let mut inherited = Inherited::check(&numbers).unwrap();
        assert_eq!(inherited.borrow(high).as_raw_fd(), high);
        let owned = inherited.own(low);
        assert_eq!(owned.as_raw_fd(), low);
        assert!(!is_passed_on(&owned));
        drop(inherited.own(high));
        duplicate_inherited(low).unwrap();
        duplicate_inherited(-1).unwrap_err();
        duplicate_inherited(1_000_000).unwrap_err();
    }
}
