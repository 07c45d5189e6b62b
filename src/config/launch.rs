//! What a server was started with, so that it can read its configuration anew.

use std::ffi::OsString;

use super::data::Config;

/// A start: a command line and the configuration that it gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// As it was read at the start.
    pub config: Config,
    /// The arguments that it was read from, the program's own name first.
    pub args: Vec<OsString>,
    /// What was ignored of it, and why: a line each.
    pub ignored: Vec<String>,
}
