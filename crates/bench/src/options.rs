//! The options of `uppercased bench` as values: choices, scheduled commands and addresses.
//!
//! Pure. It must not check combinations of options; `plan` does.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::criterion::Criterion;
use super::size::Sizes;
use uppercased_ctl::proxy_header::Version;

/// The load patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Each connection sends its next message after an answer.
    Ping,
    /// Messages are sent as planned, regardless of the answers.
    Rate,
    /// Maximum throughput, in both directions at once.
    Stream,
    /// Connect, exchange, close, repeat.
    Churn,
    /// Long-lived connections, each used at intervals.
    Hold,
    /// Connections stay open and idle.
    Idle,
    /// Each connection sends as much as the kernel accepts and reads nothing until the end.
    Stall,
}

impl Pattern {
    /// Returns whether the flag with this long name, without dashes, applies to this pattern.
    #[must_use]
    pub fn takes(self, flag: &str) -> bool {
        let is_answered = !matches!(self, Self::Idle | Self::Stall);
        match flag {
            "rate" => self == Self::Rate,
            "arrivals" => matches!(self, Self::Rate | Self::Hold),
            "every" => self == Self::Hold,
            "close" | "messages-each" => self == Self::Churn,
            "pipeline" | "count" | "hgrm" => is_answered,
            "size" => self != Self::Idle,
            _ => true,
        }
    }
}

/// The expected answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// The upper case of the bytes sent.
    Upper,
    /// The bytes sent.
    Echo,
    /// The same number of bytes, unchecked.
    None,
}

/// How `churn` closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Close {
    /// Closed after the answer.
    Fin,
    /// The client ends its stream right after the last byte, and closes after the server has ended
    /// its own.
    Half,
    /// Reset after the answer.
    Rst,
}

/// The spacing of planned messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// At equal intervals.
    Constant,
    /// At random, like the messages of many independent users.
    Poisson,
}

/// A format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Everything, as JSON.
    Json,
    /// A page for a browser.
    Report,
    /// A row for each interval or probe.
    Csv,
    /// A table of the most important figures.
    Markdown,
    /// The percentile distribution of HdrHistogram.
    Hgrm,
}

/// A choice given as a word.
pub trait Word: Copy + 'static {
    /// Every choice.
    const ALL: &'static [Self];

    /// Returns the choice's word.
    fn word(self) -> &'static str;
}

/// Implements `Word` for an enum, so that each word is defined once.
macro_rules! words {
    ($name:ident: $($variant:ident = $word:literal),+) => {
        impl Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }
    };
}

words!(Pattern: Ping = "ping", Rate = "rate", Stream = "stream", Churn = "churn", Hold = "hold",
    Idle = "idle", Stall = "stall");
words!(Format: Json = "json", Report = "report", Csv = "csv", Markdown = "markdown", Hgrm = "hgrm");
words!(Expect: Upper = "upper", Echo = "echo", None = "none");
words!(Close: Fin = "fin", Half = "half", Rst = "rst");
words!(Arrivals: Constant = "constant", Poisson = "poisson");
impl Word for Version {
    const ALL: &'static [Self] = &Self::ALL;

    fn word(self) -> &'static str {
        self.name()
    }
}

/// The source addresses of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// A number of addresses in the loopback network.
    Count(u32),
    /// Explicit addresses, with port 0; an IPv6 address may have a zone.
    Addresses(Vec<SocketAddr>),
}

/// A command to run during the load, with its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Time of the first run, from the beginning of the measurement.
    pub first: Duration,
    /// Interval of further runs; `None`: a single run.
    pub every: Option<Duration>,
    /// The command.
    pub action: Action,
}

/// A command to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A shell command.
    Shell(String),
    /// A program with its arguments as bytes: a path need not be text.
    Program(Vec<OsString>),
}

/// Formats the command as a user would type it: a program by its name.
impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shell(line) => out.write_str(line),
            Self::Program(words) => {
                let program = words.first().map(Path::new).and_then(Path::file_name);
                let words = program
                    .into_iter()
                    .chain(words.iter().skip(1).map(AsRef::as_ref));
                let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
                out.write_str(&words.join(" "))
            }
        }
    }
}

