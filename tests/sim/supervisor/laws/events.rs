//! Updates the shadow when the machine receives an event.

use std::time::Duration;

use uppercased::supervisor::machine::{
    Boot, Event, Generation, HandoverEnd, KILL_GRACE, Policy, SlotId, WorkerId,
};
use uppercased_ctl::clock::Tick;

use super::shadow::{Life, Other, Part, Shadow};
use super::{End, Laws, Pulse};

impl Laws {
    pub(super) fn note(&mut self, event: &Event, now: Tick) {
        match event {
            Event::Boot => {}
            Event::Ready { worker } => self.note_ready(*worker, now),
            Event::StartFailed { worker, .. } => self.note_start_failed(*worker, now),
            Event::SpawnFailed { worker, .. } => {
                if let Some(other) = self.other(*worker) {
                    let never = match other.part {
                        Part::Starting { .. } => true,
                        Part::Dying { served, .. } => served.is_none(),
                        _ => false,
                    };
                    if never {
                        self.other_gone(*worker, now);
                    }
                } else if let Some(life) = self.main(*worker)
                    && matches!(
                        life,
                        Life::Starting { .. } | Life::Dying { served: None, .. }
                    )
                {
                    self.gone(worker.slot, None, now);
                }
            }
            Event::Exited { worker, .. } => {
                if self.other(*worker).is_some() {
                    return self.other_gone(*worker, now);
                }
                let served = match self.main(*worker) {
                    None | Some(Life::Unborn | Life::Retired | Life::Gone { .. }) => return,
                    Some(Life::Starting { .. } | Life::Stopping) => None,
                    Some(Life::Serving { since, .. }) => Some(now.since(*since)),
                    Some(Life::Dying { served, .. }) => *served,
                };
                self.gone(worker.slot, served, now);
            }
            // Nothing else changes: the worker is the same.
            Event::Kept { .. } | Event::Rescued { .. } => {}
            Event::ChannelBroken { worker, .. } => {
                if let Some(other) = self.other(*worker) {
                    if matches!(other.part, Part::Starting { .. } | Part::HandingOver { .. }) {
                        self.mark_other_dying(*worker, false, now);
                    }
                } else if self
                    .main(*worker)
                    .is_some_and(|life| *life != Life::Stopping)
                {
                    self.mark_dying(*worker, false, now);
                }
            }
            Event::ChannelClosed { worker } => {
                if matches!(self.main(*worker), Some(Life::Serving { .. })) {
                    self.mark_dying(*worker, false, now);
                }
            }
            Event::Stop { .. } => {
                self.end = match self.end {
                    End::Running => {
                        self.pulses.clear();
                        End::Draining { at: now }
                    }
                    End::Draining { .. } => End::Forced { at: now },
                    other @ (End::BootFailed { .. } | End::Forced { .. } | End::Exited) => other,
                };
            }
            Event::HandedOver { worker, end, .. } => self.note_handed_over(*worker, end, now),
            Event::Rebalanced { worker, .. } => self.note_rebalanced(*worker),
            Event::Loads { loads } => self.note_loads(loads, now),
            Event::Progress { .. } => {}
            Event::Pulse { worker, turns } => self.note_pulse(*worker, *turns, now),
            Event::Reload { .. }
            | Event::Upgrade { .. }
            | Event::PreflightPassed
            | Event::PreflightFailed { .. }
            | Event::ExecFailed { .. }
            | Event::Resumed { .. }
            | Event::Scale { .. } => self.note_plan(event, now),
            Event::Cancel { request, .. } => self.note_cancel(*request, now),
            Event::Requested { .. } | Event::Withdrawn { .. } | Event::NotBegun { .. } => {
                self.note_pending(event);
            }
        }
    }

    fn note_ready(&mut self, worker: WorkerId, now: Tick) {
        if let Some(other) = self.other(worker) {
            if matches!(other.part, Part::Starting { failed: false, .. }) {
                other.part = Part::StandingBy;
            }
            return;
        }
        if let Some(Life::Starting {
            failed: false,
            standby,
            ..
        }) = self.main(worker)
        {
            let told = !*standby;
            let slot = &mut self.slots[worker.slot.index()];
            slot.life = Life::Serving { since: now, told };
            slot.deposited = true;
            slot.been_ready = true;
            self.mended(worker.slot);
            self.feel(worker, now);
        }
    }

