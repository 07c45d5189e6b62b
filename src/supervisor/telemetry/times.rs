//! Durations of worker starts, handovers and planned operations.
//!
//! The machine measures them and reports them in its notices; here they are added up, for the
//! status and the metrics. Invariants: they survive an upgrade; a slot that has left keeps its
//! times and continues them if it comes back, so that no count ever decreases; bounded by the
//! maximum number of slots and the kinds of operations. It must not read a clock.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::supervisor::machine::{Answer, Notice};
use uppercased_ctl::clock::{Tick, millis};
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::status::{Durations, LastOperation, OperationTimes};

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Times {
    /// Slot `i` is at index `i`.
    slots: Vec<SlotTimes>,
    /// By kind, then by result.
    operations: BTreeMap<String, BTreeMap<String, Durations>>,
    /// When the operation in progress began.
    began: Option<Tick>,
    last: Option<Ended>,
}

/// The times of one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SlotTimes {
    /// From the fork of a worker to its Ready.
    pub(crate) starts: Durations,
    /// From the handover command to the end, whatever the result.
    pub(crate) handovers: Durations,
}

/// The operation that ended last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ended {
    what: String,
    cause: Option<String>,
    took: Duration,
    at: Tick,
}

const DONE: &str = "done";
const FAILED: &str = "failed";

impl Times {
    /// Adds the measurement of a notice.
    pub(crate) fn note(&mut self, notice: &Notice, now: Tick) {
        match notice {
            Notice::WorkerReady { worker, took } | Notice::WorkerStandingBy { worker, took } => {
                self.slot_mut(worker.slot).starts.note(*took);
            }
            Notice::HandoverEnded { from, took, .. } => {
                self.slot_mut(from.slot).handovers.note(*took);
            }
            Notice::OperationStarted { .. } => self.began = Some(now),
            Notice::OperationEnded { what, answer } => self.ended(what, answer, now),
            _ => {}
        }
    }

    fn ended(&mut self, what: &str, answer: &Answer, now: Tick) {
        let cause = match answer {
            Answer::Done(_) => None,
            Answer::Failed { cause } => Some(cause.clone()),
            // It never began; another operation may be in progress.
            Answer::Refused { .. } => return,
        };
        let took = self.began.take().map_or(Duration::ZERO, |at| now.since(at));
        // "scale to 6" is a kind with a number.
        let kind = what.split(' ').next().unwrap_or_default();
        let outcome = if cause.is_none() { DONE } else { FAILED };
        let by_outcome = self.operations.entry(kind.to_owned()).or_default();
        by_outcome.entry(outcome.to_owned()).or_default().note(took);
        self.last = Some(Ended {
            what: what.to_owned(),
            cause,
            took,
            at: now,
        });
    }

    fn slot_mut(&mut self, slot: SlotId) -> &mut SlotTimes {
        if self.slots.len() <= slot.index() {
            self.slots.resize_with(slot.index() + 1, SlotTimes::default);
        }
        &mut self.slots[slot.index()]
    }

    /// Returns the times of a slot; empty if there are none.
    pub(crate) fn of(&self, slot: SlotId) -> SlotTimes {
        self.slots.get(slot.index()).cloned().unwrap_or_default()
    }

    /// Returns every kind of operation so far.
    pub(crate) fn operations(&self) -> Vec<OperationTimes> {
        let kinds = self.operations.iter();
        let all = kinds.flat_map(|(what, by_outcome)| {
            by_outcome.iter().map(|(outcome, times)| OperationTimes {
                what: what.clone(),
                outcome: outcome.clone(),
                times: times.clone(),
            })
        });
        all.collect()
    }

    /// Returns the operation that ended last.
    pub(crate) fn last_operation(&self, now: Tick) -> Option<LastOperation> {
        let ended = self.last.as_ref()?;
        let outcome = ended.cause.as_ref().map_or(DONE, |_| FAILED);
        Some(LastOperation {
            what: ended.what.clone(),
            outcome: outcome.to_owned(),
            cause: ended.cause.clone(),
            took_ms: millis(ended.took),
            age_ms: millis(now.since(ended.at)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::machine::Done;
    use uppercased_ctl::identity::{Generation, RequestId, WorkerId};

    fn worker(slot: u16) -> WorkerId {
        WorkerId {
            slot: SlotId(slot),
            generation: Generation(1),
        }
    }

    fn started(what: &str) -> Notice {
        Notice::OperationStarted {
            what: what.to_owned(),
            request: RequestId(1),
        }
    }

    fn ended(what: &str, answer: Answer) -> Notice {
        Notice::OperationEnded {
            what: what.to_owned(),
            answer,
        }
    }

    #[test]
    fn refused_operation_is_not_counted() {
        let mut times = Times::default();
        times.note(&started("reload"), Tick::from_millis(10));
        let cause = "a reload is under way".to_owned();
        let refused = ended("scale to 6", Answer::Refused { cause });
        times.note(&refused, Tick::from_millis(20));
        assert_eq!(times.last_operation(Tick::from_millis(20)), None);
        let cause = "slot 1 died".to_owned();
        let failed = ended("reload", Answer::Failed { cause });
        times.note(&failed, Tick::from_millis(310));
        times.note(&started("scale to 6"), Tick::from_millis(400));
        let done = ended("scale to 6", Answer::Done(Done::default()));
        times.note(&done, Tick::from_millis(420));

        let last = times.last_operation(Tick::from_millis(500)).unwrap();
        assert_eq!((last.what.as_str(), last.cause), ("scale to 6", None));
        assert_eq!((last.took_ms, last.age_ms), (20, 80));
        let known: Vec<_> = OperationTimes::all_kinds().collect();
        let is_known = |it: &OperationTimes| known.contains(&(&*it.what, &*it.outcome));
        assert!(times.operations().iter().all(is_known));
        let shown: Vec<_> = times
            .operations()
            .into_iter()
            .map(|it| (it.what, it.outcome, it.times.sum_us))
            .collect();
        let owned = |what: &str, outcome: &str, us| (what.to_owned(), outcome.to_owned(), us);
        assert_eq!(
            shown,
            [
                owned("reload", FAILED, 300_000),
                owned("scale", DONE, 20_000)
            ]
        );
    }

    #[test]
    fn slots_have_their_own_times() {
        let mut times: Times = serde_json::from_str("{}").unwrap();
        let took = Duration::from_millis(7);
        let ready = Notice::WorkerReady {
            worker: worker(3),
            took,
        };
        times.note(&ready, Tick::ZERO);
        assert_eq!(times.of(SlotId(3)).starts.last_us, 7000);
        assert!(times.of(SlotId(2)).starts.is_empty());
        assert!(times.of(SlotId(9)).handovers.is_empty());
        let json = serde_json::to_string(&times).unwrap();
        assert_eq!(serde_json::from_str::<Times>(&json).unwrap(), times);
    }
}
