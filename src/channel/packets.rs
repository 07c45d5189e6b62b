//! A sequenced-packet socket that carries descriptors: what a channel and a handover travel by.
//!
//! `SOCK_SEQPACKET` keeps record boundaries, and reports the other end's death as an end of stream
//! after everything that it had said.
//!
//! Invariants: never blocks, nor does closing what came by it (`at_once`); received descriptors are
//! owned (and close-on-exec) before anybody looks at their packet, so every refusal closes them; what
//! the kernel cut short is marked as such, since it has then closed descriptors silently.
//!
//! It must not know what a packet says, and it keeps no queue: that is its user's to decide.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use socket2::SockRef;

use crate::wire::FDS_MAX;

/// Room for as many descriptors as the kernel ever delivers with one message (`SCM_MAX_FD`), so
/// that only a full descriptor table can cut the list short.
const FDS_RECEIVED_MAX: usize = 253;

/// Packets that are thrown away at most: more than a socket pair holds.
const PURGED_MAX: usize = 4096;

/// One end of a socket pair.
#[derive(Debug)]
pub struct Packets(OwnedFd);

/// What came.
#[derive(Debug)]
pub struct Packet {
    /// Bytes of it in the buffer.
    pub length: usize,
    /// The descriptors that came along.
    pub descriptors: Vec<OwnedFd>,
    /// Bytes or descriptors were lost on the way.
    pub truncated: bool,
}

/// Why the socket cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other end is gone, and everything that it said has been received.
    #[error("the other end is gone")]
    Closed,
    /// The kernel refused an operation.
    #[error("{operation} failed: {source}")]
    System {
        /// `"send"` or `"receive"`.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Packets {
    /// Both ends of a new socket pair, close-on-exec.
    ///
    /// # Errors
    /// What `socketpair` returned.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (here, there) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(here), Self(there)))
    }

    /// Over an end that came from elsewhere.
    #[must_use]
    pub const fn over(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends a packet: true if the kernel took it, false if it has no room now. At most
    /// [`FDS_MAX`] descriptors go along.
    ///
    /// # Errors
    /// The socket cannot go on. [`Error::Closed`] here says nothing of what is still to be
    /// received.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<bool, Error> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        loop {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(Error::System {
                    operation: "send",
                    source: io::ErrorKind::InvalidInput.into(),
                });
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                // Too many descriptors in flight clears up as the other end reads.
                Err(Errno::AGAIN | Errno::TOOMANYREFS) => return Ok(false),
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(Error::Closed),
                Err(errno) => {
                    return Err(Error::System {
                        operation: "send",
                        source: errno.into(),
                    });
                }
            }
        }
    }

    /// The next packet, its bytes at the beginning of `into`; `None` if there is none now.
    ///
    /// # Errors
    /// The socket cannot go on; [`Error::Closed`] is its orderly end.
    pub fn receive(&self, into: &mut [u8]) -> Result<Option<Packet>, Error> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_RECEIVED_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (length, flags) = loop {
            let mut slices = [IoSliceMut::new(into)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match recvmsg(&self.0, &mut slices, &mut control, flags) {
                Ok(message) => break (message.bytes, message.flags),
                // An end that died with unread packets is reported as a reset, once and before
                // what it had said; its last words and its end come after that.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => {
                    return Err(Error::System {
                        operation: "receive",
                        source: errno.into(),
                    });
                }
            }
        };
        // Owned before anything else is looked at: every way out closes them.
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        descriptors.iter().for_each(at_once);
        if length == 0 {
            return Err(Error::Closed);
        }
        Ok(Some(Packet {
            length,
            descriptors,
            truncated: flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC),
        }))
    }
}

impl Packets {
    /// Throws away what has come and will not be looked at, before this end is closed: the kernel
    /// would close the descriptors in it, and wait for those that ask it to.
    pub fn purge(&self) {
        for _ in 0..PURGED_MAX {
            match self.receive(&mut [0]) {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// Has a coming close not wait. Whoever sent the descriptor may have set `SO_LINGER` on its socket,
/// and the last close of it then stands still, non-blocking or not, until the peer has taken
/// everything: so a worker in strange hands could stop its supervisor, and its siblings.
fn at_once(descriptor: &OwnedFd) {
    // Fails for what is no socket, and that has nothing to wait for.
    let _ = SockRef::from(descriptor).set_linger(None);
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
