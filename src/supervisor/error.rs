//! Why a server cannot start.

use std::io;

use crate::config;
use crate::log;
use crate::port;

use super::fleet::releases::NoRoom;
use super::systemd::activation;
use super::{admin, socket_file};

/// Why a supervisor cannot even begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The limits asked for are not to be had.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// Sockets that were handed over are of no use.
    #[error(transparent)]
    Activation(#[from] activation::Error),
    /// An address is somebody else's.
    #[error(transparent)]
    Port(#[from] port::Error),
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] socket_file::Error),
    /// Health and metrics cannot be shown where they are to be.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The workers' memory cannot be had.
    #[error(transparent)]
    Memory(#[from] NoRoom),
    /// The system refused something.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was to be done.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// 2 for what the configuration got wrong, 1 for what the system refused.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Activation(activation::Error::Listener(_)) => 1,
            Self::Config(_) | Self::Activation(_) => 2,
            Self::Log(_)
            | Self::Port(_)
            | Self::Control(_)
            | Self::Admin(_)
            | Self::Memory(_)
            | Self::System { .. } => 1,
        }
    }
}
