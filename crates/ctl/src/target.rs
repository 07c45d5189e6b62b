//! Parses and resolves a server's address, `HOST:PORT`.
//!
//! It must not query a name server for text that cannot be a name. A malformed name and a
//! nonexistent name are different errors.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use socket2::SockRef;
use thiserror::Error;

/// The server's default port.
pub const DEFAULT_PORT: u16 = 9999;

/// A host, by name or by address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host; an IPv6 address has no brackets.
    host: String,
    /// The port; not 0.
    port: u16,
}

/// The reason why a text is not an address.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// The host is missing.
    #[error("the host is missing")]
    NoHost,
    /// The port is missing, with or without its colon.
    #[error("the port is missing")]
    NoPort,
    /// The port is not a number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535")]
    BadPort,
    /// More than one colon and no brackets.
    #[error("an IPv6 address with a port needs brackets")]
    NoBrackets,
    /// The text in brackets is not an IPv6 address.
    #[error("the text in brackets is not an IPv6 address")]
    BadIpv6,
    /// A link-local address without its interface.
    #[error("a link-local address needs its interface, as in [fe80::1%eth0]:9999")]
    NoZone,
    /// A character that is not valid in a host name.
    #[error("the host contains an invalid character")]
    BadHost,
    /// A URL.
    #[error("it is a URL, but the protocol is plain TCP")]
    Url,
}

impl FromStr for Target {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.contains("://") {
            return Err(Malformed::Url);
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or(Malformed::BadIpv6)?;
                let (address, zone) = match host.split_once('%') {
                    Some((address, zone)) => (address, Some(zone)),
                    None => (host, None),
                };
                match address.parse::<Ipv6Addr>() {
                    Err(_) => return Err(Malformed::BadIpv6),
                    Ok(ip) if ip.is_unicast_link_local() && zone.is_none_or(str::is_empty) => {
                        return Err(Malformed::NoZone);
                    }
                    Ok(_) => {}
                }
                (host, after.strip_prefix(':').ok_or(Malformed::NoPort)?)
            }
            None => {
                let (host, port) = text.rsplit_once(':').ok_or(Malformed::NoPort)?;
                if host.contains(':') {
                    return Err(Malformed::NoBrackets);
                }
                if host.is_empty() {
                    return Err(Malformed::NoHost);
                }
                if host
                    .contains(|c: char| c.is_whitespace() || c.is_control() || "/@[]".contains(c))
                {
                    return Err(Malformed::BadHost);
                }
                (host, port)
            }
        };
        if port.is_empty() {
            return Err(Malformed::NoPort);
        }
        // `parse` alone would accept a sign.
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse() {
            Ok(port) if digits && port != 0 => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            _ => Err(Malformed::BadPort),
        }
    }
}

impl Target {
    /// Returns the host, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Resolves the host's addresses with the system's resolver, which blocks until name servers
    /// answer or time out, and knows the interfaces in zones.
    ///
    /// # Errors
    /// The name does not exist, or no name server answered.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let found = (self.host.as_str(), self.port).to_socket_addrs()?;
        Ok(found.collect())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(out, "[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{}:{}", self.host, self.port)
        }
    }
}

/// Rejects a connection to itself, without leaving a socket in TIME_WAIT.
///
/// If a port of the ephemeral range has no listener, the kernel may choose that very port as the
/// local one; the two SYNs cross and the socket is connected to itself. A graceful close would
/// leave the server's port in TIME_WAIT.
///
/// # Errors
///
/// The socket is connected to itself, or its addresses cannot be read.
pub fn refuse_self(stream: TcpStream) -> io::Result<TcpStream> {
    if stream.local_addr()? == stream.peer_addr()? {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// Returns the address with this machine as its host if `target` is only a port, and with
/// [`DEFAULT_PORT`] if it is only a host.
#[must_use]
pub fn with_defaults(target: &str) -> String {
    let port = target.strip_prefix(':').unwrap_or(target);
    let bracketed = target.starts_with('[') && target.ends_with(']');
    if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("127.0.0.1:{port}")
    } else if bracketed || !(target.is_empty() || target.contains(':')) {
        format!("{target}:{DEFAULT_PORT}")
    } else {
        target.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    fn parse(text: &str) -> Result<(String, u16), Malformed> {
        text.parse::<Target>().map(|target| {
            assert_eq!(target.to_string(), text, "shown as it was typed");
            (target.host, target.port)
        })
    }

    #[test]
    fn target_accepts_names_and_addresses() {
        let found = |host: &str, port| Ok((host.to_owned(), port));
        assert_eq!(parse("localhost:9999"), found("localhost", 9999));
        assert_eq!(parse("127.0.0.1:1"), found("127.0.0.1", 1));
        assert_eq!(parse("[::1]:65535"), found("::1", 65535));
        assert_eq!(parse("[fe80::1%eth0]:80"), found("fe80::1%eth0", 80));
    }

    #[test]
    fn invalid_targets_are_distinguished() {
        for (text, why) in [
            ("", Malformed::NoPort),
            ("localhost", Malformed::NoPort),
            ("localhost:", Malformed::NoPort),
            ("[::1]", Malformed::NoPort),
            ("[::1]9999", Malformed::NoPort),
            (":9999", Malformed::NoHost),
            ("localhost:0", Malformed::BadPort),
            ("localhost:65536", Malformed::BadPort),
            ("localhost:+1", Malformed::BadPort),
            ("localhost:http", Malformed::BadPort),
            ("::1:9999", Malformed::NoBrackets),
            ("[::1:9999", Malformed::BadIpv6),
            ("[localhost]:9999", Malformed::BadIpv6),
            ("[]:9999", Malformed::BadIpv6),
            ("[fe80::1]:9999", Malformed::NoZone),
            ("[fe80::1%]:9999", Malformed::NoZone),
            ("a b:9999", Malformed::BadHost),
            ("tcp//a:9999", Malformed::BadHost),
            ("http://localhost:9999/", Malformed::Url),
        ] {
            assert_eq!(parse(text), Err(why), "{text:?}");
        }
    }

    #[test]
    fn missing_host_or_port_has_default() {
        for (text, whole) in [
            ("7", "127.0.0.1:7"),
            (":7", "127.0.0.1:7"),
            ("localhost", "localhost:9999"),
            ("10.0.0.1", "10.0.0.1:9999"),
            ("[::1]", "[::1]:9999"),
            // The port of this text is not certain.
            ("::1:9999", "::1:9999"),
            ("a:1", "a:1"),
            ("", ""),
            ("a:", "a:"),
            ("http://a/", "http://a/"),
        ] {
            assert_eq!(with_defaults(text), whole);
        }
    }

    #[test]
    fn self_connection_is_refused_without_time_wait() {
        let address = SocketAddr::from(([127, 92, 11, 1], 0));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&address.into()).unwrap();
        let own = socket.local_addr().unwrap();
        socket.connect(&own).unwrap();
        let error = refuse_self(socket.into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        // Without SO_REUSEADDR: a socket in TIME_WAIT would make the bind fail.
        let next = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        next.bind(&own).unwrap();
    }
}
