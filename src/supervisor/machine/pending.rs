//! Queues requests while an operation is in progress.
//!
//! A signal cannot be refused with an answer, so requests of signals are queued while another
//! operation is in progress: at most one reload, one upgrade, and one change of the number of
//! workers that accumulates further signals. A command is queued if its caller requested that.
//!
//! When nothing blocks the first request any more, it is handed to the shell, which prepares it and
//! either begins it ([`super::Event::Reload`] and the like) or abandons it
//! ([`super::Event::NotBegun`]). A request that need not wait takes the same path.
//!
//! Invariants: a request leaves the queue only when it is handed out, answered or withdrawn; one is
//! handed out at a time; the queue is bounded by [`PENDING_MAX`]; a stop answers all queued
//! requests.

use std::mem::discriminant;

use super::plan::{Course, Stage};
use super::queue::{Pending, Waiting};
use super::{
    Action, Answer, Canceller, Effect, Machine, Notice, OperationKind, Phase, RequestId, ScaleTo,
    Wanted,
};
use crate::config::CONTROL_WAITERS_MAX;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::control::protocol::Error;
use uppercased_ctl::limits::{WORKERS_MAX, WORKERS_MIN};

/// Maximum number of queued requests: those of commands, a reload, an upgrade, the number of
/// workers left by an earlier instance, and a change of that number between and around all of
/// those.
const PENDING_MAX: usize = 2 * CONTROL_WAITERS_MAX + 8;

/// The reason why an operation cannot begin.
pub(super) enum Obstacle {
    None,
    /// The obstacle is temporary: the request waits.
    Wait,
    /// The request is refused, for this cause.
    Refuse(String),
}

impl Machine {
    /// Accepts a request: it begins as soon as nothing blocks it, or is refused if something does
    /// now and it may not `wait`.
    pub(super) fn requested(
        &mut self,
        request: RequestId,
        wanted: Wanted,
        (wait, drain): (bool, bool),
        now: Tick,
    ) -> Effect {
        let obstacle = self.refusal(now);
        let cause = match &obstacle {
            Some(_) if wait => self.permanent_refusal().map(str::to_owned),
            other => other.clone(),
        };
        if let Some(cause) = cause {
            self.refuse(request, self.kind_of(wanted), cause);
            return Effect::Applied;
        }
        match self.enqueue(Waiting {
            request,
            wanted,
            drain,
        }) {
            Ok(operation) if obstacle.is_some() => {
                self.notice(Notice::RequestPending { operation, request });
            }
            Ok(_) => {}
            Err(cause) => self.refuse(request, self.kind_of(wanted), cause),
        }
        Effect::Applied
    }

    /// Adds a request to the queue.
    fn enqueue(&mut self, new: Waiting) -> Result<OperationKind, String> {
        if new.request != RequestId::NOBODY {
            let of_commands = self.pending.waiting.iter();
            let of_commands = of_commands.filter(|it| it.request != RequestId::NOBODY);
            if of_commands.count() >= CONTROL_WAITERS_MAX {
                return Err(format!(
                    "{CONTROL_WAITERS_MAX} requests are already waiting; try again later"
                ));
            }
        } else if let Wanted::Scale(ScaleTo::By(by)) = new.wanted {
            return self.enqueue_change(by);
        } else if self.pending.waiting.contains(&new) {
            // The queued one reads the configuration, or opens the binary, when it begins.
            return Ok(self.kind_of(new.wanted));
        }
        self.pending.waiting.push_back(new);
        Ok(self.kind_of(new.wanted))
    }

    /// Adds a change of the number of workers to the queued one, unless another number is requested
    /// after that.
    fn enqueue_change(&mut self, by: i16) -> Result<OperationKind, String> {
        let to = self.expected_workers().saturating_add_signed(by);
        if let Some(cause) = impossible(to) {
            return Err(cause);
        }
        let scales = |it: &Waiting| matches!(it.wanted, Wanted::Scale(_));
        let waiting = &mut self.pending.waiting;
        if let Some(at) = waiting.iter().rposition(scales)
            && waiting[at].request == RequestId::NOBODY
            && let Wanted::Scale(ScaleTo::By(before)) = waiting[at].wanted
        {
            match before.saturating_add(by) {
                0 => {
                    waiting.remove(at);
                }
                sum => waiting[at].wanted = Wanted::Scale(ScaleTo::By(sum)),
            }
        } else {
            waiting.push_back(Waiting {
                request: RequestId::NOBODY,
                wanted: Wanted::Scale(ScaleTo::By(by)),
                drain: false,
            });
        }
        Ok(OperationKind::Scale { to })
    }

    /// Withdraws the request of a caller that has disconnected. An operation that has begun
    /// continues.
    pub(super) fn withdraw(&mut self, request: RequestId) -> Effect {
        let waiting = &mut self.pending.waiting;
        let at = waiting.iter().position(|it| it.request == request);
        if let Some(it) = at.and_then(|at| waiting.remove(at)) {
            let operation = self.kind_of(it.wanted);
            self.notice(Notice::RequestWithdrawn { operation, request });
        }
        Effect::Applied
    }

