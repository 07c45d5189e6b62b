//! Repeated samples of a running server from outside: its status, the kernel's list of the sockets
//! on its ports, and the rates since the previous sample. Used by `status` and `top`.
//!
//! The list is that of the server's network namespace, read through `/proc/PID/net`, so it is
//! correct even if the caller runs in another namespace. The server's own listeners are identified
//! by the inodes in the status. Only for foreign listeners, and sockets listed individually, are
//! the descriptors of all processes searched.
//!
//! Invariant: however many sockets there are, reading the list takes a small part of a CPU's time
//! (`SOCKETS_PAUSE_FACTOR`): between two readings the last one is shown, with its age. It must not
//! be used by a server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::clock::{self, Tick};
use crate::control::client::{Conversation, Error};
use crate::control::{Reply, Request};
use crate::identity::SlotId;
use crate::sockets;
use crate::status::{Rates, Sample, Sockets, Status};

/// Minimum interval between two readings of the list of sockets, as a multiple of the CPU time that
/// a reading took, with an upper bound.
const SOCKETS_PAUSE_FACTOR: u32 = 9;
const SOCKETS_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Samples one server and keeps the previous sample.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Number of sockets to list individually; `None`: sockets are only counted.
    list: Option<usize>,
    /// The owner of each socket searched for so far; `None`: no process that may be inspected.
    owners: BTreeMap<u64, Option<(i32, String)>>,
    before: Option<Status>,
    sockets: Option<Reading>,
}

/// One reading of the kernel's list.
#[derive(Debug)]
struct Reading {
    sockets: Sockets,
    at: Tick,
    /// The earliest time of the next reading.
    due: Tick,
}

/// A server's reply to a status request.
#[derive(Debug)]
pub enum Answer {
    /// The status, and the server's process ID in this namespace.
    Status(Box<Status>, Option<i32>),
    /// Another reply.
    Other(Reply),
}

/// Requests the status of the server at `path` and waits for it.
///
/// # Errors
/// No reply was received.
pub fn request_status(path: &Path, within: Option<Duration>) -> Result<Answer, Error> {
    let mut conversation = Conversation::open(path, within)?;
    conversation.ask(&Request::Status)?;
    match conversation.next_reply()? {
        Some(Reply::Status(status)) => Ok(Answer::Status(status, conversation.server())),
        Some(other) => Ok(Answer::Other(other)),
        None => Err(Error::Lost),
    }
}

impl Sampler {
    /// Returns a sampler that lists at most `list` sockets individually, if any.
    #[must_use]
    pub fn new(list: Option<usize>) -> Self {
        Self {
            list,
            ..Self::default()
        }
    }

    /// Sets the earlier status to compare with, without sampling anything else.
    pub fn compare_with(&mut self, before: Status) {
        self.before = Some(before);
    }

    /// Adds to a status the data visible to this process.
    pub fn complete(&mut self, status: Status, server: Option<i32>) -> Sample {
        let before = self.before.as_ref();
        let rates = before.and_then(|before| Rates::between(before, &status));
        let sockets = self.sockets(&status, server);
        self.before = Some(status.clone());
        Sample {
            status,
            sockets: Some(sockets),
            rates,
        }
    }

    fn sockets(&mut self, status: &Status, server: Option<i32>) -> Sockets {
        let now = clock::now();
        let latest = match self.sockets.take() {
            Some(latest) if now < latest.due => latest,
            Some(_) | None => {
                let before = cpu_time();
                let sockets = self.read_sockets(status, server);
                let pause = cpu_time().saturating_sub(before) * SOCKETS_PAUSE_FACTOR;
                Reading {
                    sockets,
                    at: now,
                    due: now + pause.min(SOCKETS_PAUSE_MAX),
                }
            }
        };
        let sockets = Sockets {
            age_ms: clock::millis(now.since(latest.at)),
            ..latest.sockets.clone()
        };
        self.sockets = Some(latest);
        sockets
    }

    fn read_sockets(&mut self, status: &Status, server: Option<i32>) -> Sockets {
        let Some(pid) = server else {
            let why = "the server is in a PID namespace that is not visible from here";
            return Sockets::unknown(why.to_owned());
        };
        let mut sockets = match sockets::sockets_of(pid) {
            Ok(entries) => Sockets::count(entries, status, self.list),
            Err(error) => return Sockets::unknown(format!("cannot read /proc/{pid}/net: {error}")),
        };
        // Process IDs from another namespace are meaningless here.
        let same_numbers = u32::try_from(pid).is_ok_and(|pid| pid == status.pid);
        let workers = status.slots.iter().filter(|_| same_numbers);
        let workers: BTreeMap<u32, SlotId> = workers
            .filter_map(|slot| Some((slot.pid?, slot.slot)))
            .collect();
        self.name_owners(&mut sockets, &workers);
        sockets
    }

    /// Searches for the owners of sockets not yet searched for.
    fn name_owners(&mut self, sockets: &mut Sockets, workers: &BTreeMap<u32, SlotId>) {
        let wanted: BTreeSet<u64> = sockets.foreign().map(|one| one.inode).collect();
        self.owners.retain(|inode, _| wanted.contains(inode));
        let known = |inode: &u64| self.owners.contains_key(inode);
        let new: BTreeSet<u64> = wanted.iter().copied().filter(|it| !known(it)).collect();
        if !new.is_empty() {
            let mut found = sockets::owners_of(&new);
            let owners = new.into_iter().map(|inode| (inode, found.remove(&inode)));
            self.owners.extend(owners);
        }
        for one in sockets.foreign() {
            if let Some(Some((pid, program))) = self.owners.get(&one.inode) {
                one.owner.pid = Some(*pid);
                one.owner.program = Some(program.clone());
                let worker = u32::try_from(*pid).ok().and_then(|pid| workers.get(&pid));
                one.owner.slot = worker.copied();
            }
        }
    }
}

/// Returns the CPU time of this thread; zero if unknown.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
