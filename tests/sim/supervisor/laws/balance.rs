//! Laws of connections that migrate between two workers that both remain.

use uppercased::config::{REBALANCE_REST, REBALANCE_SAMPLE_EVERY, REBALANCE_SAMPLES};
use uppercased::supervisor::machine::{Load, WorkerId};
use uppercased_ctl::clock::Tick;

use super::{End, Laws, law};

/// The shadow's record of loads and migrations.
#[derive(Clone, Debug, Default)]
pub(super) struct Balance {
    /// Time of the latest request for loads, and whether the reply has arrived.
    asked: Option<(Tick, bool)>,
    /// The latest replies, oldest first, as many as a decision requires.
    told: Vec<(Tick, Vec<Load>)>,
    /// Time of the latest migration command.
    moved: Option<Tick>,
    /// Sender, receiver, and time of the command.
    moving: Option<(WorkerId, WorkerId, Tick)>,
}

impl Laws {
    pub(super) fn loads_taken(&mut self, now: Tick) {
        self.law_of_quiet("loads are sampled");
        let early = self
            .balance
            .asked
            .is_some_and(|(at, _)| now < at + REBALANCE_SAMPLE_EVERY);
        law!(!early, "loads are sampled too often: {:?}", self.balance);
        self.balance.asked = Some((now, false));
    }

    pub(super) fn note_loads(&mut self, loads: &[Load], now: Tick) {
        if let Some((_, answered)) = &mut self.balance.asked
            && !*answered
        {
            *answered = true;
            self.balance.told.push((now, loads.to_vec()));
            if self.balance.told.len() > REBALANCE_SAMPLES as usize + 1 {
                self.balance.told.remove(0);
            }
        }
    }

    /// Returns whether loads have just arrived, so that a migration may be due.
    pub(super) fn loads_were_sent(&self, now: Tick) -> bool {
        self.balance.told.last().is_some_and(|(at, _)| *at == now)
    }

    pub(super) fn note_rebalanced(&mut self, worker: WorkerId) {
        self.balance.moving.take_if(|it| it.0 == worker);
    }

    pub(super) fn part_moves(&mut self, from: WorkerId, to: WorkerId, now: Tick) {
        self.law_of_quiet("a part moves");
        law!(from.slot != to.slot, "{from} hands over to its own slot");
        for worker in [from, to] {
            law!(
                self.serves(worker),
                "a part moves although {worker} does not serve"
            );
        }
        let early = self
            .balance
            .moved
            .is_some_and(|at| now < at + REBALANCE_REST);
        law!(!early, "a part moves too soon: {:?}", self.balance);
        // In each of the required samples, the sender has done the most work.
        let checks = self.balance.told.len();
        law!(
            checks > REBALANCE_SAMPLES as usize,
            "a part moves after {checks} samples"
        );
        let calls = |at: usize, worker: WorkerId| {
            let found = self.balance.told[at]
                .1
                .iter()
                .find(|it| it.worker == worker);
            found.map(|it| it.calls)
        };
        for at in 1..checks {
            let done = |worker| Some(calls(at, worker)? - calls(at - 1, worker)?);
            let most = done(from);
            law!(most.is_some(), "{from} hands over a part but is new");
            for other in self.serving() {
                law!(
                    done(other) <= most,
                    "{other} has more load than {from}, which hands over"
                );
            }
        }
        let turns = |at: usize| {
            let found = self.balance.told[at].1.iter().find(|it| it.worker == to);
            found.map(|it| it.turns)
        };
        let turned = turns(checks - 1) != turns(checks - 2);
        law!(turned, "{to} receives a part but made no turn lately");
        self.balance.moved = Some(now);
        self.balance.moving = Some((from, to, now));
    }

    /// Checks the preconditions of rebalancing.
    fn law_of_quiet(&self, what: &str) {
        law!(self.end == End::Running, "{what} while {:?}", self.end);
        law!(self.announced, "{what} at boot");
        law!(self.operation.is_none(), "{what} in {:?}", self.operation);
        law!(
            self.policy.rebalance.is_some(),
            "{what} without the setting"
        );
        law!(self.serving().count() > 1, "{what} without a receiver");
        let moving = &self.balance.moving;
        law!(moving.is_none(), "{what} while a part moves: {moving:?}");
    }

    /// Checks that the next sample is taken in time.
    pub(super) fn balance_rests(&mut self, now: Tick, by: &impl Fn(Tick) -> bool) {
        if let Some((from, _, since)) = self.balance.moving {
            let deadline = since + self.policy.handover_timeout;
            if !self.serves(from) || deadline <= now {
                self.balance.moving = None;
            } else if self.end == End::Running {
                return law!(by(deadline), "a partial handover has no deadline");
            }
        }
        let quiet = self.end == End::Running
            && self.announced
            && self.operation.is_none()
            && self.policy.rebalance.is_some()
            && self.serving().count() > 1;
        if quiet {
            let next = now + REBALANCE_SAMPLE_EVERY;
            law!(by(next), "the loads are not sampled by {next:?}");
        } else {
            self.balance.told.clear();
        }
    }
}
