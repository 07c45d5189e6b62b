//! Finds the server to measure: the first address of its name that accepts a connection.
//!
//! Name resolution may block, so it runs on a thread; the measurement can be interrupted meanwhile.
//!
//! Invariant: a socket that is connected to itself does not count as a server.
#![expect(
    clippy::disallowed_methods,
    reason = "the load generator is a process of its own, and has threads; the server has none"
)]

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::failure::{Fault, Kind};
use super::interrupt::{Haste, Interrupt, STEP};
use uppercased_ctl::target::{Malformed, Target, refuse_self};

/// Timeout of the first connection, which checks whether the server accepts.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why there is no server to measure.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The address is malformed.
    #[error(
        "cannot read the address {text:?}: {why}; write HOST:PORT, as in localhost:9999 or \
         [::1]:9999"
    )]
    Address {
        /// The address as given.
        text: String,
        /// The error.
        why: Malformed,
    },
    /// The name of the server has no address.
    #[error("cannot find {target}: {why}; write HOST:PORT, as in localhost:9999 or [::1]:9999")]
    Resolve {
        /// The address as given.
        target: String,
        /// The resolver's error.
        why: String,
    },
    /// No server accepts connections.
    #[error("cannot connect to {target}: {why}; {advice}")]
    Unreachable {
        /// The address as given.
        target: String,
        /// The system's error.
        why: String,
        /// A hint.
        advice: &'static str,
    },
    /// A signal arrived first.
    #[error("interrupted before the measurement began")]
    Interrupted,
}

/// Returns the first address of `target` that accepts a connection. A probe that finds no free port
/// is inconclusive if the load uses other source addresses.
///
/// # Errors
/// No address accepts, or a signal arrived first.
pub(super) fn find(
    target: &str,
    from_elsewhere: bool,
    interrupt: &Interrupt,
) -> Result<SocketAddr, Error> {
    let parsed: Target = target.parse().map_err(|why| Error::Address {
        text: target.to_owned(),
        why,
    })?;
    let (give, found) = channel();
    // If abandoned, the thread exits by itself; it holds nothing to release.
    std::thread::spawn(move || drop(give.send(probe(&parsed, from_elsewhere))));
    while interrupt.haste() == Haste::None {
        match found.recv_timeout(STEP) {
            Ok(found) => return found,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Err(Error::Interrupted)
}

fn probe(target: &Target, from_elsewhere: bool) -> Result<SocketAddr, Error> {
    let resolve = |why: String| Error::Resolve {
        target: target.to_string(),
        why,
    };
    let addresses = target.resolve();
    let mut last = None;
    for address in addresses.map_err(|error| resolve(error.to_string()))? {
        match TcpStream::connect_timeout(&address, PROBE_TIMEOUT).and_then(refuse_self) {
            Ok(_) => return Ok(address),
            Err(error) => {
                let fault = Fault::Io(error);
                if from_elsewhere && fault.kind() == Kind::NoSourcePort {
                    return Ok(address);
                }
                last = Some(fault);
            }
        }
    }
    let Some(fault) = last else {
        return Err(resolve("the name has no address".to_owned()));
    };
    Err(Error::Unreachable {
        target: target.to_string(),
        advice: match fault.kind() {
            Kind::Refused => "check that the server is running on this port",
            Kind::NoSourcePort => {
                "no free port is left on this side; use --sources, or wait a minute"
            }
            _ => "check the address and the network",
        },
        why: match &fault {
            Fault::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                format!("no answer in {} s", PROBE_TIMEOUT.as_secs())
            }
            Fault::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                "Connection refused".to_owned()
            }
            _ => fault.detail(),
        },
    })
}
