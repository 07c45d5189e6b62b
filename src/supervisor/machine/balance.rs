//! Moves connections from an overloaded worker to the least loaded one.
//!
//! New connections are spread evenly, load is not: long-lived connections stay where they are, and
//! one worker may have all the busy ones. So the workers' counters are compared every
//! [`REBALANCE_SAMPLE_EVERY`]. When the same worker exceeds the idlest by the threshold
//! [`REBALANCE_SAMPLES`] times in a row, it hands over as many of its active connections as would
//! balance the two if all connections were alike.
//!
//! They are not alike, and the load of each is unknown, so each move is a trial. A trial fails if
//! nothing could move, or if a worker that received connections is now as busy as the senders were:
//! then moving connections cannot balance the load, and the pause before the next move doubles, up
//! to [`REBALANCE_REST_MAX`]. The history is dropped when a move has helped, or when no move was
//! due for twice the pause. A connection that causes the whole load is never moved.
//!
//! A stalled worker appears idle. So the intended receiver is pinged, and must have made a turn by
//! the next sample: connections sent to a stalled loop would wait until it runs again.
//!
//! Invariants: moves are requested only between workers that serve, one at a time, never while an
//! operation is in progress and never closer than [`REBALANCE_REST`]; no worker is killed for a
//! move. An operation that begins meanwhile does not wait: workers settle a part before they
//! execute it.

use super::slot::Slot;
use super::trials::{Balance, Move, Sample, Trials};
use super::{Action, Effect, HandoverEnd, Load, Machine, Notice, Phase, WorkerId};
use crate::config::{
    REBALANCE_ACTIVE_WITHIN, REBALANCE_CONNECTIONS, REBALANCE_LEAST_CALLS, REBALANCE_REST,
    REBALANCE_REST_MAX, REBALANCE_SAMPLE_EVERY, REBALANCE_SAMPLES,
};
use crate::handover::Part;
use uppercased_ctl::clock::Tick;

/// Two workers between which connections should move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Skew {
    from: WorkerId,
    to: WorkerId,
    from_calls: u64,
    to_calls: u64,
    /// The share of the busiest one's load that would level the two.
    permille: u16,
}

impl Machine {
    /// Starts sampling loads if that may lead to a move, and stops it otherwise.
    pub(super) fn update_balance(&mut self, now: Tick) {
        let serves = |worker| self.serves(worker);
        let lost = |it: &Move| !serves(it.from);
        if self.balance.moving.as_ref().is_some_and(lost) {
            // The worker exited, or an operation began and replaced it.
            self.balance.moving = None;
        }
        let serving = self.serving_workers().count();
        let may = self.phase == Phase::Serving
            && self.policy.rebalance.is_some()
            && self.operation.is_none()
            && self.balance.moving.is_none()
            && serving > 1;
        let balance = &mut self.balance;
        if may {
            balance.due.get_or_insert(now + REBALANCE_SAMPLE_EVERY);
        } else if balance.due.is_some() {
            balance.due = None;
            balance.awaited = false;
            balance.seen = None;
            balance.suspect = None;
        }
    }

    pub(super) fn balance_deadline(&self) -> Option<Tick> {
        let deadline = self.balance.moving.map(|it| it.deadline);
        [self.balance.due, deadline].into_iter().flatten().min()
    }

    pub(super) fn balance_timeout(&mut self, now: Tick) {
        if let Some(Move {
            from, to, since, ..
        }) = self.balance.moving.filter(|it| it.deadline <= now)
        {
            self.balance.moving = None;
            let after = now.since(since);
            self.notice(Notice::RebalanceTimedOut { from, to, after });
        }
        if self.balance.due.is_some_and(|due| due <= now) {
            self.balance.due = Some(now + REBALANCE_SAMPLE_EVERY);
            self.balance.awaited = true;
            self.actions.push_back(Action::TakeLoads);
        }
    }

    pub(super) fn loads(&mut self, loads: &[Load], now: Tick) -> Effect {
        if !std::mem::take(&mut self.balance.awaited) {
            return Effect::Stale;
        }
        let sample = Sample {
            at: now,
            loads: self
                .serving_workers()
                .filter_map(|worker| loads.iter().find(|it| it.worker == worker).copied())
                .collect(),
        };
        let skew = self.skew(&sample);
        let before = self.balance.seen.replace(sample);
        let Some(skew) = skew else {
            self.balance.suspect = None;
            return Effect::Applied;
        };
        let times = match self.balance.suspect {
            Some((suspect, times)) if suspect == skew.from => times.saturating_add(1),
            Some(_) | None => 1,
        };
        self.balance.suspect = Some((skew.from, times));
        if times < REBALANCE_SAMPLES || !self.has_turned_since(before.as_ref(), skew.to) {
            self.actions.push_back(Action::Ping { worker: skew.to });
        } else {
            let trials = self.balance.trials.clone();
            let (trials, due) = next_trials(trials, &skew, now);
            if due <= now {
                self.balance.trials = Some(trials);
                self.request_move(skew, now);
            }
        }
        Effect::Applied
    }