/// The options as given.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(
    missing_docs,
    reason = "each is the flag of its name, explained in the help"
)]
pub struct Options {
    pub pattern: Option<Pattern>,
    /// `HOST:PORT`; `None`: the built-in server.
    pub target: Option<String>,
    pub connections: Option<u32>,
    pub size: Option<Sizes>,
    pub pipeline: Option<u32>,
    pub rate: Option<f64>,
    pub arrivals: Option<Arrivals>,
    pub every: Option<Duration>,
    pub messages_each: Option<u32>,
    pub close: Option<Close>,
    pub duration: Option<Duration>,
    pub count: Option<u64>,
    pub warmup: Option<Duration>,
    pub threads: Option<u16>,
    pub processes: Option<u16>,
    pub sources: Option<Sources>,
    pub receive_buffer: Option<u32>,
    pub proxy_protocol: Option<Version>,
    pub expect: Option<Expect>,
    pub timeout: Option<Duration>,
    pub connect_timeout: Option<Duration>,
    pub pids: Vec<u32>,
    /// Name of the server for reports.
    pub label: Option<String>,
    /// The files of results, each with its format.
    pub files: Vec<(Format, PathBuf)>,
    pub during: Vec<Job>,
    /// Conditions under which the measurement fails.
    pub fail_if: Vec<Criterion>,
    pub reload_every: Option<Duration>,
    pub upgrade_every: Option<Duration>,
    pub workers: Option<u16>,
    /// Arguments of the built-in server, unchanged.
    pub server_args: Vec<String>,
    pub no_progress: bool,
    /// The full command line, for the record.
    pub command: String,
}

impl FromStr for Sources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(0) => return Err("at least one source address is required".to_owned()),
            Ok(count) => return Ok(Self::Count(count)),
            Err(_) => {}
        }
        let zoned = |part: &str| format!("[{part}]:0").parse::<SocketAddrV6>().ok();
        let address = |part: &str| match part.parse::<IpAddr>() {
            Ok(ip) => Some(SocketAddr::new(ip, 0)),
            Err(_) => zoned(part).map(SocketAddr::V6),
        };
        let addresses: Option<Vec<SocketAddr>> = text.split(',').map(address).collect();
        addresses
            .map(Self::Addresses)
            .ok_or_else(|| "use a number, or addresses separated by commas".to_owned())
    }
}

impl FromStr for Job {
    type Err = String;

    /// Parses `every 2s: COMMAND` or `at 3s: COMMAND`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = || {
            let (word, rest) = text.trim().split_once(' ')?;
            let (time, command) = rest.split_once(':')?;
            let time = humantime::parse_duration(time.trim()).ok()?;
            let command = command.trim();
            (!command.is_empty() && !time.is_zero()).then(|| (word, time, command.to_owned()))
        };
        match parts() {
            Some(("every", first, command)) => Ok(Self {
                first,
                every: Some(first),
                action: Action::Shell(command),
            }),
            Some(("at", first, command)) => Ok(Self {
                first,
                every: None,
                action: Action::Shell(command),
            }),
            _ => Err("write `every 2s: COMMAND` or `at 3s: COMMAND`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_parse_jobs_and_sources() {
        let job: Job = "every 2s: uppercased reload".parse().unwrap();
        let every = Some(Duration::from_secs(2));
        assert_eq!(
            (job.every, job.action.to_string().as_str()),
            (every, "uppercased reload")
        );
        let job: Job = "at 300ms: kill -HUP 1: x".parse().unwrap();
        assert_eq!(
            (job.every, job.action.to_string().as_str()),
            (None, "kill -HUP 1: x")
        );
        for text in [
            "",
            "every",
            "every 2s",
            "every 2: x",
            "at 1s:",
            "in 1s: x",
            "every 0s: x",
        ] {
            assert!(text.parse::<Job>().is_err(), "{text}");
        }
        assert_eq!("3".parse(), Ok(Sources::Count(3)));
        let two = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| SocketAddr::from((ip, 0)));
        let two = Sources::Addresses(two.to_vec());
        assert_eq!("10.0.0.1,10.0.0.2".parse(), Ok(two));
        let zoned = SocketAddrV6::new("fe80::1".parse().unwrap(), 0, 0, 3);
        let zoned = Sources::Addresses(vec![SocketAddr::V6(zoned)]);
        assert_eq!("fe80::1%3".parse(), Ok(zoned));
        assert!("here".parse::<Sources>().is_err());
        assert!("0".parse::<Sources>().is_err());
    }
}
