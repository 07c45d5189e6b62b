//! The messages between commands and a running server over the control socket.
//!
//! A connection carries one request, as one line of JSON, and the server's replies, one line each:
//! any number of [`Reply::Progress`], then one final reply. Lines make it usable with `socat`; JSON
//! allows the two ends to have different versions.
//!
//! Invariants: decoding is total (any bytes are a request, a reply or an [`Error`]); an unknown
//! version or command is refused, an unknown field skipped; no line is longer than its bound. Pure:
//! it must not touch a socket.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::{CONTROL_REPLY_MAX_BYTES, CONTROL_TEXT_MAX_BYTES, WORKERS_MAX, WORKERS_MIN};
use crate::status::{Rotation, Status};
use crate::units::took;

/// Version of the requests. Replies carry none: a request is answered in its own version.
pub const VERSION: u32 = 1;

/// A request to a running server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// Reload the configuration and replace every worker.
    Reload(Options),
    /// Switch to the binary on disk, then replace every worker.
    Upgrade(Options),
    /// Set the number of workers.
    Scale {
        /// Target number of workers.
        workers: ScaleTo,
        /// Options of the operation.
        #[serde(flatten)]
        options: Options,
    },
    /// Cancel the operation in progress and roll it back.
    Cancel,
    /// Set the state reported to load balancers.
    Rotation {
        /// The new state.
        to: Rotation,
    },
    /// Report the status.
    Status,
    /// Stop gracefully. There is no final reply: the connection stays open until the server exits.
    Stop,
}

/// Options of an operation. Options absent from a request are off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Wait for an operation in progress instead of being refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub wait: bool,
    /// Close connections that cannot migrate after `drain_timeout`, instead of failing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,
}

/// A number of workers, absolute or relative: `6`, or `"+2"` and `"-1"` as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum ScaleTo {
    /// Exactly this number.
    Exactly(u16),
    /// The number in force when the operation begins, plus or minus this; not 0.
    By(i16),
}

/// The JSON form of a [`ScaleTo`].
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u16),
    Text(String),
}

/// One line from the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Progress, for people.
    Progress(String),
    /// The operation succeeded.
    Done(Done),
    /// The operation failed: the cause, and what is running now.
    Failed(String),
    /// The request was refused: the cause.
    Refused(String),
    /// The status.
    Status(Box<Status>),
}

/// The result of a successful operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// Slots whose worker was replaced.
    pub replaced: u16,
    /// Slots after the operation.
    pub workers: u16,
    /// Live connections migrated to another worker.
    pub migrated: u64,
    /// Connections that stay with their worker until they end (draining).
    pub draining: u64,
    /// Milliseconds after which draining connections are closed.
    pub closed_after_ms: u64,
    /// Milliseconds from the request to the result.
    pub duration_ms: u64,
}

impl Done {
    /// Returns a one-line description of the result of `request`; `None` if it has no result.
    #[must_use]
    pub fn describe(&self, request: &Request) -> Option<String> {
        let took = took(self.duration_ms);
        let workers = counted(self.workers.into(), "worker");
        let replaced = counted(self.replaced.into(), "worker");
        let connections = match self.draining {
            0 => format!(
                "{} migrated, 0 draining",
                counted(self.migrated, "connection")
            ),
            draining => {
                let after = Duration::from_millis(self.closed_after_ms);
                let migrated = counted(self.migrated, "connection");
                format!("{migrated} migrated, {draining} draining (closed after {after:?})")
            }
        };
        match request {
            Request::Reload(_) => Some(format!("reloaded {replaced} in {took}: {connections}")),
            Request::Upgrade(_) => Some(format!("upgraded {replaced} in {took}: {connections}")),
            Request::Scale { .. } => Some(format!("scaled to {workers} in {took}: {connections}")),
            Request::Cancel => Some(format!("cancelled in {took}: {workers} serving")),
            Request::Rotation { to } => Some(format!("rotation: {}", to.name())),
            Request::Status | Request::Stop => None,
        }
    }
}

/// Returns an exact number of things, with the plural of `thing`.
#[must_use]
pub fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// The reason why a line is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The line is too long.
    #[error("the line exceeds {max} bytes")]
    TooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// The line does not conform to the protocol.
    #[error("the line is not valid: {0}")]
    Syntax(#[from] serde_json::Error),
    /// The request has a version that is not supported.
    #[error("the request has version {0}, and this server supports version {VERSION}")]
    Version(u32),
    /// A number of workers outside the limits.
    #[error("cannot run {0} workers; use {WORKERS_MIN} to {WORKERS_MAX}")]
    Workers(u16),
    /// A text that is not a number of workers.
    #[error("{0:?} is not a number of workers; use for example 6, +1 or -1")]
    Change(String),
}

/// The encoded form of a request.
#[derive(Serialize)]
struct Versioned<'a> {
    version: u32,
    #[serde(flatten)]
    request: &'a Request,
}

/// The part of a request common to all versions.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

