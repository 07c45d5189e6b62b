//! Capacity for workers and connections.

use crate::config::{self, Config};
use crate::memory;
use crate::sys::limits::{MemoryRoom, memory_room};
use uppercased_ctl::identity::WorkerId;

use super::Fleet;
use super::releases::{Holding, Limits};

impl Fleet {
    /// Returns each of `workers` workers' share of the limit on descriptors.
    ///
    /// # Errors
    /// The share is empty, or less than configured.
    pub(crate) fn limits(&self, config: &Config, workers: u16) -> Result<Limits, config::Error> {
        Limits::of_worker(config, workers, self.nofile)
    }

    /// Returns the number of workers with `config`: a number set by a command is kept until the
    /// configuration changes.
    pub(crate) fn workers_with(&self, config: &Config) -> u16 {
        let running = self.config();
        let follows = config.follows_cpus && running.follows_cpus;
        if follows || config.workers == running.workers {
            self.slot_count()
        } else {
            config.workers
        }
    }

    /// Returns why there cannot be this few workers, if so: a socket of a socket unit gets
    /// connections whether a worker serves it or not.
    pub(crate) fn too_few(&self, workers: u16) -> Option<String> {
        let least = self.activated;
        (workers < least).then(|| {
            format!(
                "{workers} workers are too few: the socket unit has {least} sockets for one \
                 address, each with a worker of its own; take lines ListenStream= from it first"
            )
        })
    }

    /// Returns why some connections of `workers` would not be kept if only the first `stay` slots
    /// remained, if so: with their present workers, or with new ones that have room for `replaced`
    /// connections each.
    pub(crate) fn no_room(
        &self,
        workers: impl Iterator<Item = WorkerId>,
        stay: u16,
        replaced: Option<u32>,
    ) -> Option<String> {
        let children = workers.filter_map(|worker| self.child(worker));
        let holdings = children.map(|child| Holding {
            slot: child.worker.slot,
            open: memory::open_connections(&child.memory),
            room: replaced
                .unwrap_or_else(|| memory::room(&child.memory))
                .into(),
        });
        Holding::too_many(holdings, stay)
    }

    /// Returns why workers that are replaced with `config` would not keep every connection, if so.
    pub(crate) fn no_room_with(
        &self,
        config: &Config,
        limits: Limits,
        workers: impl Iterator<Item = WorkerId>,
    ) -> Option<String> {
        let room = self.room_for(config, limits);
        self.no_room(workers, self.workers_with(config), Some(room))
    }

    /// Returns the number of connections that a new worker with `config` must have room for.
    pub(super) fn room_for(&self, config: &Config, own: Limits) -> u32 {
        // Where memory is limited, the configuration sets each worker's share.
        let unlimited = |room: MemoryRoom| room.file_bytes.min(room.address_bytes) == u64::MAX;
        if !memory_room().is_ok_and(unlimited) {
            return own.max_connections;
        }
        let limits = self.releases.iter().map(|(_, one)| one.limits);
        let limits = limits.map(|one| one.max_connections);
        let most = limits.fold(own.max_connections, u32::max);
        let workers = config.workers.max(self.slot_count());
        let open = u32::try_from(self.all_connections()).unwrap_or(u32::MAX);
        own.room(most, workers, open, self.nofile)
    }

    /// Returns the number of connections that all slots together may hold.
    pub(crate) fn capacity(&self) -> u64 {
        let each = self.in_force().limits.max_connections;
        u64::from(each).saturating_mul(self.slots.len() as u64)
    }
}
