//! Durations of worker starts, handovers, rescues and planned operations, counts of keepers, and the
//! latest crashes and messages of each slot.
//!
//! The machine measures most of them and reports them in its notices; here they are added up, for
//! the status and the metrics. Invariants: they survive an upgrade; a slot that has left keeps its
//! times and continues them if it is added again, so that no count ever decreases; bounded by the
//! maximum number of slots and the kinds of operations. It must not read a clock.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::CRASHES_LISTED_MAX;
use crate::supervisor::machine::{Answer, ExitStatus, Notice};
use uppercased_ctl::clock::{Tick, millis};
use uppercased_ctl::identity::{SlotId, WorkerId};
use uppercased_ctl::operation::OperationKind;
use uppercased_ctl::status::{Crash, Durations, LastOperation, OperationTimes, Rescues};

use super::history::History;
use super::starts::Starts;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Times {
    /// Slot `i` is at index `i`.
    slots: Vec<SlotTimes>,
    operations: Vec<OperationTimes>,
    /// Start time of the operation in progress.
    began: Option<Tick>,
    last: Option<Ended>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SlotTimes {
    /// From the fork of a worker to its Ready.
    pub(crate) starts: Durations,
    /// From the handover command to the end, whatever the result.
    pub(crate) handovers: Durations,
    /// Continuations of workers whose process died.
    pub(crate) rescues: Rescues,
    pub(crate) workers: Starts,
    pub(crate) keepers: Starts,
    pub(crate) history: History,
    /// The latest crashes and failed starts, oldest first.
    crashes: VecDeque<Crashed>,
}

/// A worker that crashed, or did not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Crashed {
    worker: WorkerId,
    /// `None` if the process could not be created.
    exit: Option<ExitStatus>,
    error: Option<String>,
    at: Tick,
}

impl SlotTimes {
    /// Returns the latest crashes and failed starts, the last one first.
    pub(crate) fn last_crashes(&self, now: Tick) -> Vec<Crash> {
        let latest = self.crashes.iter().rev();
        let latest = latest.map(|crashed| Crash {
            generation: crashed.worker.generation,
            exit: crashed.exit.map(|exit| exit.to_string()),
            error: crashed.error.clone(),
            age_ms: millis(now.since(crashed.at)),
        });
        latest.collect()
    }
}

/// The operation that ended last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ended {
    operation: OperationKind,
    error: Option<String>,
    took: Duration,
    at: Tick,
}

impl Times {
    /// Adds the measurement of a notice.
    pub(crate) fn note(&mut self, notice: &Notice, now: Tick) {
        match notice {
            Notice::WorkerStarting { worker, .. } => self.slot_mut(worker.slot).workers.note(now),
            Notice::WorkerReady { worker, took } | Notice::WorkerStandingBy { worker, took } => {
                self.slot_mut(worker.slot).starts.note(*took);
            }
            Notice::HandoverEnded { from, took, .. } => {
                self.slot_mut(from.slot).handovers.note(*took);
            }
            Notice::WorkerDied {
                worker,
                exit,
                cause,
                ..
            } => self.crashed(*worker, Some(*exit), cause.clone(), now),
            Notice::SpawnFailed { worker, cause } => {
                self.crashed(*worker, None, Some(cause.clone()), now);
            }
            Notice::WorkerRescued {
                worker,
                exit,
                cause,
                connections,
                owed_bytes,
                took,
                ..
            } => {
                let times = self.slot_mut(worker.slot);
                times.workers.note_restart(now);
                times.rescues.note(*connections, *owed_bytes, *took);
                self.crashed(*worker, Some(*exit), cause.clone(), now);
            }
            Notice::OperationStarted { .. } => self.began = Some(now),
            Notice::OperationEnded { operation, answer } => self.ended(*operation, answer, now),
            _ => {}
        }
    }

    fn crashed(
        &mut self,
        worker: WorkerId,
        exit: Option<ExitStatus>,
        error: Option<String>,
        now: Tick,
    ) {
        let crashes = &mut self.slot_mut(worker.slot).crashes;
        if crashes.len() == CRASHES_LISTED_MAX {
            crashes.pop_front();
        }
        crashes.push_back(Crashed {
            worker,
            exit,
            error,
            at: now,
        });
    }

    /// Adds a sample of the number of messages of each present slot, in their order.
    pub(crate) fn sample(&mut self, messages: &[u64], now: Tick) {
        for (slot, count) in (0..).map(SlotId).zip(messages) {
            self.slot_mut(slot).history.sample(*count, now);
        }
    }

    /// Counts a keeper of a running worker that ended.
    pub(crate) fn keeper_lost(&mut self, slot: SlotId) {
        let lost = &mut self.slot_mut(slot).rescues.keepers_lost;
        *lost = lost.saturating_add(1);
    }

    /// Counts a keeper that took the place of a lost one.
    pub(crate) fn keeper_replaced(&mut self, slot: SlotId, now: Tick) {
        let times = self.slot_mut(slot);
        times.keepers.note_restart(now);
        let replaced = &mut times.rescues.keepers_replaced;
        *replaced = replaced.saturating_add(1);
    }