impl Request {
    /// Encodes the request as a line, including its end.
    ///
    /// # Errors
    /// No request causes one; the encoder's signature has one.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        line(&Versioned {
            version: VERSION,
            request: self,
        })
    }

    /// Decodes a line, with or without its end.
    ///
    /// # Errors
    /// Any [`Error`] except [`Error::TooLong`].
    pub fn decode(line: &[u8]) -> Result<Self, Error> {
        // The version comes first: the rest of another version's line cannot be interpreted.
        let Head { version } = serde_json::from_slice(line)?;
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let request = serde_json::from_slice(line)?;
        match request {
            Self::Scale {
                workers: ScaleTo::Exactly(workers),
                ..
            } if !(WORKERS_MIN..=WORKERS_MAX).contains(&workers) => Err(Error::Workers(workers)),
            Self::Scale { .. }
            | Self::Reload(_)
            | Self::Upgrade(_)
            | Self::Cancel
            | Self::Rotation { .. }
            | Self::Status
            | Self::Stop => Ok(request),
        }
    }

    /// Returns the name of the request's command.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Reload(_) => "reload",
            Self::Upgrade(_) => "upgrade",
            Self::Scale { .. } => "scale",
            Self::Cancel => "cancel",
            Self::Rotation { .. } => "rotation",
            Self::Status => "status",
            Self::Stop => "stop",
        }
    }
}

impl ScaleTo {
    /// Returns the requested number of workers, given `here` present ones, saturated at the type's
    /// bounds; the caller checks the limits.
    #[must_use]
    pub const fn from(self, here: u16) -> u16 {
        match self {
            Self::Exactly(to) => to,
            Self::By(by) => here.saturating_add_signed(by),
        }
    }
}

impl fmt::Display for ScaleTo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(to) => write!(out, "{to}"),
            Self::By(by) => write!(out, "{by:+}"),
        }
    }
}

impl FromStr for ScaleTo {
    type Err = Error;

    /// Parses `6`, `+2` or `-1`: a sign makes the number relative.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || Error::Change(text.to_owned());
        if text.starts_with(['+', '-']) {
            let by: i16 = text.parse().map_err(|_| refused())?;
            let possible = by != 0 && by.unsigned_abs() < WORKERS_MAX;
            return possible.then_some(Self::By(by)).ok_or_else(refused);
        }
        text.parse().map(Self::Exactly).map_err(|_| refused())
    }
}

impl TryFrom<Written> for ScaleTo {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self, Error> {
        match written {
            Written::Number(to) => Ok(Self::Exactly(to)),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<ScaleTo> for Written {
    fn from(to: ScaleTo) -> Self {
        match to {
            ScaleTo::Exactly(to) => Self::Number(to),
            ScaleTo::By(_) => Self::Text(to.to_string()),
        }
    }
}

impl Reply {
    /// Encodes the reply as a line, including its end. A text that is too long is cut.
    ///
    /// # Errors
    /// [`Error::TooLong`], only for a status of very many slots.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let bytes = match self {
            Self::Progress(text) => line(&Self::Progress(cut(text)))?,
            Self::Failed(text) => line(&Self::Failed(cut(text)))?,
            Self::Refused(text) => line(&Self::Refused(cut(text)))?,
            Self::Done(_) | Self::Status(_) => line(self)?,
        };
        if bytes.len() > CONTROL_REPLY_MAX_BYTES {
            return Err(Error::TooLong {
                max: CONTROL_REPLY_MAX_BYTES,
            });
        }
        Ok(bytes)
    }

    /// Decodes a line, with or without its end.
    ///
    /// # Errors
    /// [`Error::Syntax`].
    pub fn decode(line: &[u8]) -> Result<Self, Error> {
        Ok(serde_json::from_slice(line)?)
    }

    /// Returns whether this is the final reply.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Progress(_) => false,
            Self::Done(_) | Self::Failed(_) | Self::Refused(_) | Self::Status(_) => true,
        }
    }
}

/// Splits received bytes into lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    bytes: Vec<u8>,
    /// Number of bytes known to contain no end of a line.
    searched: usize,
    max: usize,
}

impl Incoming {
    /// Returns an empty buffer for lines of at most `max` bytes, including their end.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            searched: 0,
            max,
        }
    }

    /// Adds received bytes. Fetch the lines after each call; otherwise the limit applies to all of
    /// them together.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub fn take(&mut self, more: &[u8]) -> Result<(), Error> {
        self.bytes.extend_from_slice(more);
        if self.bytes.len() > self.max && self.end_of_line().is_none_or(|end| end > self.max) {
            return Err(Error::TooLong { max: self.max });
        }
        Ok(())
    }

    /// Returns the next complete line, including its end.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.end_of_line()?;
        let rest = self.bytes.split_off(end);
        self.searched = 0;
        Some(std::mem::replace(&mut self.bytes, rest))
    }

    /// Returns the remaining bytes at the end of the stream: a last line without a newline.
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        self.searched = 0;
        Some(std::mem::take(&mut self.bytes)).filter(|rest| !rest.is_empty())
    }

    fn end_of_line(&mut self) -> Option<usize> {
        let unsearched = self.bytes.get(self.searched..)?;
        match unsearched.iter().position(|&byte| byte == b'\n') {
            Some(at) => Some(self.searched + at + 1),
            None => {
                self.searched = self.bytes.len();
                None
            }
        }
    }
}

fn line(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Returns `text`, cut to the limit of a reply.
fn cut(text: &str) -> String {
    if text.len() <= CONTROL_TEXT_MAX_BYTES {
        return text.to_owned();
    }
    let mut end = CONTROL_TEXT_MAX_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests;
