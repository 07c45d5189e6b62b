//! One look after the other at a running server, from outside: its status, what the kernel has on its
//! ports, and the rates since the look before. What `status` and `top` show.
//!
//! The kernel's list is that of the server's network namespace, read through `/proc/PID/net`, so it
//! is the right one also where the server lives in another namespace than whoever asks. Its
//! listeners are known by the inodes in the status; only listeners of others, and sockets listed one
//! by one, are searched for among the descriptors of all processes.
//!
//! Invariant: however many sockets there are, reading the list takes a small part of a CPU's time
//! (`SOCKETS_REST_FACTOR`): between two readings the last one is shown, with its age.
//! It must not be used by a server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::clock::{self, Tick};
use crate::control::client::{Conversation, Error};
use crate::control::{Reply, Request};
use crate::identity::SlotId;
use crate::sockets;
use crate::status::{Look, Rates, Sockets, Status};

/// From one reading of the list of sockets to the next this many times the CPU time that it took
/// passes, and at most so long.
const SOCKETS_REST_FACTOR: u32 = 9;
const SOCKETS_REST_MAX: Duration = Duration::from_secs(10);

/// Looks at one server, and remembers what it saw.
#[derive(Debug, Default)]
pub struct Looker {
    /// How many sockets are listed one by one; `None`: they are only counted.
    list: Option<usize>,
    /// Who has a socket, as far as it was searched for; `None`: nobody that may be looked into.
    owners: BTreeMap<u64, Option<(i32, String)>>,
    before: Option<Status>,
    sockets: Option<Reading>,
}

/// What was read of the kernel's list.
#[derive(Debug)]
struct Reading {
    sockets: Sockets,
    at: Tick,
    /// When it may be read again.
    due: Tick,
}

/// What a server answers who is asked for its status.
#[derive(Debug)]
pub enum Answer {
    /// The status, and the server's process number as it is known here.
    Status(Box<Status>, Option<i32>),
    /// Something else.
    Other(Reply),
}

/// Asks the server at `path` for its status and waits for it.
///
/// # Errors
/// There is no answer.
pub fn ask(path: &Path, within: Option<Duration>) -> Result<Answer, Error> {
    let mut conversation = Conversation::open(path, within)?;
    conversation.ask(&Request::Status)?;
    match conversation.next_reply()? {
        Some(Reply::Status(status)) => Ok(Answer::Status(status, conversation.server())),
        Some(other) => Ok(Answer::Other(other)),
        None => Err(Error::Lost),
    }
}

impl Looker {
    /// Lists at most `list` sockets one by one, if any.
    #[must_use]
    pub fn new(list: Option<usize>) -> Self {
        Self {
            list,
            ..Self::default()
        }
    }

    /// Takes a status as the earlier one of two, without looking at anything else.
    pub fn compare_with(&mut self, before: Status) {
        self.before = Some(before);
    }

    /// Adds to a status what can be seen from here.
    pub fn complete(&mut self, status: Status, server: Option<i32>) -> Look {
        let before = self.before.as_ref();
        let rates = before.and_then(|before| Rates::between(before, &status));
        let sockets = self.sockets(&status, server);
        self.before = Some(status.clone());
        Look {
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
                let rest = cpu_time().saturating_sub(before) * SOCKETS_REST_FACTOR;
                Reading {
                    sockets,
                    at: now,
                    due: now + rest.min(SOCKETS_REST_MAX),
                }
            }
        };
        let age = u64::try_from(now.since(latest.at).as_millis());
        let sockets = Sockets {
            age_ms: age.unwrap_or(u64::MAX),
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
        // Where the server sees other process numbers than we do they mean nothing here.
        let same_numbers = u32::try_from(pid).is_ok_and(|pid| pid == status.pid);
        let workers = status.slots.iter().filter(|_| same_numbers);
        let workers: BTreeMap<u32, SlotId> = workers
            .filter_map(|slot| Some((slot.pid?, slot.slot)))
            .collect();
        self.name_owners(&mut sockets, &workers);
        sockets
    }

    /// Searches for those that have not been searched for before.
    fn name_owners(&mut self, sockets: &mut Sockets, workers: &BTreeMap<u32, SlotId>) {
        let wanted: BTreeSet<u64> = sockets.strangers().map(|one| one.inode).collect();
        self.owners.retain(|inode, _| wanted.contains(inode));
        let known = |inode: &u64| self.owners.contains_key(inode);
        let new: BTreeSet<u64> = wanted.iter().copied().filter(|it| !known(it)).collect();
        if !new.is_empty() {
            let mut found = sockets::owners_of(&new);
            let owners = new.into_iter().map(|inode| (inode, found.remove(&inode)));
            self.owners.extend(owners);
        }
        for one in sockets.strangers() {
            if let Some(Some((pid, program))) = self.owners.get(&one.inode) {
                one.owner.pid = Some(*pid);
                one.owner.program = Some(program.clone());
                let worker = u32::try_from(*pid).ok().and_then(|pid| workers.get(&pid));
                one.owner.slot = worker.copied();
            }
        }
    }
}

/// What this thread has used; zero if the system does not say.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
