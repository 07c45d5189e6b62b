//! The laws of successors, predecessors and pulses.
//!
//! Above all: a serving worker serves until another one is Ready; a worker with connections to hand
//! over has a receiver, or gets its slot back.

use std::time::Duration;

use uppercased::config::HANG_CHECKS;
use uppercased::supervisor::machine::{
    ListenerSource, ReleaseId, ReloadConnections, SlotId, WorkerId,
};
use uppercased_ctl::clock::Tick;

use super::operations::Operation;
use super::shadow::{Life, Other, Part, Shadow};
use super::{End, Laws, law};

impl Laws {
    pub(super) fn successor_spawned(
        &mut self,
        worker: WorkerId,
        listener: ListenerSource,
        release: ReleaseId,
        now: Tick,
    ) {
        let rolling = self.operation.as_ref().is_some_and(Operation::rolls);
        law!(
            rolling && self.end == End::Running,
            "{worker} is to replace a worker outside of any operation"
        );
        let back = self.operation.as_ref().is_some_and(|it| it.turned);
        let wanted = if back {
            release == self.release
        } else {
            self.rolls_out(release)
        };
        law!(wanted, "{worker} is to follow with {release:?}");
        law!(
            !self.has_canary() || self.canary_stood(now),
            "{worker} is to follow before the canary passed"
        );
        let slot = &mut self.slots[worker.slot.index()];
        law!(slot.serves(), "{worker} is to follow {:?}", slot.life);
        law!(
            slot.release != release,
            "{worker} is to follow a worker of its own release"
        );
        let alone = |it: &Other| matches!(it.part, Part::Leaving { .. } | Part::Dying { .. });
        law!(
            slot.others.values().all(alone),
            "{worker} is one too many: {:?}",
            slot.others
        );
        // Another socket would orphan the queue of the present one.
        law!(
            listener == ListenerSource::Adopt && slot.deposited,
            "{worker} is to follow with a listener of its own"
        );
        slot.is_born(worker);
        let other = Other {
            release,
            served_since: now,
            part: Part::Starting {
                since: now,
                failed: false,
            },
        };
        slot.others.insert(worker.generation.0, other);
    }

    pub(super) fn serve_requested(&mut self, worker: WorkerId, now: Tick) {
        if let Some(&mut Other {
            part: Part::Undecided { last, back: false },
            ..
        }) = self.other(worker)
        {
            return self.resumes(worker, last, now);
        }
        if let Some(life) = self.main(worker) {
            let Life::Serving { told, .. } = life else {
                panic!("law broken: {worker} receives Serve while it is {life:?}");
            };
            let told = std::mem::replace(told, true);
            let may = !told || self.resuming.remove(&worker);
            return law!(may, "{worker} receives Serve although it serves");
        }
        self.takes_over(worker, Part::Relieved, ReloadConnections::Drain, now);
    }

    /// Checks that a worker that could not hand over every connection serves its slot again.
    fn resumes(&mut self, worker: WorkerId, last: bool, now: Tick) {
        let index = worker.slot.index();
        let operation = self
            .operation
            .as_mut()
            .expect("law: an operation caused it");
        law!(
            !operation.drain,
            "{worker} continues to serve although it could be drained"
        );
        if last {
            operation.failed = true;
            return self.comes_back(index, worker.generation.0, now);
        }
        let shadow = &mut self.slots[index];
        let Life::Serving { since, .. } = shadow.life else {
            panic!(
                "law broken: {worker} reverts a handover from {:?}",
                shadow.life
            );
        };
        let giving = Other {
            release: shadow.release,
            served_since: since,
            part: Part::GivingBack,
        };
        shadow.others.insert(shadow.generation, giving);
        self.comes_back(index, worker.generation.0, now);
    }

    pub(super) fn leave_requested(&mut self, worker: WorkerId, within: Duration, now: Tick) {
        let by =
            now + within + self.policy.linger_timeout + uppercased::supervisor::machine::KILL_GRACE;
        self.pulses.remove(&worker);
        let drains = self.operation.as_ref().is_none_or(|it| it.drain);
        let limit = self.policy.drain_timeout;
        let other = self.other(worker).expect("law: Leave names a predecessor");
        let (may, limit) = match other.part {
            Part::Relieved => (true, limit),
            Part::Undecided { back: true, .. } => (true, Duration::MAX),
            Part::Undecided { back: false, .. } => (drains, limit),
            _ => (false, limit),
        };
        law!(
            may && within == limit,
            "{worker} receives Leave within {within:?} while it is {:?}",
            other.part
        );
        other.part = Part::Leaving {
            by,
            finished: false,
        };
    }

