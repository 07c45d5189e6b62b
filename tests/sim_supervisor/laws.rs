//! What must hold of the supervisor's machine at every step, whatever happens.
//!
//! A shadow of the world as the machine was told of it, built from events and actions alone: it
//! never looks at how the machine decides. Each breach panics with the law's own words; the caller
//! adds seed and step.
//!
//! Where the shadow repeats a rule of the machine (when a death is answered), it states bounds, not
//! the machine's own arithmetic.

use std::time::Duration;

use uppercased::clock::Tick;
use uppercased::supervisor::machine::{
    Action, Event, Generation, KILL_GRACE, ListenerSource, Machine, Notice, Policy, SlotId,
    Verdict, WorkerId,
};

macro_rules! law {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            panic!("law broken: {}", format!($($words)+));
        }
    };
}
pub(crate) use law;

#[derive(Clone, Debug, PartialEq)]
enum Life {
    /// Its turn at boot has not come.
    Unborn,
    Starting {
        since: Tick,
        failed: bool,
    },
    Serving {
        since: Tick,
    },
    Stopping,
    /// To be killed, or killed, and not reaped.
    Doomed {
        served: Option<Duration>,
        killed: bool,
    },
    /// Reaped, or never made; while the machine runs, the next one comes in this window.
    Gone {
        earliest: Tick,
        latest: Tick,
    },
}

#[derive(Clone, Debug)]
struct Shadow {
    generation: u32,
    life: Life,
    /// A worker of this slot has been Ready: the supervisor holds its listener.
    deposited: bool,
    unserved_since: Tick,
    borrower: Option<WorkerId>,
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Running,
    /// No worker need be asked to finish; all are dead as soon as the kernel is done.
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
    policy: Policy,
    slots: Vec<Shadow>,
    end: End,
    announced: bool,
    custody_ended: bool,
}

impl Laws {
    pub(crate) fn new(policy: Policy) -> Self {
        let slot = Shadow {
            generation: 0,
            life: Life::Unborn,
            deposited: false,
            unserved_since: Tick::ZERO,
            borrower: None,
            failures: 0,
        };
        Self {
            slots: vec![slot; usize::from(policy.workers)],
            policy,
            end: End::Running,
            announced: false,
            custody_ended: false,
        }
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.end == End::Exited
    }

    /// When the machine must have exited if the kernel takes at most `kernel` for anything and the
    /// shell is at most `shell` late; `None` while it need not exit.
    pub(crate) fn must_exit_by(&self, kernel: Duration, shell: Duration) -> Option<Tick> {
        let Policy {
            lame_duck,
            drain_timeout,
            ..
        } = self.policy;
        match self.end {
            End::Running | End::Exited => None,
            End::BootFailed { at } | End::Forced { at } => Some(at + kernel),
            End::Draining { at } => {
                Some(at + lame_duck + drain_timeout + KILL_GRACE + shell + kernel)
            }
        }
    }

    /// Takes note of what the machine is about to be told.
    pub(crate) fn event(&mut self, event: &Event, now: Tick) {
        match event {
            Event::Boot => {}
            Event::Ready { worker } => {
                if let Some(slot) = self.present(*worker)
                    && matches!(slot.life, Life::Starting { failed: false, .. })
                {
                    slot.life = Life::Serving { since: now };
                    slot.deposited = true;
                }
            }
            Event::StartFailed { worker, .. } => {
                let mut at_boot = false;
                if let Some(slot) = self.present(*worker)
                    && let Life::Starting { failed, .. } = &mut slot.life
                {
                    *failed = true;
                    at_boot = !slot.deposited;
                }
                if at_boot {
                    self.boot_failed(now);
                }
            }
            Event::SpawnFailed { worker, .. } => {
                if let Some(slot) = self.present(*worker)
                    && matches!(
                        slot.life,
                        Life::Starting { .. } | Life::Doomed { served: None, .. }
                    )
                {
                    self.gone(worker.slot, None, now);
                }
            }
            Event::Exited { worker, .. } => {
                let served = match self.present(*worker).map(|slot| &slot.life) {
                    None | Some(Life::Unborn | Life::Gone { .. }) => return,
                    Some(Life::Starting { .. } | Life::Stopping) => None,
                    Some(Life::Serving { since }) => Some(now.since(*since)),
                    Some(Life::Doomed { served, .. }) => *served,
                };
                self.gone(worker.slot, served, now);
            }
            Event::ChannelBroken { worker, .. } => {
                if let Some(slot) = self.present(*worker)
                    && slot.life != Life::Stopping
                {
                    self.doom(*worker, now);
                }
            }
            Event::Stop { .. } => {
                self.end = match self.end {
                    End::Running => End::Draining { at: now },
                    End::Draining { .. } => End::Forced { at: now },
                    other @ (End::BootFailed { .. } | End::Forced { .. } | End::Exited) => other,
                };
            }
        }
    }

