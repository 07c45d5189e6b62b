//! The state of rebalancing: samples of the workers' loads, and moves as trials.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::exchange::Load;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::WorkerId;

/// What is remembered of the workers' loads and of moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Balance {
    /// When the next sample is due; `None`: no samples are taken.
    pub(super) due: Option<Tick>,
    /// A sample was ordered and has not come.
    pub(super) awaited: bool,
    /// The latest sample.
    pub(super) seen: Option<Look>,
    /// The worker that was too busy then, and in how many samples in a row.
    pub(super) suspect: Option<(WorkerId, u32)>,
    /// The move in progress.
    pub(super) moving: Option<Move>,
    /// The moves so far.
    pub(super) trials: Option<Trials>,
}

/// The loads of all workers that served, in order of their slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Look {
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

/// Moves, for judging by what follows whether more of them are any use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trials {
    /// When the latest one was ordered.
    pub(super) at: Tick,
    /// Connections that moved then, as far as is known.
    pub(super) moved: u32,
    /// The workers that received some; one worker per slot at most.
    pub(super) takers: Vec<WorkerId>,
    /// Calls a second of the busiest worker, when they were lowest.
    pub(super) peak: u64,
    /// From the latest move to the next one, at least.
    pub(super) rest: Duration,
    /// When moves have last been found to be of no use, or the first one was made.
    pub(super) judged: Tick,
}
