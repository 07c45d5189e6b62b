//! The line client: what the command line hands to it.

use std::process::ExitCode;

/// What the client was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `HOST:PORT` of the server.
    pub target: String,
}

/// Runs the client until its input ends.
#[must_use]
pub fn run(_options: Options) -> ExitCode {
    ExitCode::SUCCESS
}