    /// Checks one action, given out at `now`.
    pub(crate) fn action(&mut self, action: &Action, now: Tick) {
        law!(!self.has_exited(), "nothing comes after Exit: {action:?}");
        match action {
            Action::Spawn { worker, listener } => self.spawned(*worker, *listener, now),
            Action::Kill { worker } => self.killed(*worker, now),
            Action::EndCustody => self.custody_ends(now),
            Action::StopWorker { worker } => {
                law!(self.custody_ended, "{worker} is asked to stop in custody");
                let slot = self
                    .present(*worker)
                    .expect("law: StopWorker names the present worker");
                let serving = matches!(slot.life, Life::Serving { .. });
                law!(serving, "{worker} is asked to stop and is {:?}", slot.life);
                slot.life = Life::Stopping;
                self.end_loans_of(worker.slot);
            }
            Action::Lend { slot, to } => self.lent(*slot, *to, now),
            Action::Recall { slot, from } => {
                let index = slot.index();
                let borrower = self.slots[index].borrower;
                law!(
                    borrower == Some(*from),
                    "slot {slot} is recalled from {from}, not its borrower"
                );
                law!(
                    self.serves(*from),
                    "slot {slot} is recalled from {from}, which does not serve"
                );
                let own = matches!(self.slots[index].life, Life::Serving { .. });
                law!(
                    own,
                    "slot {slot} is recalled although its own worker does not serve"
                );
                self.slots[index].borrower = None;
            }
            Action::Notice(notice) => self.noticed(notice, now),
            Action::Announce => {
                law!(!self.announced, "the address is announced twice");
                law!(self.end == End::Running, "announced while {:?}", self.end);
                let all = self.slots.iter().all(|slot| slot.deposited);
                law!(all, "announced before every slot has been Ready");
                self.announced = true;
            }
            Action::Exit(verdict) => {
                let empty = self.slots.iter().all(|slot| !slot.is_live());
                law!(empty, "Exit while a process is left");
                match (self.end, verdict) {
                    (End::BootFailed { .. }, Verdict::Failed { .. })
                    | (End::Draining { .. } | End::Forced { .. }, Verdict::Clean) => {}
                    (end, verdict) => panic!("law broken: exits with {verdict:?} while {end:?}"),
                }
                self.end = End::Exited;
            }
        }
    }

