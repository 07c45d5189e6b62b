//! Cancels the operation in progress on request.
//!
//! It rolls back as a failure would: a roll is reversed, a preflight is aborted, added slots leave
//! again, and slots that were about to leave stay. Two changes cannot be reversed: a release that
//! is in force (of a reload that has continued to another number of workers), and the places of
//! slots that have begun to leave.
//!
//! Invariants: the operation fails and names its canceller; the cancelling request is answered
//! after that, with `Done` only if every change that can be reversed was.

use super::plan::{Cancel, Course, Stage};
use super::slot::Slot;
use super::worker::Worker;
use super::{
    Action, Answer, Canceller, Done, Effect, KillReason, Machine, Notice, OperationKind, Queue,
    RequestId, SlotState,
};
use uppercased_ctl::clock::{Tick, millis};

impl Machine {
    pub(super) fn cancel(&mut self, request: RequestId, by: Canceller, now: Tick) -> Effect {
        if self.cancel_beginning(by) {
            let cancel = Cancel {
                request,
                by,
                since: now,
                incomplete: false,
            };
            self.answer_cancel(cancel, "", now);
            return Effect::Applied;
        }
        if let Some(cause) = self.cancel_refusal() {
            self.notice(Notice::CancelRefused {
                cause: cause.clone(),
            });
            let answer = Answer::Refused { cause };
            self.actions.push_back(Action::Answer { request, answer });
            return Effect::Applied;
        }
        let Some(operation) = &mut self.operation else {
            return Effect::Stale;
        };
        operation.cancel = Some(Cancel {
            request,
            by,
            since: now,
            incomplete: false,
        });
        let operation = operation.kind;
        self.notice(Notice::OperationCancelled { operation, by });
        self.undo(now);
        Effect::Applied
    }

    /// Returns why the operation cannot be cancelled, or that there is none.
    fn cancel_refusal(&self) -> Option<String> {
        let Some(operation) = &self.operation else {
            return Some(match self.beginning() {
                Some(beginning) => format!("{beginning}; try again in a moment"),
                None => "no operation is in progress".to_owned(),
            });
        };
        if operation.cancel.is_some() {
            return Some("the operation is already being cancelled".to_owned());
        }
        let cause = match &operation.stage {
            Stage::Passed | Stage::Exec => "the new binary is taking over; try again in a moment",
            Stage::Ending { .. } => "the operation has ended, and its last workers are exiting",
            Stage::Roll(roll) => match roll.course {
                Course::Forward { .. } => return None,
                Course::Back { .. } => "the operation has failed and is being rolled back",
            },
            Stage::Preflight { .. } | Stage::Grow { .. } | Stage::Shrink { .. } => return None,
        };
        Some(cause.to_owned())
    }

    fn undo(&mut self, now: Tick) {
        match self.stage() {
            Some(Stage::Preflight { .. }) => {
                self.actions.push_back(Action::AbortPreflight);
                self.fail_upgrade(&self.cancelled());
            }
            Some(Stage::Roll(_)) => self.roll_back(self.cancelled(), now),
            Some(Stage::Grow { .. }) => {
                let workers = self.policy.workers;
                let added = |slot: &&Slot| slot.queue == Queue::Unbound && slot.id.0 >= workers;
                match self.slots.last().filter(added) {
                    // The exit of its worker is awaited.
                    Some(slot) => {
                        let worker = slot.id_of(slot.generation());
                        if slot.active().is_some_and(Worker::is_starting) {
                            self.kill(worker, KillReason::OperationFailed, now);
                        }
                    }
                    None => self.shrink_back(now),
                }
            }
            Some(Stage::Shrink { turn, .. }) => {
                let turn = *turn;
                let leaves =
                    |slot: &Slot| slot.queue == Queue::Closed || slot.state == SlotState::Retired;
                let stay = self.slots.iter().take_while(|slot| !leaves(slot)).count();
                let to = u16::try_from(stay).unwrap_or(u16::MAX);
                self.enter_stage(Stage::Shrink {
                    to,
                    settling: None,
                    turn,
                    patience: None,
                    tried: 0,
                });
            }
            Some(Stage::Passed | Stage::Exec | Stage::Ending { .. }) | None => {}
        }
    }

    /// Makes the slots that a cancelled operation has added leave.
    pub(super) fn shrink_back(&mut self, now: Tick) {
        let Some(Stage::Grow { former, .. }) = self.stage() else {
            return self.repair("slots that were not added leave");
        };
        let former = *former;
        self.policy.workers = self.open_slots();
        self.spread();
        self.begin_scale(former, now);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        let operation = self.operation.as_ref();
        operation.is_some_and(|operation| operation.cancel.is_some())
    }

    /// Notes that a change cannot be reversed; matters only if the operation was cancelled.
    pub(super) fn note_incomplete(&mut self) {
        if let Some(operation) = &mut self.operation
            && let Some(cancel) = &mut operation.cancel
        {
            cancel.incomplete = true;
        }
    }

    /// Returns why the operation failed, including its canceller, if there is one.
    pub(super) fn failure_of(&self, failure: Option<String>) -> Option<String> {
        if !self.is_cancelled() {
            return failure;
        }
        let cancelled = self.cancelled();
        let workers = self.open_slots();
        Some(match failure {
            Some(cause) if cause.starts_with(&cancelled) => cause,
            Some(cause) => format!("{cancelled}; {cause}"),
            None if matches!(self.operation_kind(), Some(OperationKind::Scale { .. })) => {
                format!("{cancelled}; {workers} workers serve")
            }
            None => format!(
                "{cancelled}; release {} is in force; {workers} workers serve",
                self.release
            ),
        })
    }

    fn cancelled(&self) -> String {
        let cancel = self.operation.as_ref().and_then(|it| it.cancel.as_ref());
        let by = cancel.map_or_else(Canceller::default, |cancel| cancel.by);
        format!("cancelled by {by}")
    }

    /// Answers the request that cancelled an operation, which has now ended.
    pub(super) fn answer_cancel(&mut self, cancel: Cancel, cause: &str, now: Tick) {
        let Cancel {
            request,
            since,
            incomplete,
            ..
        } = cancel;
        let answer = if incomplete {
            let cause = cause.to_owned();
            Answer::Failed { cause }
        } else {
            Answer::Done(Done {
                workers: self.open_slots(),
                duration_ms: millis(now.since(since)),
                ..Done::default()
            })
        };
        self.actions.push_back(Action::Answer { request, answer });
    }
}
