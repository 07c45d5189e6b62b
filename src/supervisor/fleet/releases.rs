//! The releases: programs held open, each with the configuration of its workers.
//!
//! Invariants: a release never changes; it is kept as long as a slot may start a worker of it, so
//! that a crashed worker is replaced with the program that it ran, whatever is on disk by then.
//!
//! It must not decide which release a worker gets (the machine does).

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use crate::config::{self, Config};
use crate::memory::layout::Layout;
use crate::sys::fd::{Descriptor, Inherited, Kept};
use crate::sys::image::Image;
use crate::sys::limits::MemoryRoom;
use crate::wire::{Listen, Start};
use uppercased_ctl::identity::{ReleaseId, SlotId};

/// One program with one configuration.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) image: Image,
    pub(crate) config: Config,
    pub(crate) limits: Limits,
}

/// The limits of a worker under the descriptor limit, fixed per release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Connections that a worker may hold.
    pub(crate) max_connections: u32,
    /// Descriptor numbers that its memory has records for.
    pub(crate) descriptors: u32,
}

/// Every release that a worker may still run.
#[derive(Debug)]
pub(crate) struct Releases {
    known: BTreeMap<ReleaseId, Release>,
    /// Always a key of `known`.
    in_force: ReleaseId,
    latest: ReleaseId,
}

/// The releases in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    known: Vec<SavedRelease>,
    in_force: ReleaseId,
    latest: ReleaseId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedRelease {
    id: ReleaseId,
    image: Descriptor,
    config: Config,
    limits: Limits,
}

impl Saved {
    /// Returns the configuration in force; `None` if it is missing.
    pub(crate) fn config(&self) -> Option<&Config> {
        let in_force = self.known.iter().find(|one| one.id == self.in_force)?;
        Some(&in_force.config)
    }
}

impl Releases {
    /// Returns the releases of a starting instance.
    pub(crate) fn new(first: Release) -> Self {
        Self {
            known: BTreeMap::from([(ReleaseId::FIRST, first)]),
            in_force: ReleaseId::FIRST,
            latest: ReleaseId::FIRST,
        }
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        let known = self.known.iter().map(|(id, release)| SavedRelease {
            id: *id,
            image: kept.keep(&release.image),
            config: release.config.clone(),
            limits: release.limits,
        });
        Saved {
            known: known.collect(),
            in_force: self.in_force,
            latest: self.latest,
        }
    }

    /// Restores the state saved by the earlier binary of this process. A state without its release
    /// in force was refused when it was read.
    ///
    /// # Errors
    /// An image is missing.
    pub(crate) fn restore(saved: Saved, inherited: &mut Inherited) -> io::Result<Self> {
        let mut known = BTreeMap::new();
        for one in saved.known {
            let release = Release {
                image: Image::from(inherited.take(one.image)?),
                config: one.config,
                limits: one.limits,
            };
            known.insert(one.id, release);
        }
        Ok(Self {
            known,
            in_force: saved.in_force,
            latest: saved.latest,
        })
    }

    pub(crate) fn add(&mut self, release: Release) -> ReleaseId {
        self.latest = self.latest.next();
        self.known.insert(self.latest, release);
        self.latest
    }

    /// Returns a release by number, if it is still known.
    pub(crate) fn get(&self, id: ReleaseId) -> Option<&Release> {
        self.known.get(&id)
    }

    pub(crate) fn commit(&mut self, id: ReleaseId) {
        if self.known.contains_key(&id) {
            self.in_force = id;
        }
    }

    /// Drops every release but those in use and the one in force.
    pub(crate) fn keep_only(&mut self, in_use: &[ReleaseId]) {
        let in_force = self.in_force;
        self.known
            .retain(|id, _| *id == in_force || in_use.contains(id));
    }

    pub(crate) fn in_force(&self) -> &Release {
        &self.known[&self.in_force]
    }

    /// Returns the number of the release in force.
    pub(crate) const fn in_force_id(&self) -> ReleaseId {
        self.in_force
    }

    /// Returns every release, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ReleaseId, &Release)> {
        self.known.iter().map(|(id, release)| (*id, release))
    }
}

