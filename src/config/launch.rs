//! What a server was started with, so that it can read its configuration anew.
//!
//! Invariant: `reread` gives what `config` would be if the server were started now with the same
//! arguments. Must not: read anything by itself (whoever makes one hands in how).

use std::ffi::OsString;

use super::Config;

/// A start, and how to repeat its reading.
#[derive(Clone, Debug)]
pub struct Launch {
    /// As it was read at the start.
    pub config: Config,
    /// The whole command line, the program's own name first.
    pub args: Vec<OsString>,
    /// Settles such a command line, the environment and the file again; or says in one line why
    /// that gives no configuration.
    pub reread: fn(&[OsString]) -> Result<Config, String>,
}

impl Launch {
    /// The configuration as it would be now.
    ///
    /// # Errors
    /// Why there is none, in one line.
    pub fn read_again(&self) -> Result<Config, String> {
        (self.reread)(&self.args)
    }
}

/// Two are the same if they were started the same way; how they read is the program's affair.
impl PartialEq for Launch {
    fn eq(&self, other: &Self) -> bool {
        (&self.config, &self.args) == (&other.config, &other.args)
    }
}

impl Eq for Launch {}
