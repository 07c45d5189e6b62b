//! The shadow of one slot.

use std::collections::BTreeMap;
use std::time::Duration;

use uppercased::supervisor::machine::{Generation, ReleaseId, SlotId, WorkerId};
use uppercased_ctl::clock::Tick;

use super::law;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Life {
    /// Its turn has not come.
    Unborn,
    Starting {
        since: Tick,
        failed: bool,
        /// It was spawned to follow somebody who died since.
        standby: bool,
    },
    Serving {
        since: Tick,
        /// False: it stands by, and must be told to serve before all is said.
        told: bool,
    },
    /// Its worker has left it, and nobody follows.
    Retired,
    Stopping,
    /// To be killed, or killed, and not reaped.
    Doomed {
        served: Option<Duration>,
        killed: bool,
        /// For nothing that it did: no failure.
        ordered: bool,
    },
    /// Reaped, or never made; while the machine runs, the next one comes in this window.
    Gone {
        earliest: Tick,
        latest: Tick,
    },
}

/// What somebody beside the main worker does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// It is to follow the main worker.
    Starting {
        since: Tick,
        failed: bool,
    },
    /// It is Ready, and must follow before all is said.
    StandingBy,
    HandingOver {
        since: Tick,
        to: WorkerId,
        last: bool,
        /// It gives back what had moved.
        back: bool,
    },
    /// Not everything could go; it must be told what becomes of the rest before all is said.
    Undecided {
        last: bool,
        back: bool,
    },
    /// It is to give back what it has, to the main worker.
    GivingBack,
    /// Its successor serves; it must be told to leave before all is said.
    Relieved,
    Leaving {
        by: Tick,
        finished: bool,
    },
    Stopping,
    /// `served` is `None` if it never was Ready.
    Doomed {
        served: Option<Duration>,
        killed: bool,
        unwanted: bool,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Other {
    pub(super) release: ReleaseId,
    /// When it began to serve, if it did.
    pub(super) served_since: Tick,
    pub(super) part: Part,
}

#[derive(Clone, Debug)]
pub(super) struct Shadow {
    pub(super) generation: u32,
    /// Of all that ever were in it; `None` while that is not known, in a slot that is added again.
    pub(super) born: Option<u32>,
    pub(super) release: ReleaseId,
    pub(super) life: Life,
    /// The supervisor holds its listener: a worker of this slot has been Ready, or somebody left it.
    pub(super) deposited: bool,
    /// A worker of this slot has been Ready.
    pub(super) been_ready: bool,
    /// And has closed it again.
    pub(super) closed: bool,
    pub(super) unserved_since: Tick,
    pub(super) borrower: Option<WorkerId>,
    pub(super) failures: u32,
    /// The main worker came back from a handover and may still say how that ended.
    pub(super) owes_word: bool,
    /// A sibling has emptied the queue for good.
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

    /// A main worker lives.
    pub(super) fn is_live(&self) -> bool {
        match self.life {
            Life::Unborn | Life::Retired | Life::Gone { .. } => false,
            Life::Starting { .. } | Life::Serving { .. } | Life::Stopping | Life::Doomed { .. } => {
                true
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.is_live() && self.others.is_empty()
    }

    /// Its main worker serves.
    pub(super) fn serves(&self) -> bool {
        matches!(self.life, Life::Serving { .. })
    }

    /// Somebody of its own serves its queue.
    pub(super) fn is_served(&self) -> bool {
        self.serves() || (self.life == Life::Retired && self.handing_over().is_some())
    }

    /// Somebody leaves it who has a time for that, or whose place is taken until then.
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

    /// The one that is to follow and not Ready yet.
    pub(super) fn successor(&self) -> Option<u32> {
        let starts = |it: &Other| matches!(it.part, Part::Starting { .. });
        self.others
            .iter()
            .find_map(|(generation, it)| starts(it).then_some(*generation))
    }

    /// Generations grow by one and are never used again.
    pub(super) fn is_born(&mut self, worker: WorkerId) {
        let generation = worker.generation.0;
        if let Some(born) = self.born {
            law!(generation == born + 1, "{worker} follows generation {born}");
        }
        self.born = Some(generation);
    }

    pub(super) fn is_killed(&mut self, worker: WorkerId) {
        if let Some(other) = self.others.get_mut(&worker.generation.0) {
            if let Part::Doomed { killed, .. } = &mut other.part {
                *killed = true;
            }
        } else if let Life::Doomed { killed, .. } = &mut self.life {
            *killed = true;
        }
    }

    /// What the machine may call the state of the main seat.
    pub(super) fn names(&self) -> &'static [&'static str] {
        match self.life {
            Life::Unborn => &["waiting", "stopped"],
            Life::Starting { .. } => &["starting"],
            Life::Serving { .. } => &["serving"],
            Life::Retired => &["retired", "stopped"],
            Life::Stopping => &["stopping"],
            Life::Doomed { .. } => &["killing"],
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
            Self::Doomed { .. } => "killing",
        }
    }
}
