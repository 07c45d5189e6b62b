//! The shadow of one slot.

use std::collections::BTreeMap;
use std::time::Duration;

use uppercased::supervisor::machine::{Generation, ReleaseId, SlotId, WorkerId};
use uppercased_ctl::clock::Tick;

use super::law;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Life {
    /// Not started yet.
    Unborn,
    Starting {
        since: Tick,
        failed: bool,
        /// Whether it was spawned as the successor of a worker that has since exited.
        standby: bool,
    },
    Serving {
        since: Tick,
        /// If false, it stands by; the machine must send it the serve command in the same call.
        told: bool,
    },
    /// Its worker has left it, without a successor.
    Retired,
    Stopping,
    /// It is to be killed, or killed and not reaped.
    Dying {
        served: Option<Duration>,
        killed: bool,
        /// Whether the cause is external: not a failure.
        ordered: bool,
    },
    /// Reaped, or never started; while the machine runs, the next worker starts within this window.
    Gone {
        earliest: Tick,
        latest: Tick,
    },
}

/// Activity of a worker other than the main one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// It is to succeed the main worker.
    Starting {
        since: Tick,
        failed: bool,
    },
    /// It is Ready, and must take over before the end of the call.
    StandingBy,
    HandingOver {
        since: Tick,
        to: WorkerId,
        last: bool,
        /// Whether it returns the connections that it adopted.
        back: bool,
    },
    /// Some connections could not migrate; their fate must be decided before the end of the call.
    Undecided {
        last: bool,
        back: bool,
    },
    /// It is to return its connections to the main worker.
    GivingBack,
    /// Its successor serves; it must be stopped before the end of the call.
    Relieved,
    Leaving {
        by: Tick,
        finished: bool,
    },
    Stopping,
    /// `served` is `None` if it never was Ready.
    Dying {
        served: Option<Duration>,
        killed: bool,
        unwanted: bool,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Other {
    pub(super) release: ReleaseId,
    /// Time at which it began to serve, if it did.
    pub(super) served_since: Tick,
    pub(super) part: Part,
}

#[derive(Clone, Debug)]
pub(super) struct Shadow {
    pub(super) generation: u32,
    /// All workers started in it; unknown (`None`) in a slot that is added again.
    pub(super) born: Option<u32>,
    pub(super) release: ReleaseId,
    pub(super) life: Life,
    /// Whether the supervisor holds its listener: a worker of this slot was Ready, or one left it
    /// behind.
    pub(super) deposited: bool,
    /// Whether a worker of this slot has been Ready.
    pub(super) been_ready: bool,
    /// Whether the supervisor has closed the listener again.
    pub(super) closed: bool,
    pub(super) unserved_since: Tick,
    pub(super) borrower: Option<WorkerId>,
    pub(super) failures: u32,
    /// Whether the main worker came back from a handover and may still report its result.
    pub(super) owes_word: bool,
    /// Whether a sibling has emptied the queue permanently.
    pub(super) emptied: bool,
    pub(super) others: BTreeMap<u32, Other>,
}

impl Shadow {
    pub(super) fn new(release: ReleaseId) -> Self {
        Self {
            generation: 0,
            born: Some(0),
            release,
            life: Life::Unborn,
            deposited: false,
            been_ready: false,
            closed: false,
            unserved_since: Tick::ZERO,
            borrower: None,
            failures: 0,
            owes_word: false,
            emptied: false,
            others: BTreeMap::new(),
        }
    }

    pub(super) fn worker(&self, index: u16) -> WorkerId {
        WorkerId {
            slot: SlotId(index),
            generation: Generation(self.generation),
        }
    }

    /// Returns whether a main worker is running.
    pub(super) fn is_live(&self) -> bool {
        match self.life {
            Life::Unborn | Life::Retired | Life::Gone { .. } => false,
            Life::Starting { .. } | Life::Serving { .. } | Life::Stopping | Life::Dying { .. } => {
                true
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.is_live() && self.others.is_empty()
    }

    /// Returns whether its main worker serves.
    pub(super) fn serves(&self) -> bool {
        matches!(self.life, Life::Serving { .. })
    }

    /// Returns whether a worker of its own serves its queue.
    pub(super) fn is_served(&self) -> bool {
        self.serves() || (self.life == Life::Retired && self.handing_over().is_some())
    }

    /// Returns whether a worker is leaving it within a time limit, or keeps its place until then.
    pub(super) fn is_being_left(&self) -> bool {
        if self.closed && !self.others.is_empty() {
            return true;
        }
        let timed = |it: &Other| !matches!(it.part, Part::Leaving { by, .. } if by == Tick::MAX);
        self.others.values().any(timed)
    }

    pub(super) fn stops(&self) -> bool {
        let stopping = |it: &Other| it.part == Part::Stopping;
        self.life == Life::Stopping || self.others.values().any(stopping)
    }

    pub(super) fn handing_over(&self) -> Option<u32> {
        let hands = |it: &Other| matches!(it.part, Part::HandingOver { .. });
        self.others
            .iter()
            .find_map(|(generation, it)| hands(it).then_some(*generation))
    }

    /// Returns the successor that is not Ready yet.
    pub(super) fn successor(&self) -> Option<u32> {
        let starts = |it: &Other| matches!(it.part, Part::Starting { .. });
        self.others
            .iter()
            .find_map(|(generation, it)| starts(it).then_some(*generation))
    }

    /// Checks that generations increase by one and are never reused.
    pub(super) fn is_born(&mut self, worker: WorkerId) {
        let generation = worker.generation.0;
        if let Some(born) = self.born {
            law!(generation == born + 1, "{worker} follows generation {born}");
        }
        self.born = Some(generation);
    }

    pub(super) fn is_killed(&mut self, worker: WorkerId) {
        if let Some(other) = self.others.get_mut(&worker.generation.0) {
            if let Part::Dying { killed, .. } = &mut other.part {
                *killed = true;
            }
        } else if let Life::Dying { killed, .. } = &mut self.life {
            *killed = true;
        }
    }

    /// Returns the states that the machine may report for the main worker.
    pub(super) fn names(&self) -> &'static [&'static str] {
        match self.life {
            Life::Unborn => &["waiting", "stopped"],
            Life::Starting { .. } => &["starting"],
            Life::Serving { .. } => &["serving"],
            Life::Retired => &["retired", "stopped"],
            Life::Stopping => &["stopping"],
            Life::Dying { .. } => &["killing"],
            Life::Gone { .. } => &["backing off", "stopped"],
        }
    }
}

impl Part {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::StandingBy => "standing by",
            Self::HandingOver { .. } => "handing over",
            Self::Undecided { .. } => "undecided",
            Self::GivingBack => "giving back",
            Self::Relieved => "relieved",
            Self::Leaving { .. } => "leaving",
            Self::Stopping => "stopping",
            Self::Dying { .. } => "killing",
        }
    }
}
