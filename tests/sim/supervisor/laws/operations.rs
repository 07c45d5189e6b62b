//! Laws of planned operations: each request is answered once and in time, a partial operation is
//! rolled back, and a leaving slot loses no client.

use std::collections::BTreeSet;
use std::time::Duration;

use uppercased::supervisor::machine::{
    Answer, Done, Event, KILL_GRACE, Policy, ReleaseId, RequestId, ScaleTo, SlotId, Wanted,
    WorkerId,
};
use uppercased_ctl::clock::{Tick, millis};

use super::shadow::{Life, Part, Shadow};
use super::{End, Laws, law};
use crate::supervisor::SHELL_DELAY_MAX;
use crate::supervisor::kernel::KERNEL_DELAY_MAX;

/// Maximum number of workers that may be requested.
const WORKERS_MAX: u16 = 1024;

/// A request, before the machine has reported whether it begins.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    request: RequestId,
    kind: Kind,
    /// Target number of workers.
    to: u16,
    /// Whether the request in itself is acceptable.
    sound: bool,
    /// The request, if it waited for its turn.
    came_back: Option<Wanted>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Reload(ReleaseId),
    Upgrade,
    Scale,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Preflight { since: Option<Tick> },
    Passed,
    Exec,
    Roll(ReleaseId),
    Scale,
}

/// The operation in progress.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    request: RequestId,
    kind: Kind,
    stage: Stage,
    to: u16,
    since: Tick,
    /// Its maximum duration; irrelevant while slots leave.
    bound: Duration,
    /// Time since which the first slot serves with the new release.
    canary: Option<Tick>,
    /// Number of slots when the new release came into force.
    committed: u16,
    /// Whether a worker of the new release has failed.
    pub(super) turned: bool,
    /// Slots in which a worker of the old release has failed since then.
    pub(super) hindered: BTreeSet<SlotId>,
    /// Whether another failure occurred.
    pub(super) failed: bool,
    /// Whether connections that cannot migrate may be drained.
    pub(super) drain: bool,
    /// Whether connections were lost, or had no receiver.
    pub(super) damaged: bool,
    /// Number of slots at the start.
    former: u16,
    /// The caller that cancelled it, and the previous number of workers.
    cancelled: Option<(RequestId, u16)>,
    /// Whether the target exceeded the number of slots at the start.
    grew: bool,
    /// Slots that did not serve when the roll began, and have not served since.
    broken: BTreeSet<SlotId>,
}

impl Operation {
    /// Returns whether workers are being replaced, or rolled back.
    pub(super) fn rolls(&self) -> bool {
        matches!(self.stage, Stage::Roll(_))
    }
}

impl Laws {
    pub(super) fn note_plan(&mut self, event: &Event, now: Tick) {
        let here = self.open();
        match event {
            Event::Reload {
                request,
                release,
                policy,
                drain,
            } => {
                self.asked_to_drain = *drain;
                self.policies.insert(*release, policy.clone());
                let to = policy.workers;
                self.note_asked(*request, Kind::Reload(*release), to, true);
            }
            Event::Upgrade { request, drain } => {
                self.note_asked(*request, Kind::Upgrade, here, true);
                self.asked_to_drain = *drain;
            }
            Event::Scale { request, to, drain } => {
                self.asked_to_drain = *drain;
                let to = match to {
                    ScaleTo::Exactly(to) => *to,
                    ScaleTo::By(by) => here.saturating_add_signed(*by),
                };
                let sound = (1..=WORKERS_MAX).contains(&to);
                self.note_asked(*request, Kind::Scale, to, sound);
            }
            Event::PreflightPassed => {
                if let Some(operation) = &mut self.operation
                    && matches!(operation.stage, Stage::Preflight { .. })
                    && !operation.failed
                {
                    operation.stage = Stage::Passed;
                }
            }
            Event::PreflightFailed { .. } => {
                if let Some(operation) = &mut self.operation
                    && matches!(operation.stage, Stage::Preflight { .. })
                {
                    operation.failed = true;
                }
            }
            Event::ExecFailed { .. } => {
                if let Some(operation) = &mut self.operation
                    && operation.stage == Stage::Exec
                {
                    operation.failed = true;
                }
            }
            Event::Resumed { release, policy } => {
                let bound = self.bound(policy, here);
                let broken = self.idle_slots();
                if let Some(operation) = &mut self.operation
                    && operation.stage == Stage::Exec
                    && !operation.failed
                {
                    self.policies.insert(*release, policy.clone());
                    operation.stage = Stage::Roll(*release);
                    operation.broken = broken;
                    operation.to = policy.workers;
                    operation.grew = policy.workers > here;
                    operation.bound = now.since(operation.since) + bound;
                }
            }
            _ => unreachable!("{event:?} starts no operation"),
        }
    }

