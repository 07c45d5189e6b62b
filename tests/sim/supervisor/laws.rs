//! Invariants of the supervisor's state machine at every step.
//!
//! They are checked on a shadow of the world, built from events and actions alone, without access
//! to the machine's decisions. Each violation panics with the text of the law; the caller adds seed
//! and step.
//!
//! `shadow.rs` is the shadow of one slot, `events.rs` updates it, `company.rs` has the laws of
//! successors and predecessors, `balance.rs` those of rebalancing, `operations.rs` those of planned
//! operations; this file has those of active workers, queues and the end.
//!
//! Where the shadow repeats a rule of the machine (such as the delay of a restart), it states
//! bounds and not the machine's own arithmetic.

mod balance;
mod company;
mod events;
mod operations;
mod pending;
mod shadow;

use std::collections::BTreeMap;
use std::time::Duration;

use uppercased::supervisor::machine::{
    Action, Event, ExitStatus, KILL_GRACE, ListenerSource, Machine, Notice, Outcome, Policy,
    ReleaseId, RequestId, SlotId, WorkerId,
};
use uppercased_ctl::clock::Tick;

use operations::{Asked, Operation};
use shadow::{Life, Part, Shadow};

macro_rules! law {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            panic!("law broken: {}", format!($($message)+));
        }
    };
}
pub(crate) use law;

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Running,
    /// No worker need be stopped; all exit within the delay of the kernel.
    BootFailed {
        at: Tick,
    },
    Draining {
        at: Tick,
    },
    Forced {
        at: Tick,
    },
    Exited,
}

/// The shadow of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Laws {
    /// The limits in force.
    policy: Policy,
    /// The limits of every release so far.
    policies: BTreeMap<ReleaseId, Policy>,
    release: ReleaseId,
    slots: Vec<Shadow>,
    end: End,
    announced: bool,
    /// Whether a worker has failed at boot and the others are to serve without it.
    degraded: bool,
    /// Target number of slots, from the machine.
    workers: u16,
    custody_ended: bool,
    asked: Option<Asked>,
    asked_to_drain: bool,
    unanswered: Vec<RequestId>,
    /// All cancel requests so far.
    cancelling: Vec<RequestId>,
    pending: pending::Pending,
    operation: Option<Operation>,
    /// Number of slots that new connections are steered to, and since when.
    steered: Option<(u16, Tick)>,
    /// Number of slots over which new connections were last spread.
    spread: Option<u16>,
    pulses: BTreeMap<WorkerId, Pulse>,
    /// Killed workers whose exit is awaited, and since when.
    awaited: BTreeMap<WorkerId, Tick>,
    /// Serving workers that may be sent a serve command: they could not hand over every connection.
    resuming: std::collections::BTreeSet<WorkerId>,
    /// The worker last reported as too slow to start.
    too_slow: Option<WorkerId>,
    balance: balance::Balance,
}

#[derive(Clone, Debug)]
struct Pulse {
    /// Time of the next poll.
    due: Tick,
    awaited: bool,
    turns: Option<u64>,
    misses: u32,
}

impl Laws {
    /// Returns the laws of a machine whose first `inherited` slots have had listeners since `now`.
    pub(crate) fn new(policy: Policy, inherited: u16, now: Tick) -> Self {
        let release = ReleaseId::FIRST;
        let mut slots = vec![Shadow::new(release); usize::from(policy.workers)];
        for slot in slots.iter_mut().take(inherited.into()) {
            slot.deposited = true;
            slot.unserved_since = now;
        }
        Self {
            slots,
            workers: policy.workers,
            degraded: false,
            policies: BTreeMap::from([(release, policy.clone())]),
            policy,
            release,
            end: End::Running,
            announced: false,
            custody_ended: false,
            asked: None,
            asked_to_drain: false,
            resuming: std::collections::BTreeSet::new(),
            unanswered: Vec::new(),
            cancelling: Vec::new(),
            pending: pending::Pending::default(),
            operation: None,
            steered: None,
            spread: None,
            pulses: BTreeMap::new(),
            awaited: BTreeMap::new(),
            too_slow: None,
            balance: balance::Balance::default(),
        }
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.end == End::Exited
    }

