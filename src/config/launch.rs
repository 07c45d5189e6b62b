//! What a server was started with, so that it can read its configuration anew.
//!
//! Invariant: [`CommandLine::read`] gives what the configuration would be if the server were started
//! now with the same arguments. Must not: read anything by itself (whoever makes one hands in how).

use std::ffi::OsString;

use super::Config;

/// A command line, and how it becomes a configuration.
#[derive(Clone, Debug)]
pub struct CommandLine {
    /// All of it, the program's own name first.
    pub args: Vec<OsString>,
    /// Settles such a command line, the environment and the file; or says in one line why that
    /// gives no configuration.
    pub settle: fn(&[OsString]) -> Result<Config, String>,
}

/// A start: a command line and what it said then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// As it was read at the start.
    pub config: Config,
    /// What it was read from.
    pub typed: CommandLine,
    /// What was ignored of it, and why: a line each.
    pub ignored: Vec<String>,
}

impl CommandLine {
    /// The configuration as it is now.
    ///
    /// # Errors
    /// Why there is none, in one line.
    pub fn read(&self) -> Result<Config, String> {
        (self.settle)(&self.args)
    }
}

/// Two are the same if the same was typed; how it is read is the program's affair.
impl PartialEq for CommandLine {
    fn eq(&self, other: &Self) -> bool {
        self.args == other.args
    }
}

impl Eq for CommandLine {}
