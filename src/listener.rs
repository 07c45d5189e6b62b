//! Binds a slot's listening sockets.
//!
//! Invariants: every option that connections inherit, or that decides whether the bind succeeds,
//! is set before `bind`; every generation sets the same ones, since a port with TIME_WAIT sockets
//! can be bound again exactly when old and new socket share `SO_REUSEADDR` or `SO_REUSEPORT`;
//! family, address and the IPv6-only flag are explicit, because a group forms only among
//! sockets that agree in all of them.
//!
//! A bound socket exists as long as its slot: it is passed on, never shut down. All workers of the
//! slot share it and its options, which are those of the committed release: the worker that binds
//! sets them, the supervisor sets them again when another release is committed, and a worker that
//! adopts the socket leaves them unchanged, so a rolled-back reload has nothing to undo.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::config::{Config, KERNEL_STALL_MAX, KERNEL_STALL_MIN};
use crate::log::event;
use crate::port::{self, Holder};
use crate::wire::Listen;

/// Why a listener cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port is in use by a socket that does not share it.
    #[error(
        "cannot listen on {addr}: the address is in use{}; stop that server or choose another \
         address with --listen",
        .holder.as_ref().map(|holder| format!(" ({holder})")).unwrap_or_default()
    )]
    InUse {
        /// The address.
        addr: SocketAddr,
        /// The process that uses it, if known.
        holder: Option<Holder>,
    },
    /// The port is privileged.
    #[error(
        "cannot listen on {addr}: permission denied; ports below {first_free} need root or \
         CAP_NET_BIND_SERVICE, choose a higher one with --listen"
    )]
    Privileged {
        /// The address.
        addr: SocketAddr,
        /// The first unprivileged port.
        first_free: u16,
    },
    /// No interface has the address.
    #[error(
        "cannot listen on {addr}: this machine does not have the address {}; use one of its own, \
         or {} for all",
        .addr.ip(), unspecified(*.addr)
    )]
    NotOurs {
        /// The address.
        addr: SocketAddr,
    },
    /// The system does not support the address's family.
    #[error("cannot listen on {addr}: this system does not support {}", family(*.addr))]
    NoFamily {
        /// The address.
        addr: SocketAddr,
    },
    /// Any other failure.
    #[error("cannot listen on {addr}: {operation} failed: {source}")]
    System {
        /// The address.
        addr: SocketAddr,
        /// The failed call.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Binds and listens. Returns the socket and its actual address.
///
/// # Errors
/// Any [`Error`]; no socket is left open.
pub fn bind(listen: &Listen, config: &Config) -> Result<(OwnedFd, Listen), Error> {
    let addr = listen.addr;
    let step = |operation| move |source| describe(listen, operation, source);
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))
        .map_err(step("socket"))?;
    socket
        .set_reuse_address(true)
        .map_err(step("setting SO_REUSEADDR"))?;
    socket
        .set_reuse_port(true)
        .map_err(step("setting SO_REUSEPORT"))?;
    if addr.is_ipv6() {
        socket
            .set_only_v6(!listen.dual_stack)
            .map_err(step("setting IPV6_V6ONLY"))?;
    }
    set_inherited(&socket, config).map_err(step("setting socket options"))?;
    socket.bind(&addr.into()).map_err(step("bind"))?;
    socket.listen(backlog(config)).map_err(step("listen"))?;
    let bound = socket.local_addr().map_err(step("getsockname"))?;
    let bound = bound.as_socket().unwrap_or(addr);
    Ok((
        socket.into(),
        Listen {
            addr: bound,
            ..*listen
        },
    ))
}

/// Returns whether this system supports IPv6, with or without an address.
#[must_use]
pub fn has_ipv6() -> bool {
    let socket = Socket::new(Domain::IPV6, Type::STREAM.cloexec(), Some(Protocol::TCP));
    !socket.is_err_and(|error| error.raw_os_error() == Some(EAFNOSUPPORT))
}

/// Replaces an address for all IPv4 and IPv6 clients (`*:PORT`) with one for all IPv4 clients on a
/// system without IPv6, and logs it.
pub fn fall_back_to_ipv4(wanted: &mut [Listen], has_ipv6: bool) {
    let both = |one: &&mut Listen| one.dual_stack && one.addr.ip().is_unspecified();
    for one in wanted.iter_mut().filter(both).filter(|_| !has_ipv6) {
        *one = Listen {
            addr: SocketAddr::from((Ipv4Addr::UNSPECIFIED, one.addr.port())),
            dual_stack: false,
        };
        event!(ipv6_unavailable, address = %one.addr);
    }
}

const EAFNOSUPPORT: i32 = nix::errno::Errno::EAFNOSUPPORT as i32;

/// Sets the options and the backlog of `config` on a listening socket: connections accepted from
/// now on inherit them, whichever worker accepts them.
///
/// # Errors
/// [`Error::System`]; options set before the failed step stay set.
pub fn set_options(socket: &OwnedFd, listen: &Listen, config: &Config) -> Result<(), Error> {
    let step = |operation| move |source| describe(listen, operation, source);
    let socket = SockRef::from(socket);
    set_inherited(&socket, config).map_err(step("setting socket options"))?;
    // A socket that was shut down would listen again, but at another port.
    if socket.is_listener().is_ok_and(|listens| !listens) {
        return Ok(());
    }
    // On a listening socket this changes only the backlog.
    socket.listen(backlog(config)).map_err(step("listen"))
}

