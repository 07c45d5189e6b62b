//! The state of rebalancing: samples of the workers' loads, and moves as trials.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::exchange::Load;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::WorkerId;

/// The state of load samples and moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Balance {
    /// Due time of the next sample; `None`: no samples are taken.
    pub(super) due: Option<Tick>,
    /// Whether a sample was requested and has not arrived.
    pub(super) awaited: bool,
    /// The latest sample.
    pub(super) seen: Option<Sample>,
    /// The overloaded worker of that sample, and the number of samples in a row that found it.
    pub(super) suspect: Option<(WorkerId, u32)>,
    /// The move in progress.
    pub(super) moving: Option<Move>,
    /// The moves so far.
    pub(super) trials: Option<Trials>,
}

/// The loads of all workers that served, in order of their slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) at: Tick,
    pub(super) loads: Vec<Load>,
}

/// A move in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Move {
    pub(super) from: WorkerId,
    pub(super) to: WorkerId,
    pub(super) since: Tick,
    pub(super) deadline: Tick,
}

/// The history of moves, for judging whether further moves are of use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trials {
    /// Time at which the latest one was requested.
    pub(super) at: Tick,
    /// Connections moved by it, as far as known.
    pub(super) moved: u32,
    /// The workers that received some; one worker per slot at most.
    pub(super) receivers: Vec<WorkerId>,
    /// The lowest rate of the busiest worker so far, in calls per second.
    pub(super) peak: u64,
    /// Minimum time from the latest move to the next one.
    pub(super) rest: Duration,
    /// Time at which moves were last judged useless, or the first one was made.
    pub(super) judged: Tick,
}
