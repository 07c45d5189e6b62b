//! The sockets of the load: non-blocking connections from chosen addresses.
//!
//! A source address is bound without a port (`IP_BIND_ADDRESS_NO_PORT`): the kernel then chooses
//! the port when it knows both addresses, so that every source address has all ports for every
//! server.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::connection::Stream;
use uppercased_ctl::proxy_header::{self, Version};

/// The client's end of a connection.
#[derive(Debug)]
pub(super) struct Wire(TcpStream);

impl Wire {
    /// Begins to connect to `target`, from `source` if given, and registers the socket,
    /// edge-triggered, in both directions.
    ///
    /// # Errors
    /// Any error of the system.
    pub(super) fn open(
        target: SocketAddr,
        source: Option<SocketAddr>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
        if let Some(source) = source {
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&source.into())?;
        }
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
                return Err(error);
            }
            _ => {}
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

    /// Sends a PROXY header, as a load balancer does, that names this end as the client.
    ///
    /// # Errors
    /// It cannot be sent completely: a new connection has room for it.
    pub(super) fn introduce(&mut self, version: Version) -> io::Result<()> {
        let header = proxy_header::encode(version, self.0.local_addr()?, self.0.peer_addr()?);
        if self.0.write(&header)? < header.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Makes the following close a reset.
    pub(super) fn reset_on_close(&self) {
        // Fails for a connection that is over; then there is nothing to reset.
        let _ = SockRef::from(&self.0).set_linger(Some(Duration::ZERO));
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