    /// Returns when the machine must have exited if the kernel needs at most `kernel` for anything
    /// and the shell is at most `shell` late; `None` while it need not exit.
    pub(crate) fn must_exit_by(&self, kernel: Duration, shell: Duration) -> Option<Tick> {
        let Policy {
            lame_duck,
            drain_timeout,
            ..
        } = self.policy;
        match self.end {
            End::Running | End::Exited => None,
            End::BootFailed { at } | End::Forced { at } => Some(at + shell + kernel),
            End::Draining { at } => {
                Some(at + lame_duck + drain_timeout + KILL_GRACE + shell + kernel)
            }
        }
    }

    /// Records the event that the machine is about to receive.
    pub(crate) fn event(&mut self, event: &Event, now: Tick) {
        if let Event::Exited { worker, .. } | Event::SpawnFailed { worker, .. } = event {
            self.awaited.remove(worker);
        }
        self.note(event, now);
    }

    /// Ends the wait for a killed worker.
    fn abandoned(&mut self, worker: WorkerId, now: Tick) {
        let since = self.awaited.remove(&worker);
        law!(
            since.is_some_and(|since| now >= since + KILL_GRACE),
            "{worker} was abandoned but killed at {since:?}"
        );
        let (exit, cause) = (ExitStatus::Lost, None);
        self.note(
            &Event::Exited {
                worker,
                exit,
                cause,
            },
            now,
        );
    }

    /// Checks one action, issued at `now`.
    pub(crate) fn action(&mut self, action: &Action, now: Tick) {
        law!(!self.has_exited(), "nothing comes after Exit: {action:?}");
        match action {
            Action::Spawn {
                worker,
                listener,
                release,
                standby,
            } => {
                if *standby {
                    self.successor_spawned(*worker, *listener, *release, now);
                } else {
                    self.spawned(*worker, *listener, *release, now);
                }
            }
            Action::Kill { worker } => {
                self.awaited.insert(*worker, now);
                self.killed(*worker, now);
            }
            Action::KillProcess { worker } => {
                let missed = self.pulses.get(worker).is_some_and(|it| it.misses > 0);
                law!(
                    missed,
                    "the process of {worker} is killed although it makes turns"
                );
            }
            Action::Confirm { .. } => {}
            Action::Abandon { worker } => self.abandoned(*worker, now),
            Action::EndCustody => self.custody_ends(now),
            Action::StopWorker { worker } => self.asked_to_stop(*worker),
            Action::Lend { slot, to } => self.lent(*slot, *to, now),
            Action::Recall { slot, from, last } => self.recalled(*slot, *from, *last, now),
            Action::Serve { worker } => self.serve_requested(*worker, now),
            Action::HandOver { from, to, last } => self.handover_begins(*from, *to, *last, now),
            Action::Rebalance { from, to, .. } => self.part_moves(*from, *to, now),
            Action::TakeLoads => self.loads_taken(now),
            Action::Leave { worker, within } => self.leave_requested(*worker, *within, now),
            Action::TakeProgress { from, to } => self.progress_taken(*from, *to),
            Action::TakePulse { worker } => self.looked_at(*worker, now),
            Action::Ping { worker } => {
                let missed = self.pulses.get(worker).is_some_and(|it| it.misses > 0);
                law!(
                    missed || self.loads_were_sent(now),
                    "{worker} is pinged although it makes turns"
                );
            }
            Action::Steer { slots } => self.steers(*slots, now),
            Action::Unsteer => self.unsteers(now),
            Action::Spread { slots } => self.spreads(*slots),
            Action::CloseListeners { slot } => self.closes(*slot),
            Action::DropSlot { slot } => self.drops(*slot),
            Action::Begin {
                request, wanted, ..
            } => self.begins(*request, *wanted, now),
            Action::Preflight => self.preflight_begins(now),
            Action::AbortPreflight => self.preflight_aborted(now),
            Action::Exec => self.execs(),
            Action::Commit { release } => self.commits(*release, now),
            Action::Answer { request, answer } => self.answered(*request, answer, now),
            Action::Notice(notice) => self.noticed(notice, now),
            Action::Announce => {
                law!(!self.announced, "the address is announced twice");
                law!(self.end == End::Running, "announced while {:?}", self.end);
                let all = self.slots.iter().all(|slot| slot.been_ready);
                law!(
                    all || self.degraded,
                    "announced before every slot has been Ready or tried"
                );
                law!(
                    self.spread.is_some(),
                    "announced before connections were steered"
                );
                self.announced = true;
            }
            Action::Exit(outcome) => {
                let empty = self.slots.iter().all(Shadow::is_empty);
                law!(empty, "Exit while a process is left");
                match (self.end, outcome) {
                    (End::BootFailed { .. }, Outcome::Failed { .. })
                    | (End::Draining { .. } | End::Forced { .. }, Outcome::Clean) => {}
                    (end, outcome) => panic!("law broken: exits with {outcome:?} while {end:?}"),
                }
                self.end = End::Exited;
            }
        }
    }

