//! The kinds of failure between a client and a server.
//!
//! One enum provides the keys of the counts and the words in JSON and summary. Pure.

use std::io;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::truth::Wrong;

/// The kinds that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// The server ended the stream early.
    EarlyEof,
    /// No answer within the timeout.
    Timeout,
    /// A wrong byte was received.
    WrongByte,
    /// The connection was not established in time.
    ConnectTimeout,
    /// No free source port.
    NoSourcePort,
    /// Another error of the system.
    System,
}

/// The reason why a connection is closed as failed.
#[derive(Debug)]
pub enum Fault {
    /// The system's error.
    Io(io::Error),
    /// An answer is wrong.
    Wrong {
        /// Number of correct bytes before it.
        position: u64,
        /// The first wrong byte.
        wrong: Wrong,
    },
    /// More bytes were received than requested.
    TooMuch {
        /// The end of the requested bytes.
        position: u64,
    },
    /// The stream ended early.
    Ended {
        /// Bytes received.
        position: u64,
        /// Bytes missing.
        owed: u64,
    },
    /// No byte was received within the timeout.
    Silent {
        /// Bytes received.
        position: u64,
        /// Bytes missing.
        owed: u64,
    },
    /// The connection was not established in time.
    Unconnected,
}

impl Kind {
    /// Returns the word for it in reports.
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
    /// Returns the kind under which it is counted.
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

    /// Returns the number of correct bytes before the failure; `None` if not applicable.
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

    /// Returns a description for people.
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
            Self::TooMuch { .. } => "received more bytes than were sent".to_owned(),
            Self::Ended { owed, .. } => format!("{owed} bytes were missing"),
            Self::Silent { owed, .. } => format!("no progress; {owed} bytes were missing"),
            Self::Unconnected => "not connected in time".to_owned(),
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
