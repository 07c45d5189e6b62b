//! The kinds of planned operations.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A planned operation: one at a time, rolled back on failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationKind {
    /// Reload the configuration and replace every worker.
    Reload,
    /// Replace the supervisor's program, then every worker.
    Upgrade,
    /// Change the number of workers.
    Scale {
        /// The target number of workers.
        to: u16,
    },
}

impl OperationKind {
    /// Every [`Self::name`].
    pub const NAMES: [&str; 3] = ["reload", "upgrade", "scale"];

    /// Returns the name for metrics, without the number of workers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reload => Self::NAMES[0],
            Self::Upgrade => Self::NAMES[1],
            Self::Scale { .. } => Self::NAMES[2],
        }
    }

    /// Returns the target number of workers, if it changes their number.
    #[must_use]
    pub const fn to_workers(self) -> Option<u16> {
        match self {
            Self::Reload | Self::Upgrade => None,
            Self::Scale { to } => Some(to),
        }
    }

    /// Returns whether it replaces every worker rather than changing their number.
    #[must_use]
    pub const fn replaces_workers(self) -> bool {
        match self {
            Self::Reload | Self::Upgrade => true,
            Self::Scale { .. } => false,
        }
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reload | Self::Upgrade => out.write_str(self.name()),
            Self::Scale { to } => write!(out, "scale to {to}"),
        }
    }
}
