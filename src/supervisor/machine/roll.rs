//! Replaces every worker, one slot after the other; and rolls back.
//!
//! Forward: each slot gets a worker of the new release beside the active one, which leaves only
//! when the new one is Ready (see [`super::succession`]). The first worker of the new release that
//! serves is the canary, whatever its slot: no more workers are replaced and nothing is in force
//! before it has served for `bake_time`. Any unexpected exit of a worker of the new release
//! reverses the roll; but in a slot that did not serve before the roll, a failure is only retried
//! later.
//!
//! Back: the slots that already have the new release get the old one again, the same way. A slot
//! that cannot be rolled back is left as it is and named in the answer; its next worker runs the
//! old release.
//!
//! It must not disturb a healthy worker before its successor is Ready.

use super::plan::{Broken, Course, Roll, Stage};
use super::slot::Slot;
use super::worker::WorkerState;
use super::{
    Action, KillReason, Machine, Notice, OperationKind, Policy, ReleaseId, SlotId, SlotState,
};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::limits::WORKERS_MAX;

impl Machine {
    pub(super) fn roll(&self) -> Option<&Roll> {
        let Stage::Roll(roll) = self.stage()? else {
            return None;
        };
        Some(roll)
    }

    fn roll_mut(&mut self) -> Option<&mut Roll> {
        let Stage::Roll(roll) = &mut self.operation.as_mut()?.stage else {
            return None;
        };
        Some(roll)
    }

    fn set_course(&mut self, course: Course) {
        match self.roll_mut() {
            Some(roll) => roll.course = course,
            None => self.repair("a roll that does not exist takes a course"),
        }
    }

    /// Returns the limits of a worker that runs `release`: the new ones while it is being rolled
    /// out.
    pub(super) fn policy_of(&self, release: ReleaseId) -> &Policy {
        match self.roll() {
            Some(roll) if roll.target == release => &roll.policy,
            Some(_) | None => &self.policy,
        }
    }

    /// Advances the roll by one step; returns whether there may be another.
    pub(super) fn advance_roll(&mut self, now: Tick) -> bool {
        let Some(roll) = self.roll() else {
            self.repair("a roll that does not exist goes on");
            return false;
        };
        let target = roll.target;
        match &roll.course {
            Course::Forward { slot, bake } => {
                let (slot, bake) = (*slot, *bake);
                self.advance_forward(target, slot, bake, now)
            }
            Course::Back { todo, .. } => match todo.first() {
                Some(slot) => {
                    let slot = *slot;
                    self.advance_back(slot, now)
                }
                // The receiver of a worker that returns connections may exit, and the worker is
                // active again.
                None if self.slots.iter().any(|it| it.handing_over().is_some()) => false,
                None => {
                    self.end_failed_roll();
                    true
                }
            },
        }
    }

    fn advance_forward(
        &mut self,
        target: ReleaseId,
        slot: SlotId,
        bake: Option<Tick>,
        now: Tick,
    ) -> bool {
        let following = Course::Forward {
            slot: SlotId(slot.0.saturating_add(1)),
            bake: None,
        };
        if let Some(until) = bake {
            if now < until {
                return false;
            }
            self.set_course(Course::Forward { slot, bake: None });
            return true;
        }
        if self.begin_watch(target) {
            let bake = Some(now + self.policy_of(target).bake_time);
            self.set_course(Course::Forward { slot, bake });
            return true;
        }
        let Some(it) = self.slots.get(slot.index()) else {
            // A worker that is being killed has not failed the roll yet; its exit will.
            let replaced = |slot: &&Slot| slot.serves_release(target);
            let all = self
                .slots
                .iter()
                .all(|slot| replaced(&slot) || self.was_tried(slot.id));
            let replaced = self.slots.iter().filter(replaced).count();
            if all && replaced == 0 {
                let cause = "no slot serves with the new release, and none did before";
                self.roll_back(cause.to_owned(), now);
            } else if all {
                if let Some(operation) = &mut self.operation {
                    operation.replaced = u16::try_from(replaced).unwrap_or(u16::MAX);
                }
                self.end_roll(now);
            }
            return all;
        };
        if !it.serves_release(target) {
            if it.state == SlotState::Vacant {
                // An earlier slot has no worker yet, and slots bind one after the other.
                self.slots[slot.index()].next_release = target;
                self.note_tried(slot);
            }
            if self.was_tried(slot) {
                self.set_course(following);
                return true;
            }
            self.push(slot.index(), target, now);
            return false;
        }
        if let Some(operation) = &mut self.operation {
            operation.replaced = operation.replaced.saturating_add(1);
        }
        self.set_course(following);
        true
    }

