//! Descriptors that arrive as bare numbers become owned values here, and nowhere else.
#![expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

/// The number at which a worker finds its channel after exec, and an admin process the first of its
/// listeners.
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

/// Owns descriptors that this process's earlier program left open through exec, close-on-exec from
/// now on. Nothing is owned unless every number is an open descriptor, above the standard streams
/// and named once.
///
/// To be called once in a process's life, before it has opened what could have such a number.
///
/// # Errors
/// Which number cannot be one.
pub(crate) fn own_inherited(numbers: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    let refused = |number: RawFd, why: &str| {
        let why = format!("descriptor {number} of the saved state {why}");
        io::Error::new(io::ErrorKind::InvalidData, why)
    };
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(refused(pair[0], "is named twice"));
    }
    for &number in numbers {
        if number <= 2 {
            return Err(refused(number, "is a standard stream"));
        }
        // SAFETY: the number is not -1; it is only asked about, and if it is not open the kernel
        // says so.
        let asked = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(asked, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|_| refused(number, "is not open"))?;
    }
    Ok(own(numbers))
}

/// The channel that the supervisor left for this worker at [`CHANNEL_NUMBER`]; close-on-exec
/// again. `None` if there is no sequenced-packet socket: the program was not started by a
/// supervisor.
///
/// To be called once, first thing in a worker's life.
#[must_use]
pub(crate) fn inherited_channel() -> Option<OwnedFd> {
    let is_channel =
        |socket: BorrowedFd<'_>| getsockopt(&socket, sockopt::SockType) == Ok(SockType::SeqPacket);
    inherited(CHANNEL_NUMBER, is_channel)
}

/// The same for the `count` listeners that the supervisor left for its admin process, from that
/// number on.
#[must_use]
pub(crate) fn inherited_listeners(count: u8) -> Option<Vec<OwnedFd>> {
    let listens = |socket: BorrowedFd<'_>| getsockopt(&socket, sockopt::AcceptConn) == Ok(true);
    let numbers = (0..count).map(|index| CHANNEL_NUMBER + RawFd::from(index));
    numbers.map(|number| inherited(number, listens)).collect()
}

fn inherited(number: RawFd, is_the_one: impl FnOnce(BorrowedFd<'_>) -> bool) -> Option<OwnedFd> {
    // SAFETY: the number is not -1; it is only asked about here, and if it is not open the kernel
    // says so.
    let asked = unsafe { BorrowedFd::borrow_raw(number) };
    if !is_the_one(asked) {
        return None;
    }
    fcntl(asked, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is an open socket that came through exec, so no value in this process owns it,
    // and the two functions above are called once in a process's life, one or the other, which
    // asks for each number once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
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
    fn what_was_left_open_is_owned_once_or_not_at_all() {
        let (one, other) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (low, high) = (one.as_raw_fd(), other.as_raw_fd());
        for wrong in [vec![low, low], vec![2], vec![-1], vec![low, 1_000_000]] {
            own_inherited(&wrong).unwrap_err();
        }
        let numbers = [one.into_raw_fd(), other.into_raw_fd()];
        let owned = own_inherited(&numbers).unwrap();
        assert_eq!([owned[0].as_raw_fd(), owned[1].as_raw_fd()], [low, high]);
        duplicate_inherited(low).unwrap();
        duplicate_inherited(-1).unwrap_err();
        duplicate_inherited(1_000_000).unwrap_err();
    }
}
