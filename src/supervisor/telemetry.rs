//! The supervisor's measurements, and the addresses that it announces on standard output.

mod announcement;
mod history;
mod starts;
mod times;

use crate::log::event;
use std::collections::VecDeque;
use std::io;

use mio::Registry;
use serde::{Deserialize, Serialize};

use crate::config::{HISTORY_LEN, STEPS_MAX};
use crate::sys::usage::Meter;
use uppercased_ctl::clock::{Tick, millis};
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::operation::OperationKind;
use uppercased_ctl::status::{ConfigReload, Status, Usage};

use super::machine::{Answer, Notice};
use announcement::Announcement;
use history::History;
use starts::Starts;
use times::{SlotTimes, Times};

#[derive(Debug)]
pub(crate) struct Telemetry {
    /// Start time of this instance; upgrades do not reset it.
    started: Tick,
    times: Times,
    config: ConfigReload,
    /// The programs of the supervisor's process.
    programs: Starts,
    admin: Starts,
    history: History,
    /// The latest steps of the operation in progress, oldest first.
    steps: VecDeque<String>,
    meter: Option<Meter>,
    announcement: Option<Announcement>,
}

/// The measurements in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    started: Tick,
    times: Times,
    #[serde(default)]
    config: ConfigReload,
    #[serde(default)]
    programs: Starts,
    #[serde(default)]
    admin: Starts,
    #[serde(default)]
    history: History,
    #[serde(default)]
    steps: VecDeque<String>,
    /// Lines that standard output has not accepted.
    announcement: Vec<u8>,
}

impl Telemetry {
    pub(crate) fn new(now: Tick) -> Self {
        let mut programs = Starts::default();
        programs.note(now);
        let meter = Meter::new().ok();
        Self {
            started: now,
            times: Times::default(),
            config: ConfigReload {
                last_reload_successful: true,
                last_reload_success_at_ms: meter.map_or(0, |it| it.now_ms()),
                error: None,
            },
            programs,
            admin: Starts::default(),
            history: History::default(),
            steps: VecDeque::new(),
            meter,
            announcement: None,
        }
    }

    /// Adds the measurement of a notice.
    pub(crate) fn note(&mut self, notice: &Notice, now: Tick) {
        self.times.note(notice, now);
        match notice {
            Notice::OperationStarted { .. } => self.steps.clear(),
            Notice::OperationEnded {
                operation: OperationKind::Reload | OperationKind::Upgrade,
                answer: Answer::Done(_),
            } => {
                self.config = ConfigReload {
                    last_reload_successful: true,
                    last_reload_success_at_ms: self.meter.map_or(0, |it| it.now_ms()),
                    error: None,
                };
            }
            Notice::OperationEnded {
                operation: OperationKind::Reload,
                answer: Answer::Failed { .. },
            } => self.config.last_reload_successful = false,
            Notice::NotBegun {
                operation: OperationKind::Reload,
                cause,
            } => self.note_refused(cause.clone()),
            _ => {}
        }
    }

    /// Records why the configuration of a start or a reload is not in force.
    pub(crate) fn note_refused(&mut self, error: String) {
        self.config.last_reload_successful = false;
        self.config.error = Some(error);
    }

    pub(crate) fn keeper_lost(&mut self, slot: SlotId) {
        self.times.keeper_lost(slot);
    }

    pub(crate) fn keeper_replaced(&mut self, slot: SlotId, now: Tick) {
        self.times.keeper_replaced(slot, now);
    }

    /// Adds a step of the operation in progress.
    pub(crate) fn add_step(&mut self, step: String) {
        if self.steps.len() == STEPS_MAX {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }

    pub(crate) fn deadline(&self) -> Tick {
        self.history.due()
    }

    /// Samples the numbers of messages if that is due: of the server, and of each present slot.
    pub(crate) fn handle_timeout(&mut self, now: Tick, messages: impl FnOnce() -> (u64, Vec<u64>)) {
        if self.history.due() <= now {
            let (all, of_slots) = messages();
            self.history.sample(all, now);
            self.times.sample(&of_slots, now);
        }
    }

    /// Returns the latest steps of the operation in progress, oldest first.
    pub(crate) fn steps(&self) -> Vec<String> {
        self.steps.iter().cloned().collect()
    }

    /// Counts a start of the admin process.
    pub(crate) fn admin_started(&mut self, now: Tick) {
        self.admin.note(now);
    }

    /// Returns what a process uses, if the kernel tells.
    pub(crate) fn usage_of(&self, pid: u32) -> Option<Usage> {
        self.meter.as_ref()?.read(pid)
    }

    pub(crate) const fn programs(&self) -> &Starts {
        &self.programs
    }

    pub(crate) const fn admin(&self) -> &Starts {
        &self.admin
    }

    /// Writes lines to standard output, now or when its reader makes room.
    pub(crate) fn announce(&mut self, lines: Vec<u8>, registry: &Registry) {
        let announced = Announcement::write(lines, registry);
        self.announcement = announced.unwrap_or_else(|error| not_taken(&error));
    }

    /// Continues writing to standard output.
    pub(crate) fn on_ready(&mut self) {
        let Some(announcement) = &mut self.announcement else {
            return;
        };
        match announcement.write_rest() {
            Ok(false) => {}
            // Its registration ends with its descriptor.
            Ok(true) => self.announcement = None,
            Err(error) => self.announcement = not_taken(&error),
        }
    }

    /// Returns the part of the status that concerns the whole server.
    pub(crate) fn status(&self, now: Tick) -> Status {
        Status {
            uptime_ms: millis(now.since(self.started)),
            operations: self.times.operations().to_vec(),
            last_operation: self.times.last_operation(now),
            config: self.config.clone(),
            history: self.history.latest(HISTORY_LEN),
            ..Status::default()
        }
    }

    pub(crate) fn times_of(&self, slot: SlotId) -> SlotTimes {
        self.times.of(slot)
    }

    pub(crate) fn save(&self) -> Saved {
        let announcement = self.announcement.as_ref();
        Saved {
            started: self.started,
            times: self.times.clone(),
            config: self.config.clone(),
            programs: self.programs.clone(),
            admin: self.admin.clone(),
            history: self.history.clone(),
            steps: self.steps.clone(),
            announcement: announcement.map_or_else(Vec::new, |it| it.rest().to_vec()),
        }
    }

    pub(crate) fn restore(saved: Saved, registry: &Registry, now: Tick) -> Self {
        let mut restored = Self {
            started: saved.started,
            times: saved.times,
            config: saved.config,
            programs: saved.programs,
            admin: saved.admin,
            history: saved.history,
            steps: saved.steps,
            meter: Meter::new().ok(),
            announcement: None,
        };
        restored.programs.note(now);
        restored.announce(saved.announcement, registry);
        restored
    }
}

fn not_taken(error: &io::Error) -> Option<Announcement> {
    event!(addresses_not_written, %error);
    None
}
