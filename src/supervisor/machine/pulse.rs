//! Noticing a worker whose loop stands still.
//!
//! A worker counts its turns in shared memory, which costs it no system call. The counter is looked
//! at [`HANG_CHECKS`] times within `hang_timeout`, or more often to know of a stall sooner; a look
//! that finds no new turn is a miss, and has the worker make one, since an idle one makes none by
//! itself. After [`STALL_CHECKS`] misses in a row the worker has stalled, which is reported and makes
//! the server unready. When the misses in a row fill `hang_timeout`, the worker is killed and renewed
//! as after a crash.
//!
//! Invariants: the next look is counted from the latest one and not from when that was due, so a
//! supervisor that was itself stopped for a while finds one miss, not many; misses in a row are all
//! of one pause between looks, so they prove a hang of the length that is in force.

use std::time::Duration;

use super::reactions::Reception;
use super::slot::{PredecessorStage, Pulse, Seat, SlotState};
use super::{Action, KillReason, Machine, Notice, Phase, WorkerId};
use crate::config::{HANG_CHECKS, STALL_CHECKS};
use uppercased_ctl::clock::Tick;

/// No two looks are closer than this, whatever the configuration says: they would keep the
/// supervisor in one turn of its loop for ever.
pub(super) const LOOK_FLOOR: Duration = Duration::from_millis(1);

impl Machine {
    /// The pause between two looks; `None`: nobody is looked at.
    fn look_every(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Booting { .. } | Phase::Serving => {
                let hang = self.policy.hang_timeout.map(|limit| limit / HANG_CHECKS);
                let looks = [hang, self.policy.stall_check].into_iter().flatten();
                Some(looks.min()?.max(LOOK_FLOOR))
            }
            Phase::Idle
            | Phase::BootFailed { .. }
            | Phase::Draining { .. }
            | Phase::Forced
            | Phase::Ended => None,
        }
    }

    /// How many misses in a row make a hang, at that pause between two looks.
    fn hang_misses(&self, every: Duration) -> Option<u128> {
        let limit = self.policy.hang_timeout?;
        let looks = limit.as_nanos().div_ceil(every.as_nanos());
        Some(looks.max(HANG_CHECKS.into()))
    }

    /// Begins to feel the pulse of those who have begun to serve, and ends it with their service.
    pub(super) fn tend_pulses(&mut self, now: Tick) {
        let due = self.look_every().map(|every| now + every);
        let tend = |pulse: &mut Option<Pulse>, serves: bool| match due {
            Some(due) if serves => {
                pulse.get_or_insert(Pulse {
                    due,
                    awaited: false,
                    turns: None,
                    moved: now,
                    misses: 0,
                });
            }
            Some(_) | None => *pulse = None,
        };
        for slot in &mut self.slots {
            tend(&mut slot.pulse, slot.state == SlotState::Serving);
            for it in &mut slot.predecessors {
                let hands = matches!(it.stage, PredecessorStage::HandingOver { .. });
                tend(&mut it.pulse, hands);
            }
        }
    }

    /// Begins all over: the pause between looks, or how many misses make a hang, is another.
    pub(super) fn forget_pulses(&mut self) {
        for slot in &mut self.slots {
            slot.pulse = None;
            for it in &mut slot.predecessors {
                it.pulse = None;
            }
        }
    }

    /// When the next look at one of the slot's workers is due.
    pub(super) fn look_due(&self, index: usize) -> Option<Tick> {
        self.look_every()?;
        let slot = &self.slots[index];
        let predecessors = slot.predecessors.iter().map(|it| &it.pulse);
        let pulses = predecessors.chain([&slot.pulse]).flatten();
        pulses.map(|pulse| pulse.due).min()
    }

    /// Takes the looks that are due.
    pub(super) fn pulse_timeout(&mut self, index: usize, now: Tick) {
        let Some(every) = self.look_every() else {
            return;
        };
        let slot = &mut self.slots[index];
        let (id, main) = (slot.id, slot.generation);
        let predecessors = slot
            .predecessors
            .iter_mut()
            .map(|it| (it.generation, &mut it.pulse));
        let pulses = predecessors.chain([(main, &mut slot.pulse)]);
        for (generation, pulse) in pulses {
            if let Some(pulse) = pulse
                && pulse.due <= now
            {
                pulse.due = now + every;
                pulse.awaited = true;
                let worker = WorkerId {
                    slot: id,
                    generation,
                };
                self.actions.push_back(Action::TakePulse { worker });
            }
        }
    }

    pub(super) fn pulse(&mut self, worker: WorkerId, turns: u64, now: Tick) -> Reception {
        let Some((index, seat)) = self.seat(worker) else {
            return Reception::Stale;
        };
        let hang = self.look_every().and_then(|every| self.hang_misses(every));
        let slot = &mut self.slots[index];
        let pulse = match seat {
            Seat::Main => slot.pulse.as_mut(),
            Seat::Predecessor(at) => slot.predecessors[at].pulse.as_mut(),
            Seat::Successor => None,
        };
        let Some(pulse) = pulse.filter(|pulse| pulse.awaited) else {
            return Reception::Stale;
        };
        pulse.awaited = false;
        let after = now.since(pulse.moved);
        if pulse.turns != Some(turns) {
            let stalled = pulse.stalled_since().is_some();
            pulse.turns = Some(turns);
            pulse.moved = now;
            pulse.misses = 0;
            if stalled {
                self.notice(Notice::WorkerRunsAgain { worker, after });
            }
            return Reception::Taken;
        }
        pulse.misses = pulse.misses.saturating_add(1);
        let misses = pulse.misses;
        if hang.is_none_or(|limit| u128::from(misses) < limit) {
            self.actions.push_back(Action::Ping { worker });
            if misses == STALL_CHECKS {
                self.notice(Notice::WorkerStalled { worker, after });
            }
            return Reception::Taken;
        }
        self.notice(Notice::WorkerHung { worker, after });
        match seat {
            Seat::Main => self.kill(worker, KillReason::Hung, now),
            Seat::Predecessor(at) => self.kill_predecessor(index, at, KillReason::Hung, now),
            Seat::Successor => {}
        }
        Reception::Taken
    }
}
