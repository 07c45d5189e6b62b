//! Planned operations: one at a time, with an answer for each request.
//!
//! An operation is a list of stages; [`Machine::advance`] runs after every call and moves it as far
//! as the present state allows. So reactions to events need not consider the operation. Only
//! failures are reported to the operation where they happen, because a worker that has failed once
//! may serve a moment later.
//!
//! Invariants: every request is answered once, however the operation ends; while one is in
//! progress, or workers of an earlier one still drain, another is refused at once and changes
//! nothing.

use super::pending::{Obstacle, impossible};
use super::plan::{Course, Operation, Roll, Stage};
use super::slot::Slot;
use super::worker::{Worker, WorkerState};
use super::{
    Action, Answer, Done, Effect, Machine, Notice, OperationKind, Phase, Policy, Queue, ReleaseId,
    RequestId, ScaleTo,
};
use uppercased_ctl::clock::{Tick, millis};
use uppercased_ctl::control::protocol::counted;

impl Machine {
    pub(super) fn reload(
        &mut self,
        request: RequestId,
        release: ReleaseId,
        policy: &Policy,
        drain: bool,
        now: Tick,
    ) -> Effect {
        let kind = OperationKind::Reload;
        match self.obstacle(request, kind, now) {
            Obstacle::Wait => {}
            Obstacle::Refuse(cause) => self.refuse(request, kind, cause),
            Obstacle::None if release == self.release => {
                let cause = format!("release {release} already runs");
                self.refuse(request, kind, cause);
            }
            Obstacle::None => self.begin(
                request,
                kind,
                Stage::Roll(Box::new(Roll::new(
                    release,
                    policy.clone(),
                    self.broken_slots(),
                ))),
                drain,
                now,
            ),
        }
        Effect::Applied
    }

    pub(super) fn scale(
        &mut self,
        request: RequestId,
        to: ScaleTo,
        drain: bool,
        now: Tick,
    ) -> Effect {
        let here = self.policy.workers.max(1);
        let to = to.from(here);
        let kind = OperationKind::Scale { to };
        let obstacle = self.obstacle(request, kind, now);
        match (obstacle, impossible(to)) {
            (Obstacle::Wait, _) => {}
            (_, Some(cause)) | (Obstacle::Refuse(cause), None) => {
                self.refuse(request, kind, cause);
            }
            (Obstacle::None, None) => {
                self.begin(request, kind, Stage::Grow { to, former: here }, drain, now);
                self.begin_scale(to, now);
            }
        }
        Effect::Applied
    }

    /// Returns why no operation can begin now, if so.
    pub(super) fn refusal(&self, now: Tick) -> Option<String> {
        if let Some(cause) = self.permanent_refusal() {
            return Some(cause.to_owned());
        }
        if matches!(self.phase, Phase::Idle | Phase::Booting { .. }) {
            let cause = "the server is still starting; try again when it is ready";
            return Some(cause.to_owned());
        }
        if let Some(progress) = self.operation() {
            return Some(format!("{progress}; try again when it is done"));
        }
        // Workers without a time limit would block every operation, so they do not count, unless
        // their slot has left: until they exit its place is taken.
        let counts = |slot: &Slot, it: &Worker| {
            slot.queue == Queue::Closed
                || !matches!(it.state, WorkerState::Leaving { deadline, .. } if deadline == Tick::MAX)
        };
        let leaving = self.slots.iter().flat_map(|slot| {
            let counted = move |it: &&Worker| counts(slot, it);
            slot.predecessors().filter(counted)
        });
        let deadlines = leaving.map(|it| match it.state {
            WorkerState::Leaving { deadline, .. } => deadline,
            WorkerState::Starting { .. }
            | WorkerState::Serving { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Stopping
            | WorkerState::Killed { .. } => now,
        });
        let deadlines: Vec<Tick> = deadlines.collect();
        let count = deadlines.len();
        let for_how_long = match deadlines.into_iter().max()? {
            Tick::MAX => "until their clients disconnect".to_owned(),
            until => format!("for at most {:?}", until.since(now)),
        };
        Some(format!(
            "{} still draining ({for_how_long}); try again later",
            counted(count as u64, "old worker")
        ))
    }

    /// Returns why no operation will ever begin again, if so.
    pub(super) const fn permanent_refusal(&self) -> Option<&'static str> {
        match &self.phase {
            Phase::Idle | Phase::Booting { .. } | Phase::Serving => None,
            Phase::BootFailed { .. } | Phase::Draining { .. } | Phase::Forced | Phase::Ended => {
                Some("the server is stopping")
            }
        }
    }