    pub(super) fn handover_begins(&mut self, from: WorkerId, to: WorkerId, last: bool, now: Tick) {
        let part = Part::HandingOver {
            since: now,
            to,
            last,
            back: false,
        };
        if let Some(other) = self.other(from) {
            let next = match other.part {
                Part::Undecided {
                    last: true,
                    back: false,
                } if last => part,
                Part::GivingBack if !last => Part::HandingOver {
                    since: now,
                    to,
                    last,
                    back: true,
                },
                _ => panic!("law broken: {from} hands over while it is {:?}", other.part),
            };
            other.part = next;
            return law!(self.serves(to), "{from} hands over to {to}");
        }
        law!(self.serves(from), "{from} hands over but does not serve");
        let lent = self.slots.iter().any(|slot| slot.borrower == Some(from));
        law!(!lent, "{from} hands over but keeps a borrowed queue");
        if last {
            self.last_handover_begins(from, to, part, now);
        } else {
            law!(from.slot == to.slot, "{from} hands over to {to}");
            self.takes_over(to, part, ReloadConnections::Handover, now);
        }
    }

    fn last_handover_begins(&mut self, from: WorkerId, to: WorkerId, part: Part, now: Tick) {
        let Some((stay, since)) = self.steered else {
            panic!("law broken: {from} leaves while it receives new connections");
        };
        law!(
            from.slot.0 >= stay && to.slot.0 < stay,
            "{from} hands over to {to} where {stay} slots stay"
        );
        law!(
            self.serves(to) && self.slots[to.slot.index()].handing_over().is_none(),
            "{from} hands over to {to}, which does not serve"
        );
        law!(
            now >= since + self.policy.handshake_timeout,
            "{from} leaves before the handshake timeout has passed"
        );
        let above = self.slots[from.slot.index() + 1..].iter();
        law!(
            above.clone().all(|slot| slot.closed),
            "{from} leaves before a higher slot"
        );
        let slot = &mut self.slots[from.slot.index()];
        let Life::Serving { since, .. } = slot.life else {
            return;
        };
        let other = Other {
            release: slot.release,
            served_since: since,
            part,
        };
        slot.others.insert(slot.generation, other);
        slot.life = Life::Retired;
        slot.owes_word = false;
    }

    /// Replaces the main worker by its successor, which must be Ready.
    fn takes_over(&mut self, worker: WorkerId, part: Part, mode: ReloadConnections, now: Tick) {
        let slot = &mut self.slots[worker.slot.index()];
        let Some(other) = slot.others.remove(&worker.generation.0) else {
            panic!("law broken: {worker} is to serve but has no role");
        };
        law!(
            other.part == Part::StandingBy,
            "{worker} is to serve while it is {:?}",
            other.part
        );
        let wanted = self.policies[&other.release].reload_connections;
        law!(wanted == mode, "connections are treated as {mode:?}");
        let Life::Serving { since, told: true } = slot.life else {
            panic!("law broken: {worker} relieves {:?}", slot.life);
        };
        let relieved = Other {
            release: slot.release,
            served_since: since,
            part,
        };
        slot.others.insert(slot.generation, relieved);
        slot.generation = worker.generation.0;
        slot.release = other.release;
        slot.owes_word = false;
        slot.life = Life::Serving {
            since: now,
            told: true,
        };
        self.feel(worker, now);
    }

    pub(super) fn company_killed(&mut self, worker: WorkerId, now: Tick) {
        let turned = self.operation.as_ref().is_some_and(|it| it.turned);
        let running = self.end == End::Running;
        let slot = &self.slots[worker.slot.index()];
        let other = &slot.others[&worker.generation.0];
        let late = |since: Tick| now >= since + self.start_timeout(other.release);
        let mut unwanted = true;
        match other.part {
            Part::Starting { since, .. } => {
                unwanted = !late(since) || !running;
                law!(
                    !unwanted || !running || turned,
                    "{worker} is killed while it may still start"
                );
            }
            Part::Leaving { by, .. } => {
                law!(now >= by, "{worker} is killed while it may leave by {by:?}");
            }
            Part::Stopping => self.forces(worker, now),
            Part::Dying { killed, .. } => {
                law!(!killed, "{worker} is killed twice");
                return self.slots[worker.slot.index()].is_killed(worker);
            }
            Part::HandingOver { since, to, .. } => {
                let limit = self.handover_limit(to);
                law!(now >= since + limit, "{worker} is killed in its handover");
                unwanted = false;
                self.is_damaged();
            }
            Part::StandingBy | Part::Relieved | Part::Undecided { .. } | Part::GivingBack => {
                panic!(
                    "law broken: {worker} is killed while it is {:?}",
                    other.part
                )
            }
        }
        self.mark_other_dying(worker, unwanted, now);
        self.slots[worker.slot.index()].is_killed(worker);
    }

    /// Returns whether a predecessor has been handing over to `worker` for too long.
    pub(super) fn keeps_waiting(&self, worker: WorkerId, now: Tick) -> bool {
        let limit = self.handover_limit(worker);
        let mut others = self.slots.iter().flat_map(|slot| slot.others.values());
        others.any(|other| match other.part {
            Part::HandingOver { since, to, .. } => to == worker && now >= since + limit,
            _ => false,
        })
    }

    /// Returns how long either side of a handover to `worker` may keep the other waiting.
    fn handover_limit(&self, worker: WorkerId) -> Duration {
        let slot = &self.slots[worker.slot.index()];
        let main = slot.generation == worker.generation.0;
        let release = if main { slot.release } else { self.release };
        let rolled = self.rolls_out(release) || self.turned_from(release);
        let policy = if rolled {
            &self.policies[&release]
        } else {
            &self.policy
        };
        policy.handover_timeout
    }