    fn note_start_failed(&mut self, worker: WorkerId, now: Tick) {
        if let Some(other) = self.other(worker) {
            if let Part::Starting { failed, .. } = &mut other.part {
                *failed = true;
            }
            return;
        }
        let announced = self.announced;
        let mut at_boot = false;
        if let Some(Life::Starting { failed, .. }) = self.main(worker) {
            *failed = true;
            at_boot = !announced && !self.slots[worker.slot.index()].been_ready;
        }
        if at_boot && !self.may_degrade() {
            self.boot_failed(now);
        }
    }

    /// Returns whether the boot may continue without a failed worker.
    pub(super) fn may_degrade(&self) -> bool {
        self.policy.boot == Boot::Any && self.slots.iter().any(Shadow::serves)
    }

    fn note_handed_over(&mut self, worker: WorkerId, end: &HandoverEnd, now: Tick) {
        let goes_on = self
            .slots
            .get(worker.slot.index())
            .is_some_and(Shadow::serves);
        if let Some(other) = self.other(worker) {
            let Part::HandingOver { last, back, .. } = other.part else {
                return;
            };
            let (by, finished) = match end {
                HandoverEnd::Done => (now + KILL_GRACE, true),
                HandoverEnd::Refused { .. } | HandoverEnd::Incomplete { .. } => {
                    other.part = Part::Undecided { last, back };
                    return self.note_left(worker, last, back, now);
                }
                // The receiver has connections of its own.
                HandoverEnd::PeerGone if back && goes_on => {
                    other.part = Part::Undecided { last, back };
                    return self.note_left(worker, last, back, now);
                }
                HandoverEnd::PeerGone => {
                    let index = worker.slot.index();
                    if !last {
                        self.displace(index, now);
                    }
                    return self.comes_back(index, worker.generation.0, now);
                }
            };
            other.part = Part::Leaving { by, finished };
            self.pulses.remove(&worker);
            return;
        }
        let running = self.end == End::Running;
        let Some(Life::Serving { .. }) = self.main(worker) else {
            return;
        };
        let slot = &mut self.slots[worker.slot.index()];
        if !slot.owes_word || !running {
            return;
        }
        slot.owes_word = false;
        match end {
            HandoverEnd::PeerGone => {}
            HandoverEnd::Done => self.mark_dying(worker, true, now),
            HandoverEnd::Refused { .. } | HandoverEnd::Incomplete { .. } => {
                self.resuming.insert(worker);
            }
        }
    }

    /// Records that some connections could not migrate: the operation fails, unless they may drain.
    fn note_left(&mut self, worker: WorkerId, last: bool, back: bool, now: Tick) {
        let index = worker.slot.index();
        if back {
            return self.is_damaged();
        }
        let Some(operation) = self.operation.as_mut().filter(|it| !it.drain) else {
            return;
        };
        if last {
            return;
        }
        if operation.turned {
            operation.hindered.insert(worker.slot);
        } else {
            operation.turned = true;
        }
        if !self.slots[index].serves() {
            self.displace(index, now);
            self.comes_back(index, worker.generation.0, now);
            self.resuming.insert(worker);
        }
    }

    fn note_pulse(&mut self, worker: WorkerId, turns: u64, now: Tick) {
        let hang = self.hang_misses();
        let Some(pulse) = self.pulses.get_mut(&worker).filter(|it| it.awaited) else {
            return;
        };
        pulse.awaited = false;
        if pulse.turns != Some(turns) {
            pulse.turns = Some(turns);
            pulse.misses = 0;
            return;
        }
        pulse.misses += 1;
        if hang.is_some_and(|limit| u128::from(pulse.misses) >= limit) {
            if self.other(worker).is_some() {
                self.mark_other_dying(worker, false, now);
            } else {
                self.mark_dying(worker, false, now);
            }
        }
    }