    pub(super) fn rebalanced(
        &mut self,
        worker: WorkerId,
        moved: u32,
        end: &HandoverEnd,
        now: Tick,
    ) -> Effect {
        let Some(Move {
            from, to, since, ..
        }) = self.balance.moving.take_if(|it| it.from == worker)
        else {
            return Effect::Stale;
        };
        if let Some(trials) = &mut self.balance.trials {
            trials.moved = moved;
        }
        self.notice(Notice::RebalanceEnded {
            from,
            to,
            moved,
            end: end.clone(),
            took: now.since(since),
        });
        Effect::Applied
    }

    /// Returns a contradiction in the state of loads and moves, if any.
    pub(super) fn balance_contradiction(&self) -> Option<&'static str> {
        let Balance {
            due,
            awaited,
            moving,
            ..
        } = &self.balance;
        if *awaited && due.is_none() {
            return Some("it awaits loads without sampling");
        }
        if moving.is_some() && due.is_some() {
            return Some("it samples loads while a move is in progress");
        }
        moving
            .as_ref()
            .is_some_and(|it| it.from.slot == it.to.slot)
            .then_some("connections move from a slot to itself")
    }

    /// Returns the workers that serve, in order of the slots.
    fn serving_workers(&self) -> impl Iterator<Item = WorkerId> {
        self.slots.iter().filter_map(Slot::serving)
    }

    /// Returns whether the worker's loop made a turn between an earlier sample and the latest one.
    fn has_turned_since(&self, before: Option<&Sample>, worker: WorkerId) -> bool {
        let turns = |sample: &Sample| {
            let load = sample.loads.iter().find(|it| it.worker == worker)?;
            Some(load.turns)
        };
        let latest = self.balance.seen.as_ref();
        matches!((before.and_then(turns), latest.and_then(turns)), (Some(a), Some(b)) if a != b)
    }

    /// Returns the skew between the latest sample and this one, if it exceeds the threshold.
    fn skew(&self, sample: &Sample) -> Option<Skew> {
        let before = self.balance.seen.as_ref()?;
        let nanos = sample.at.since(before.at).as_nanos();
        let rate = |now: &Load| {
            let earlier = before.loads.iter().find(|it| it.worker == now.worker)?;
            let calls = u128::from(now.calls.saturating_sub(earlier.calls));
            let rate = (calls * 1_000_000_000).checked_div(nanos)?;
            Some((u64::try_from(rate).unwrap_or(u64::MAX), now.worker))
        };
        // A worker is new: its load is not known yet.
        let rates: Vec<(u64, WorkerId)> = sample.loads.iter().map(rate).collect::<Option<_>>()?;
        let &(from_calls, from) = rates.iter().max()?;
        let &(to_calls, to) = rates.iter().min()?;
        let threshold = u128::from(100 + u32::from(self.policy.rebalance?));
        let skewed = u128::from(from_calls) * 100 > u128::from(to_calls) * threshold;
        if from == to || from_calls < REBALANCE_LEAST_CALLS || !skewed {
            return None;
        }
        let excess = u128::from(from_calls - to_calls);
        // Half of the excess, as a share of the busiest one's load: at most 500.
        let permille = (excess * 500 / u128::from(from_calls)) as u16;
        Some(Skew {
            from,
            to,
            from_calls,
            to_calls,
            permille,
        })
    }

    fn request_move(&mut self, skew: Skew, now: Tick) {
        let Skew {
            from,
            to,
            from_calls,
            to_calls,
            permille,
        } = skew;
        self.balance.moving = Some(Move {
            from,
            to,
            since: now,
            deadline: now + self.policy.handover_timeout,
        });
        self.notice(Notice::RebalanceStarted {
            from,
            to,
            from_calls,
            to_calls,
        });
        let part = Part {
            permille,
            at_most: REBALANCE_CONNECTIONS,
            active_within: REBALANCE_ACTIVE_WITHIN,
        };
        self.actions.push_back(Action::Rebalance { from, to, part });
    }
}

/// Returns the state of the trials after the move of `skew` at `now`, and the time at which that
/// move is due.
fn next_trials(before: Option<Trials>, skew: &Skew, now: Tick) -> (Trials, Tick) {
    let fresh = Trials {
        at: now,
        moved: 0,
        receivers: vec![skew.to],
        peak: skew.from_calls,
        rest: REBALANCE_REST,
        judged: now,
    };
    let Some(Trials {
        at,
        moved,
        mut receivers,
        peak,
        rest,
        judged,
    }) = before
    else {
        return (fresh, now);
    };
    if now >= judged + REBALANCE_REST_MAX * 2 {
        return (fresh, at + REBALANCE_REST);
    }
    // Only a drop of at least a tenth counts; a smaller one may be chance.
    let as_busy = u128::from(skew.from_calls) * 10 > u128::from(peak) * 9;
    let useless = moved == 0 || (as_busy && receivers.contains(&skew.from));
    let (rest, judged) = if useless {
        ((rest * 2).min(REBALANCE_REST_MAX), now)
    } else {
        (rest, judged)
    };
    receivers.retain(|it| it.slot != skew.to.slot);
    receivers.push(skew.to);
    let trials = Trials {
        at: now,
        moved: 0,
        receivers,
        peak: peak.min(skew.from_calls),
        rest,
        judged,
    };
    (trials, at + rest)
}