    fn note_asked(&mut self, request: RequestId, kind: Kind, to: u16, sound: bool) {
        let handed = self.pending.handed.map(|(_, wanted)| wanted);
        let came_back = handed.filter(|_| self.returned(request));
        if came_back.is_none() || request == RequestId::NOBODY {
            self.unanswered.push(request);
        }
        self.asked = Some(Asked {
            request,
            kind,
            to,
            sound,
            came_back,
        });
    }

    pub(super) fn operation_starts(&mut self, request: RequestId, now: Tick) {
        let asked = self
            .asked
            .take()
            .expect("law: an operation needs a request");
        law!(
            asked.request == request,
            "{request:?} was handled as {asked:?}"
        );
        law!(
            self.operation.is_none(),
            "{request:?} begins beside {:?}",
            self.operation
        );
        law!(
            self.in_the_way().is_none() && asked.sound,
            "{request:?} begins although {:?}",
            self.in_the_way()
        );
        let policy = match asked.kind {
            Kind::Reload(release) => &self.policies[&release],
            Kind::Upgrade | Kind::Scale => &self.policy,
        };
        let bound = self.bound(policy, asked.to);
        self.operation = Some(Operation {
            request,
            kind: asked.kind,
            stage: match asked.kind {
                Kind::Reload(release) => Stage::Roll(release),
                Kind::Upgrade => Stage::Preflight { since: None },
                Kind::Scale => Stage::Scale,
            },
            to: asked.to,
            since: now,
            bound,
            canary: None,
            committed: 0,
            turned: false,
            hindered: BTreeSet::new(),
            failed: false,
            broken: self.idle_slots(),
            grew: asked.to > self.open(),
            former: self.open(),
            cancelled: None,
            drain: self.asked_to_drain,
            damaged: false,
        });
    }

    /// Records a request to cancel the operation in progress; the reply shows whether that was
    /// possible.
    pub(super) fn note_cancel(&mut self, request: RequestId, now: Tick) {
        self.unanswered.push(request);
        self.cancelling.push(request);
        let stay = self
            .slots
            .iter()
            .take_while(|it| !it.closed && it.life != Life::Retired);
        let stay = u16::try_from(stay.count()).expect("the simulation has few slots");
        let shrinks = self.steered.is_some();
        let bound = self.bound(&self.policy, self.open());
        let Some(operation) = &mut self.operation else {
            return;
        };
        let possible = match operation.stage {
            Stage::Preflight { .. } | Stage::Roll(_) | Stage::Scale => true,
            Stage::Passed | Stage::Exec => false,
        };
        if !possible || operation.cancelled.is_some() || operation.turned || operation.failed {
            return;
        }
        operation.cancelled = Some((request, operation.to));
        operation.bound = now.since(operation.since) + bound;
        match operation.stage {
            Stage::Roll(_) => operation.turned = true,
            Stage::Scale if shrinks => {
                operation.to = stay;
                self.steered = self.steered.map(|(_, since)| (stay, since));
            }
            Stage::Scale => operation.to = operation.former,
            Stage::Preflight { .. } | Stage::Passed | Stage::Exec => {}
        }
    }