    /// Starts watching the canary, if there is one; returns whether it did. The canary may be in a
    /// slot already passed, whose retry has succeeded.
    fn begin_watch(&mut self, target: ReleaseId) -> bool {
        let serves = self.slots.iter().any(|slot| slot.serves_release(target));
        let Some(roll) = self.roll_mut() else {
            return false;
        };
        let begins = serves && !roll.watched;
        roll.watched |= begins;
        begins
    }

    /// Returns the slots without a serving worker.
    pub(super) fn broken_slots(&self) -> Vec<Broken> {
        let idle = self.slots.iter().filter(|slot| slot.serving().is_none());
        let broken = |slot: &Slot| Broken {
            slot: slot.id,
            tried: false,
        };
        idle.map(broken).collect()
    }

    fn was_tried(&self, slot: SlotId) -> bool {
        let broken = self.roll().into_iter().flat_map(|roll| &roll.broken);
        broken.filter(|it| it.slot == slot).any(|it| it.tried)
    }

    fn note_tried(&mut self, slot: SlotId) {
        for it in self
            .roll_mut()
            .into_iter()
            .flat_map(|roll| &mut roll.broken)
        {
            it.tried |= it.slot == slot;
        }
    }

    /// Notes that the slot serves: from now on its failures count for the roll.
    pub(super) fn note_serving(&mut self, slot: SlotId) {
        if let Some(roll) = self.roll_mut() {
            roll.broken.retain(|it| it.slot != slot);
        }
    }

    fn advance_back(&mut self, slot: SlotId, now: Tick) -> bool {
        let release = self.release;
        if self.slots[slot.index()].serves_release(release) {
            self.remove_from_rollback(slot);
            true
        } else {
            self.push(slot.index(), release, now);
            false
        }
    }

    /// Takes the next step to give the slot a worker of `release`.
    fn push(&mut self, index: usize, release: ReleaseId, now: Tick) {
        let slot = &mut self.slots[index];
        slot.next_release = release;
        if slot.release() == release {
            return;
        }
        let worker = slot.id_of(slot.generation());
        match (slot.state, slot.active().map(|it| &it.state)) {
            (SlotState::Active(_), Some(WorkerState::Serving { .. })) => {
                if slot.successor().is_none() && slot.handing_over().is_none() {
                    self.spawn_successor(index, release, now);
                }
            }
            (SlotState::Active(_), Some(WorkerState::Starting { .. })) => {
                self.kill(worker, KillReason::Superseded, now);
            }
            // A backoff caused by another release does not apply.
            (SlotState::BackingOff { .. }, _) => self.spawn(index, now),
            (
                SlotState::Active(_) | SlotState::Vacant | SlotState::Retired | SlotState::Stopped,
                _,
            ) => {}
        }
    }

    /// Handles an unexpected exit of a worker.
    pub(super) fn roll_lost_worker(
        &mut self,
        slot: SlotId,
        release: ReleaseId,
        why: &str,
        now: Tick,
    ) {
        let Some(roll) = self.roll() else {
            return;
        };
        match &roll.course {
            Course::Forward { .. } => {
                if release != roll.target {
                } else if roll.broken.iter().any(|it| it.slot == slot) {
                    self.note_tried(slot);
                } else {
                    let cause = format!("the new worker of slot {slot} {why}");
                    self.roll_back(cause, now);
                }
            }
            Course::Back { todo, .. } => {
                if release == self.release && todo.first() == Some(&slot) {
                    self.remove_from_rollback(slot);
                }
            }
        }
    }

