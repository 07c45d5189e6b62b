//! The rescues of a slot's workers, and their keepers.
//!
//! The numbers come from reports of workers, so every sum saturates. It must not measure anything
//! itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::durations::Durations;

/// The rescues of a slot's workers: each continued a worker whose process had died.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rescues {
    /// From the wake-up of the keeper to its report.
    #[serde(flatten)]
    pub times: Durations,
    /// Connections that went on.
    pub connections: u64,
    /// Bytes that the dead processes had received and not answered; the rescues answered them.
    pub owed_bytes: u64,
    /// Keepers of running workers that ended.
    pub keepers_lost: u64,
    /// Keepers that took the place of lost ones.
    pub keepers_replaced: u64,
}

impl Rescues {
    /// Returns whether there is nothing to report.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the sum of several slots' rescues, without their histogram.
    #[must_use]
    pub fn sum<'a>(slots: impl Iterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for one in slots {
            for (sum, more) in [
                (&mut sum.times.count, one.times.count),
                (&mut sum.times.sum_us, one.times.sum_us),
                (&mut sum.connections, one.connections),
                (&mut sum.owed_bytes, one.owed_bytes),
                (&mut sum.keepers_lost, one.keepers_lost),
                (&mut sum.keepers_replaced, one.keepers_replaced),
            ] {
                *sum = sum.saturating_add(more);
            }
        }
        sum
    }

    /// Adds a rescue.
    pub fn note(&mut self, connections: u32, owed_bytes: u64, took: Duration) {
        self.times.note(took);
        self.connections = self.connections.saturating_add(connections.into());
        self.owed_bytes = self.owed_bytes.saturating_add(owed_bytes);
    }
}
