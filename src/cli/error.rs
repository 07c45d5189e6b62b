//! The errors of the command line and of the sources of the configuration.

use std::io;
use std::path::PathBuf;

use super::usage_error;
use crate::config;

/// An error in the arguments or in a source of the configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Rejected by the command line's definition; help and version are also reported this way.
    #[error("{}", usage_error::one_line(.report, .command))]
    Usage {
        /// Clap's error.
        report: Box<clap::Error>,
        /// The command as typed.
        command: String,
    },

    /// An error of the configuration.
    #[error(transparent)]
    Config(#[from] config::Error),

    /// Several errors in the sources of the configuration.
    #[error("{}", config::in_one_line(.0))]
    Several(Vec<Self>),

    /// A warning about the configuration that counts as an error.
    #[error("{0}")]
    Unwise(String),

    /// The configuration file cannot be read.
    #[error(
        "cannot read the configuration file {}: {why}; check its path and permissions, or omit \
         --config and {variable}", path.display(), variable = config::CONFIG_VARIABLE
    )]
    ReadFile {
        /// The path as given.
        path: PathBuf,
        /// The system's error.
        #[source]
        why: io::Error,
    },

    /// The configuration file could not be read a second time, or would block.
    #[error(
        "cannot use the configuration file {}: it is a pipe or a socket, and every reload reads it \
         again; use a regular file", path.display()
    )]
    NotAFile {
        /// The path as given.
        path: PathBuf,
    },

    /// The configuration file is too large.
    #[error(
        "cannot use the configuration file {}: it is larger than {} bytes; check the path",
        path.display(), config::CONFIG_FILE_MAX_BYTES
    )]
    FileTooLarge {
        /// The path as given.
        path: PathBuf,
    },

    /// Workers without a supervisor cannot be continued with their configuration.
    #[error("{0}")]
    NotContinued(String),

    /// The descriptor limit cannot be read.
    #[error("cannot read the descriptor limit (RLIMIT_NOFILE): {0}")]
    DescriptorLimit(#[source] nix::Error),
}

impl Error {
    /// Returns whether the command line is wrong, and not another source.
    pub(super) fn is_usage(&self) -> bool {
        match self {
            Self::Usage { .. } => true,
            Self::Config(config::Error::Value { name, .. }) => name.starts_with("--"),
            Self::Several(errors) => errors.iter().any(Self::is_usage),
            _ => false,
        }
    }

    /// Returns one error for all of `errors`, at least one.
    pub(super) fn of_all(mut errors: Vec<Self>) -> Self {
        match errors.pop() {
            Some(only) if errors.is_empty() => only,
            last => {
                errors.extend(last);
                Self::Several(errors)
            }
        }
    }
}

impl From<config::Errors> for Error {
    fn from(config::Errors(errors): config::Errors) -> Self {
        Self::of_all(errors.into_iter().map(Self::Config).collect())
    }
}
