//! A connection's socket, identified by its descriptor number.
//!
//! Ownership: the number of an accepted connection belongs to its record in the working memory
//! (open from [`Socket::adopt`] to [`Socket::close`]), not to a value in private memory. So the
//! table of connections can be read from outside, and an idle connection costs nothing but its
//! record. This type is a number, not an owner; its holder must also hold the record.
//!
//! Every call passes `MSG_DONTWAIT`, so that a shared description whose `O_NONBLOCK` another
//! process cleared cannot block the loop, and `MSG_NOSIGNAL`, so that no peer can raise `SIGPIPE`.
#![expect(
    unsafe_code,
    reason = "a descriptor known by number is borrowed for one call"
)]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, Shutdown, SockaddrStorage, getpeername, getsockname, recv, send, shutdown,
};
use socket2::SockRef;
use std::time::Duration;

/// The number of an open, non-blocking stream socket.
#[derive(Clone, Copy, Debug)]
pub struct Socket(RawFd);

impl Socket {
    /// Takes ownership of the descriptor and returns its number as a socket.
    #[must_use]
    pub fn adopt(fd: OwnedFd) -> Self {
        Self(fd.into_raw_fd())
    }

    /// Returns the socket with number `fd`, whose record marks it as open.
    #[inline]
    #[must_use]
    pub const fn numbered(fd: u32) -> Self {
        Self(fd.cast_signed())
    }

    /// Returns the descriptor number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0.cast_unsigned()
    }

    /// Registers both directions and urgent data, edge-triggered.
    ///
    /// # Errors
    /// The error of `epoll_ctl`.
    pub fn watch(self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        SourceFd(&self.0).register(registry, token, interest)
    }

    /// Registers it as [`Socket::watch`] does, whether it is registered or not; its readiness is
    /// reported again.
    ///
    /// # Errors
    /// The error of `epoll_ctl`.
    pub fn watch_again(self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        watch_again(self.0, registry, token, interest)
    }

    /// Ends the registration. Call it before sending the descriptor to another process: the
    /// registration belongs to the open socket, so it would outlive the close while another
    /// descriptor is open.
    ///
    /// # Errors
    /// The error of `epoll_ctl`.
    pub fn unwatch(self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.0).deregister(registry)
    }

    fn set_linger(self, linger: Option<Duration>) {
        // SAFETY: the number is not -1 (it came from an owned descriptor), and the descriptor
        // stays open for the one call below: this process has one thread, which is here.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0) };
        // Fails only for a descriptor that is not a socket.
        let _ = SockRef::from(&fd).set_linger(linger);
    }

    /// Receives at most `into.len()` bytes; returns 0 at the end of the peer's stream.
    ///
    /// # Errors
    /// The error of `recv`; `WouldBlock` if no data is available.
    #[inline]
    pub fn recv(self, into: &mut [u8]) -> io::Result<usize> {
        recv(self.0, into, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from)
    }

    /// Sends as much of `from` as the kernel accepts and returns the number of bytes.
    ///
    /// # Errors
    /// The error of `send`; `WouldBlock` if the kernel accepts nothing now.
    #[inline]
    pub fn send(self, from: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.0, from, flags).map_err(io::Error::from)
    }

    /// Returns the kernel's number of the socket, which no other socket gets while the system runs
    /// and which stays the same in every process that has the socket; `None` if it is not known.
    #[cold]
    #[inline(never)]
    #[must_use]
    pub fn cookie(self) -> Option<u64> {
        // SAFETY: the number is not -1 (it came from an owned descriptor), and the descriptor
        // stays open for the one call below: this process has one thread, which is here.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0) };
        rustix::net::sockopt::socket_cookie(fd).ok()
    }

    /// Ends this side's stream; the peer receives the end after the last byte.
    ///
    /// # Errors
    /// The error of `shutdown`: the connection has already ended.
    pub fn end_output(self) -> io::Result<()> {
        shutdown(self.0, Shutdown::Write).map_err(io::Error::from)
    }

    /// Copies the receivable bytes, from the first on, and leaves them in the kernel; returns 0 at
    /// the end of the peer's stream.
    ///
    /// # Errors
    /// See [`Socket::recv`].
    pub fn peek(self, into: &mut [u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        recv(self.0, into, flags).map_err(io::Error::from)
    }

    /// Returns the peer's address from the kernel; `None` if the connection has ended.
    #[must_use]
    pub fn peer(self) -> Option<SocketAddr> {
        address(getpeername(self.0).ok()?)
    }

    /// Returns the address that the peer connected to.
    #[must_use]
    pub fn local(self) -> Option<SocketAddr> {
        address(getsockname(self.0).ok()?)
    }

    /// Closes the socket gracefully, at once; the number may be reused from now on. Closing also
    /// ends its registration, unless another descriptor refers to the same socket: a worker that
    /// hands over keeps one for a moment longer, and an event from it carries an old generation.
    ///
    /// A new connection inherits `SO_LINGER` from its listener, which other processes also hold,
    /// and the sender of a migrated connection may still hold its socket. A compromised worker
    /// could make each close wait for its client, or reset it; so the option is cleared here, at
    /// the close.
    pub fn close(self) {
        self.set_linger(None);
        self.release();
    }

    /// Closes the socket with a reset: output that the kernel still holds for the peer is
    /// discarded.
    pub fn reset(self) {
        self.set_linger(Some(Duration::ZERO));
        self.release();
    }

    fn release(self) {
        // Linux releases the number whatever close returns.
        let _ = nix::unistd::close(self.0);
    }
}