    fn ended(&mut self, operation: OperationKind, answer: &Answer, now: Tick) {
        let error = match answer {
            Answer::Done(_) => None,
            Answer::Failed { cause } => Some(cause.clone()),
            // It never began; another operation may be in progress.
            Answer::Refused { .. } => return,
        };
        let took = self.began.take().map_or(Duration::ZERO, |at| now.since(at));
        let result = result(error.as_ref());
        let (name, all) = (operation.name(), &mut self.operations);
        let same = |it: &OperationTimes| (&*it.operation, &*it.result) == (name, result);
        let index = all.iter().position(same).unwrap_or_else(|| {
            all.push(OperationTimes {
                operation: name.to_owned(),
                result: result.to_owned(),
                times: Durations::default(),
            });
            all.len() - 1
        });
        all[index].times.note(took);
        self.last = Some(Ended {
            operation,
            error,
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

    pub(crate) fn operations(&self) -> &[OperationTimes] {
        &self.operations
    }

    /// Returns the operation that ended last.
    pub(crate) fn last_operation(&self, now: Tick) -> Option<LastOperation> {
        let ended = self.last.as_ref()?;
        Some(LastOperation {
            operation: ended.operation.to_string(),
            result: result(ended.error.as_ref()).to_owned(),
            error: ended.error.clone(),
            duration_ms: millis(ended.took),
            age_ms: millis(now.since(ended.at)),
        })
    }
}

const fn result(error: Option<&String>) -> &'static str {
    match error {
        None => OperationTimes::DONE,
        Some(_) => OperationTimes::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::machine::Done;
    use uppercased_ctl::identity::{Generation, RequestId};

    fn worker(slot: u16) -> WorkerId {
        WorkerId {
            slot: SlotId(slot),
            generation: Generation(1),
        }
    }

    const SCALE: OperationKind = OperationKind::Scale { to: 6 };

    fn started(operation: OperationKind) -> Notice {
        Notice::OperationStarted {
            operation,
            request: RequestId(1),
        }
    }

    fn ended(operation: OperationKind, answer: Answer) -> Notice {
        Notice::OperationEnded { operation, answer }
    }

    #[test]
    fn refused_operation_is_not_counted() {
        let mut times = Times::default();
        times.note(&started(OperationKind::Reload), Tick::from_millis(10));
        let cause = "reload in progress".to_owned();
        let refused = ended(SCALE, Answer::Refused { cause });
        times.note(&refused, Tick::from_millis(20));
        assert_eq!(times.last_operation(Tick::from_millis(20)), None);
        let cause = "slot 1 died".to_owned();
        let failed = ended(OperationKind::Reload, Answer::Failed { cause });
        times.note(&failed, Tick::from_millis(310));
        times.note(&started(SCALE), Tick::from_millis(400));
        let done = ended(SCALE, Answer::Done(Done::default()));
        times.note(&done, Tick::from_millis(420));

        let last = times.last_operation(Tick::from_millis(500)).unwrap();
        assert_eq!((last.operation.as_str(), last.error), ("scale to 6", None));
        assert_eq!((last.duration_ms, last.age_ms), (20, 80));
        let known: Vec<_> = OperationTimes::all_kinds().collect();
        let is_known = |it: &OperationTimes| known.contains(&(&*it.operation, &*it.result));
        assert!(times.operations().iter().all(is_known));
        let shown = times.operations().iter();
        let shown: Vec<_> = shown
            .map(|it| (&*it.operation, &*it.result, it.times.sum_us))
            .collect();
        assert_eq!(
            shown,
            [("reload", "failed", 300_000), ("scale", "done", 20_000)]
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
        let rescued = |took, owed_bytes| Notice::WorkerRescued {
            worker: worker(3),
            exit: ExitStatus::KILLED,
            cause: None,
            connections: 4,
            owed_bytes,
            reset: 1,
            took: Duration::from_micros(took),
        };
        for (took, owed) in [(900, 10), (1100, u64::MAX)] {
            times.note(&rescued(took, owed), Tick::ZERO);
        }
        times.keeper_lost(SlotId(3));
        times.keeper_replaced(SlotId(3), Tick::ZERO);
        let rescues = times.of(SlotId(3)).rescues;
        assert_eq!((rescues.times.count, rescues.times.sum_us), (2, 2000));
        assert_eq!((rescues.connections, rescues.owed_bytes), (8, u64::MAX));
        assert_eq!((rescues.keepers_lost, rescues.keepers_replaced), (1, 1));
        assert_eq!(times.of(SlotId(3)).workers.restarts(Tick::ZERO), 2);
        assert_eq!(times.of(SlotId(3)).keepers.restarts(Tick::ZERO), 1);
        assert!(times.of(SlotId(2)).rescues.is_empty());
        times.sample(&[0; 4], Tick::ZERO);
        times.sample(&[0, 0, 0, 7], Tick::from_millis(1000));
        assert_eq!(times.of(SlotId(3)).history.latest(9), [7]);
        assert_eq!(times.of(SlotId(2)).history.latest(9), [0]);
        let json = serde_json::to_string(&times).unwrap();
        assert_eq!(serde_json::from_str::<Times>(&json).unwrap(), times);
    }
    #[test]
    fn latest_crashes_are_kept() {
        let mut times = Times::default();
        let at = Tick::from_millis;
        for second in 1..=9 {
            let cause = Some(format!("error {second}"));
            let died = Notice::WorkerDied {
                worker: worker(1),
                exit: ExitStatus::Exited(1),
                served_for: None,
                cause,
            };
            times.note(&died, at(second * 1000));
        }
        let failed = Notice::SpawnFailed {
            worker: worker(1),
            cause: "no memory".to_owned(),
        };
        times.note(&failed, at(10_000));
        let crashes = times.of(SlotId(1)).last_crashes(at(12_000));
        assert_eq!(crashes.len(), CRASHES_LISTED_MAX);
        let shown: Vec<_> = crashes
            .iter()
            .map(|it| (it.exit.as_deref(), it.error.as_deref(), it.age_ms))
            .take(2)
            .collect();
        let expected = [
            (None, Some("no memory"), 2000),
            (Some("exit code 1"), Some("error 9"), 3000),
        ];
        assert_eq!(shown, expected);
        assert!(times.of(SlotId(0)).last_crashes(at(12_000)).is_empty());
    }
}
