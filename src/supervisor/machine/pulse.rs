//! Detects a worker whose event loop has stalled.
//!
//! A worker counts its turns in shared memory, which needs no system call. The counter is sampled
//! [`HANG_CHECKS`] times within `hang_timeout`, or more often to detect a stall sooner; a sample
//! without a new turn is a miss, and pings the worker, because an idle loop makes no turns by
//! itself. After [`STALL_CHECKS`] misses in a row the worker has stalled, which is reported and
//! makes the server unready. When the misses in a row fill `hang_timeout`, the worker is killed and
//! replaced as after a crash.
//!
//! Invariants: the next sample is timed from the latest one and not from when that was due, so a
//! supervisor that was itself stopped for a while counts one miss, not many; all misses in a row
//! have the same interval between samples, so they prove a hang of the timeout in force.

use std::time::Duration;

use super::worker::Pulse;
use super::{Action, Effect, Machine, Notice, Phase, WorkerId};
use crate::config::{HANG_CHECKS, STALL_CHECKS};
use uppercased_ctl::clock::Tick;

/// Minimum interval between two samples, whatever the configuration: a shorter one would keep the
/// supervisor in one turn of its loop forever.
pub(super) const SAMPLE_FLOOR: Duration = Duration::from_millis(1);

impl Machine {
    /// Returns the interval between two samples; `None`: no samples are taken.
    fn sample_interval(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Booting { .. } | Phase::Serving => {
                let hang = self.policy.hang_timeout.map(|limit| limit / HANG_CHECKS);
                let intervals = [hang, self.policy.stall_check].into_iter().flatten();
                Some(intervals.min()?.max(SAMPLE_FLOOR))
            }
            Phase::Idle
            | Phase::BootFailed { .. }
            | Phase::Draining { .. }
            | Phase::Forced
            | Phase::Ended => None,
        }
    }

    /// Returns the number of misses in a row that make a hang, at that interval.
    fn hang_misses(&self, every: Duration) -> Option<u128> {
        let limit = self.policy.hang_timeout?;
        let misses = limit.as_nanos().div_ceil(every.as_nanos());
        Some(misses.max(HANG_CHECKS.into()))
    }

    /// Starts sampling workers that have begun to serve.
    pub(super) fn update_pulses(&mut self, now: Tick) {
        let due = self.sample_interval().map(|every| now + every);
        for it in self.slots.iter_mut().flat_map(|slot| &mut slot.workers) {
            match due {
                Some(due) if it.state.has_pulse() => {
                    it.pulse.get_or_insert_with(|| Pulse::due_at(due, now));
                }
                Some(_) | None => it.pulse = None,
            }
        }
    }

    /// Restarts sampling, because the interval, or the number of misses that make a hang, has
    /// changed.
    pub(super) fn reset_pulses(&mut self) {
        for it in self.slots.iter_mut().flat_map(|slot| &mut slot.workers) {
            it.pulse = None;
        }
    }

    /// Returns when the next sample of one of the slot's workers is due.
    pub(super) fn sample_due(&self, index: usize) -> Option<Tick> {
        self.sample_interval()?;
        let workers = self.slots[index].workers.iter();
        let pulses = workers.filter_map(|it| it.pulse.as_ref());
        pulses.map(|pulse| pulse.due).min()
    }

    /// Requests the samples that are due.
    pub(super) fn pulse_timeout(&mut self, index: usize, now: Tick) {
        let Some(every) = self.sample_interval() else {
            return;
        };
        let slot = &mut self.slots[index];
        let id = slot.id;
        for it in &mut slot.workers {
            if let Some(pulse) = &mut it.pulse
                && pulse.due <= now
            {
                pulse.due = now + every;
                pulse.awaited = true;
                let worker = WorkerId {
                    slot: id,
                    generation: it.generation,
                };
                self.actions.push_back(Action::TakePulse { worker });
            }
        }
    }

    pub(super) fn pulse(&mut self, worker: WorkerId, turns: u64, now: Tick) -> Effect {
        let hang = self
            .sample_interval()
            .and_then(|every| self.hang_misses(every));
        let pulse = self.find_mut(worker).and_then(|(_, it)| it.pulse.as_mut());
        let Some(pulse) = pulse.filter(|pulse| pulse.awaited) else {
            return Effect::Stale;
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
            return Effect::Applied;
        }
        pulse.misses = pulse.misses.saturating_add(1);
        let misses = pulse.misses;
        if hang.is_none_or(|limit| u128::from(misses) < limit) {
            self.actions.push_back(Action::Ping { worker });
            if misses == STALL_CHECKS {
                self.notice(Notice::WorkerStalled { worker, after });
            }
            return Effect::Applied;
        }
        self.notice(Notice::WorkerHung { worker, after });
        self.end_hang(worker, now);
        Effect::Applied
    }
}