    /// Records that a worker begins to serve.
    pub(super) fn feel(&mut self, worker: WorkerId, now: Tick) {
        let due = now + self.check_interval().unwrap_or_default();
        let pulse = Pulse {
            due,
            awaited: false,
            turns: None,
            misses: 0,
        };
        self.pulses.insert(worker, pulse);
    }

    /// Records that the main worker has exited, or never started.
    pub(super) fn gone(&mut self, slot: SlotId, served: Option<Duration>, now: Tick) {
        let index = slot.index();
        let worker = self.slots[index].worker(slot.0);
        self.end_loans_of(worker);
        self.pulses.remove(&worker);
        let running = self.end == End::Running;
        let announced = self.announced;
        let shadow = &mut self.slots[index];
        shadow.owes_word = false;
        if shadow.serves() {
            shadow.unserved_since = now;
        }
        let at_once = Life::Gone {
            earliest: now,
            latest: now,
        };
        if matches!(shadow.life, Life::Dying { ordered: true, .. }) {
            shadow.life = at_once;
            return;
        }
        let release = shadow.release;
        if !shadow.been_ready && running && !announced && !self.degraded {
            if !self.may_degrade() {
                self.slots[index].life = at_once;
                return self.boot_failed(now);
            }
            self.degraded = true;
        }
        if !self.slots[index].deposited && running && self.grows_now() {
            self.growth_fails();
            if slot.0 >= self.workers {
                self.slots[index].life = at_once;
                return;
            }
            return self.fails(index, served, now);
        }
        if running && let Some(generation) = self.slots[index].handing_over() {
            self.comes_back(index, generation, now);
            self.slots[index].owes_word = true;
            self.suffers(slot, release);
            return;
        }
        self.fails(index, served, now);
        if running {
            self.suffers(slot, release);
            self.follow(slot);
        }
    }

    /// Counts a main worker's exit as a failure of its slot.
    fn fails(&mut self, index: usize, served: Option<Duration>, now: Tick) {
        let Policy {
            backoff_initial,
            backoff_max,
            backoff_reset,
            ..
        } = self.policy;
        let shadow = &mut self.slots[index];
        if served.is_some_and(|served| served > Duration::ZERO && served >= backoff_reset) {
            shadow.failures = 0;
        }
        shadow.failures += 1;
        let mut ceiling = Duration::ZERO;
        for failure in 2..=shadow.failures {
            let doubled = if failure == 2 {
                backoff_initial
            } else {
                ceiling * 2
            };
            ceiling = doubled.min(backoff_max);
        }
        shadow.life = Life::Gone {
            earliest: now + ceiling / 2,
            latest: now + ceiling,
        };
    }

    /// Gives the vacant role to the main worker's successor.
    fn follow(&mut self, slot: SlotId) {
        let shadow = &mut self.slots[slot.index()];
        let Some(generation) = shadow.successor() else {
            return;
        };
        let Some(other) = shadow.others.remove(&generation) else {
            return;
        };
        let Part::Starting { since, failed } = other.part else {
            return;
        };
        shadow.generation = generation;
        shadow.release = other.release;
        shadow.life = Life::Starting {
            since,
            failed,
            standby: true,
        };
    }

    /// Stops counting the main worker, which has failed its predecessor.
    fn displace(&mut self, index: usize, now: Tick) {
        let slot = SlotId(u16::try_from(index).expect("the simulation has few slots"));
        let worker = self.slots[index].worker(slot.0);
        self.mark_dying(worker, false, now);
        let shadow = &mut self.slots[index];
        let Life::Dying { served, killed, .. } = shadow.life else {
            return;
        };
        let other = Other {
            release: shadow.release,
            served_since: now,
            part: Part::Dying {
                served,
                killed,
                unwanted: false,
            },
        };
        shadow.others.insert(shadow.generation, other);
    }