    pub(super) fn refuse(&mut self, request: RequestId, kind: OperationKind, cause: String) {
        self.answer(request, kind, Answer::Refused { cause });
    }

    pub(super) fn begin(
        &mut self,
        request: RequestId,
        kind: OperationKind,
        stage: Stage,
        drain: bool,
        now: Tick,
    ) {
        let operation = kind;
        self.notice(Notice::OperationStarted { operation, request });
        self.operation = Some(Operation {
            request,
            kind,
            since: now,
            stage,
            replaced: 0,
            migrated: 0,
            draining: 0,
            cancel: None,
            drain,
            damage: None,
        });
    }

    pub(super) fn enter_stage(&mut self, stage: Stage) {
        match &mut self.operation {
            Some(operation) => operation.stage = stage,
            None => self.repair("a stage is entered without an operation"),
        }
    }

    /// Returns the operation in progress.
    #[must_use]
    pub fn operation_kind(&self) -> Option<OperationKind> {
        self.operation.as_ref().map(|operation| operation.kind)
    }

    pub(super) fn stage(&self) -> Option<&Stage> {
        self.operation.as_ref().map(|operation| &operation.stage)
    }

    /// Fails the operation; the answer follows when its rollback is complete.
    pub(super) fn fail_operation(&mut self, cause: String) {
        self.enter_stage(Stage::Ending {
            failure: Some(cause),
        });
    }

    /// Records an unintended cost of the operation.
    pub(super) fn damage(&mut self, what: String) {
        if let Some(operation) = &mut self.operation {
            operation.damage.get_or_insert(what);
        }
    }

    /// Returns whether connections that cannot migrate may be left to drain. Outside of an
    /// operation no request waits for them.
    #[must_use]
    pub fn may_drain(&self) -> bool {
        self.operation.as_ref().is_none_or(|it| it.drain)
    }

    /// Answers all requests of the operation, because the supervisor stops.
    pub(super) fn abandon_operation(&mut self) {
        let Some(operation) = self.operation.take() else {
            return;
        };
        if matches!(operation.stage, Stage::Preflight { .. }) {
            self.actions.push_back(Action::AbortPreflight);
        }
        let cause = "the server is stopping".to_owned();
        let answer = Answer::Failed {
            cause: cause.clone(),
        };
        self.answer(operation.request, operation.kind, answer);
        if let Some(mut cancel) = operation.cancel {
            cancel.incomplete = true;
            self.answer_cancel(cancel, &cause, operation.since);
        }
    }

    fn answer(&mut self, request: RequestId, kind: OperationKind, answer: Answer) {
        self.notice(Notice::OperationEnded {
            operation: kind,
            answer: answer.clone(),
        });
        self.actions.push_back(Action::Answer { request, answer });
    }

    /// Advances the operation as far as possible now.
    pub(super) fn advance(&mut self, now: Tick) {
        if self.phase != Phase::Serving {
            return;
        }
        self.start_waiting(now);
        self.drop_empty_slots();
        while self.advance_once(now) {}
    }

    /// Advances by one step; returns whether there may be another.
    fn advance_once(&mut self, now: Tick) -> bool {
        let Some(stage) = self.stage() else {
            return false;
        };
        match stage {
            Stage::Preflight { .. } | Stage::Passed | Stage::Exec => false,
            Stage::Roll(_) => self.advance_roll(now),
            Stage::Grow { to, .. } => self.grow(*to, now),
            Stage::Shrink {
                to,
                settling,
                turn,
                patience,
                ..
            } => self.shrink(*to, *settling, *turn, *patience, now),
            Stage::Ending { failure } => {
                if self.slots.iter().any(about_to_change) {
                    return false;
                }
                self.conclude(failure.clone(), now);
                true
            }
        }
    }

