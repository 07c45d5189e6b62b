//! A sequenced-packet socket that carries descriptors: the transport of channels and handovers.
//!
//! `SOCK_SEQPACKET` keeps record boundaries, and reports the other end's exit as an end of stream
//! after everything that it sent.
//!
//! Invariants: no call blocks, nor does closing received descriptors (`prevent_blocking_close`); received
//! descriptors are owned (and close-on-exec) before their packet is examined, so every refusal
//! closes them; a packet that the kernel truncated is marked, since the kernel has then closed
//! descriptors silently.
//!
//! It must not interpret packets, and it has no queue: its user decides about that.

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

use crate::sys::fd;
use crate::wire::FDS_MAX;

/// Maximum number of descriptors that the kernel delivers with one message (`SCM_MAX_FD`), so that
/// only a full descriptor table can cut the list short.
const FDS_RECEIVED_MAX: usize = 253;

/// Maximum number of packets discarded: more than a socket pair holds.
const PURGED_MAX: usize = 4096;

/// One end of a socket pair.
#[derive(Debug)]
pub struct Packets(OwnedFd);

/// A received packet.
#[derive(Debug)]
pub struct Packet {
    /// Its number of bytes in the buffer.
    pub length: usize,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
    /// Bytes or descriptors were lost in transit.
    pub truncated: bool,
}

/// Why the socket fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other end is closed, and everything that it sent has been received.
    #[error("the peer has closed the socket")]
    Closed,
    /// The kernel refused an operation.
    #[error("cannot {operation}: {source}")]
    System {
        /// `"send"` or `"receive"`.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl Packets {
    /// Returns both ends of a new socket pair, close-on-exec.
    ///
    /// # Errors
    /// The error of `socketpair`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (here, there) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(here), Self(there)))
    }

    /// Wraps an inherited or received end.
    #[must_use]
    pub const fn over(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Continues over another end, under the same descriptor number.
    ///
    /// # Errors
    /// What the system returned; nothing has changed then.
    pub fn replace(&mut self, socket: OwnedFd) -> io::Result<()> {
        fd::replace(&mut self.0, &socket)
    }

    /// Sends a packet: true if the kernel accepted it, false if it has no room now. At most
    /// [`FDS_MAX`] descriptors are sent with it.
    ///
    /// # Errors
    /// The socket has failed. After [`Error::Closed`] there may still be packets to receive.
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
                // Too many descriptors in flight; this ends as the other end reads.
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

    /// Returns the next packet, its bytes at the beginning of `into`; `None` if there is none now.
    ///
    /// # Errors
    /// The socket has failed; [`Error::Closed`] is its orderly end.
    pub fn receive(&self, into: &mut [u8]) -> Result<Option<Packet>, Error> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_RECEIVED_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (length, flags) = loop {
            let mut slices = [IoSliceMut::new(into)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match recvmsg(&self.0, &mut slices, &mut control, flags) {
                Ok(message) => break (message.bytes, message.flags),
                // An end that exited with unread packets is reported as a reset, once and before
                // the packets that it sent; those, and the end of stream, come after that.
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
        // Owned before anything else is examined: every way out closes them.
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        descriptors.iter().for_each(prevent_blocking_close);
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
    /// Returns whether the next packet carries descriptors; `None` if there is no packet now. The
    /// end of the socket, or its failure, counts as a packet without any.
    #[must_use]
    pub fn carries_descriptors(&self) -> Option<bool> {
        loop {
            // Without room for descriptors the kernel only reports that there are some.
            let mut control = RecvAncillaryBuffer::new(&mut []);
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            match recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut [0])],
                &mut control,
                flags,
            ) {
                Ok(message) => return Some(message.flags.contains(ReturnFlags::CTRUNC)),
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => return Some(false),
            }
        }
    }

    /// Discards packets that were received but not read, before this end is closed: the kernel
    /// would close their descriptors, and block on those with `SO_LINGER`.
    pub fn purge(&self) {
        for _ in 0..PURGED_MAX {
            match self.receive(&mut [0]) {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// Prevents the coming close from blocking. The sender may have set `SO_LINGER` on the socket, and
/// its last close then blocks, non-blocking or not, until the peer has received everything: a
/// compromised worker could stall its supervisor and its siblings.
fn prevent_blocking_close(descriptor: &OwnedFd) {
    // Fails for a descriptor that is not a socket, which cannot linger.
    let _ = SockRef::from(descriptor).set_linger(None);
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
