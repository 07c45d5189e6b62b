//! Descriptors that arrive as bare numbers become owned values here, and nowhere else.
#![expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

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

/// The channel that the supervisor left for this worker at [`CHANNEL_NUMBER`]; close-on-exec
/// again. `None` if there is no sequenced-packet socket: the program was not started by a
/// supervisor.
///
/// To be called once, first thing in a worker's life.
#[must_use]
pub(crate) fn inherited_channel() -> Option<OwnedFd> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::socket::{SockType, getsockopt, sockopt};

    // SAFETY: the number is not -1; it is only asked about here, and if it is not open the kernel
    // says so.
    let asked = unsafe { std::os::fd::BorrowedFd::borrow_raw(CHANNEL_NUMBER) };
    if getsockopt(&asked, sockopt::SockType).ok()? != SockType::SeqPacket {
        return None;
    }
    fcntl(asked, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is an open socket that came through exec, so no value in this process owns it,
    // and this function is called once.
    Some(unsafe { OwnedFd::from_raw_fd(CHANNEL_NUMBER) })
}
