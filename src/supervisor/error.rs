//! Errors of a server start.

use std::io;

use crate::config;
use crate::log;
use crate::port;

use super::fleet::releases::NoRoom;
use super::systemd::activation;
use super::{admin, socket_file};

/// The reason why a supervisor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be applied.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// Inherited sockets cannot be used.
    #[error(transparent)]
    Activation(#[from] activation::Error),
    /// An address is in use.
    #[error(transparent)]
    Port(#[from] port::Error),
    /// The control socket cannot be bound.
    #[error(transparent)]
    Control(#[from] socket_file::Error),
    /// The admin endpoint cannot be bound.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The memory of the workers is not available.
    #[error(transparent)]
    Memory(#[from] NoRoom),
    /// The configuration is invalid, and there are no workers to continue with theirs.
    #[error("{0}")]
    Refused(String),
    /// A system call failed.
    #[error("cannot {operation}: {source}")]
    System {
        /// The operation, in the infinitive.
        operation: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl Error {
    /// Returns 2 for errors of the configuration, 1 for errors of the system.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Activation(activation::Error::Listener(_)) => 1,
            Self::Config(_) | Self::Refused(_) | Self::Activation(_) => 2,
            Self::Log(_)
            | Self::Port(_)
            | Self::Control(_)
            | Self::Admin(_)
            | Self::Memory(_)
            | Self::System { .. } => 1,
        }
    }
}