    /// Fails the roll: not all connections of `slot` could migrate, and they return to their
    /// worker.
    pub(super) fn fail_roll(&mut self, slot: SlotId, cause: String, now: Tick) {
        match self.roll().map(|roll| &roll.course) {
            Some(Course::Forward { .. }) => self.roll_back(cause, now),
            Some(Course::Back { .. }) => self.remove_from_rollback(slot),
            None => {}
        }
    }

    pub(super) fn roll_back(&mut self, cause: String, now: Tick) {
        let Some(target) = self.roll().map(|roll| roll.target) else {
            return self.repair("a roll that does not exist turns back");
        };
        let old = self.release;
        let mut todo = Vec::new();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            slot.next_release = old;
            if slot.release() == target {
                todo.push(slot.id);
            }
            self.kill_successor(index, now);
        }
        if !todo.is_empty() {
            self.notice(Notice::RollingBack {
                cause: cause.clone(),
                slots: u16::try_from(todo.len()).unwrap_or(u16::MAX),
            });
        }
        self.set_course(Course::Back { cause, todo });
    }

    /// Kills a successor that is no longer wanted.
    pub(super) fn kill_successor(&mut self, index: usize, now: Tick) {
        let slot = &self.slots[index];
        if let Some(successor) = slot.standby() {
            let successor = slot.id_of(successor.generation);
            self.kill(successor, KillReason::OperationFailed, now);
        }
    }

    /// Notes that a former worker serves the slot again: during a rollback, one of the new release
    /// must still be replaced.
    pub(super) fn note_reactivated(&mut self, slot: SlotId, release: ReleaseId) {
        if let Some(roll) = self.roll_mut()
            && let Course::Back { todo, .. } = &mut roll.course
            && release == roll.target
            && !todo.contains(&slot)
        {
            todo.push(slot);
        }
    }

    /// Removes a slot that has been rolled back, or cannot be, from the list.
    fn remove_from_rollback(&mut self, slot: SlotId) {
        if let Some(roll) = self.roll_mut()
            && let Course::Back { todo, .. } = &mut roll.course
        {
            todo.retain(|it| *it != slot);
        }
    }

    /// Puts the new release, which every slot runs, in force.
    fn end_roll(&mut self, now: Tick) {
        let Some(roll) = self.roll().cloned() else {
            return self.repair("a roll that does not exist ends");
        };
        let to = roll.policy.workers.clamp(1, WORKERS_MAX);
        let intervals = (self.policy.hang_timeout, self.policy.stall_check);
        self.policy = Policy {
            workers: self.policy.workers,
            ..roll.policy
        };
        self.release = roll.target;
        if intervals != (self.policy.hang_timeout, self.policy.stall_check) {
            self.reset_pulses();
        }
        self.actions.push_back(Action::Commit {
            release: roll.target,
        });
        self.begin_scale(to, now);
    }

    fn end_failed_roll(&mut self) {
        let upgrades = self.operation_kind() == Some(OperationKind::Upgrade);
        let Some(Roll {
            course: Course::Back { cause, .. },
            ..
        }) = self.roll()
        else {
            return self.repair("a roll that did not fail ends as failed");
        };
        let mut cause = cause.clone();
        let mut incomplete = false;
        for slot in &self.slots {
            // Or of an earlier reload that failed the same way.
            let what = if slot.active().is_some() && slot.release() != self.release {
                format!("still runs release {}", slot.release())
            } else if slot.serving().is_none() {
                "has no worker; its next one runs the old release".to_owned()
            } else {
                continue;
            };
            incomplete = true;
            cause.push_str(&format!("; slot {} {what}", slot.id));
        }
        if incomplete {
            self.note_incomplete();
        } else {
            cause.push_str("; every worker runs the old release");
        }
        if upgrades {
            cause.push_str("; the supervisor runs the new binary");
        }
        self.fail_operation(cause);
    }
}