    fn conclude(&mut self, failure: Option<String>, now: Tick) {
        let failure = self.failure_of(failure);
        let Some(operation) = self.operation.take() else {
            return self.repair("an operation that does not exist ends");
        };
        let failure = match (failure, operation.damage) {
            (Some(cause), Some(damage)) => Some(format!("{cause}; {damage}")),
            (None, Some(damage)) => Some(format!("{damage}; everything else is done")),
            (failure, None) => failure,
        };
        let cause = failure.clone().unwrap_or_default();
        let answer = match failure {
            Some(cause) => Answer::Failed { cause },
            None => Answer::Done(Done {
                replaced: operation.replaced,
                workers: self.open_slots(),
                migrated: operation.migrated,
                draining: operation.draining,
                duration_ms: millis(now.since(operation.since)),
                closed_after_ms: millis(self.policy.drain_timeout),
            }),
        };
        self.answer(operation.request, operation.kind, answer);
        if let Some(cancel) = operation.cancel {
            self.answer_cancel(cancel, &cause, now);
        }
    }

    /// Returns the number of slots that have not left.
    pub(super) fn open_slots(&self) -> u16 {
        let open = self.slots.iter().filter(|slot| slot.queue != Queue::Closed);
        u16::try_from(open.count()).unwrap_or(u16::MAX)
    }

    /// Returns the operation in progress and its stage, in one line; `None` if there is none.
    #[must_use]
    pub fn operation(&self) -> Option<String> {
        let Some(operation) = &self.operation else {
            return self.beginning();
        };
        let slots = self.slots.len();
        let progress = match &operation.stage {
            Stage::Preflight { .. } | Stage::Passed => "the new binary is being checked".to_owned(),
            Stage::Exec => "the new binary is taking over".to_owned(),
            Stage::Roll(roll) => match &roll.course {
                Course::Forward { slot, bake: None } => {
                    let slot = usize::from(slot.0).min(slots.saturating_sub(1));
                    format!("slot {slot} of {slots} is being replaced")
                }
                Course::Forward { bake: Some(_), .. } => {
                    "the first new worker is being watched".to_owned()
                }
                Course::Back { todo, .. } => {
                    format!("rolling back, slots left: {}", todo.len())
                }
            },
            Stage::Grow { to, .. } => {
                let ready = |slot: &&Slot| slot.queue != Queue::Unbound;
                let ready = self.slots.iter().filter(ready).count();
                format!("{ready} of {to} workers are ready")
            }
            Stage::Shrink { to, .. } => {
                let open = usize::from(self.open_slots());
                let left = open.saturating_sub(usize::from(*to));
                format!("slots left to remove: {left}")
            }
            Stage::Ending { .. } => "old workers are exiting".to_owned(),
        };
        Some(format!("{} in progress: {progress}", operation.kind))
    }

    /// Returns the operation's own deadline, if its stage has one.
    pub(super) fn operation_deadline(&self) -> Option<Tick> {
        match self.stage()? {
            Stage::Preflight { deadline } => Some(*deadline),
            Stage::Roll(roll) => match &roll.course {
                Course::Forward { bake, .. } => *bake,
                Course::Back { .. } => None,
            },
            Stage::Shrink {
                settling, patience, ..
            } => settling.or(*patience),
            Stage::Passed | Stage::Exec | Stage::Grow { .. } | Stage::Ending { .. } => None,
        }
    }
}

/// Returns whether one of the slot's workers exits soon without any further step.
fn about_to_change(slot: &Slot) -> bool {
    let drains = |it: &Worker| matches!(it.state, WorkerState::Leaving { done: false, .. });
    slot.others().any(|it| !drains(it))
}
