//! The arguments and the configuration of a start, kept for later reloads.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;

use super::settings::Config;

/// A start: a command line and the configuration that resulted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The configuration at the start.
    pub config: Config,
    /// The arguments, beginning with the program's own name.
    pub args: Vec<OsString>,
    /// Ignored input.
    pub ignored: Vec<Ignored>,
    /// Why the configuration is not that of the arguments, if so.
    pub refused: Option<String>,
}

/// Input of a start that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// The names of variables that Kubernetes set for services with similar names.
    ServiceLinks(Vec<String>),
    /// An address of a name that this machine does not have.
    AbsentAddress {
        /// The address.
        address: SocketAddr,
        /// The name.
        host: String,
    },
}

impl fmt::Display for Ignored {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceLinks(names) => {
                write!(out, "variables of Kubernetes services: {}", names.join(" "))
            }
            Self::AbsentAddress { address, host } => {
                write!(
                    out,
                    "address {address} of {host}: this machine does not have the address"
                )
            }
        }
    }
}
