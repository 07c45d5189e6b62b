//! What can go wrong between a client and a server, by kind.
//!
//! One enum is the key of the counts, the word in the JSON and in the summary. Pure.

use std::io;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::truth::Wrong;

/// The kinds that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Nobody listened.
    Refused,
    /// The connection was reset.
    Reset,
    /// The server ended the stream before its time.
    EarlyEof,
    /// No answer for too long.
    Timeout,
    /// A byte came back that should not have.
    WrongByte,
    /// The connection did not come about in time.
    ConnectTimeout,
    /// No free port for this end of the connection.
    NoSourcePort,
    /// The system refused something else.
    System,
}

/// Why a connection is given up.
#[derive(Debug)]
pub enum Fault {
    /// The system says so.
    Io(io::Error),
    /// An answer is wrong, after so many right bytes.
    Wrong {
        /// The right ones.
        position: u64,
        /// The first that is not.
        wrong: Wrong,
    },
    /// More came than was asked for.
    TooMuch {
        /// The end of what was asked for.
        position: u64,
    },
    /// The stream ended.
    Ended {
        /// What had come by then.
        position: u64,
        /// What had not.
        owed: u64,
    },
    /// Nothing came for too long.
    Silent {
        /// What had come by then.
        position: u64,
        /// What had not.
        owed: u64,
    },
    /// The connection did not come about in time.
    Unconnected,
}

impl Kind {
    /// The word for it in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::EarlyEof => "early_eof",
            Self::Timeout => "timeout",
            Self::WrongByte => "wrong_byte",
            Self::ConnectTimeout => "connect_timeout",
            Self::NoSourcePort => "no_source_port",
            Self::System => "system",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::Refused,
            Some(Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED) => Self::Reset,
            Some(Errno::ETIMEDOUT | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {
                Self::ConnectTimeout
            }
            Some(Errno::EADDRNOTAVAIL | Errno::EADDRINUSE) => Self::NoSourcePort,
            _ => match error.kind() {
                io::ErrorKind::ConnectionRefused => Self::Refused,
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
                _ => Self::System,
            },
        }
    }
}

impl Fault {
    /// What it counts as.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Io(error) => Kind::of(error),
            Self::Wrong { .. } | Self::TooMuch { .. } => Kind::WrongByte,
            Self::Ended { .. } => Kind::EarlyEof,
            Self::Silent { .. } => Kind::Timeout,
            Self::Unconnected => Kind::ConnectTimeout,
        }
    }

    /// How many bytes were right before; `None` if that has no meaning.
    #[must_use]
    pub const fn position(&self) -> Option<u64> {
        match self {
            Self::Wrong { position, .. }
            | Self::TooMuch { position }
            | Self::Ended { position, .. }
            | Self::Silent { position, .. } => Some(*position),
            Self::Io(_) | Self::Unconnected => None,
        }
    }

    /// What was seen, for people.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Io(error) => error.raw_os_error().map_or_else(
                || error.to_string(),
                |number| Errno::from_raw(number).desc().to_owned(),
            ),
            Self::Wrong { wrong, .. } => {
                let Wrong { expected, got, .. } = wrong;
                format!("expected 0x{expected:02x}, got 0x{got:02x}")
            }
            Self::TooMuch { .. } => "more bytes came back than were sent".to_owned(),
            Self::Ended { owed, .. } => format!("{owed} bytes were still owed"),
            Self::Silent { owed, .. } => format!("no progress; {owed} bytes were still owed"),
            Self::Unconnected => "no connection in time".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_map_to_failures() {
        let kind = |errno: Errno| Fault::Io(io::Error::from(errno)).kind();
        assert_eq!(kind(Errno::ECONNREFUSED), Kind::Refused);
        assert_eq!(kind(Errno::EPIPE), Kind::Reset);
        assert_eq!(kind(Errno::ETIMEDOUT), Kind::ConnectTimeout);
        assert_eq!(kind(Errno::EADDRNOTAVAIL), Kind::NoSourcePort);
        assert_eq!(kind(Errno::EMFILE), Kind::System);
        let own = Fault::Io(io::ErrorKind::ConnectionRefused.into());
        assert_eq!(own.kind(), Kind::Refused);
    }

    #[test]
    fn display_equals_key() {
        for kind in [Kind::EarlyEof, Kind::NoSourcePort, Kind::WrongByte] {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.name()));
        }
    }
}
