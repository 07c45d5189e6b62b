//! Executes the actions of the machine: each becomes a fork, a message, a kill, an answer or a log
//! line.
//!
//! Invariant: actions are executed in sequence; a failed one becomes an event and is never ignored.

use std::os::fd::AsFd as _;

use crate::wire::{Stop, ToWorker};
use uppercased_ctl::clock::{self, millis};
use uppercased_ctl::identity::SlotId;

use super::fleet::Spawn;
use super::machine::{Action, Event, Life, Outcome};
use super::systemd::notify::{View, unserved};
use super::{Supervisor, report};

impl Supervisor {
    pub(super) fn execute(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            self.execute_one(action);
            self.take_fleet_events();
        }
    }

    fn execute_one(&mut self, action: Action) {
        match action {
            Action::Spawn {
                worker,
                listener,
                release,
                standby,
            } => {
                let spawn = Spawn {
                    worker,
                    listener,
                    release,
                    standby,
                };
                let registry = self.poll.registry();
                self.fleet.spawn(spawn, self.lease.as_fd(), registry);
            }
            Action::Kill { worker } => self.fleet.kill(worker),
            Action::KillProcess { worker } => self.fleet.kill_process(worker),
            Action::Confirm { worker } => self.fleet.send(worker, ToWorker::Confirm, &[]),
            Action::Abandon { worker } => self.fleet.abandon(worker),
            Action::EndCustody => self.fleet.release_all_listeners(),
            Action::StopWorker { worker } => {
                let stop = Stop {
                    lame_duck_ms: millis(self.config().lame_duck),
                    drain_timeout_ms: millis(self.config().drain_timeout),
                };
                self.fleet.send(worker, ToWorker::Stop(stop), &[]);
            }
            Action::Lend { slot, to } => self.fleet.lend(slot, to),
            Action::Recall { slot, from, last } => {
                let recall = ToWorker::Recall { slot, last };
                self.fleet.send(from, recall, &[]);
            }
            Action::Serve { worker } => self.fleet.send(worker, ToWorker::Serve, &[]),
            Action::HandOver { from, to, last } => self.fleet.hand_over(from, to, last),
            Action::Rebalance { from, to, part } => self.fleet.rebalance(from, to, part),
            Action::TakeLoads => {
                let loads = self.fleet.loads();
                self.apply(Event::Loads { loads });
            }
            Action::Leave { worker, within } => {
                let drain_timeout_ms = millis(within);
                let leave = ToWorker::Leave { drain_timeout_ms };
                self.fleet.send(worker, leave, &[]);
            }
            Action::TakePulse { worker } => {
                if let Some(turns) = self.fleet.turns(worker) {
                    self.apply(Event::Pulse { worker, turns });
                }
            }
            Action::TakeProgress { from, to } => {
                let progress = self.fleet.progress(from, to);
                self.apply(Event::Progress { from, to, progress });
            }
            Action::Ping { worker } => self.fleet.send(worker, ToWorker::Ping, &[]),
            Action::Steer { slots } => {
                self.fleet.steer_to_first(slots);
                let leaving = (slots..self.fleet.slot_count()).map(SlotId);
                self.systemd.forget(leaving, self.poll.registry());
            }
            Action::Unsteer => {
                self.spread();
                let listening: Vec<SlotId> = self.fleet.listening().collect();
                let stays = |slot| listening.contains(&slot);
                self.systemd.store_forgotten(stays);
            }
            Action::Spread { .. } => self.spread(),
            Action::CloseListeners { slot } => self.fleet.release_listeners(slot),
            Action::DropSlot { slot } => self.fleet.drop_slot(slot),
            Action::Begin {
                request,
                wanted,
                drain,
            } => self.begin(request, wanted, drain),
            Action::Preflight => self.begin_preflight(),
            Action::AbortPreflight => self.end_preflight(),
            Action::Exec => self.exec(),
            Action::Commit { release } => self.commit(release),
            Action::Answer { request, answer } => self.answer(request, answer),
            Action::Notice(notice) => {
                report::notice(&notice, self.fleet.slots());
                self.telemetry.note(&notice, clock::now());
                self.report_progress(&notice);
            }
            Action::Announce => {
                // First: a supervisor that dies once it is ready must have left it.
                self.store_config();
                let addresses = self.fleet.addresses();
                let lines = report::announce(addresses, self.fleet.slots().len());
                self.telemetry.announce(lines, self.poll.registry());
                self.shed_surplus();
            }
            Action::Exit(outcome) => {
                if outcome == Outcome::Clean {
                    report::ended(&self.fleet.totals());
                }
                self.outcome = Some(outcome);
            }
        }
    }

    /// Spreads new connections over all slots that listen.
    pub(super) fn spread(&self) {
        self.fleet.spread(self.systemd.is_releasing());
    }

    /// Handles the barrier: the service manager may have closed the listeners to be removed.
    pub(super) fn store_released(&mut self) {
        // Scaling steers connections itself, and spreads them when it ends.
        let operation = self.machine.operation_kind();
        let scales = operation.is_some_and(|it| !it.replaces_workers());
        if self.systemd.on_ready() && !scales {
            self.spread();
        }
    }

    /// Sends changes since the last call to the service manager.
    pub(super) fn notify(&mut self) {
        let machine = &self.machine;
        let view = View {
            life: machine.life(),
            // For a service manager, a queued operation has begun.
            operation: machine
                .pending_replacement()
                .or_else(|| machine.operation_kind()),
        };
        let excused = view.operation.is_some() || view.life != Life::Serving;
        // Moved out, because the status line is built from all other parts.
        let mut systemd = std::mem::take(&mut self.systemd);
        systemd.notify(
            view,
            |failure| self.status_line(failure),
            || unserved(machine.slots(), excused),
            |slot| self.fleet.borrowed_listeners(slot),
            clock::now(),
        );
        self.systemd = systemd;
    }
}