/// Registers descriptor `number`, whether it is registered or not; its readiness is reported again.
///
/// # Errors
/// The error of `epoll_ctl`.
pub fn watch_again(
    number: RawFd,
    registry: &Registry,
    token: Token,
    interest: Interest,
) -> io::Result<()> {
    match SourceFd(&number).reregister(registry, token, interest) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            SourceFd(&number).register(registry, token, interest)
        }
        result => result,
    }
}

fn address(name: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = name.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| Some(SocketAddr::V6((*name.as_sockaddr_in6()?).into())))
}

/// Passes the descriptors of `numbers`, whose records mark them as open, to `work`.
pub fn lend<R>(numbers: &[u32], work: impl FnOnce(&[BorrowedFd<'_>]) -> R) -> R {
    let borrow = |&number: &u32| {
        // SAFETY: the number is not -1, and the descriptor stays open for the one call below:
        // `work` cannot keep it, and this process has one thread, which is in there.
        unsafe { BorrowedFd::borrow_raw(number.cast_signed()) }
    };
    let borrowed: Vec<BorrowedFd<'_>> = numbers.iter().map(borrow).collect();
    work(&borrowed)
}

/// The effect of a failed accept on the accept queue.
///
/// Three classes: an empty queue or a failed connection, which predicts nothing about the next
/// call; the process or the system, where only time helps; and the listener itself, which never
/// recovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptFailure {
    /// The queue is empty.
    Empty,
    /// This connection failed before it was accepted; the next may not.
    ThisOne,
    /// The process has no free descriptor.
    ProcessDescriptors,
    /// The system has no free open file.
    SystemDescriptors,
    /// The system has no memory for a socket.
    Memory,
    /// Any other errno: the next call may fail as well.
    Other(i32),
    /// The socket no longer listens, or is not a socket.
    Listener(i32),
}

impl fmt::Display for AcceptFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no connection waits"),
            Self::ThisOne => f.write_str("the connection failed first"),
            Self::ProcessDescriptors => f.write_str("the process has no descriptor left"),
            Self::SystemDescriptors => f.write_str("the system has no open file left"),
            Self::Memory => f.write_str("the system has no memory for a socket"),
            Self::Other(errno) | Self::Listener(errno) => {
                io::Error::from_raw_os_error(*errno).fmt(f)
            }
        }
    }
}

