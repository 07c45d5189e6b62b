//! The sources of readiness reports, as tokens of the event loop.
//!
//! Invariant: a token keeps its meaning while anything can be reported under it. Children have
//! unique serial numbers, so a stale report about a former child is ignored.

use mio::Token;

use crate::config::CONTROL_CLIENTS_MAX;

/// The source of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The pipe that signal handlers write to.
    Signals,
    /// The channel of the preflight child.
    PreflightChannel,
    /// The pidfd of the preflight child.
    PreflightProcess,
    /// The channel of the child that asks the service manager.
    InquiryChannel,
    /// Its pidfd.
    InquiryProcess,
    /// The admin process's pidfd.
    AdminProcess,
    /// The pipe that a service manager closes.
    Barrier,
    /// The lease.
    Lease,
    /// The admin process's channel.
    AdminChannel,
    /// The pidfd of a child that was killed.
    Killed,
    /// Standard output, which has not accepted the addresses yet.
    Announcement,
    /// The control socket or one of its clients.
    Control,
    /// The lock of an address, with a connection attempt.
    Lock(usize),
    /// A worker's channel, by the worker's serial number.
    Channel(u64),
    /// A worker's pidfd.
    Process(u64),
    /// The pidfd of a worker's keeper, by the worker's serial number.
    Keeper(u64),
}

/// First of the control socket's tokens; one for itself and one for each client.
pub(crate) const CONTROL_FIRST: usize = 16;
const CONTROL_END: usize = CONTROL_FIRST + CONTROL_CLIENTS_MAX + 1;
const LOCKS_FIRST: usize = 1 << 16;
const CHILDREN_FIRST: usize = 1 << 32;

impl Source {
    pub(crate) const fn token(self) -> Token {
        Token(match self {
            Self::Signals => 0,
            Self::PreflightChannel => 1,
            Self::PreflightProcess => 2,
            Self::AdminProcess => 3,
            Self::Barrier => 4,
            Self::AdminChannel => 5,
            Self::Killed => 6,
            Self::Announcement => 7,
            Self::InquiryChannel => 8,
            Self::InquiryProcess => 9,
            Self::Lease => 10,
            Self::Control => CONTROL_FIRST,
            Self::Lock(index) => LOCKS_FIRST + index,
            Self::Channel(serial) => CHILDREN_FIRST + 3 * serial as usize,
            Self::Process(serial) => CHILDREN_FIRST + 3 * serial as usize + 1,
            Self::Keeper(serial) => CHILDREN_FIRST + 3 * serial as usize + 2,
        })
    }

    /// Returns the source of a token, if it has one.
    pub(crate) const fn of(token: Token) -> Option<Self> {
        Some(match token.0 {
            0 => Self::Signals,
            1 => Self::PreflightChannel,
            2 => Self::PreflightProcess,
            3 => Self::AdminProcess,
            4 => Self::Barrier,
            5 => Self::AdminChannel,
            6 => Self::Killed,
            7 => Self::Announcement,
            8 => Self::InquiryChannel,
            9 => Self::InquiryProcess,
            10 => Self::Lease,
            CONTROL_FIRST..CONTROL_END => Self::Control,
            number if number >= CHILDREN_FIRST => {
                let serial = ((number - CHILDREN_FIRST) / 3) as u64;
                match (number - CHILDREN_FIRST) % 3 {
                    0 => Self::Channel(serial),
                    1 => Self::Process(serial),
                    _ => Self::Keeper(serial),
                }
            }
            number if number >= LOCKS_FIRST => Self::Lock(number - LOCKS_FIRST),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_survives_round_trip() {
        let sources = [
            Source::Signals,
            Source::PreflightChannel,
            Source::PreflightProcess,
            Source::AdminProcess,
            Source::Barrier,
            Source::Lease,
            Source::AdminChannel,
            Source::Killed,
            Source::Announcement,
            Source::InquiryChannel,
            Source::InquiryProcess,
            Source::Control,
            Source::Lock(0),
            Source::Lock(4000),
            Source::Channel(0),
            Source::Process(0),
            Source::Channel(u64::from(u32::MAX)),
            Source::Process(u64::from(u32::MAX)),
            Source::Keeper(0),
            Source::Keeper(u64::from(u32::MAX)),
        ];
        for source in sources {
            assert_eq!(Source::of(source.token()), Some(source));
        }
        let last_client = Token(CONTROL_END - 1);
        assert_eq!(Source::of(last_client), Some(Source::Control));
        assert_eq!(Source::of(Token(CONTROL_END)), None);
    }
}
