//! Shared by the Rust peers: the listening socket, and the report that it is open.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Backlog of a peer's listener: the kernel's usual limit, and the floor's.
const BACKLOG: i32 = 4096;

/// Returns a blocking listener in the `SO_REUSEPORT` group of `port` on loopback. Its connections
/// inherit `TCP_NODELAY`, which saves a call per connection.
pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Reports to the parent process that the listener accepts connections.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark is no command of the program"
)]
pub(crate) fn ready() -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(b"ready\n")?;
    out.flush()
}