    /// Drops a request, queued or not, that the shell could not prepare.
    pub(super) fn not_begun(&mut self, request: RequestId, wanted: Wanted, cause: &str) -> Effect {
        let kind = self.kind_of(wanted);
        if self.take_beginning(request, kind).is_none() {
            return Effect::Stale;
        }
        self.abandon_request(request, kind, cause.to_owned());
        Effect::Applied
    }

    fn abandon_request(&mut self, request: RequestId, kind: OperationKind, cause: String) {
        self.notice(Notice::NotBegun {
            operation: kind,
            cause: cause.clone(),
        });
        let answer = Answer::Refused { cause };
        self.actions.push_back(Action::Answer { request, answer });
    }

    /// Abandons a reload whose configuration was not read in time.
    pub(super) fn begin_timeout(&mut self, now: Tick) {
        if self.pending.deadline.is_some_and(|due| due <= now)
            && let Some(it) = self.abandon_beginning()
        {
            let limit = self.policy.start_timeout;
            let cause = format!(
                "cannot read the configuration within {limit:?}: a name server, the user database \
                 or a file does not answer; write addresses instead of names, or raise \
                 start_timeout"
            );
            self.abandon_request(it.request, self.kind_of(it.wanted), cause);
        }
    }

    /// Abandons a reload whose configuration is being read; returns whether there is one.
    pub(super) fn cancel_beginning(&mut self, by: Canceller) -> bool {
        let Some(it) = self.abandon_beginning() else {
            return false;
        };
        let cause = format!("cancelled by {by}; nothing has changed");
        self.abandon_request(it.request, self.kind_of(it.wanted), cause);
        true
    }

    /// Returns when [`Self::begin_timeout`] is due.
    pub(super) const fn begin_deadline(&self) -> Option<Tick> {
        self.pending.deadline
    }

    /// Ends the child that reads the configuration of a reload, if there is one.
    fn abandon_beginning(&mut self) -> Option<Waiting> {
        self.pending.deadline.take()?;
        self.actions.push_back(Action::AbortPreflight);
        self.pending.beginning.take()
    }

    /// Removes and returns the request that was handed out, if it is this one.
    fn take_beginning(&mut self, request: RequestId, kind: OperationKind) -> Option<Waiting> {
        let it = self.pending.beginning?;
        let same = discriminant(&self.kind_of(it.wanted)) == discriminant(&kind);
        if it.request != request || !same {
            return None;
        }
        self.pending.deadline = None;
        self.pending.beginning.take()
    }

    /// Returns why an operation must not begin now, if so. A queued request that was handed out
    /// continues to wait if an obstacle appeared since; it is not answered yet.
    pub(super) fn obstacle(
        &mut self,
        request: RequestId,
        kind: OperationKind,
        now: Tick,
    ) -> Obstacle {
        let handed_out = self.take_beginning(request, kind);
        match (self.refusal(now), handed_out) {
            (None, _) => Obstacle::None,
            (Some(_), Some(it)) if self.permanent_refusal().is_none() => {
                // One request of each kind suffices for signals.
                if it.request != RequestId::NOBODY || !self.pending.waiting.contains(&it) {
                    self.pending.waiting.push_front(it);
                }
                Obstacle::Wait
            }
            (Some(cause), _) => Obstacle::Refuse(cause),
        }
    }

    /// Returns whether the request handed to the shell allows draining connections that cannot
    /// migrate.
    #[must_use]
    pub fn may_drain_what_begins(&self) -> bool {
        self.pending.beginning.is_some_and(|it| it.drain)
    }

    /// Returns a one-line description of the request that was handed to the shell and has not
    /// begun.
    pub(super) fn beginning(&self) -> Option<String> {
        let it = self.pending.beginning.as_ref()?;
        let operation = self.kind_of(it.wanted);
        let reading = match it.wanted {
            Wanted::Reload => ": the configuration is being read",
            Wanted::Upgrade | Wanted::Scale(_) => "",
        };
        Some(format!("{operation} about to begin{reading}"))
    }

    /// Hands out the next request, unless something blocks it.
    pub(super) fn begin_pending(&mut self, now: Tick) {
        while self.phase == Phase::Serving && self.refusal(now).is_none() {
            let Some(mut next) = self.pending.waiting.pop_front() else {
                return;
            };
            self.pending.beginning = Some(next);
            if next.request == RequestId::NOBODY
                && let Wanted::Scale(ScaleTo::By(by)) = next.wanted
            {
                // The number may have changed since the signals arrived.
                let here = self.policy.workers.max(1);
                let to = here.saturating_add_signed(by).clamp(1, WORKERS_MAX);
                if to == here {
                    self.pending.beginning = None;
                    let cause = format!("already {here} workers");
                    self.refuse(next.request, OperationKind::Scale { to }, cause);
                    continue;
                }
                next.wanted = Wanted::Scale(ScaleTo::Exactly(to));
            }
            let Waiting {
                request,
                wanted,
                drain,
            } = next;
            if let Wanted::Reload = wanted {
                self.pending.deadline = Some(now + self.policy.start_timeout);
            }
            self.actions.push_back(Action::Begin {
                request,
                wanted,
                drain,
            });
        }
    }

