//! Descriptors that arrive as bare numbers become owned values here, and nowhere else.
#![expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

/// The number at which a worker finds its channel after exec.
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

/// The channel that the supervisor left for this worker at [`CHANNEL_NUMBER`]; close-on-exec
/// again. `None` if there is no sequenced-packet socket: the program was not started by a
/// supervisor.
///
/// To be called once, first thing in a worker's life.
#[must_use]
pub(crate) fn inherited_channel() -> Option<OwnedFd> {
    // SAFETY: the number is not -1; it is only asked about here, and if it is not open the kernel
    // says so.
    let asked = unsafe { BorrowedFd::borrow_raw(CHANNEL_NUMBER) };
    if getsockopt(&asked, sockopt::SockType).ok()? != SockType::SeqPacket {
        return None;
    }
    fcntl(asked, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is an open socket that came through exec, so no value in this process owns it,
    // and this function is called once.
    Some(unsafe { OwnedFd::from_raw_fd(CHANNEL_NUMBER) })
}