    pub(super) fn is_damaged(&mut self) {
        if let Some(operation) = &mut self.operation {
            operation.damaged = true;
        }
    }

    pub(super) fn progress_taken(&self, from: WorkerId, to: WorkerId) {
        let slot = &self.slots[from.slot.index()];
        let other = slot.others.get(&from.generation.0);
        let hands = other.is_some_and(
            |it| matches!(it.part, Part::HandingOver { to: receiver, .. } if receiver == to),
        );
        law!(hands, "{from} is checked but hands nothing over to {to}");
    }

    /// Returns whether a worker that has borrowed queues has to return them.
    pub(super) fn is_about_to_leave(&self, worker: WorkerId) -> bool {
        let slot = &self.slots[worker.slot.index()];
        if let Some(other) = slot.others.get(&worker.generation.0) {
            return matches!(other.part, Part::Leaving { .. });
        }
        let relieved = slot
            .others
            .values()
            .any(|other| matches!(other.part, Part::StandingBy | Part::Undecided { .. }));
        let steered = self.steered.is_some_and(|(stay, _)| worker.slot.0 >= stay);
        relieved || steered
    }

    pub(super) fn company_is_consistent(&self, by: &impl Fn(Tick) -> bool) {
        let running = self.end == End::Running;
        for (index, slot) in (0_u16..).zip(&self.slots) {
            for (generation, other) in &slot.others {
                let who = format!("slot {index} generation {generation}");
                if !running {
                    let ends = matches!(other.part, Part::Stopping | Part::Dying { .. });
                    law!(ends, "{who} is {:?} while {:?}", other.part, self.end);
                }
                match other.part {
                    Part::Starting { since, .. } => {
                        let deadline = since + self.start_timeout(other.release);
                        law!(by(deadline), "{who} has no start deadline");
                        law!(slot.serves(), "{who} follows {:?}", slot.life);
                    }
                    Part::Undecided { .. } | Part::GivingBack => {
                        panic!("law broken: {who} keeps connections that could not migrate")
                    }
                    Part::StandingBy => panic!("law broken: {who} stands by for no worker"),
                    Part::Relieved => panic!("law broken: {who} is left between two roles"),
                    Part::HandingOver { to, last, .. } => {
                        self.handover_rests(&who, slot, index, (to, last), by);
                    }
                    Part::Leaving { by: at, .. } => {
                        law!(at == Tick::MAX || by(at), "{who} has no deadline to leave");
                    }
                    Part::Dying { killed, .. } => law!(killed, "{who} was not killed"),
                    Part::Stopping => {}
                }
            }
        }
    }

    fn handover_rests(
        &self,
        who: &str,
        slot: &Shadow,
        index: u16,
        (to, last): (WorkerId, bool),
        by: &impl Fn(Tick) -> bool,
    ) {
        if last {
            law!(slot.life == Life::Retired, "{who} leaves {:?}", slot.life);
            return;
        }
        law!(
            to == slot.worker(index) && slot.is_live(),
            "{who} hands over to {to}, which has exited"
        );
        let waits = slot.serves();
        law!(!waits || by(Tick::MAX), "{who} has no handover deadline");
    }

    pub(super) fn check_interval(&self) -> Option<Duration> {
        let hang = self.policy.hang_timeout.map(|limit| limit / HANG_CHECKS);
        [hang, self.policy.stall_check].into_iter().flatten().min()
    }

    /// Returns how many consecutive polls without a turn make a worker stalled.
    pub(super) fn hang_misses(&self) -> Option<u128> {
        let (limit, every) = (self.policy.hang_timeout?, self.check_interval()?);
        let checks = limit.as_nanos().div_ceil(every.as_nanos());
        Some(checks.max(u128::from(HANG_CHECKS)))
    }

    pub(super) fn looked_at(&mut self, worker: WorkerId, now: Tick) {
        let every = self
            .check_interval()
            .expect("law: checks only where they count");
        let pulse = self.pulses.get_mut(&worker);
        let pulse = pulse.expect("law: TakePulse names one that serves or hands over");
        law!(
            now >= pulse.due,
            "checks of {worker} bunch: one is due at {:?}, and it is {now:?}",
            pulse.due
        );
        pulse.due = now + every;
        pulse.awaited = true;
    }

    pub(super) fn pulses_rest(&self, now: Tick, by: &impl Fn(Tick) -> bool) {
        if self.check_interval().is_none() || self.end != End::Running {
            return;
        }
        for (worker, pulse) in &self.pulses {
            let due = pulse.due;
            law!(
                by(due),
                "{worker} is not checked again by {due:?}; it is {now:?}"
            );
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let slot_id = SlotId(u16::try_from(index).expect("the simulation has few slots"));
            let worker = slot.worker(slot_id.0);
            law!(
                !slot.serves() || self.pulses.contains_key(&worker),
                "{worker} is never checked"
            );
        }
    }
}