    /// Checks the state of affairs when all actions have been given out. `looked` says that the
    /// machine was just told to look at its deadlines.
    pub(crate) fn rest(&self, machine: &Machine, now: Tick, looked: bool) {
        self.views_agree(machine);
        let timeout = machine.poll_timeout();
        if looked {
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
                let asked = self.slots.iter().any(|slot| slot.life == Life::Stopping);
                law!(!asked || by(deadline), "a drain without its deadline");
            }
            End::BootFailed { .. } | End::Forced { .. } => {}
        }
        let serving = self
            .slots
            .iter()
            .any(|slot| matches!(slot.life, Life::Serving { .. }));
        let running = self.end == End::Running;
        for (index, slot) in self.slots.iter().enumerate() {
            let own = matches!(slot.life, Life::Serving { .. });
            if let Some(to) = slot.borrower {
                law!(!own, "slot {index} serves and is lent to {to}");
                law!(
                    !running || self.serves(to),
                    "slot {index} is lent to {to}, which does not serve"
                );
            }
            if !running {
                law!(!own, "slot {index} serves on while {:?}", self.end);
                continue;
            }
            match slot.life {
                Life::Gone { latest, .. } => {
                    law!(
                        by(latest),
                        "slot {index} is dead and nobody wakes up for it by {latest:?}"
                    );
                }
                Life::Starting { since, .. } => {
                    let deadline = since + self.policy.start_timeout;
                    law!(by(deadline), "slot {index} may start for ever");
                }
                Life::Doomed { killed, .. } => law!(killed, "slot {index} is let live"),
                Life::Unborn | Life::Serving { .. } | Life::Stopping => {}
            }
            if slot.deposited && !own && slot.borrower.is_none() && serving {
                let due = slot.unserved_since + self.policy.lend_after;
                law!(due > now, "slot {index} is a black hole since {due:?}");
                law!(by(due), "slot {index} becomes a black hole at {due:?}");
            }
        }
    }

    fn spawned(&mut self, worker: WorkerId, listener: ListenerSource, now: Tick) {
        let index = worker.slot.index();
        law!(
            self.end == End::Running,
            "{worker} is spawned while {:?}",
            self.end
        );
        law!(index < self.slots.len(), "{worker} is spawned in no slot");
        let earlier_bound = self.slots[..index].iter().all(|slot| slot.deposited);
        law!(
            earlier_bound,
            "{worker} is spawned before the slots below it were Ready"
        );
        let slot = &mut self.slots[index];
        law!(
            !slot.is_live(),
            "{worker} is spawned beside a live one: {:?}",
            slot.life
        );
        let successor = worker.generation.0 == slot.generation + 1;
        law!(successor, "{worker} follows generation {}", slot.generation);
        let binds = listener == ListenerSource::Bind;
        law!(
            binds != slot.deposited,
            "{worker} is spawned to {listener:?}"
        );
        if let Life::Gone { earliest, .. } = slot.life {
            law!(
                now >= earliest,
                "{worker} is spawned before its backoff ends at {earliest:?}"
            );
        }
        slot.generation = worker.generation.0;
        slot.life = Life::Starting {
            since: now,
            failed: false,
        };
    }

    fn killed(&mut self, worker: WorkerId, now: Tick) {
        let start_timeout = self.policy.start_timeout;
        let end = self.end;
        let slot = self
            .present(worker)
            .expect("law: Kill names the present worker");
        match slot.life {
            Life::Doomed { killed, .. } => law!(!killed, "{worker} is killed twice"),
            Life::Starting { since, .. } => {
                let late = now >= since + start_timeout;
                law!(
                    late || end != End::Running,
                    "{worker} is killed while it may still start"
                );
            }
            Life::Serving { .. } => {
                let failing = matches!(end, End::BootFailed { .. });
                law!(failing, "{worker} serves and is killed while {end:?}");
            }
            Life::Stopping => {
                // Of the two ends of a drain this is the one without an event.
                if let End::Draining { at } = end {
                    let deadline = at + self.policy.lame_duck + self.policy.drain_timeout;
                    law!(
                        now >= deadline + KILL_GRACE,
                        "{worker} is killed in its drain"
                    );
                    self.end = End::Forced { at: now };
                }
            }
            Life::Unborn | Life::Gone { .. } => panic!("law broken: {worker} is killed and gone"),
        }
        self.doom(worker, now);
        if let Some(slot) = self.present(worker)
            && let Life::Doomed { killed, .. } = &mut slot.life
        {
            *killed = true;
        }
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
        let lend_after = self.policy.lend_after;
        let shadow = &mut self.slots[slot.index()];
        law!(shadow.deposited, "slot {slot} is lent and has no listener");
        law!(
            !matches!(shadow.life, Life::Serving { .. }),
            "slot {slot} is lent and serves"
        );
        law!(shadow.borrower.is_none(), "slot {slot} is lent twice");
        let due = shadow.unserved_since + lend_after;
        law!(
            now >= due || stops_now,
            "slot {slot} is lent before {due:?}"
        );
        shadow.borrower = Some(to);
    }

    /// Listeners live on only where they are served, and no queue may be lost that somebody could
    /// empty.
    fn custody_ends(&mut self, now: Tick) {
        let stops_now = self.end == (End::Draining { at: now });
        law!(stops_now, "custody ends while {:?}", self.end);
        law!(!self.custody_ended, "custody ends twice");
        self.custody_ended = true;
        let anybody = self.serving().next().is_some();
        for (index, slot) in self.slots.iter().enumerate() {
            let served = matches!(slot.life, Life::Serving { .. }) || slot.borrower.is_some();
            law!(
                served || !slot.deposited || !anybody,
                "the queue of slot {index} is dropped and could have been lent"
            );
        }
    }

    fn noticed(&mut self, notice: &Notice, now: Tick) {
        if matches!(notice, Notice::BootFailed { .. }) && self.end == End::Running {
            // Of all reasons for a failed boot this is the one without an event.
            let start_timeout = self.policy.start_timeout;
            let late = |slot: &Shadow| match slot.life {
                Life::Starting { since, .. } => !slot.deposited && now >= since + start_timeout,
                Life::Unborn
                | Life::Serving { .. }
                | Life::Stopping
                | Life::Doomed { .. }
                | Life::Gone { .. } => false,
            };
            law!(self.slots.iter().any(late), "the boot fails for no reason");
            self.boot_failed(now);
        }
        if let Notice::BackingOff {
            slot,
            delay,
            failures,
        } = notice
        {
            law!(
                *delay <= self.policy.backoff_max,
                "slot {slot} backs off for {delay:?}"
            );
            let shadow = &self.slots[slot.index()];
            law!(
                *failures == shadow.failures,
                "slot {slot} counts {failures} failures"
            );
        }
    }

    /// A process is no more, or never was.
    fn gone(&mut self, slot: SlotId, served: Option<Duration>, now: Tick) {
        let Policy {
            backoff_initial,
            backoff_max,
            backoff_reset,
            ..
        } = self.policy;
        self.end_loans_of(slot);
        let shadow = &mut self.slots[slot.index()];
        if matches!(shadow.life, Life::Serving { .. }) {
            shadow.unserved_since = now;
        }
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
        if !shadow.deposited && self.end == End::Running {
            self.boot_failed(now);
        }
    }

    /// The worker is to be killed, and from now on nobody counts on it.
    fn doom(&mut self, worker: WorkerId, now: Tick) {
        let Some(slot) = self.present(worker) else {
            return;
        };
        let served = match slot.life {
            Life::Starting { .. } => None,
            // It served; for how long is of no more interest.
            Life::Stopping => Some(Duration::ZERO),
            Life::Serving { since } => {
                slot.unserved_since = now;
                Some(now.since(since))
            }
            Life::Unborn | Life::Doomed { .. } | Life::Gone { .. } => return,
        };
        slot.life = Life::Doomed {
            served,
            killed: false,
        };
        self.end_loans_of(worker.slot);
    }

    fn boot_failed(&mut self, now: Tick) {
        if self.end == End::Running {
            self.end = End::BootFailed { at: now };
        }
    }

    fn end_loans_of(&mut self, borrower: SlotId) {
        for slot in &mut self.slots {
            if slot.borrower.is_some_and(|worker| worker.slot == borrower) {
                slot.borrower = None;
            }
        }
    }

    /// The shadow's opinion of who lives and serves is the machine's.
    fn views_agree(&self, machine: &Machine) {
        for (view, shadow) in machine.slots().zip(&self.slots) {
            let names: &[&str] = match shadow.life {
                Life::Unborn => &["waiting", "stopped"],
                Life::Starting { .. } => &["starting"],
                Life::Serving { .. } => &["serving"],
                Life::Stopping => &["stopping"],
                Life::Doomed { .. } => &["killing"],
                Life::Gone { .. } => &["backing off", "stopped"],
            };
            let name = view.state.name();
            let agree = names.contains(&name) && view.generation.0 == shadow.generation;
            law!(
                agree,
                "slot {} is {name}, but was told {:?}",
                view.id,
                shadow.life
            );
            law!(
                self.end != End::Running || name != "stopped",
                "slot {} is given up while the supervisor runs",
                view.id
            );
        }
    }

    fn serving(&self) -> impl Iterator<Item = WorkerId> {
        (0_u16..).zip(&self.slots).filter_map(|(index, slot)| {
            let worker = slot.worker(index);
            matches!(slot.life, Life::Serving { .. }).then_some(worker)
        })
    }

    fn serves(&self, worker: WorkerId) -> bool {
        self.serving().any(|serving| serving == worker)
    }

    fn present(&mut self, worker: WorkerId) -> Option<&mut Shadow> {
        let slot = self.slots.get_mut(worker.slot.index())?;
        (slot.generation == worker.generation.0 && slot.life != Life::Unborn).then_some(slot)
    }
}

impl Shadow {
    fn is_live(&self) -> bool {
        match self.life {
            Life::Unborn | Life::Gone { .. } => false,
            Life::Starting { .. } | Life::Serving { .. } | Life::Stopping | Life::Doomed { .. } => {
                true
            }
        }
    }

    fn worker(&self, index: u16) -> WorkerId {
        WorkerId {
            slot: SlotId(index),
            generation: Generation(self.generation),
        }
    }
}