    /// Records that a predecessor serves its slot again.
    pub(super) fn comes_back(&mut self, index: usize, generation: u32, now: Tick) {
        let shadow = &mut self.slots[index];
        let Some(other) = shadow.others.remove(&generation) else {
            return;
        };
        shadow.generation = generation;
        shadow.release = other.release;
        shadow.owes_word = false;
        shadow.life = Life::Serving {
            since: other.served_since,
            told: true,
        };
        let worker = WorkerId {
            slot: SlotId(u16::try_from(index).expect("the simulation has few slots")),
            generation: Generation(generation),
        };
        if !self.pulses.contains_key(&worker) {
            self.feel(worker, now);
        }
    }

    /// Records that the main worker will be killed; from now on it does not count.
    pub(super) fn mark_dying(&mut self, worker: WorkerId, ordered: bool, now: Tick) {
        let Some(life) = self.main(worker) else {
            return;
        };
        let served = match life {
            Life::Starting { .. } => None,
            // It served; the duration no longer matters.
            Life::Stopping => Some(Duration::ZERO),
            Life::Serving { since, .. } => Some(now.since(*since)),
            Life::Unborn | Life::Retired | Life::Dying { .. } | Life::Gone { .. } => return,
        };
        let shadow = &mut self.slots[worker.slot.index()];
        if shadow.serves() {
            shadow.unserved_since = now;
        }
        shadow.owes_word = false;
        shadow.life = Life::Dying {
            served,
            killed: false,
            ordered,
        };
        if shadow.successor().is_some() {
            let part = Part::Dying {
                served,
                killed: false,
                unwanted: true,
            };
            let (generation, release) = (shadow.generation, shadow.release);
            let other = Other {
                release,
                served_since: now,
                part,
            };
            shadow.others.insert(generation, other);
            self.follow(worker.slot);
        }
        self.end_loans_of(worker);
        self.pulses.remove(&worker);
    }

    /// As [`Self::mark_dying`], for a worker other than the main one.
    pub(super) fn mark_other_dying(&mut self, worker: WorkerId, unwanted: bool, now: Tick) {
        let slot = &mut self.slots[worker.slot.index()];
        let retired = slot.life == Life::Retired && slot.handing_over().is_some();
        let Some(other) = slot.others.get_mut(&worker.generation.0) else {
            return;
        };
        let served = match other.part {
            Part::Starting { .. } => None,
            _ => Some(now.since(other.served_since)),
        };
        other.part = Part::Dying {
            served,
            killed: false,
            unwanted,
        };
        if retired && slot.handing_over().is_none() {
            slot.unserved_since = now;
        }
        self.pulses.remove(&worker);
    }

    /// Records that a worker other than the main one has exited, or never started.
    fn other_gone(&mut self, worker: WorkerId, now: Tick) {
        self.pulses.remove(&worker);
        let running = self.end == End::Running;
        let slot = &mut self.slots[worker.slot.index()];
        let served = slot.is_served();
        let Some(other) = slot.others.remove(&worker.generation.0) else {
            return;
        };
        let never_served = match other.part {
            Part::Starting { .. } => true,
            // A former main worker has also failed as a successor.
            Part::Dying { unwanted, .. } => !unwanted,
            _ => false,
        };
        let held = matches!(other.part, Part::HandingOver { .. } | Part::Dying { .. });
        let open = slot.life == Life::Retired && !slot.closed;
        let retired = open && held && slot.handing_over().is_none();
        if served && !slot.is_served() {
            slot.unserved_since = now;
        }
        if !running {
            return;
        }
        if matches!(other.part, Part::HandingOver { .. }) {
            self.is_damaged();
        }
        if retired {
            let served = match other.part {
                Part::Dying { served, .. } => served,
                _ => Some(now.since(other.served_since)),
            };
            self.fails(worker.slot.index(), served, now);
        } else if never_served {
            self.suffers(worker.slot, other.release);
        }
    }

    pub(super) fn other(&mut self, worker: WorkerId) -> Option<&mut Other> {
        let slot = self.slots.get_mut(worker.slot.index())?;
        slot.others.get_mut(&worker.generation.0)
    }

    pub(super) fn main(&mut self, worker: WorkerId) -> Option<&mut Life> {
        let slot = self.slots.get_mut(worker.slot.index())?;
        (slot.generation == worker.generation.0 && slot.life != Life::Unborn)
            .then_some(&mut slot.life)
    }
}
