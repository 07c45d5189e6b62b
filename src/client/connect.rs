//! Connects to a target, trying its addresses in turn, and explains a failure.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

use uppercased_ctl::target::{Target, refuse_self};

/// Connect timeout of one address; a name may have several, tried in turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A failure to connect.
#[derive(Debug, Error)]
pub(super) enum Unreachable {
    /// The name has no address, or no name server is reachable.
    #[error("cannot resolve {host}: {source}; check the spelling, or use an IP address")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// No address of the name could be connected to.
    #[error(
        "cannot connect to {target}: {}; {}",
        describe(target, attempts),
        advice(attempts)
    )]
    Connect {
        /// The target as typed.
        target: Target,
        /// Every address tried, with its error; empty if the name has none.
        attempts: Vec<(SocketAddr, io::Error)>,
    },
}

/// Connects to the first address of `target` that accepts, each with a timeout of 10 s.
///
/// # Errors
///
/// The name is unknown, or none of its addresses accepted.
pub(super) fn connect(target: &Target) -> Result<TcpStream, Unreachable> {
    let addresses = target.resolve().map_err(|source| Unreachable::Resolve {
        host: target.host().to_owned(),
        source,
    })?;
    let mut attempts: Vec<(SocketAddr, io::Error)> = Vec::new();
    for address in addresses {
        // An address listed twice in a hosts file is tried once.
        if attempts.iter().any(|(tried, _)| *tried == address) {
            continue;
        }
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).and_then(refuse_self) {
            Ok(stream) => return Ok(stream),
            Err(error) => attempts.push((address, error)),
        }
    }
    Err(Unreachable::Connect {
        target: target.clone(),
        attempts,
    })
}

/// Lists the error of each address; an address is named only if it differs from the target as
/// typed.
fn describe(target: &Target, attempts: &[(SocketAddr, io::Error)]) -> String {
    let reasons: Vec<String> = attempts
        .iter()
        .map(|(address, error)| {
            let reason = match error.kind() {
                io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                io::ErrorKind::TimedOut => format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()),
                _ => describe_io(error),
            };
            if attempts.len() == 1 && address.to_string() == target.to_string() {
                reason
            } else {
                format!("{reason} at {address}")
            }
        })
        .collect();
    if reasons.is_empty() {
        "the name has no address".to_owned()
    } else {
        reasons.join(", ")
    }
}

/// Returns the system's text for an error, without its number.
pub(super) fn describe_io(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |number| Errno::from_raw(number).desc().to_owned(),
    )
}

fn advice(attempts: &[(SocketAddr, io::Error)]) -> &'static str {
    let refused =
        |(_, error): &(SocketAddr, io::Error)| error.kind() == io::ErrorKind::ConnectionRefused;
    if !attempts.is_empty() && attempts.iter().all(refused) {
        "check that the server is running on this port"
    } else {
        "check the address and the network"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_each_failed_address() {
        let target: Target = "localhost:9999".parse().unwrap();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let error = Unreachable::Connect {
            target: target.clone(),
            attempts: vec![
                ("[::1]:9999".parse().unwrap(), refused()),
                ("127.0.0.1:9999".parse().unwrap(), refused()),
            ],
        };
        assert_eq!(
            error.to_string(),
            "cannot connect to localhost:9999: connection refused at [::1]:9999, connection \
             refused at 127.0.0.1:9999; check that the server is running on this port"
        );

        let slow = io::Error::from_raw_os_error(nix::libc::ENETUNREACH);
        let error = Unreachable::Connect {
            target,
            attempts: vec![("192.0.2.1:9999".parse().unwrap(), slow)],
        };
        assert_eq!(
            error.to_string(),
            "cannot connect to localhost:9999: Network is unreachable at 192.0.2.1:9999; check \
             the address and the network"
        );
    }
}