    /// Refuses all queued requests because the supervisor stops. A request that was handed out is
    /// refused when the shell returns it, or at the exit; a reload is refused at once.
    pub(super) fn refuse_pending(&mut self, cause: &str) {
        if let Some(it) = self.abandon_beginning() {
            self.refuse(it.request, self.kind_of(it.wanted), cause.to_owned());
        }
        for it in std::mem::take(&mut self.pending.waiting) {
            self.refuse(it.request, self.kind_of(it.wanted), cause.to_owned());
        }
    }

    /// Refuses the request that was handed out: the supervisor exits, and the shell will not return
    /// it.
    pub(super) fn refuse_beginning(&mut self, cause: &str) {
        if let Some(it) = self.pending.beginning.take() {
            self.refuse(it.request, self.kind_of(it.wanted), cause.to_owned());
        }
    }

    /// Returns the queued requests, the next one first; [`RequestId::NOBODY`]: a signal.
    #[must_use]
    pub fn pending(&self) -> Vec<(OperationKind, RequestId)> {
        let mut workers = self.workers_in_prospect();
        let requests = self.pending.waiting.iter().map(|it| {
            let operation = match it.wanted {
                Wanted::Reload => OperationKind::Reload,
                Wanted::Upgrade => OperationKind::Upgrade,
                Wanted::Scale(to) => {
                    workers = to.from(workers).clamp(1, WORKERS_MAX);
                    OperationKind::Scale { to: workers }
                }
            };
            (operation, it.request)
        });
        requests.collect()
    }

    /// Returns the first reload or upgrade that is about to begin or queued.
    #[must_use]
    pub fn pending_replacement(&self) -> Option<OperationKind> {
        let requests = self.pending.beginning.iter().chain(&self.pending.waiting);
        let mut kinds = requests.map(|it| self.kind_of(it.wanted));
        kinds.find(|kind| kind.replaces_workers())
    }

    /// Returns the number of workers after the operation in progress and all queued requests.
    fn expected_workers(&self) -> u16 {
        let pending = self.pending().into_iter().rev();
        let mut numbers = pending.filter_map(|(operation, _)| match operation {
            OperationKind::Scale { to } => Some(to),
            OperationKind::Reload | OperationKind::Upgrade => None,
        });
        numbers.next().unwrap_or_else(|| self.workers_in_prospect())
    }

    /// Returns the number of workers after the operation that is in progress or about to begin.
    fn workers_in_prospect(&self) -> u16 {
        let here = self.policy.workers.max(1);
        if let Some(Waiting {
            wanted: Wanted::Scale(to),
            ..
        }) = self.pending.beginning
        {
            return to.from(here).clamp(1, WORKERS_MAX);
        }
        match self.stage() {
            Some(Stage::Roll(roll)) => match roll.course {
                Course::Forward { .. } => roll.policy.workers.clamp(1, WORKERS_MAX),
                Course::Back { .. } => here,
            },
            Some(Stage::Grow { to, .. } | Stage::Shrink { to, .. }) => *to,
            Some(Stage::Preflight { .. } | Stage::Passed | Stage::Exec | Stage::Ending { .. })
            | None => here,
        }
    }

    fn kind_of(&self, wanted: Wanted) -> OperationKind {
        match wanted {
            Wanted::Reload => OperationKind::Reload,
            Wanted::Upgrade => OperationKind::Upgrade,
            Wanted::Scale(to) => OperationKind::Scale {
                to: to.from(self.policy.workers.max(1)),
            },
        }
    }

    /// Returns a contradiction in the queue of restored state, if any.
    pub(super) fn pending_contradiction(&self) -> Option<&'static str> {
        let Pending {
            waiting,
            beginning,
            deadline,
        } = &self.pending;
        let reload = matches!(beginning, Some(it) if it.wanted == Wanted::Reload);
        if deadline.is_some() && !reload {
            return Some("no configuration is being read and there is a deadline for it");
        }
        if waiting.len() > PENDING_MAX {
            return Some("too many requests wait");
        }
        if beginning.is_some() && self.operation.is_some() {
            return Some("a request is about to begin beside another");
        }
        let stopping = self.permanent_refusal().is_some();
        (stopping && !waiting.is_empty()).then_some("requests wait in a phase without any")
    }
}

/// Returns why there cannot be this many workers, if so.
pub(super) fn impossible(to: u16) -> Option<String> {
    let possible = (WORKERS_MIN..=WORKERS_MAX).contains(&to);
    (!possible).then(|| Error::Workers(to).to_string())
}