impl Release {
    /// Returns the first message to a worker, except for its CPU.
    pub(crate) fn start(&self, listen: &[Listen], adopt: bool, standby: bool) -> Start {
        Start {
            cpu: None,
            config: self.config.clone(),
            listen: listen.to_vec(),
            adopt,
            standby,
            adoptable: false,
            max_connections: self.limits.max_connections,
            room: self.limits.max_connections,
            descriptors: self.limits.descriptors,
        }
    }

    /// Returns the memory layout of a worker with room for `room` connections.
    pub(crate) const fn layout(&self, room: u32) -> Layout {
        self.limits.layout(&self.config, room)
    }
}

impl Limits {
    const fn layout(self, config: &Config, room: u32) -> Layout {
        Layout {
            descriptors: self.descriptors_for(room),
            buffers: room,
            buffer_bytes: config.pending_output,
        }
    }

    /// Returns the number of connections that a worker has room for: those that all `workers` may
    /// have, or those open now that may migrate to it, whatever the limit for new ones, within
    /// `nofile` descriptors. Unused memory costs nothing.
    pub(crate) fn room(&self, most: u32, workers: u16, open: u32, nofile: u64) -> u32 {
        let reserve = self.descriptors.saturating_sub(self.max_connections);
        let possible = nofile
            .saturating_sub(reserve.into())
            .min(Layout::MAX_BUFFERS.into());
        let all = most.saturating_mul(workers.into());
        let wanted = all.max(open.saturating_add(most));
        let possible = u32::try_from(possible).unwrap_or(Layout::MAX_BUFFERS);
        wanted.min(possible).max(self.max_connections)
    }

    /// Returns the number of descriptors that `room` connections need.
    const fn descriptors_for(&self, room: u32) -> u32 {
        let more = room.saturating_sub(self.max_connections);
        self.descriptors.saturating_add(more)
    }

    /// Returns each of `workers` workers' share of a descriptor limit of `nofile`.
    ///
    /// # Errors
    /// [`config::Error`] if the share is empty, or less than configured.
    pub(crate) fn of_worker(
        config: &Config,
        workers: u16,
        nofile: u64,
    ) -> Result<Self, config::Error> {
        let listeners = config.listen.len();
        let max_connections =
            config::connection_limit(config.max_connections, nofile, listeners, workers)?;
        // The kernel assigns the lowest free number, so none exceeds the maximum number of open
        // descriptors.
        let reserve = config::descriptor_reserve(listeners, workers);
        let numbers = reserve.saturating_add(max_connections.into()).min(nofile);
        Ok(Self {
            max_connections,
            descriptors: u32::try_from(numbers).unwrap_or(Layout::MAX_DESCRIPTORS),
        })
    }
}

/// The connections of one slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    pub(crate) slot: SlotId,
    /// Open connections.
    pub(crate) open: u64,
    /// Capacity of its worker, or of its next one.
    pub(crate) room: u64,
}

impl Holding {
    /// Returns why some connections would not be kept if only the first `stay` slots remained, if
    /// so.
    pub(crate) fn too_many(slots: impl Iterator<Item = Self>, stay: u16) -> Option<String> {
        let (mut leaving, mut free) = (0_u64, 0_u64);
        for Self { slot, open, room } in slots {
            if slot.0 >= stay {
                leaving = leaving.saturating_add(open);
            } else if open > room {
                return Some(format!(
                    "the new worker of slot {slot} would have room for {room} of its {open} \
                     connections; close some first, raise max_connections, or add --drain"
                ));
            } else {
                free = free.saturating_add(room - open);
            }
        }
        (leaving > free).then(|| {
            format!(
                "{leaving} connections would have to move, and the {stay} workers that stay have \
                 room for {free} more; close some first, raise the descriptor limit, or add --drain"
            )
        })
    }
}

/// The reason why the memory of the workers does not fit. One line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoRoom {
    /// One worker's memory exceeds the file size limit.
    #[error(
        "cannot create a working memory of {need} bytes: files may have {limit} bytes \
         (RLIMIT_FSIZE, `ulimit -f`); raise that limit, or lower max_connections or pending_output"
    )]
    File {
        /// Bytes of one worker.
        need: u64,
        /// Maximum bytes of a file.
        limit: u64,
    },
    /// The memory of all workers exceeds the supervisor's address space limit.
    #[error(
        "cannot map the working memory of {workers} workers, {need} bytes: the address space has \
         {limit} bytes (RLIMIT_AS, `ulimit -v`); raise that limit, or lower max_connections, \
         pending_output or workers"
    )]
    Addresses {
        /// Target number of workers.
        workers: u16,
        /// Bytes of all workers.
        need: u64,
        /// Maximum bytes of the address space.
        limit: u64,
    },
}

