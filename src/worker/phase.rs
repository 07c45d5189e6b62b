//! The phase of a worker's life, and how the working memory has it.
//!
//! Pure. It must not act on a phase: the worker does.

use std::time::Duration;

use crate::memory::life::Standing;
use uppercased_ctl::clock::Tick;

/// The worker's phase of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Ready, and not accepting: another worker of the slot is active.
    StandingBy,
    Serving,
    /// Stopping; accepting continues for a while, so that load balancers notice first.
    LameDuck {
        until: Tick,
        drain_timeout: Duration,
    },
    /// Its connections migrate to another worker.
    HandingOver {
        /// No other worker accepts from its listeners.
        last: bool,
    },
    /// Some connections could not migrate. They are served until the supervisor decides about them.
    Undecided {
        last: bool,
    },
    /// No longer accepting; established connections are served until they end, or until then.
    Leaving {
        until: Tick,
    },
    /// Sending pending output, then ending each stream.
    Draining {
        until: Tick,
    },
    Done,
}

impl Phase {
    /// Returns the phase as the working memory has it.
    pub(super) const fn standing(self) -> Standing {
        let (phase, until, drain_timeout) = match self {
            Self::StandingBy => (1, Tick::ZERO, Duration::ZERO),
            Self::Serving => (2, Tick::ZERO, Duration::ZERO),
            Self::LameDuck {
                until,
                drain_timeout,
            } => (3, until, drain_timeout),
            Self::HandingOver { last: false } => (4, Tick::ZERO, Duration::ZERO),
            Self::HandingOver { last: true } => (5, Tick::ZERO, Duration::ZERO),
            Self::Undecided { last: false } => (6, Tick::ZERO, Duration::ZERO),
            Self::Undecided { last: true } => (7, Tick::ZERO, Duration::ZERO),
            Self::Leaving { until } => (8, until, Duration::ZERO),
            Self::Draining { until } => (9, until, Duration::ZERO),
            Self::Done => (10, Tick::ZERO, Duration::ZERO),
        };
        Standing {
            phase,
            until,
            drain_timeout,
        }
    }

    /// Returns the phase that the working memory names; `None` if it names none.
    pub(super) const fn of(standing: Standing) -> Option<Self> {
        let until = standing.until;
        Some(match standing.phase {
            1 => Self::StandingBy,
            2 => Self::Serving,
            3 => Self::LameDuck {
                until,
                drain_timeout: standing.drain_timeout,
            },
            4 => Self::HandingOver { last: false },
            5 => Self::HandingOver { last: true },
            6 => Self::Undecided { last: false },
            7 => Self::Undecided { last: true },
            8 => Self::Leaving { until },
            9 => Self::Draining { until },
            10 => Self::Done,
            _ => return None,
        })
    }

    /// Returns the name used in log lines.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::StandingBy => "standing_by",
            Self::Serving => "serving",
            Self::LameDuck { .. } => "lame_duck",
            Self::HandingOver { .. } => "handing_over",
            Self::Undecided { .. } => "undecided",
            Self::Leaving { .. } => "leaving",
            Self::Draining { .. } => "draining",
            Self::Done => "done",
        }
    }
}

/// The time that a worker without a supervisor has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Orphan {
    /// When it begins to drain, unless its phase has an end of its own or its lease ends before.
    pub(super) until: Tick,
    /// When it looks for a signal, and at its lease, next.
    pub(super) check_at: Tick,
    /// Whether the channel leads to a process that may adopt it.
    pub(super) visited: bool,
}

impl Orphan {
    /// Returns when it has something to do in this phase.
    pub(super) fn deadline(self, phase: Phase) -> Option<Tick> {
        match phase {
            Phase::StandingBy
            | Phase::Serving
            | Phase::HandingOver { .. }
            | Phase::Undecided { .. }
            | Phase::Leaving { until: Tick::MAX } => Some(self.until.min(self.check_at)),
            Phase::LameDuck { .. } | Phase::Leaving { .. } => Some(self.check_at),
            Phase::Draining { .. } | Phase::Done => None,
        }
    }

    /// Returns why it begins to drain, if it does now that it has something to do. `is_given_up`: its
    /// lease has ended, which does not matter while a process may adopt it.
    pub(super) fn reason_to_stop(
        self,
        phase: Phase,
        signal: Option<&'static str>,
        is_given_up: bool,
        now: Tick,
    ) -> Option<&'static str> {
        let has_end = match phase {
            Phase::Leaving { until } => until < Tick::MAX,
            _ => matches!(phase, Phase::LameDuck { .. }),
        };
        if signal.is_some() || has_end {
            return signal;
        }
        if self.until <= now {
            return Some("orphan_timeout");
        }
        (is_given_up && !self.visited).then_some("lease_ended")
    }

    pub(super) fn is_due(self, phase: Phase, now: Tick) -> bool {
        self.deadline(phase).is_some_and(|due| due <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_survives_its_standing() {
        let (until, drain_timeout) = (Tick::from_millis(7), Duration::from_secs(3));
        let phases = [
            Phase::StandingBy,
            Phase::Serving,
            Phase::LameDuck {
                until,
                drain_timeout,
            },
            Phase::HandingOver { last: false },
            Phase::HandingOver { last: true },
            Phase::Undecided { last: false },
            Phase::Undecided { last: true },
            Phase::Leaving { until },
            Phase::Draining { until },
            Phase::Done,
        ];
        for phase in phases {
            assert_eq!(Phase::of(phase.standing()), Some(phase));
        }
        let unknown = Standing {
            phase: 0,
            ..Phase::Done.standing()
        };
        assert_eq!(Phase::of(unknown), None);
    }

    #[test]
    fn orphan_stops_for_first_reason() {
        let [now, later] = [5, 6].map(Tick::from_millis);
        let orphan = Orphan {
            until: later,
            check_at: now,
            visited: false,
        };
        let visited = Orphan {
            visited: true,
            ..orphan
        };
        let leaving = Phase::Leaving { until: later };
        let endless = Phase::Leaving { until: Tick::MAX };
        for (orphan, phase, signal, is_given_up, at, reason) in [
            (orphan, Phase::Serving, None, false, now, None),
            (orphan, Phase::Serving, None, true, now, Some("lease_ended")),
            (visited, Phase::Serving, None, true, now, None),
            (
                visited,
                Phase::Serving,
                None,
                true,
                later,
                Some("orphan_timeout"),
            ),
            (orphan, leaving, None, true, later, None),
            (orphan, endless, None, false, now, None),
            (orphan, endless, None, false, later, Some("orphan_timeout")),
            (
                visited,
                leaving,
                Some("SIGTERM"),
                false,
                now,
                Some("SIGTERM"),
            ),
        ] {
            let found = orphan.reason_to_stop(phase, signal, is_given_up, at);
            assert_eq!(found, reason, "{orphan:?} {phase:?}");
        }
    }
}
