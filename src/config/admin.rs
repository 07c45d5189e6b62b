//! Addresses of the admin endpoint and of the agent-check: syntax.
//!
//! Must not: bind them, or decide which clients may read (`rules` requires `admin_allow` for an
//! address that other machines reach).

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::path_bytes;
use super::value::{Facts, Grammar};
use uppercased_ctl::limits::SOCKET_PATH_MAX_BYTES;

/// The address of the admin endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminAddr {
    /// An address; with port 0 the kernel chooses the port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(#[serde(with = "path_bytes")] PathBuf),
}

impl fmt::Display for AdminAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(out),
            Self::Unix(path) => path.display().fmt(out),
        }
    }
}

/// Grammar of an address with its port, a port on loopback, or an absolute path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admin;

impl Grammar for Admin {
    type Value = AdminAddr;

    fn parse(&self, text: &str, _: &Facts<'_>) -> Result<AdminAddr, String> {
        if text.starts_with('/') {
            return match text.len() {
                _ if text.contains('\0') => Err(format!("{text:?} is not a path")),
                ..=SOCKET_PATH_MAX_BYTES => Ok(AdminAddr::Unix(text.into())),
                bytes => Err(format!(
                    "{text:?} is {bytes} bytes long, more than the {SOCKET_PATH_MAX_BYTES} of a \
                     socket path"
                )),
            };
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let port: u16 = text
                .parse()
                .map_err(|_| format!("{text} is not a port: the highest is 65535"))?;
            return Ok(AdminAddr::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip() == address.ip().to_canonical() => {
                Ok(AdminAddr::Tcp(address))
            }
            Ok(_) => Err(format!(
                "{text} is an IPv4-mapped IPv6 address; write it as IPv4"
            )),
            Err(_) => Err(format!(
                "{text:?} is neither an address with a port nor an absolute path"
            )),
        }
    }

    fn show(&self, value: &AdminAddr) -> String {
        value.to_string()
    }

    fn accepts(&self) -> String {
        "ADDRESS:PORT, [IPV6]:PORT, PORT on 127.0.0.1 or an absolute path".to_owned()
    }
}

/// Grammar of an address with a port, or a port on all IPv4 addresses: load balancers are remote.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agent;

impl Grammar for Agent {
    type Value = SocketAddr;

    fn parse(&self, text: &str, _: &Facts<'_>) -> Result<SocketAddr, String> {
        if let Ok(port) = text.parse::<u16>()
            && !text.starts_with('+')
        {
            return Ok((Ipv4Addr::UNSPECIFIED, port).into());
        }
        text.parse()
            .map_err(|_| format!("{text:?} is neither an address with a port nor a port"))
    }

    fn show(&self, value: &SocketAddr) -> String {
        value.to_string()
    }

    fn accepts(&self) -> String {
        "ADDRESS:PORT, [IPV6]:PORT or PORT".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'static> = Facts::NONE;

    #[test]
    fn addresses_of_endpoints_read_back() {
        for (text, shown) in [
            ("9100", "127.0.0.1:9100"),
            ("127.0.0.2:0", "127.0.0.2:0"),
            ("[::1]:9100", "[::1]:9100"),
            ("0.0.0.0:9100", "0.0.0.0:9100"),
            ("[::]:9100", "[::]:9100"),
            ("10.0.0.1:9100", "10.0.0.1:9100"),
            ("/run/uppercased/admin", "/run/uppercased/admin"),
        ] {
            let read = Admin.parse(text, &FACTS).unwrap();
            assert_eq!(Admin.show(&read), shown);
            assert_eq!(Admin.parse(shown, &FACTS), Ok(read));
        }
        for (text, shown) in [
            ("9101", "0.0.0.0:9101"),
            ("10.0.0.1:9101", "10.0.0.1:9101"),
            ("[::]:0", "[::]:0"),
        ] {
            let read = Agent.parse(text, &FACTS).unwrap();
            assert_eq!(Agent.show(&read), shown);
            assert_eq!(Agent.parse(shown, &FACTS), Ok(read));
        }
        for text in ["", "+1", "70000", "here:9101", "10.0.0.1", "/path"] {
            assert!(Agent.parse(text, &FACTS).is_err(), "{text}");
        }
        let long = format!("/{}", "x".repeat(SOCKET_PATH_MAX_BYTES));
        for text in [
            "",
            "[::ffff:127.0.0.1]:9100",
            "localhost:9100",
            "127.0.0.1",
            "70000",
            "relative/path",
            "/with\0zero",
            &long,
        ] {
            assert!(Admin.parse(text, &FACTS).is_err(), "{text}");
        }
    }
}