    /// Checks the reply to the cancelling caller: at once, or after the operation's own.
    fn cancel_answered(&mut self, request: RequestId, answer: &Answer) {
        let mut answered = |it: &RequestId| *it != request;
        self.unanswered.retain(&mut answered);
        if let Answer::Done(done) = answer {
            law!(self.operation.is_none(), "it was cancelled but continues");
            law!(done.workers == self.open(), "{done:?}");
        }
        if let Answer::Refused { cause } = answer
            && let Some(operation) = &mut self.operation
            && let Some((_, to)) = operation.cancelled.filter(|(it, _)| *it == request)
        {
            // An operation that waits only for its last workers is invisible to the laws.
            law!(cause.contains("last workers"), "{operation:?}: {cause}");
            law!(operation.stage == Stage::Scale, "{operation:?}: {cause}");
            operation.cancelled = None;
            operation.to = to;
        }
    }

    /// Returns the slots without a serving worker.
    fn idle_slots(&self) -> BTreeSet<SlotId> {
        let slots = (0_u16..).map(SlotId).zip(&self.slots);
        slots
            .filter(|(_, slot)| !slot.serves())
            .map(|(id, _)| id)
            .collect()
    }

    /// Records that a slot serves: from now on its failures count for the operation.
    pub(super) fn mended(&mut self, slot: SlotId) {
        if let Some(operation) = &mut self.operation {
            operation.broken.remove(&slot);
        }
    }

    /// Returns whether slots are being added.
    pub(super) fn grows_now(&self) -> bool {
        let scales = |it: &Operation| it.stage == Stage::Scale && !it.failed;
        self.steered.is_none() && self.operation.as_ref().is_some_and(scales)
    }

    /// Returns the maximum duration of an operation: every slot forth and back, and its own waits.
    /// Generous; the law detects only operations that never end.
    fn bound(&self, policy: &Policy, to: u16) -> Duration {
        let longest = |of: fn(&Policy) -> Duration| of(policy).max(of(&self.policy));
        let start = longest(|it| it.start_timeout);
        let step = 2 * start
            + 20 * longest(|it| it.handover_timeout)
            + longest(|it| it.backoff_max)
            + 6 * (KERNEL_DELAY_MAX + SHELL_DELAY_MAX);
        let steps = 2 * self.slots.len() + usize::from(to) + 3;
        step * u32::try_from(steps).expect("the simulation has few slots")
            + policy.bake_time
            + KILL_GRACE
    }