impl AcceptFailure {
    /// Classifies an error of `accept4`. Linux reports pending network errors of the connection
    /// here, and accept(2) recommends treating them like an empty queue: they concern one
    /// connection.
    #[must_use]
    pub fn from_error(error: &io::Error) -> Self {
        let Some(number) = error.raw_os_error() else {
            return Self::Other(0);
        };
        match Errno::from_raw(number) {
            Errno::EAGAIN => Self::Empty,
            Errno::EINTR
            | Errno::ECONNABORTED
            | Errno::EPROTO
            | Errno::EPERM
            | Errno::ENETDOWN
            | Errno::ENOPROTOOPT
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::ECONNRESET
            | Errno::ETIMEDOUT => Self::ThisOne,
            Errno::EMFILE => Self::ProcessDescriptors,
            Errno::ENFILE => Self::SystemDescriptors,
            Errno::ENOBUFS | Errno::ENOMEM => Self::Memory,
            // accept(2) lists EOPNOTSUPP under both kinds; TCP returns it for no connection.
            Errno::EINVAL | Errno::EBADF | Errno::ENOTSOCK | Errno::EOPNOTSUPP => {
                Self::Listener(number)
            }
            _ => Self::Other(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (Socket::adopt(server.into()), client)
    }

    #[test]
    fn socket_moves_bytes_without_blocking() {
        let (socket, mut client) = pair();
        let mut bytes = [0; 8];
        assert_eq!(
            socket.recv(&mut bytes).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(socket.send(b"ok").unwrap(), 2);
        socket.end_output().unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"ok");
        socket.close();
    }

    #[test]
    fn reset_reaches_the_peer() {
        let (socket, mut client) = pair();
        socket.reset();
        let seen = client.read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(seen, Err(io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn close_ignores_linger_of_other_holders() {
        let (socket, client) = pair();
        let ours = SockRef::from(&client).local_addr().unwrap();
        // The peer does not read: the last bytes, and the end of the stream, are never sent.
        while socket.send(&[0; 4096]).is_ok() {}
        socket.set_linger(Some(Duration::from_secs(600)));
        let (done, is_done) = std::sync::mpsc::channel();
        let close = move || {
            socket.close();
            done.send(ours.is_ipv4())
        };
        std::thread::Builder::new().spawn(close).unwrap();
        assert_eq!(is_done.recv_timeout(Duration::from_secs(10)), Ok(true));
    }

    #[test]
    fn send_to_closed_peer_is_an_error() {
        let (socket, client) = pair();
        drop(client);
        let broken = (0..10_000).find_map(|_| match socket.send(&[0; 1024]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Some(error.kind()),
            _ => None,
        });
        let ended = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        assert!(
            broken.is_some_and(|kind| ended.contains(&kind)),
            "{broken:?}"
        );
        socket.close();
    }

    #[test]
    fn accept_errors_are_classified() {
        let sorted = |errno: Errno| AcceptFailure::from_error(&io::Error::from(errno));
        assert_eq!(sorted(Errno::EAGAIN), AcceptFailure::Empty);
        assert_eq!(sorted(Errno::EMFILE), AcceptFailure::ProcessDescriptors);
        assert_eq!(sorted(Errno::ENFILE), AcceptFailure::SystemDescriptors);
        assert_eq!(sorted(Errno::ENOMEM), AcceptFailure::Memory);
        assert_eq!(sorted(Errno::ECONNABORTED), AcceptFailure::ThisOne);
        assert_eq!(sorted(Errno::EHOSTUNREACH), AcceptFailure::ThisOne);
        assert_eq!(sorted(Errno::EINTR), AcceptFailure::ThisOne);
        for errno in [Errno::EINVAL, Errno::EBADF, Errno::ENOTSOCK] {
            assert_eq!(sorted(errno), AcceptFailure::Listener(errno as i32));
        }
        for errno in [Errno::EIO, Errno::EFAULT, Errno::ENOSYS, Errno::EACCES] {
            assert_eq!(sorted(errno), AcceptFailure::Other(errno as i32));
        }
    }
}