/// Checks that the memory of `workers` workers fits; the rest of the process needs additional
/// memory.
///
/// # Errors
/// The limit that is too small.
pub(crate) fn check_memory(
    config: &Config,
    limits: Limits,
    workers: u16,
    room: MemoryRoom,
) -> Result<(), NoRoom> {
    let layout = limits.layout(config, limits.max_connections);
    let each = u64::try_from(layout.total_bytes()).unwrap_or(u64::MAX);
    let all = each.saturating_mul(workers.into());
    if each > room.file_bytes {
        return Err(NoRoom::File {
            need: each,
            limit: room.file_bytes,
        });
    }
    if all > room.address_bytes {
        return Err(NoRoom::Addresses {
            workers,
            need: all,
            limit: room.address_bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_without_room_names_the_limit() {
        let config = Config {
            max_connections: Some(100),
            ..Config::default()
        };
        let limits = Limits::of_worker(&config, 2, 1024).unwrap();
        let each = limits.layout(&config, limits.max_connections).total_bytes() as u64;
        let room = |file_bytes, address_bytes| {
            let room = MemoryRoom {
                file_bytes,
                address_bytes,
            };
            check_memory(&config, limits, 2, room)
        };
        assert_eq!(room(each, 2 * each), Ok(()));
        let file = room(each - 1, u64::MAX).unwrap_err().to_string();
        assert!(file.contains("ulimit -f"), "{file}");
        let addresses = room(each, 2 * each - 1).unwrap_err().to_string();
        assert!(addresses.contains("ulimit -v"), "{addresses}");
    }

    fn release() -> Release {
        let config = Config::default();
        Release {
            image: Image::of_this_process().unwrap(),
            limits: Limits::of_worker(&config, 1, 1024).unwrap(),
            config,
        }
    }

    #[test]
    fn room_covers_every_worker_and_every_open_connection() {
        let config = Config {
            max_connections: Some(25),
            ..Config::default()
        };
        let limits = Limits::of_worker(&config, 2, 1024).unwrap();
        assert_eq!(limits.room(25, 2, 0, 1024), 50);
        assert_eq!(limits.room(25, 1, 40, 1024), 65);
        assert_eq!(limits.room(500, 1, 600, 1024), 1024 - 74);
        assert_eq!(limits.room(25, 2, u32::MAX, 99), 25);
        let first = release();
        assert_eq!(first.layout(first.limits.max_connections).descriptors, 1024);
    }

    #[test]
    fn operation_begins_with_room_for_all_connections() {
        let too_many = |open: [u64; 3], room, stay| {
            let numbered = open.into_iter().zip(0..);
            let slots = numbered.map(|(open, slot)| Holding {
                slot: SlotId(slot),
                open,
                room,
            });
            Holding::too_many(slots, stay)
        };
        assert_eq!(too_many([10, 10, 10], 10, 3), None);
        assert_eq!(too_many([10, 10, 20], 20, 2), None);
        let leaving = too_many([10, 10, 20], 19, 2).unwrap();
        assert!(
            leaving.starts_with("20 connections would have to move"),
            "{leaving}"
        );
        assert!(
            leaving.contains("2 workers that stay have room for 18 more"),
            "{leaving}"
        );
        let replaced = too_many([10, 12, 10], 11, 3).unwrap();
        assert!(
            replaced.contains("slot 1 would have room for 11 of its 12"),
            "{replaced}"
        );
    }

    #[test]
    fn releases_in_force_or_use_are_kept() {
        let mut releases = Releases::new(release());
        let second = releases.add(release());
        let third = releases.add(release());
        releases.keep_only(&[third]);
        assert!(releases.get(second).is_none());
        releases.commit(second);
        assert_eq!(releases.in_force_id(), ReleaseId::FIRST, "it is gone");
        releases.commit(third);
        releases.keep_only(&[]);
        let left: Vec<_> = releases.iter().map(|(id, _)| id).collect();
        assert_eq!(left, [third]);
        assert_eq!(releases.add(release()), third.next());
    }
}
