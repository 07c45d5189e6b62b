//! The meeting of a worker without a supervisor and a new supervisor: the worker listens on a Unix
//! socket that its first supervisor bound, and the new one connects.
//!
//! A sandboxed worker cannot create, bind or connect a socket, and needs none of that: it accepts.
//! The connection then is the worker's channel; the worker introduces itself first.
//!
//! Invariants: no call blocks; both ends know the other's user from the kernel, and the supervisor
//! knows the worker's process from the kernel: the ID that comes with the introduction, which the
//! worker cannot choose.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recvmsg, setsockopt, sockopt,
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

use crate::sys::fd::own;
use crate::wire::{FDS_MAX, FRAME_MAX_BYTES};

/// Connections that wait to be accepted: more than supervisors that start at once.
const BACKLOG: i32 = 8;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The listening end, of one worker.
#[derive(Debug)]
pub struct Rendezvous(OwnedFd);

/// A process that has connected to a worker.
#[derive(Debug)]
pub struct Visitor {
    /// The connection.
    pub socket: OwnedFd,
    /// Its user.
    pub uid: u32,
}

/// The first message of a worker.
#[derive(Debug)]
pub struct Introduction {
    /// The frame.
    pub frame: Vec<u8>,
    /// The descriptors, in order.
    pub descriptors: Vec<OwnedFd>,
    /// The worker's process ID; `None` if it is not in this namespace.
    pub sender: Option<i32>,
}

impl Rendezvous {
    /// Binds `path`.
    ///
    /// # Errors
    /// What the system returned.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG)?;
        Ok(Self(socket))
    }

    /// Wraps the socket that the supervisor has bound.
    #[must_use]
    pub const fn over(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Accepts a connection; `None` if there is none.
    #[must_use]
    pub fn accept(&self) -> Option<Visitor> {
        let socket = accept_with(&self.0, FLAGS).ok()?;
        let uid = getsockopt(&socket, sockopt::PeerCredentials).ok()?.uid();
        Some(Visitor { socket, uid })
    }
}

impl AsFd for Rendezvous {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Connects to the worker that listens at `path`. Returns the connection, and the user that bound
/// it.
///
/// # Errors
/// `ConnectionRefused` if no process listens there any more, else what the system returned.
pub fn visit(path: &Path) -> io::Result<(OwnedFd, u32)> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
    // The kernel then names the sender of each message.
    setsockopt(&socket, sockopt::PassCred, &true)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let uid = getsockopt(&socket, sockopt::PeerCredentials)?.uid();
    Ok((socket, uid))
}

/// Receives the worker's introduction from a connection that is readable. No message after it names
/// its sender.
///
/// # Errors
/// The worker has closed the connection, or what the system returned.
pub fn receive_introduction(socket: &OwnedFd) -> io::Result<Introduction> {
    let mut frame = vec![0; FRAME_MAX_BYTES];
    let mut space = cmsg_space!([i32; FDS_MAX], UnixCredentials);
    let (mut descriptors, mut sender, mut whole) = (Vec::new(), None, true);
    let length = {
        let mut slices = [IoSliceMut::new(&mut frame)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        for message in received.cmsgs()? {
            match message {
                ControlMessageOwned::ScmRights(numbers) => descriptors.extend(own(&numbers)),
                ControlMessageOwned::ScmCredentials(user) => {
                    sender = Some(user.pid()).filter(|&pid| pid > 0);
                }
                _ => whole = false,
            }
        }
        received.bytes
    };
    if length == 0 || !whole {
        return Err(Errno::ECONNRESET.into());
    }
    setsockopt(socket, sockopt::PassCred, &false)?;
    frame.truncate(length);
    Ok(Introduction {
        frame,
        descriptors,
        sender,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::packets::Packets;
    use super::*;

    #[test]
    fn each_end_knows_other_from_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.sock");
        let rendezvous = Rendezvous::bind(&path).unwrap();
        assert!(rendezvous.accept().is_none());
        let (near, owner) = visit(&path).unwrap();
        let visitor = rendezvous.accept().unwrap();
        let user = nix::unistd::geteuid().as_raw();
        assert_eq!((owner, visitor.uid), (user, user));
        assert!(receive_introduction(&near).is_err(), "it has not come");
        let far = Packets::over(visitor.socket);
        assert!(far.send(b"hello", &[near.as_fd()]).unwrap());
        let introduction = receive_introduction(&near).unwrap();
        assert_eq!(introduction.frame, b"hello");
        assert_eq!(introduction.descriptors.len(), 1);
        assert_eq!(introduction.sender, Some(std::process::id().cast_signed()));
        drop(far);
        assert!(receive_introduction(&near).is_err());
        drop(rendezvous);
        let refused = visit(&path).unwrap_err().kind();
        assert_eq!(refused, io::ErrorKind::ConnectionRefused);
    }
}
