//! Replaces the supervisor's own program, up to the exec of the new one.
//!
//! A preflight runs the new binary as a child on the machine's real state. The exec is requested
//! only if that passes, as the very last action, so that the state passed on has no pending
//! actions. The new binary finds the operation in the restored state and continues it.
//!
//! Invariant: until the exec, nothing has changed that would need a rollback.

use super::pending::Obstacle;
use super::plan::{Roll, Stage};
use super::{Action, Effect, Machine, OperationKind, Policy, ReleaseId, RequestId};
use uppercased_ctl::clock::Tick;

impl Machine {
    pub(super) fn upgrade(&mut self, request: RequestId, drain: bool, now: Tick) -> Effect {
        let kind = OperationKind::Upgrade;
        match self.obstacle(request, kind, now) {
            Obstacle::Wait => {}
            Obstacle::Refuse(cause) => self.refuse(request, kind, cause),
            Obstacle::None => {
                let deadline = now + self.policy.start_timeout;
                self.begin(request, kind, Stage::Preflight { deadline }, drain, now);
                self.actions.push_back(Action::Preflight);
            }
        }
        Effect::Applied
    }

    pub(super) fn preflight_passed(&mut self) -> Effect {
        if !matches!(self.stage(), Some(Stage::Preflight { .. })) {
            return Effect::Stale;
        }
        self.enter_stage(Stage::Passed);
        Effect::Applied
    }

    pub(super) fn preflight_failed(&mut self, cause: &str) -> Effect {
        if !matches!(self.stage(), Some(Stage::Preflight { .. })) {
            return Effect::Stale;
        }
        self.fail_upgrade(cause);
        Effect::Applied
    }

    pub(super) fn preflight_timeout(&mut self, now: Tick) {
        if let Some(Stage::Preflight { deadline }) = self.stage()
            && *deadline <= now
        {
            self.actions.push_back(Action::AbortPreflight);
            let limit = self.policy.start_timeout;
            self.fail_upgrade(&format!(
                "the new binary did not start within {limit:?}; see its log, or raise \
                 start_timeout"
            ));
        }
    }

    /// Requests the exec if it is due; comes after all other actions of a call.
    pub(super) fn request_exec(&mut self) {
        if let Some(Stage::Passed) = self.stage() {
            self.enter_stage(Stage::Exec);
            self.actions.push_back(Action::Exec);
        }
    }

    pub(super) fn exec_failed(&mut self, cause: &str) -> Effect {
        if self.stage() != Some(&Stage::Exec) {
            return Effect::Stale;
        }
        self.fail_upgrade(cause);
        Effect::Applied
    }

    pub(super) fn resumed(&mut self, release: ReleaseId, policy: &Policy) -> Effect {
        if self.stage() != Some(&Stage::Exec) {
            return Effect::Stale;
        }
        let roll = Roll::new(release, policy.clone(), self.broken_slots());
        self.enter_stage(Stage::Roll(Box::new(roll)));
        Effect::Applied
    }

    pub(super) fn fail_upgrade(&mut self, cause: &str) {
        self.fail_operation(format!("{cause}; the running binary is unchanged"));
    }
}