/// Returns the longest accept queue that the system grants (`net.core.somaxconn`).
#[must_use]
pub fn longest_backlog() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Sets the options that accepted connections inherit from their listener, which saves a call per
/// connection. A fixed buffer size cannot be reverted to autotuning; the configuration refuses that
/// change.
fn set_inherited(socket: &Socket, config: &Config) -> io::Result<()> {
    // A reply is one send; without this the next one would wait for the peer's delayed ACK.
    socket.set_tcp_nodelay(true)?;
    // Urgent data stays in the stream: byte-exact service and kernel byte counters depend on it.
    socket.set_out_of_band_inline(true)?;
    // Another holder of the socket may have set it: a close would then block, or reset the client.
    socket.set_linger(None)?;
    // Limits how long the kernel holds output for a peer that does not read, also after the close.
    let stall = config.write_stall_timeout;
    socket.set_tcp_user_timeout(stall.map(|it| it.clamp(KERNEL_STALL_MIN, KERNEL_STALL_MAX)))?;
    if let Some(bytes) = config.recv_buffer {
        socket.set_recv_buffer_size(bytes as usize)?;
    }
    if let Some(bytes) = config.send_buffer {
        socket.set_send_buffer_size(bytes as usize)?;
    }
    match config.keepalive {
        Some(silence) => socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(silence)),
        None => socket.set_keepalive(false),
    }
}

fn backlog(config: &Config) -> i32 {
    // The kernel caps the value at somaxconn.
    config
        .backlog
        .map_or(i32::MAX, |asked| i32::try_from(asked).unwrap_or(i32::MAX))
}

fn describe(listen: &Listen, operation: &'static str, source: io::Error) -> Error {
    let addr = listen.addr;
    match source.kind() {
        io::ErrorKind::AddrInUse => Error::InUse {
            addr,
            holder: port::holder(listen, &[]),
        },
        io::ErrorKind::PermissionDenied => Error::Privileged {
            addr,
            first_free: first_free(),
        },
        io::ErrorKind::AddrNotAvailable => Error::NotOurs { addr },
        _ if source.raw_os_error() == Some(EAFNOSUPPORT) => Error::NoFamily { addr },
        _ => Error::System {
            addr,
            operation,
            source,
        },
    }
}

fn first_free() -> u16 {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    std::fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

fn unspecified(addr: SocketAddr) -> &'static str {
    match addr.ip() {
        IpAddr::V4(_) => "0.0.0.0",
        IpAddr::V6(_) => "[::]",
    }
}

fn family(addr: SocketAddr) -> &'static str {
    if addr.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn wildcard_falls_back_without_ipv6() {
        let listen = |addr: &str, dual_stack| Listen {
            addr: addr.parse().unwrap(),
            dual_stack,
        };
        let asked = [
            listen("[::]:80", true),
            listen("[::]:81", false),
            listen("127.0.0.1:82", false),
        ];
        let mut wanted = asked;
        fall_back_to_ipv4(&mut wanted, true);
        assert_eq!(wanted, asked);
        fall_back_to_ipv4(&mut wanted, false);
        assert_eq!(wanted, [listen("0.0.0.0:80", false), asked[1], asked[2]]);
    }

    #[test]
    fn listener_accepts_every_stall_timeout() {
        let asked = Listen {
            addr: ([127, 0, 0, 1], 0).into(),
            dual_stack: false,
        };
        let ms = Duration::from_millis;
        for (stall, expected) in [
            (None, None),
            (Some(ms(10)), Some(KERNEL_STALL_MIN)),
            (Some(ms(60_000)), Some(ms(60_000))),
            (Some(ms(30 * 24 * 3_600_000)), Some(KERNEL_STALL_MAX)),
        ] {
            let config = Config {
                write_stall_timeout: stall,
                ..Config::default()
            };
            let (socket, listen) = bind(&asked, &config).unwrap();
            let client = std::net::TcpStream::connect(listen.addr).unwrap();
            let (accepted, _) = Socket::from(socket).accept().unwrap();
            assert_eq!(accepted.tcp_user_timeout().unwrap(), expected);
            drop(client);
        }
    }

    #[test]
    fn listener_applies_new_options_and_keeps_queue() {
        let first = Config {
            backlog: Some(1),
            keepalive: Some(Duration::from_secs(7)),
            ..Config::default()
        };
        let asked = Listen {
            addr: ([127, 0, 0, 1], 0).into(),
            dual_stack: false,
        };
        let (socket, listen) = bind(&asked, &first).unwrap();
        let before = std::net::TcpStream::connect(listen.addr).unwrap();
        let second = Config {
            backlog: Some(64),
            keepalive: None,
            recv_buffer: Some(8192),
            ..Config::default()
        };
        set_options(&socket, &listen, &second).unwrap();
        let socket = Socket::from(socket);
        assert!(!socket.keepalive().unwrap());
        assert_eq!(socket.recv_buffer_size().unwrap(), 2 * 8192);
        let after: Vec<_> = (0..8)
            .map(|_| std::net::TcpStream::connect(listen.addr).unwrap())
            .collect();
        let (queued, _) = socket.accept().unwrap();
        let peer = queued.peer_addr().unwrap().as_socket();
        assert_eq!(peer, before.local_addr().ok());
        assert!(!socket.accept().unwrap().0.keepalive().unwrap());
        drop(after);
    }
}
