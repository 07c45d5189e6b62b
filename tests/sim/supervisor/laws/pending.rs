//! Laws of pending requests: none is lost, none is executed twice, and none waits without cause.

use std::collections::VecDeque;

use uppercased::supervisor::machine::{Event, Machine, RequestId, ScaleTo, Wanted};
use uppercased_ctl::clock::Tick;

use super::{End, Laws, law};

/// Maximum number of waiting callers.
const WAITERS_MAX: usize = 8;

/// Requests made and not begun, in their simplest representation.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    reload: bool,
    upgrade: bool,
    /// Changes of the number of workers, in order: the sum of signals, or a command's request.
    numbers: VecDeque<Number>,
    /// Waiting callers.
    waiters: Vec<(RequestId, Wanted)>,
    /// The request that the shell is preparing.
    pub(super) handed: Option<(RequestId, Wanted)>,
    handed_at: Tick,
    /// The request made in this call.
    made: Option<(RequestId, Wanted, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Signals(i16),
    Command(RequestId),
}

impl Pending {
    fn is_empty(&self) -> bool {
        !self.reload && !self.upgrade && self.numbers.is_empty() && self.waiters.is_empty()
    }
}

impl Laws {
    pub(super) fn note_pending(&mut self, event: &Event) {
        match event {
            Event::Requested {
                request,
                wanted,
                wait,
                ..
            } => {
                if *request != RequestId::NOBODY {
                    self.unanswered.push(*request);
                }
                self.pending.made = Some((*request, *wanted, *wait));
                if self.end == End::Running && (*wait || self.in_the_way().is_none()) {
                    self.add_pending(*request, *wanted);
                }
            }
            Event::Withdrawn { request } => {
                if self.forget_waiter(*request) {
                    self.unanswered.retain(|it| it != request);
                }
            }
            Event::NotBegun { request, .. } => {
                let handed = self.pending.handed.map(|(request, _)| request);
                law!(handed == Some(*request), "{handed:?} is handed out");
            }
            _ => unreachable!("{event:?} is not a request"),
        }
    }

    fn add_pending(&mut self, request: RequestId, wanted: Wanted) {
        let pending = &mut self.pending;
        if request != RequestId::NOBODY {
            pending.waiters.push((request, wanted));
            if let Wanted::Scale(_) = wanted {
                pending.numbers.push_back(Number::Command(request));
            }
            return;
        }
        match (wanted, pending.numbers.back_mut()) {
            (Wanted::Reload, _) => pending.reload = true,
            (Wanted::Upgrade, _) => pending.upgrade = true,
            (Wanted::Scale(ScaleTo::By(by)), Some(Number::Signals(sum))) => {
                *sum += by;
                if *sum == 0 {
                    pending.numbers.pop_back();
                }
            }
            (Wanted::Scale(ScaleTo::By(by)), _) => pending.numbers.push_back(Number::Signals(by)),
            (Wanted::Scale(ScaleTo::Exactly(_)), _) => unreachable!("a signal carries no number"),
        }
    }

    /// Removes a waiting caller; returns whether there was one.
    fn forget_waiter(&mut self, request: RequestId) -> bool {
        let pending = &mut self.pending;
        let before = pending.waiters.len();
        pending.waiters.retain(|(it, _)| *it != request);
        pending.numbers.retain(|it| *it != Number::Command(request));
        pending.waiters.len() < before
    }

    /// Checks that the machine may hand out a request, and records it.
    pub(super) fn begins(&mut self, request: RequestId, wanted: Wanted, now: Tick) {
        let in_the_way = self.in_the_way();
        law!(
            in_the_way.is_none(),
            "{request:?} is handed out although {in_the_way:?}"
        );
        let open = self.open();
        let pending = &mut self.pending;
        if request != RequestId::NOBODY {
            let waits = pending.waiters.contains(&(request, wanted));
            law!(waits, "{request:?} is handed out but was not waiting");
            self.forget_waiter(request);
        } else {
            let waited = match wanted {
                Wanted::Reload => std::mem::take(&mut pending.reload),
                Wanted::Upgrade => std::mem::take(&mut pending.upgrade),
                Wanted::Scale(to) => match pending.numbers.pop_front() {
                    Some(Number::Signals(by)) => {
                        let expected = open.saturating_add_signed(by).max(1);
                        law!(
                            to == ScaleTo::Exactly(expected),
                            "{by} of {open} workers is {to:?}"
                        );
                        true
                    }
                    Some(Number::Command(_)) | None => false,
                },
            };
            law!(waited, "no signal requested {wanted:?}");
        }
        self.pending.handed = Some((request, wanted));
        self.pending.handed_at = now;
    }

