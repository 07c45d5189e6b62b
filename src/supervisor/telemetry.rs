//! The supervisor's measurements, and the addresses that it announces on standard output.

mod announcement;
mod times;

use crate::log::event;
use std::io;

use mio::Registry;
use serde::{Deserialize, Serialize};

use uppercased_ctl::clock::{Tick, millis};
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::status::Status;

use super::machine::Notice;
use announcement::Announcement;
use times::{SlotTimes, Times};

#[derive(Debug)]
pub(crate) struct Telemetry {
    /// Start time of this instance; upgrades do not reset it.
    started: Tick,
    times: Times,
    announcement: Option<Announcement>,
}

/// The measurements in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    started: Tick,
    times: Times,
    /// Lines that standard output has not accepted.
    announcement: Vec<u8>,
}

impl Telemetry {
    pub(crate) fn new(now: Tick) -> Self {
        Self {
            started: now,
            times: Times::default(),
            announcement: None,
        }
    }

    /// Adds the measurement of a notice.
    pub(crate) fn note(&mut self, notice: &Notice, now: Tick) {
        self.times.note(notice, now);
    }

    pub(crate) fn keeper_lost(&mut self, slot: SlotId) {
        self.times.keeper_lost(slot);
    }

    pub(crate) fn keeper_replaced(&mut self, slot: SlotId) {
        self.times.keeper_replaced(slot);
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
            announcement: announcement.map_or_else(Vec::new, |it| it.rest().to_vec()),
        }
    }

    pub(crate) fn restore(saved: Saved, registry: &Registry) -> Self {
        let mut restored = Self {
            started: saved.started,
            times: saved.times,
            announcement: None,
        };
        restored.announce(saved.announcement, registry);
        restored
    }
}

fn not_taken(error: &io::Error) -> Option<Announcement> {
    event!(addresses_not_written, %error);
    None
}