    /// Checks the state after all actions have been issued. `timed_out` means that the machine has
    /// just checked its deadlines.
    pub(crate) fn rest(&mut self, machine: &Machine, now: Tick, timed_out: bool) {
        self.views_agree(machine);
        self.workers = machine.policy().workers;
        let timeout = machine.poll_timeout();
        if timed_out {
            law!(
                timeout.is_none_or(|at| at > now),
                "the loop would spin: due at {timeout:?}"
            );
        }
        let by = |at: Tick| timeout.is_some_and(|timeout| timeout <= at);
        match self.end {
            End::Running => {}
            End::Exited => return law!(timeout.is_none(), "a deadline after Exit"),
            End::Draining { at } => {
                let deadline = at + self.policy.lame_duck + self.policy.drain_timeout + KILL_GRACE;
                let asked = self.slots.iter().any(Shadow::stops);
                law!(!asked || by(deadline), "a drain without its deadline");
            }
            End::BootFailed { .. } | End::Forced { .. } => {}
        }
        for (worker, since) in &self.awaited {
            law!(
                by(*since + KILL_GRACE),
                "the exit of {worker} has no deadline"
            );
        }
        self.operation_rests(now, &by);
        self.pending_rests(machine);
        self.company_is_consistent(&by);
        self.pulses_rest(now, &by);
        self.balance_rests(now, &by);
        let serving = self.slots.iter().any(Shadow::serves);
        let running = self.end == End::Running;
        for (index, slot) in self.slots.iter().enumerate() {
            let own = slot.is_served();
            if let Some(to) = slot.borrower {
                law!(!own, "slot {index} serves and is lent to {to}");
                law!(
                    !running || self.serves(to),
                    "slot {index} is lent to {to}, which does not serve"
                );
            }
            if !running {
                law!(
                    !slot.serves(),
                    "slot {index} still serves while {:?}",
                    self.end
                );
                continue;
            }
            match slot.life {
                Life::Gone { latest, .. } => {
                    law!(
                        by(latest),
                        "slot {index} has no worker and no deadline by {latest:?}"
                    );
                }
                Life::Starting { since, .. } => {
                    let deadline = since + self.start_timeout(slot.release);
                    law!(by(deadline), "slot {index} has no start deadline");
                }
                Life::Dying { killed, .. } => law!(killed, "slot {index} was not killed"),
                Life::Serving { told, .. } => {
                    law!(told, "slot {index} stands by but receives no Serve");
                }
                Life::Retired => {
                    let waits = !slot.others.is_empty();
                    law!(waits || slot.closed, "slot {index} has left but is open");
                }
                Life::Unborn | Life::Stopping => {}
            }
            if slot.deposited && !slot.closed && !own && slot.borrower.is_none() && serving {
                let due = slot.unserved_since + self.policy.lend_after;
                law!(
                    due > now,
                    "the queue of slot {index} is unserved since {due:?}"
                );
                law!(
                    by(due),
                    "the queue of slot {index} becomes unserved at {due:?}"
                );
            }
        }
    }