    /// Deadline of the reload that the shell is preparing, if any.
    pub(super) fn back_by(&self) -> Option<Tick> {
        let (_, wanted) = self.pending.handed?;
        let limit = self.policy.start_timeout;
        (wanted == Wanted::Reload).then(|| self.pending.handed_at + limit)
    }

    /// Records that the shell returns a request: it must begin now.
    pub(super) fn returned(&mut self, request: RequestId) -> bool {
        let mine = self.pending.handed.is_some_and(|(it, _)| it == request);
        if mine {
            self.pending.handed = None;
        }
        mine
    }

    /// Records that a returned request has neither begun nor been refused: another operation
    /// preceded it, and it waits again.
    pub(super) fn waits_again(&mut self, request: RequestId, wanted: Wanted) {
        let in_the_way = self.in_the_way();
        law!(in_the_way.is_some(), "{request:?} waits for nothing");
        let pending = &mut self.pending;
        if request != RequestId::NOBODY {
            pending.waiters.insert(0, (request, wanted));
        }
        match wanted {
            Wanted::Scale(_) if request != RequestId::NOBODY => {
                pending.numbers.push_front(Number::Command(request));
            }
            Wanted::Reload if request == RequestId::NOBODY => pending.reload = true,
            Wanted::Upgrade if request == RequestId::NOBODY => pending.upgrade = true,
            _ => {}
        }
    }

    /// Records the refusal of a request that was not handed out or cannot be prepared.
    pub(super) fn pending_refused(&mut self, request: RequestId, cause: &str) {
        self.unanswered
            .retain(|it| *it != request || *it == RequestId::NOBODY);
        let stops = self.end != End::Running;
        // If two requests have no caller, a refusal in the call that makes one applies to that one.
        let made = self.pending.made.is_some_and(|(it, ..)| it == request);
        if (!made && self.returned(request)) || stops {
            self.forget_waiter(request);
            return;
        }
        if let Some((made, wanted, wait)) = self.pending.made.take()
            && made == request
        {
            if request == RequestId::NOBODY {
                // One worker below the minimum, or one above the maximum.
                let impossible = cause.starts_with("cannot run ");
                law!(impossible && wait, "a signal is refused: {cause}");
                let Wanted::Scale(ScaleTo::By(by)) = wanted else {
                    panic!("law broken: {wanted:?} of a signal was refused: {cause}");
                };
                return self.add_pending(request, Wanted::Scale(ScaleTo::By(-by)));
            }
            let full = self.pending.waiters.len() > WAITERS_MAX;
            law!(
                (!wait && self.in_the_way().is_some()) || full,
                "{request:?} is refused without a reason: {cause}"
            );
            self.forget_waiter(request);
            return;
        }
        // The sum of the signals equals the present number.
        law!(
            request == RequestId::NOBODY && cause.contains("already"),
            "{request:?} has waited for a refusal: {cause}"
        );
        let first = self.pending.numbers.pop_front();
        law!(matches!(first, Some(Number::Signals(_))), "{first:?}");
    }

    /// Returns whether `request` has a waiting caller and has not begun.
    pub(super) fn waits(&self, request: RequestId) -> bool {
        request != RequestId::NOBODY
            && (self.pending.waiters.iter().any(|(it, _)| *it == request)
                || self.pending.handed.is_some_and(|(it, _)| it == request))
    }

    pub(super) fn pending_rests(&mut self, machine: &Machine) {
        self.pending.made = None;
        if self.end != End::Running {
            law!(
                machine.pending().is_empty(),
                "{:?} wait while {:?}",
                machine.pending(),
                self.end
            );
            self.pending.reload = false;
            self.pending.upgrade = false;
            self.pending.numbers.clear();
            self.pending.waiters.clear();
            return;
        }
        let pending = &self.pending;
        law!(
            pending.waiters.len() <= WAITERS_MAX,
            "{} callers wait",
            pending.waiters.len()
        );
        let shown = machine.pending();
        let signals_for = |name: &str| {
            let by_signal = shown.iter().filter(|(_, it)| *it == RequestId::NOBODY);
            by_signal.filter(|(it, _)| it.name() == name).count()
        };
        law!(
            signals_for("reload") == usize::from(pending.reload)
                && signals_for("upgrade") == usize::from(pending.upgrade),
            "signals ask for {pending:?}, and {shown:?} wait"
        );
        let signals = |it: &&Number| matches!(it, Number::Signals(_));
        law!(
            signals_for("scale") == pending.numbers.iter().filter(signals).count(),
            "signals ask for {pending:?}, and {shown:?} wait"
        );
        law!(
            shown
                .iter()
                .filter(|(_, it)| *it != RequestId::NOBODY)
                .count()
                == pending.waiters.len(),
            "{:?} wait, and {shown:?} is shown",
            pending.waiters
        );
        law!(
            pending.is_empty() || self.in_the_way().is_some(),
            "{pending:?} waits for nothing"
        );
    }
}
