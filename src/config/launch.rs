//! The arguments and the configuration of a start, kept for later reloads.

use std::ffi::OsString;

use super::settings::Config;

/// A start: a command line and the configuration that resulted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The configuration at the start.
    pub config: Config,
    /// The arguments, beginning with the program's own name.
    pub args: Vec<OsString>,
    /// Ignored input with the reason, one line each.
    pub ignored: Vec<String>,
    /// Why the configuration is not that of the arguments, if so.
    pub refused: Option<String>,
}