    fn spawned(
        &mut self,
        worker: WorkerId,
        listener: ListenerSource,
        release: ReleaseId,
        now: Tick,
    ) {
        let index = worker.slot.index();
        law!(
            self.end == End::Running,
            "{worker} is spawned while {:?}",
            self.end
        );
        if index == self.slots.len() {
            self.grows(now);
        }
        law!(index < self.slots.len(), "{worker} is spawned in no slot");
        let below = &self.slots[..index];
        let in_turn = below.iter().all(|slot| slot.been_ready || self.degraded);
        law!(
            in_turn,
            "{worker} is spawned before the slots below it were Ready"
        );
        law!(
            listener == ListenerSource::Adopt || below.iter().all(|slot| slot.deposited),
            "{worker} binds before the slots below it have"
        );
        let rolled_out = self.rolls_out(release);
        law!(
            rolled_out || release == self.release,
            "{worker} is spawned with release {release:?}"
        );
        let growing = self.grows_now();
        let slot = &mut self.slots[index];
        law!(
            !slot.is_live() && slot.life != Life::Retired && !slot.closed,
            "{worker} is spawned beside a live one: {:?}",
            slot.life
        );
        slot.is_born(worker);
        let binds = listener == ListenerSource::Bind;
        law!(
            binds != slot.deposited,
            "{worker} is spawned to {listener:?}"
        );
        if let Life::Gone { earliest, .. } = slot.life {
            // A reload does not wait for a backoff that another release has caused.
            let other = slot.release != release;
            let rolling = self.operation.as_ref().is_some_and(Operation::rolls);
            // Nor does an additional slot: it first needs the missing one.
            law!(
                now >= earliest || (other && rolling) || growing,
                "{worker} is spawned before its backoff ends at {earliest:?}"
            );
        }
        slot.generation = worker.generation.0;
        slot.release = release;
        slot.owes_word = false;
        slot.life = Life::Starting {
            since: now,
            failed: false,
            standby: false,
        };
    }