    /// Returns the reason why a request must be refused.
    pub(super) fn in_the_way(&self) -> Option<&'static str> {
        if !self.announced {
            Some("the boot is not complete")
        } else if self.end != End::Running {
            Some("the supervisor is stopping")
        } else if self.operation.is_some() {
            Some("an operation is in progress")
        } else if self.pending.handed.is_some() {
            Some("an operation is about to begin")
        } else if self.slots.iter().any(Shadow::is_being_left) {
            Some("a worker is still leaving")
        } else {
            None
        }
    }

    pub(super) fn answered(&mut self, request: RequestId, answer: &Answer, now: Tick) {
        if self.cancelling.contains(&request) {
            return self.cancel_answered(request, answer);
        }
        if let Answer::Refused { cause } = answer
            && self.asked.as_ref().is_none_or(|it| it.request != request)
        {
            return self.pending_refused(request, cause);
        }
        let asked = self.unanswered.iter().position(|it| *it == request);
        let Some(asked) = asked else {
            panic!("law broken: {request:?} is answered but was never received");
        };
        self.unanswered.remove(asked);
        if let Answer::Refused { cause } = answer {
            let asked = self.asked.take().expect("law: a refusal comes at once");
            law!(asked.request == request, "{request:?} is refused late");
            law!(
                self.in_the_way().is_some() || !asked.sound,
                "{request:?} is refused without a reason: {cause}"
            );
            return;
        }
        let operation = self.operation.take();
        let operation = operation.expect("law: an answer ends an operation");
        law!(
            operation.request == request,
            "{request:?} is answered first"
        );
        if self.end == End::Running {
            law!(self.steered.is_none(), "steering outlives {request:?}");
            let idle = |slot: &Shadow| {
                let leaves = |part: &Part| {
                    matches!(
                        part,
                        Part::Leaving {
                            finished: false,
                            ..
                        }
                    )
                };
                slot.others.values().all(|other| leaves(&other.part))
            };
            law!(
                self.slots.iter().all(idle),
                "{request:?} is answered but not finished"
            );
        }
        match answer {
            Answer::Refused { .. } => {}
            Answer::Done(done) => self.succeeded(&operation, done, now),
            Answer::Failed { cause } => self.failed(&operation, cause),
        }
    }

    fn succeeded(&self, operation: &Operation, done: &Done, now: Tick) {
        let failed = operation.failed
            || operation.turned
            || operation.damaged
            || operation.cancelled.is_some();
        law!(
            !failed,
            "it succeeded although a step failed: {operation:?}"
        );
        law!(
            self.end == End::Running,
            "it succeeded while {:?}",
            self.end
        );
        law!(
            operation.stage == Stage::Scale,
            "it succeeded at {:?}",
            operation.stage
        );
        law!(
            self.open() == operation.to && done.workers == operation.to,
            "{} workers, and {} were reported, not {}",
            self.open(),
            done.workers,
            operation.to
        );
        let all = self.slots.iter().all(|slot| slot.deposited);
        law!(
            all || !operation.grew,
            "it succeeded but a slot is not complete"
        );
        law!(
            done.duration_ms == millis(now.since(operation.since)),
            "it took {:?}",
            done.duration_ms
        );
        let replaced = match operation.kind {
            Kind::Scale => 0,
            Kind::Reload(_) | Kind::Upgrade => operation.committed,
        };
        law!(
            done.replaced == replaced,
            "{} slots were replaced",
            done.replaced
        );
    }

    fn failed(&self, operation: &Operation, cause: &str) {
        let stops = self.end != End::Running;
        law!(
            stops
                || operation.failed
                || operation.turned
                || operation.damaged
                || operation.cancelled.is_some(),
            "it failed without a reason: {cause}"
        );
        if operation.cancelled.is_some() && !stops {
            law!(cause.contains("cancelled by"), "it was cancelled: {cause}");
            law!(
                operation.failed
                    || operation.stage != Stage::Scale
                    || self.open() <= operation.former.max(operation.to),
                "{} slots stay of {operation:?}",
                self.open()
            );
        }
        // Otherwise it has changed no slot.
        if stops || !operation.turned {
            return;
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let named = cause.contains(&format!("slot {index} "));
            // The missing rollback must have a reason.
            let id = SlotId(u16::try_from(index).expect("the simulation has few slots"));
            let target = slot.is_live() && operation.stage == Stage::Roll(slot.release);
            law!(
                !target || operation.hindered.contains(&id),
                "slot {index} was not rolled back"
            );
            law!(
                named || slot.release == self.release,
                "slot {index} is left with {:?}: {cause}",
                slot.release
            );
        }
    }

    /// Records that a worker of `release` has exited unexpectedly.
    pub(super) fn suffers(&mut self, slot: SlotId, release: ReleaseId) {
        let Some(operation) = &mut self.operation else {
            return;
        };
        if operation.stage == Stage::Roll(release) {
            operation.turned |= !operation.broken.contains(&slot);
        } else if operation.rolls() && operation.turned && release == self.release {
            operation.hindered.insert(slot);
        }
    }

    /// Detects a rollback for lack of a serving worker, the only reason without an event.
    pub(super) fn turns_round(&mut self) {
        let slots = self.slots.len();
        let operation = self.operation.as_mut();
        let operation = operation.expect("law: a rollback belongs to an operation");
        let nobody = operation.canary.is_none() && operation.broken.len() == slots;
        law!(
            operation.turned || nobody,
            "a reload is rolled back without a reason"
        );
        operation.turned = true;
    }

    /// Records that a slot that was being added has no worker.
    pub(super) fn growth_fails(&mut self) {
        if let Some(operation) = &mut self.operation {
            operation.failed = true;
        }
    }

    /// Returns whether the operation in progress has been cancelled.
    pub(super) fn is_cancelled(&self) -> bool {
        self.operation
            .as_ref()
            .is_some_and(|it| it.cancelled.is_some())
    }

    /// Returns whether new workers may run `release` although it is not in force.
    pub(super) fn rolls_out(&self, release: ReleaseId) -> bool {
        self.operation
            .as_ref()
            .is_some_and(|it| it.stage == Stage::Roll(release) && !it.turned)
    }

    /// Returns whether a slot serves with the new release.
    pub(super) fn has_canary(&self) -> bool {
        let operation = self.operation.as_ref();
        operation.is_some_and(|it| it.canary.is_some())
    }

    /// Returns whether that release is being rolled back.
    pub(super) fn turned_from(&self, release: ReleaseId) -> bool {
        let operation = self.operation.as_ref();
        operation.is_some_and(|it| it.stage == Stage::Roll(release) && it.turned)
    }

    /// Returns whether the first slot's bake time with the new release has passed.
    pub(super) fn canary_stood(&self, now: Tick) -> bool {
        let Some(operation) = &self.operation else {
            return true;
        };
        let Stage::Roll(release) = operation.stage else {
            return true;
        };
        let bake_time = self.policies[&release].bake_time;
        let stood = |since: Tick| now >= since + bake_time;
        operation.turned || bake_time.is_zero() || operation.canary.is_some_and(stood)
    }

    pub(super) fn grows(&mut self, now: Tick) {
        let here = self.open();
        let wanted = self.operation.as_ref().is_some_and(|it| {
            it.stage == Stage::Scale && !it.failed && here < it.to && it.since <= now
        });
        law!(wanted, "slot {here} was not requested");
        let mut slot = Shadow::new(self.release);
        slot.born = None;
        self.slots.push(slot);
    }

    pub(super) fn steers(&mut self, slots: u16, now: Tick) {
        let wanted = self
            .operation
            .as_ref()
            .is_some_and(|it| it.stage == Stage::Scale && it.to == slots);
        law!(
            wanted && slots < self.open(),
            "new connections are steered to {slots} slots"
        );
        law!(self.steered.is_none(), "they are steered twice");
        self.steered = Some((slots, now));
    }

    pub(super) fn unsteers(&mut self, now: Tick) {
        let Some((stay, since)) = self.steered.take() else {
            panic!("law broken: nothing is steered");
        };
        let open = self.open();
        if open > stay && !self.operation.as_ref().is_some_and(|it| it.failed) {
            self.leaving_fails(since, now);
        }
        self.spread = Some(self.listening());
        // The last workers have a grace period to exit, and another to be reaped once killed.
        let end = 2 * KILL_GRACE + 2 * (KERNEL_DELAY_MAX + SHELL_DELAY_MAX);
        if let Some(operation) = &mut self.operation {
            operation.bound = now.since(operation.since) + end;
        }
    }

    /// Checks the failure of leaving workers that had no receiver for their connections.
    fn leaving_fails(&mut self, since: Tick, now: Tick) {
        let settled = since + self.policy.handshake_timeout;
        law!(
            now >= settled + 2 * self.policy.start_timeout,
            "slots return before their time to leave has passed"
        );
        if let Some(operation) = &mut self.operation {
            operation.failed = true;
        }
    }

    /// Checks that the rule for new connections covers exactly the listening sockets.
    pub(super) fn spreads(&mut self, slots: u16) {
        law!(
            self.steered.is_none(),
            "spread over {slots} slots while steered"
        );
        law!(
            slots == self.listening(),
            "spread over {slots} slots of {} that listen",
            self.listening()
        );
        self.spread = Some(slots);
    }

    fn listening(&self) -> u16 {
        let listens = |slot: &&Shadow| slot.deposited && !slot.closed;
        let count = self.slots.iter().filter(listens).count();
        u16::try_from(count).expect("the simulation has few slots")
    }

    pub(super) fn closes(&mut self, slot: SlotId) {
        let stays = self.steered.is_none_or(|(stay, _)| slot.0 < stay);
        law!(!stays, "slot {slot} is closed and stays");
        let shadow = &mut self.slots[slot.index()];
        law!(!shadow.closed, "slot {slot} is closed twice");
        law!(
            shadow.life == Life::Retired && shadow.handing_over().is_none(),
            "slot {slot} is closed before its worker released it: {shadow:?}"
        );
        let let_go = |part: &Part| matches!(part, Part::Leaving { .. });
        law!(
            shadow.emptied || shadow.others.values().any(|other| let_go(&other.part)),
            "slot {slot} is closed before its queue was emptied"
        );
        law!(shadow.borrower.is_none(), "slot {slot} is closed and lent");
        shadow.closed = true;
    }

    /// Records that a sibling empties the queue of a leaving slot without a worker.
    pub(super) fn emptied(&mut self, slot: SlotId, by: WorkerId, now: Tick) {
        let Some((stay, since)) = self.steered else {
            panic!("law broken: slot {slot} is abandoned while it receives new connections");
        };
        law!(slot.0 >= stay, "slot {slot} is abandoned but stays");
        law!(
            now >= since + self.policy.handshake_timeout,
            "slot {slot} leaves before the handshake timeout has passed"
        );
        law!(self.serves(by), "{by} empties a queue but does not serve");
        let shadow = &mut self.slots[slot.index()];
        law!(
            shadow.borrower == Some(by),
            "{by} empties the queue of slot {slot} without having borrowed it"
        );
        law!(
            matches!(shadow.life, Life::Gone { .. }),
            "slot {slot} is abandoned but has a worker: {shadow:?}"
        );
        shadow.borrower = None;
        shadow.life = Life::Retired;
        shadow.emptied = true;
    }

    pub(super) fn drops(&mut self, slot: SlotId) {
        law!(
            slot.index() + 1 == self.slots.len() && slot.0 > 0,
            "slot {slot} is dropped of {}",
            self.slots.len()
        );
        let shadow = self.slots.pop().expect("it is there");
        law!(shadow.is_empty(), "slot {slot} is dropped: {shadow:?}");
        law!(
            shadow.closed || !shadow.deposited,
            "slot {slot} is dropped with its listener"
        );
    }

    pub(super) fn preflight_begins(&mut self, now: Tick) {
        if let Some(operation) = &mut self.operation
            && operation.stage == (Stage::Preflight { since: None })
        {
            operation.stage = Stage::Preflight { since: Some(now) };
        } else {
            panic!("law broken: a preflight in {:?}", self.operation);
        }
    }

    pub(super) fn preflight_aborted(&mut self, now: Tick) {
        let limit = self.policy.start_timeout;
        let stops = self.end != End::Running;
        if let Some(due) = self.back_by() {
            let mut cancels = self.cancelling.iter();
            let cancelled = cancels.any(|request| self.unanswered.contains(request));
            return law!(
                stops || now >= due || cancelled,
                "the reload had time until {due:?}"
            );
        }
        if let Some(operation) = &mut self.operation
            && let Stage::Preflight { since: Some(since) } = operation.stage
        {
            law!(
                stops || now >= since + limit || operation.cancelled.is_some(),
                "the preflight had time until {:?}",
                since + limit
            );
            operation.failed = true;
        } else {
            panic!("law broken: no preflight in {:?}", self.operation);
        }
    }

    pub(super) fn execs(&mut self) {
        match &mut self.operation {
            Some(operation) if operation.stage == Stage::Passed => operation.stage = Stage::Exec,
            operation => panic!("law broken: an exec in {operation:?}"),
        }
    }

    pub(super) fn commits(&mut self, release: ReleaseId, now: Tick) {
        law!(
            self.rolls_out(release),
            "{release:?} is in force, but {:?}",
            self.operation
        );
        let replaced = |slot: &Shadow| {
            slot.serves() && slot.release == release && slot.handing_over().is_none()
        };
        let operation = self.operation.as_ref().expect("law: a commit ends a roll");
        let broken = |slot: u16| operation.broken.contains(&SlotId(slot));
        let mut slots = (0_u16..).zip(&self.slots);
        law!(
            slots.all(|(id, slot)| replaced(slot) || (broken(id) && !slot.serves())),
            "{release:?} is in force before every slot has it"
        );
        let count = self.slots.iter().filter(|slot| replaced(slot)).count();
        law!(count > 0, "{release:?} is in force but no slot has it");
        law!(
            self.canary_stood(now),
            "{release:?} is in force before the canary passed"
        );
        let checks = |policy: &Policy| (policy.hang_timeout, policy.stall_check);
        let before = checks(&self.policy);
        self.release = release;
        self.policy = self.policies[&release].clone();
        if before != checks(&self.policy) {
            // Missed turns at one poll interval mean nothing at another.
            let all: Vec<WorkerId> = self.pulses.keys().copied().collect();
            for worker in all {
                self.feel(worker, now);
            }
        }
        if let Some(operation) = &mut self.operation {
            operation.stage = Stage::Scale;
            operation.committed = u16::try_from(count).expect("the simulation has few slots");
        }
    }

    /// Returns the slots that have not been closed.
    pub(super) fn open(&self) -> u16 {
        let open = self.slots.iter().filter(|slot| !slot.closed).count();
        u16::try_from(open).expect("the simulation has few slots")
    }

    pub(super) fn operation_rests(&mut self, now: Tick, by: &impl Fn(Tick) -> bool) {
        if let Some(due) = self.back_by() {
            let stops = self.end != End::Running;
            law!(stops || by(due), "reading a configuration has no deadline");
        }
        if let Some(Asked {
            request,
            came_back: Some(wanted),
            ..
        }) = self.asked.take()
        {
            if request == RequestId::NOBODY {
                self.unanswered.retain(|it| *it != request);
            }
            self.waits_again(request, wanted);
        }
        let under_way = self.operation.iter().map(|it| it.request);
        let cancels = self.operation.as_ref().and_then(|it| it.cancelled);
        let waits =
            |it: &RequestId| self.waits(*it) || cancels.is_some_and(|(request, _)| request == *it);
        let unanswered = self.unanswered.iter().copied();
        law!(
            unanswered.filter(|it| !waits(it)).eq(under_way),
            "{:?} are not answered",
            self.unanswered
        );
        if let Some(operation) = &mut self.operation
            && let Stage::Roll(release) = operation.stage
        {
            let sings = self.slots.iter().any(|canary| {
                canary.serves() && canary.release == release && canary.handing_over().is_none()
            });
            if sings {
                operation.canary.get_or_insert(now);
            }
        }
        let Some(operation) = &self.operation else {
            law!(
                self.steered.is_none() || self.end != End::Running,
                "new connections are steered without an operation"
            );
            return law!(
                !self.announced
                    || self.end != End::Running
                    || self.spread == Some(self.listening()),
                "new connections are spread over {:?} slots of {}",
                self.spread,
                self.listening()
            );
        };
        law!(
            self.end == End::Running,
            "{operation:?} continues while {:?}",
            self.end
        );
        match operation.stage {
            Stage::Preflight { since } if !operation.failed => {
                let since = since.expect("law: an upgrade begins with a preflight");
                law!(
                    by(since + self.policy.start_timeout),
                    "a preflight has no deadline"
                );
            }
            Stage::Passed => panic!("law broken: the new program passed but no step follows"),
            Stage::Preflight { .. } | Stage::Exec | Stage::Roll(_) | Stage::Scale => {}
        }
        let Some((stay, since)) = self.steered else {
            let due = operation.since + operation.bound;
            return law!(now <= due, "{operation:?} should have ended by {due:?}");
        };
        // A worker that can leave must do so, and the wait for it is bounded.
        let settled = since + self.policy.handshake_timeout;
        if now < settled {
            return law!(by(settled), "no deadline for the end of the handshakes");
        }
        let leaving = self.slots.iter().rev().find(|slot| !slot.closed);
        let Some(leaving) = leaving else { return };
        let heir = self.slots[..usize::from(stay)].iter().any(Shadow::serves);
        let anybody = self.slots.iter().any(Shadow::serves);
        law!(
            !(heir && leaving.serves()),
            "a slot could leave and does not"
        );
        let idle = matches!(leaving.life, Life::Gone { .. });
        law!(
            !(anybody && idle),
            "a slot without a worker could leave and does not"
        );
        if leaving.life != Life::Retired {
            law!(
                by(now + 2 * self.policy.start_timeout),
                "a slot that is about to leave has no deadline"
            );
        }
    }
}
