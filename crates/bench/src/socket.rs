//! The sockets of the load: non-blocking connections from chosen addresses.
//!
//! A source address is bound without a port (`IP_BIND_ADDRESS_NO_PORT`): the kernel then chooses
//! the port when it knows both addresses, so that every source address has all ports for every
//! server.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd as _;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::libc::linger;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, setsockopt,
    socket, sockopt,
};

use crate::connection::Stream;
use uppercased_ctl::proxy_header::{self, Version};

/// The client's end of a connection.
#[derive(Debug)]
pub(super) struct Wire(TcpStream);

impl Wire {
    /// Begins to connect to `target`, from `source` if given, with a receive buffer of `buffer`
    /// bytes if given, and registers the socket, edge-triggered, in both directions.
    ///
    /// # Errors
    /// Any error of the system.
    pub(super) fn open(
        target: SocketAddr,
        source: Option<SocketAddr>,
        buffer: Option<u32>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let family = match target {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
        if let Some(source) = source {
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(source))?;
        }
        if let Some(buffer) = buffer {
            // Set before connecting, since the window depends on it.
            setsockopt(&socket, sockopt::RcvBuf, &(buffer as usize))?;
        }
        setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(target)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut stream = TcpStream::from_std(socket.into());
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self(stream))
    }

    /// Checks whether a writable socket is connected.
    ///
    /// # Errors
    /// The cause of the failure.
    pub(super) fn connected(&self, target: SocketAddr) -> io::Result<()> {
        if let Some(error) = self.0.take_error()? {
            return Err(error);
        }
        // If a port of the ephemeral range has no listener, the kernel may choose that very port
        // for this end, and the socket is connected to itself. A graceful close would leave the
        // server's port in TIME_WAIT.
        let local = self.0.local_addr()?;
        if (local.ip(), local.port()) == (target.ip(), target.port()) {
            self.reset_on_close();
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(())
    }

    /// Sends a PROXY header that names this end as the client, as a load balancer does.
    ///
    /// # Errors
    /// It was not sent completely, although a new connection has room for it.
    pub(super) fn send_proxy_header(&mut self, version: Version) -> io::Result<()> {
        let header = proxy_header::encode(version, self.0.local_addr()?, self.0.peer_addr()?);
        if self.0.write(&header)? < header.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Makes the following close reset the connection.
    pub(super) fn reset_on_close(&self) {
        // Fails if the connection has ended; then nothing needs a reset.
        let at_once = linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let _ = setsockopt(&self.0, sockopt::Linger, &at_once);
    }
}

impl Stream for Wire {
    #[inline]
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }

    #[inline]
    fn send(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.write(from)
    }

    fn end_output(&mut self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }
}