    fn killed(&mut self, worker: WorkerId, now: Tick) {
        let index = worker.slot.index();
        let slot = self.slots.get(index).expect("law: Kill names a slot");
        if slot.others.contains_key(&worker.generation.0) {
            return self.company_killed(worker, now);
        }
        law!(
            slot.generation == worker.generation.0,
            "{worker} is killed but does not exist"
        );
        let late = |since: Tick| now >= since + self.start_timeout(slot.release);
        let mut ordered = false;
        let mut forced = false;
        match slot.life {
            Life::Dying { killed, .. } => law!(!killed, "{worker} is killed twice"),
            Life::Starting { since, .. } => {
                let rolling = self.operation.as_ref().is_some_and(Operation::rolls);
                // A late worker may be killed for another reason, if that comes first.
                let slow = self.too_slow == Some(worker);
                law!(
                    !slow || late(since),
                    "{worker} has not exceeded its time yet"
                );
                ordered = !slow && self.end == End::Running;
                let cancelled = self.is_cancelled() && !slot.deposited;
                law!(
                    !ordered || rolling || cancelled,
                    "{worker} is killed while it may still start"
                );
            }
            Life::Serving { .. } => {
                let failing = matches!(self.end, End::BootFailed { .. });
                law!(
                    failing || self.keeps_waiting(worker, now),
                    "{worker} is killed while it serves and {:?}",
                    self.end
                );
            }
            Life::Stopping => forced = true,
            Life::Unborn | Life::Retired | Life::Gone { .. } => {
                panic!("law broken: {worker} is killed after its exit")
            }
        }
        if forced {
            self.forces(worker, now);
        }
        self.mark_dying(worker, ordered, now);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.is_killed(worker);
        }
    }

    /// Detects the end of a drain that has no event of its own.
    fn forces(&mut self, worker: WorkerId, now: Tick) {
        if let End::Draining { at } = self.end {
            let deadline = at + self.policy.lame_duck + self.policy.drain_timeout;
            law!(
                now >= deadline + KILL_GRACE,
                "{worker} is killed in its drain"
            );
            self.end = End::Forced { at: now };
        }
    }

    fn asked_to_stop(&mut self, worker: WorkerId) {
        law!(self.custody_ended, "{worker} receives Stop in custody");
        let slot = &mut self.slots[worker.slot.index()];
        if let Some(other) = slot.others.get_mut(&worker.generation.0) {
            let goes = matches!(other.part, Part::HandingOver { .. } | Part::Leaving { .. });
            law!(goes, "{worker} receives Stop while it is {:?}", other.part);
            other.part = Part::Stopping;
            return;
        }
        let serving = slot.generation == worker.generation.0 && slot.serves();
        law!(
            serving,
            "{worker} receives Stop while it is {:?}",
            slot.life
        );
        slot.life = Life::Stopping;
        self.end_loans_of(worker);
    }

    fn lent(&mut self, slot: SlotId, to: WorkerId, now: Tick) {
        let stops_now = self.end == (End::Draining { at: now }) && !self.custody_ended;
        law!(
            self.end == End::Running || stops_now,
            "slot {slot} is lent while {:?}",
            self.end
        );
        law!(
            self.serves(to),
            "slot {slot} is lent to {to}, which does not serve"
        );
        let loans = |worker: WorkerId| {
            let borrowed = |slot: &&Shadow| slot.borrower == Some(worker);
            self.slots.iter().filter(borrowed).count()
        };
        for sibling in self.serving() {
            let fair = (loans(to), to) <= (loans(sibling), sibling);
            law!(fair, "slot {slot} is lent to {to} and not to {sibling}");
        }
        let (lend_after, settle) = (self.policy.lend_after, self.policy.handshake_timeout);
        let steered = self.steered;
        let shadow = &mut self.slots[slot.index()];
        law!(
            shadow.deposited && !shadow.closed,
            "slot {slot} is lent without a listener"
        );
        law!(
            !shadow.is_served(),
            "slot {slot} is lent although it serves"
        );
        law!(shadow.borrower.is_none(), "slot {slot} is lent twice");
        let due = shadow.unserved_since + lend_after;
        let leaves = steered.is_some_and(|(stay, since)| slot.0 >= stay && now >= since + settle);
        law!(
            now >= due || stops_now || leaves,
            "slot {slot} is lent before {due:?}"
        );
        shadow.borrower = Some(to);
    }

    fn recalled(&mut self, slot: SlotId, from: WorkerId, last: bool, now: Tick) {
        if last {
            return self.emptied(slot, from, now);
        }
        let shadow = &self.slots[slot.index()];
        let borrower = shadow.borrower;
        law!(
            borrower == Some(from),
            "slot {slot} is recalled from {from}, not its borrower"
        );
        let leaves = self.is_about_to_leave(from);
        law!(
            leaves || self.serves(from),
            "slot {slot} is recalled from {from}, which does not serve"
        );
        law!(
            leaves || shadow.serves(),
            "slot {slot} is recalled although its own worker does not serve"
        );
        self.slots[slot.index()].borrower = None;
    }

    /// Checks that listeners remain only where they are served, and that no queue is lost while a
    /// worker could empty it.
    fn custody_ends(&mut self, now: Tick) {
        let stops_now = self.end == (End::Draining { at: now });
        law!(stops_now, "custody ends while {:?}", self.end);
        law!(!self.custody_ended, "custody ends twice");
        self.custody_ended = true;
        let anybody = self.serving().next().is_some();
        for (index, slot) in self.slots.iter().enumerate() {
            let served = slot.is_served() || slot.borrower.is_some();
            law!(
                served || !slot.deposited || slot.closed || !anybody,
                "the queue of slot {index} is dropped although it could be lent"
            );
        }
    }

    fn noticed(&mut self, notice: &Notice, now: Tick) {
        match notice {
            Notice::BootFailed { .. } if self.end == End::Running => {
                // Of all reasons for a failed boot, this is the one without an event.
                let late = |slot: &Shadow| match slot.life {
                    Life::Starting { since, .. } => {
                        !slot.been_ready && now >= since + self.policy.start_timeout
                    }
                    Life::Unborn
                    | Life::Serving { .. }
                    | Life::Retired
                    | Life::Stopping
                    | Life::Dying { .. }
                    | Life::Gone { .. } => false,
                };
                law!(self.slots.iter().any(late), "the boot fails for no reason");
                self.boot_failed(now);
            }
            Notice::BackingOff {
                slot,
                delay,
                failures,
            } => {
                law!(
                    *delay <= self.policy.backoff_max,
                    "slot {slot} backs off for {delay:?}"
                );
                let shadow = &self.slots[slot.index()];
                law!(
                    *failures == shadow.failures,
                    "slot {slot} counts {failures} failures, not {}",
                    shadow.failures
                );
            }
            Notice::StartTimedOut { worker, .. } => self.too_slow = Some(*worker),
            Notice::RollingBack { .. } => self.turns_round(),
            Notice::OperationStarted { request, .. } => self.operation_starts(*request, now),
            Notice::InvariantBroken { what, .. } => {
                law!(false, "an invariant is broken: {what}");
            }
            _ => {}
        }
    }

    /// Checks that the shadow and the machine agree on which workers run and serve.
    fn views_agree(&self, machine: &Machine) {
        law!(
            machine.slots().count() == self.slots.len(),
            "{} slots, not {}",
            machine.slots().count(),
            self.slots.len()
        );
        law!(
            machine.operation().is_some()
                == (self.operation.is_some() || self.pending.handed.is_some()),
            "in progress: {:?}, not {:?}",
            machine.operation(),
            self.operation
        );
        law!(
            machine.release() == self.release,
            "release {:?} is in force",
            machine.release()
        );
        for (view, shadow) in machine.slots().zip(&self.slots) {
            let name = view.state;
            let agree = shadow.names().contains(&name)
                && view.generation.0 == shadow.generation
                && view.release == shadow.release;
            law!(
                agree,
                "slot {} is {name} ({} of {:?}), but the events gave {shadow:?}",
                view.id,
                view.generation,
                view.release
            );
            law!(
                self.end != End::Running || name != "stopped",
                "slot {} is abandoned while the supervisor runs",
                view.id
            );
            let company = view.successor.into_iter().chain(view.predecessors);
            let mut company: Vec<_> = company
                .map(|seat| (seat.worker.generation.0, seat.release, seat.state))
                .collect();
            company.sort_unstable();
            let told: Vec<_> = shadow
                .others
                .iter()
                .map(|(generation, it)| (*generation, it.release, it.part.name()))
                .collect();
            law!(
                company == told,
                "beside slot {}: {company:?}, but the events gave {told:?}",
                view.id
            );
        }
    }

    fn boot_failed(&mut self, now: Tick) {
        if self.end == End::Running {
            self.end = End::BootFailed { at: now };
        }
    }

    fn end_loans_of(&mut self, borrower: WorkerId) {
        for slot in &mut self.slots {
            if slot.borrower == Some(borrower) {
                slot.borrower = None;
            }
        }
    }

    fn start_timeout(&self, release: ReleaseId) -> Duration {
        self.policies[&release].start_timeout
    }

    fn serving(&self) -> impl Iterator<Item = WorkerId> {
        (0_u16..).zip(&self.slots).filter_map(|(index, slot)| {
            let worker = slot.worker(index);
            slot.serves().then_some(worker)
        })
    }

    fn serves(&self, worker: WorkerId) -> bool {
        self.serving().any(|serving| serving == worker)
    }
}
