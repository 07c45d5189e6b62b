//! What the commands and a running server say to each other over the control socket.
//!
//! A connection carries one request, as one line of JSON, and the server's replies, a line each:
//! any number of [`Reply::Progress`], then one final reply. Lines, so that a person with `socat`
//! can use it, too; JSON, because both ends may be of different age.
//!
//! Invariants: decoding is total (any bytes are a request, a reply or an [`Error`]); an unknown
//! version or command is refused, an unknown field skipped; no line is longer than its bound.
//! Pure: it must not touch a socket.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::{CONTROL_REPLY_MAX_BYTES, CONTROL_TEXT_MAX_BYTES, WORKERS_MAX, WORKERS_MIN};
use crate::status::figures::took;
use crate::status::{Rotation, Status};

/// Version of the requests. Replies carry none: who asks in a version is answered in it.
pub const VERSION: u32 = 1;

/// What a running server is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// Read the configuration anew and renew every worker.
    Reload(Options),
    /// Become the program on disk, then renew every worker.
    Upgrade(Options),
    /// Have so many workers.
    Scale {
        /// How many.
        workers: ScaleTo,
        /// How.
        #[serde(flatten)]
        options: Options,
    },
    /// End the operation in progress, and take back what it has changed.
    Cancel,
    /// Say to load balancers that new clients may come, or should go elsewhere.
    Rotation {
        /// Which of them.
        to: Rotation,
    },
    /// Say how things are.
    Status,
    /// Stop in order. There is no final reply: the connection lives as long as the server.
    Stop,
}

/// How an operation is carried out. What is not named in a request is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Wait while something is in its way, instead of being refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub wait: bool,
    /// Let connections that cannot move be closed after `drain_timeout`, instead of failing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,
}

/// A number of workers, absolute or relative: `6`, or `"+2"` and `"-1"` as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum ScaleTo {
    /// Exactly this number.
    Exactly(u16),
    /// The number in force when the operation begins, plus or minus this one; not 0.
    By(i16),
}

/// How a [`ScaleTo`] is written in JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u16),
    Text(String),
}

/// One line of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// What happens meanwhile, for people.
    Progress(String),
    /// It is done.
    Done(Done),
    /// It began and failed; why, and what runs now.
    Failed(String),
    /// It did not begin; why.
    Refused(String),
    /// How things are.
    Status(Box<Status>),
}

/// What an operation has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// Slots that have a new worker.
    pub renewed: u16,
    /// Slots there are now.
    pub workers: u16,
    /// Connections that moved to another worker, live.
    pub moved: u64,
    /// Connections that were left with their worker until they end.
    pub drained: u64,
    /// Milliseconds after which those are closed.
    pub closed_after_ms: u64,
    /// Milliseconds from the request to the result.
    pub took_ms: u64,
}

impl Done {
    /// Describes the result of `request` on one line; `None` if such a request has none.
    #[must_use]
    pub fn describe(&self, request: &Request) -> Option<String> {
        let took = took(self.took_ms);
        let workers = counted(self.workers.into(), "worker");
        let replaced = counted(self.renewed.into(), "worker");
        let connections = match self.drained {
            0 => format!("{} migrated, 0 draining", counted(self.moved, "connection")),
            drained => {
                let after = Duration::from_millis(self.closed_after_ms);
                let migrated = counted(self.moved, "connection");
                format!("{migrated} migrated, {drained} draining (closed after {after:?})")
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

fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// Why a line is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not end.
    #[error("the line exceeds {max} bytes")]
    TooLong {
        /// How long it may be.
        max: usize,
    },
    /// It is not what the protocol says.
    #[error("the line is not valid: {0}")]
    Syntax(#[from] serde_json::Error),
    /// It is from a program too old or too new.
    #[error("the request has version {0}, and this server supports version {VERSION}")]
    Version(u32),
    /// A number of workers that cannot be.
    #[error("cannot run {0} workers; use {WORKERS_MIN} to {WORKERS_MAX}")]
    Workers(u16),
    /// A change of the number of workers that cannot be.
    #[error("{0:?} is not a number of workers; use for example 6, +1 or -1")]
    Change(String),
}

/// How a request travels.
#[derive(Serialize)]
struct Versioned<'a> {
    version: u32,
    #[serde(flatten)]
    request: &'a Request,
}

/// The part of a request that every version has.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

impl Request {
    /// As a line, its end included.
    ///
    /// # Errors
    /// None that a request can cause; the encoder's signature has one.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        line(&Versioned {
            version: VERSION,
            request: self,
        })
    }

    /// From a line, with or without its end.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::TooLong`].
    pub fn decode(line: &[u8]) -> Result<Self, Error> {
        // First the version: what else a line of another one contains is not ours to judge.
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

    /// The word that a person types for it.
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
    /// Returns the number of workers that this asks for where there are `here`, saturated at what
    /// the type can hold; whether it is possible is for the caller to judge.
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

    /// Reads `6`, `+2` or `-1`: a sign makes the number relative.
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
    /// As a line, its end included. A text that is too long is cut.
    ///
    /// # Errors
    /// [`Error::TooLong`], for a status of very many slots only.
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

    /// From a line, with or without its end.
    ///
    /// # Errors
    /// [`Error::Syntax`].
    pub fn decode(line: &[u8]) -> Result<Self, Error> {
        Ok(serde_json::from_slice(line)?)
    }

    /// Whether nothing follows it.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Progress(_) => false,
            Self::Done(_) | Self::Failed(_) | Self::Refused(_) | Self::Status(_) => true,
        }
    }
}

impl Done {
    /// The length of `span` as it travels.
    #[must_use]
    pub fn millis(span: Duration) -> u64 {
        u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Bytes that become lines as they come in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    bytes: Vec<u8>,
    /// How far there is no end of a line.
    searched: usize,
    max: usize,
}

impl Incoming {
    /// Lines of at most `max` bytes, their end included.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            searched: 0,
            max,
        }
    }

    /// Takes what came. Ask for lines after each call, else the bound holds for all of them.
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

    /// The next complete line, its end included.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.end_of_line()?;
        let rest = self.bytes.split_off(end);
        self.searched = 0;
        Some(std::mem::replace(&mut self.bytes, rest))
    }

    /// What is left when nothing more comes: a last line whose end was forgotten.
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

/// `text`, or as much of its beginning as may travel.
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
