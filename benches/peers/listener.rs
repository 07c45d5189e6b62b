//! What the peers written in Rust have in common: their listening socket, and how they say that it
//! is there.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait in a peer's accept queue; the kernel's usual bound, and the floor's.
const BACKLOG: i32 = 4096;

/// A blocking listener that joins the `SO_REUSEPORT` group of `port` on loopback. `TCP_NODELAY` is
/// inherited by its connections, which saves a call for each.
pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Tells whoever started this process that it may be connected to.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark is no command of the program"
)]
pub(crate) fn ready() -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(b"ready\n")?;
    out.flush()
}
