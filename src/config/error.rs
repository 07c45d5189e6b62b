//! The errors of the configuration, each one line with its remedy.

use std::fmt;
use std::path::PathBuf;

use super::limits::ERRORS_SHOWN_MAX;
use super::networks::NETWORKS_IN_ALL_MAX;

/// A configuration error. Every message is one line that includes the remedy.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document them")]
pub enum Error {
    #[error("{name}: {why}")]
    Value { name: String, why: String },

    #[error("{}:{line}:{column}: not valid TOML: {why}", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        column: usize,
        why: String,
    },

    #[error(
        "{}:{line}: unknown setting {name:?}{nearest} (`uppercased --help` lists all)",
        path.display()
    )]
    UnknownKey {
        path: PathBuf,
        line: usize,
        name: String,
        nearest: String,
    },

    #[error(
        "{}:{line}: unexpected table {name:?}: settings must be at the top level; remove the table \
         header", path.display()
    )]
    Table {
        path: PathBuf,
        line: usize,
        name: String,
    },

    #[error("unknown setting {name}{nearest} (`uppercased --help` lists all)")]
    UnknownVariable { name: String, nearest: String },

    #[error("{name}: unexpected value of type {found}; use for example {example}")]
    WrongType {
        name: String,
        found: &'static str,
        example: String,
    },

    #[error("{name}: the value is not UTF-8; correct or unset the variable")]
    NotUtf8 { name: String },

    #[error(
        "allow, deny, proxy_trust and admin_allow list {count} networks in total, more than the \
         maximum of {NETWORKS_IN_ALL_MAX}; merge adjacent networks"
    )]
    TooManyNetworks { count: usize },

    #[error(
        "max_connections {asked} requires a descriptor limit of {needed}, but the limit is \
         {limit}; raise it (`ulimit -n {needed}`, or `LimitNOFILE={needed}` in the systemd unit) \
         or use at most {possible} connections per worker"
    )]
    ConnectionsExceedLimit {
        asked: u32,
        needed: u64,
        limit: u64,
        possible: u64,
    },

    #[error(
        "{workers} workers with {listeners} listen addresses require a descriptor limit of at \
         least {needed}, but the limit is {limit}; raise it (`ulimit -n {needed}`, or \
         `LimitNOFILE={needed}` in the systemd unit) or use fewer workers"
    )]
    LimitTooLow {
        workers: u16,
        listeners: usize,
        needed: u64,
        limit: u64,
    },
}

/// Every error of a configuration; at least one.
#[derive(Debug)]
pub struct Errors(pub Vec<Error>);

impl std::error::Error for Errors {}

impl fmt::Display for Errors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&in_one_line(&self.0))
    }
}

/// Returns the errors as one line: a single one as it is, several numbered.
#[must_use]
pub fn in_one_line<E: fmt::Display>(errors: &[E]) -> String {
    match errors {
        [only] => only.to_string(),
        several => {
            let listed = (1..).zip(&several[..several.len().min(ERRORS_SHOWN_MAX)]);
            let listed = listed.map(|(number, error)| format!(" ({number}) {error}"));
            format!("{} errors:{}", several.len(), listed.collect::<String>())
        }
    }
}
