//! Adoption: a starting supervisor finds the workers of one that has died, and goes on with them.
//!
//! It connects at every rendezvous in its directory. A worker whose supervisor lives refuses; an
//! orphan introduces itself. Those that listen on the same addresses are adopted, one for each slot,
//! and another of the slot, which hands its connections over to it; so are those that leave, if one
//! serves. Those that are in the way are told to stop; all others are left alone.
//!
//! Invariants: nothing here is irrevocable but the signal to stop: an orphan whose connection is
//! closed without [`ToWorker::Adopt`] serves on; the process that is signalled, and later killed, is
//! the one that the kernel names as the sender of the introduction; all waits together are bounded.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use socket2::SockRef;

use crate::channel::Channel;
use crate::channel::rendezvous::{Introduction, receive_introduction, visit};
use crate::config::{ADOPTION_TIMEOUT, Config, DRAIN_TIMEOUT_MAX};
use crate::log::event;
use crate::memory::is_believable;
use crate::sys::image::Process;
use crate::sys::shared::SharedMemory;
use crate::wire::{Adoptable, Envelope, FromWorker, Listen, ToWorker};
use uppercased_ctl::clock;
use uppercased_ctl::identity::{SlotId, WorkerId};
use uppercased_ctl::limits::WORKERS_MAX;

use super::machine::Adopted;
use super::rendezvous::{Directory, RendezvousFile};

/// Set by systemd for a unit with `RuntimeDirectory=`.
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// Orphans of one slot that are adopted: one that serves, and one that hands over to it.
const ORPHANS_PER_SLOT: usize = 2;

/// A worker without a supervisor.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) worker: WorkerId,
    pub(crate) process: Process,
    pub(crate) channel: Channel<ToWorker, FromWorker>,
    pub(crate) memory: SharedMemory,
    /// In the order of its addresses; none if it leaves.
    pub(crate) listeners: Vec<OwnedFd>,
    /// The listeners of other slots, likewise.
    passed: Vec<(SlotId, Vec<OwnedFd>)>,
    pub(crate) introduction: Adoptable,
    pub(crate) file: RendezvousFile,
}

/// A process that has introduced itself.
#[derive(Debug)]
enum Met {
    Orphan(Box<Orphan>),
    /// It uses another version of the messages.
    Incompatible(Process),
}

/// What a starting supervisor does with the orphans.
#[derive(Debug, Default)]
pub(crate) struct Adoption {
    /// The orphans to adopt, by slot, the one that is to serve first.
    pub(crate) orphans: Vec<Orphan>,
    /// Those that leave, without listeners.
    pub(crate) leaving: Vec<Orphan>,
    /// Those in the way.
    others: Vec<Process>,
    /// Whether these are about to close their listeners.
    pub(crate) are_leaving: bool,
}

impl Adoption {
    /// Meets the orphans in `directory`, and chooses those to adopt, if `adopt` is set, for a server
    /// that listens on `wanted`, and those that are in its way.
    pub(crate) fn find(directory: Option<&Directory>, wanted: &[Listen], adopt: bool) -> Self {
        let mut adoption = Self::default();
        // A unit's runtime directory belongs to one instance, which has other addresses now.
        let is_of_unit = std::env::var_os(RUNTIME_DIRECTORY).is_some();
        for met in directory.map(meet).unwrap_or_default() {
            let orphan = match met {
                Met::Orphan(orphan) => orphan,
                Met::Incompatible(process) => {
                    adoption.others.push(process);
                    continue;
                }
            };
            let listen = &orphan.introduction.listen;
            if adopt && is_same(listen, wanted) {
                match orphan.introduction.leaves_within_ms {
                    None => adoption.orphans.push(*orphan),
                    Some(_) => adoption.leaving.push(*orphan),
                }
            } else if is_of_unit || listen.iter().any(|one| wanted.contains(one)) {
                adoption.others.push(orphan.process);
            }
        }
        adoption.arrange();
        adoption
    }

    /// Returns the configuration with its addresses, which are `wanted`, in the order of the
    /// orphans'. Everything else is not theirs: what a worker says must not decide how others run.
    pub(crate) fn in_order(&self, mut config: Config, wanted: &[Listen]) -> Config {
        if let Some(ordered) = self.addresses() {
            let places = ordered
                .iter()
                .filter_map(|one| wanted.iter().position(|it| it == one));
            let listen = places.filter_map(|place| config.listen.get(place).cloned());
            config.listen = listen.collect();
        }
        config
    }

    /// Returns the addresses of the orphans, in the order of the newest one's.
    pub(crate) fn addresses(&self) -> Option<&[Listen]> {
        let newest = self.orphans.iter().max_by_key(|it| it.worker.generation)?;
        Some(&newest.introduction.listen)
    }

    /// Returns the number of slots up to the last that has an orphan or listeners.
    pub(crate) fn slots(&self) -> u16 {
        let own = self.orphans.iter().map(|orphan| orphan.worker.slot);
        let passed = self.orphans.iter().flat_map(|orphan| &orphan.passed);
        let all = own.chain(passed.map(|(slot, _)| *slot));
        all.max().map_or(0, |slot| slot.0.saturating_add(1))
    }

    /// Returns duplicates of the listeners of `slot`, in the order of the addresses: its orphan's, or
    /// those that were lent to another one.
    pub(crate) fn listeners_of(&self, slot: SlotId) -> Option<Vec<OwnedFd>> {
        let mut own = self.orphans.iter().filter(|it| it.worker.slot == slot);
        let mut passed = self.orphans.iter().flat_map(|orphan| &orphan.passed);
        let passed = || Some(&passed.find(|(lent, _)| *lent == slot)?.1);
        let listeners = own.next().map(|orphan| &orphan.listeners).or_else(passed)?;
        let duplicates = listeners.iter().map(OwnedFd::try_clone);
        in_order(
            duplicates.collect::<Result<_, _>>().ok()?,
            self.addresses()?,
        )
    }

    /// Returns the inodes of the orphans' listeners, as in the kernel's lists.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = u64> + '_ {
        let listeners = self.orphans.iter().flat_map(|orphan| {
            let passed = orphan.passed.iter().flat_map(|(_, passed)| passed);
            orphan.listeners.iter().chain(passed)
        });
        listeners.filter_map(inode)
    }

    /// Sorts the orphans by slot, the one that is to serve first: the newest that does not hand over.
    /// One other of the slot follows it; there are more only if several supervisors died.
    fn arrange(&mut self) {
        let rank = |it: &Orphan| {
            let is_handing_over = it.introduction.is_handing_over;
            let newest = Reverse(it.worker.generation);
            (it.worker.slot, is_handing_over, newest)
        };
        self.orphans.sort_by_key(rank);
        let mut counted = BTreeMap::new();
        let surplus = self.orphans.extract_if(.., |orphan| {
            let count: &mut usize = counted.entry(orphan.worker.slot).or_default();
            *count += 1;
            *count > ORPHANS_PER_SLOT
        });
        self.others.extend(surplus.map(|orphan| orphan.process));
        let is_server = !self.orphans.is_empty();
        self.leaving
            .retain(|orphan| is_server && orphan.worker.slot.0 < WORKERS_MAX);
    }

    /// Returns the workers to adopt that leave, each with its time.
    pub(crate) fn leaving(&self) -> Vec<(WorkerId, Duration)> {
        let time = |orphan: &Orphan| orphan.introduction.leaves_within_ms.unwrap_or(0);
        let leaving = self.leaving.iter();
        let leaving = leaving.map(|it| (it.worker, Duration::from_millis(time(it))));
        leaving.collect()
    }

    /// Returns the workers to adopt.
    pub(crate) fn adopted(&self) -> Vec<Adopted> {
        let slots = self
            .orphans
            .chunk_by(|one, other| one.worker.slot == other.worker.slot);
        let adopted = slots.filter_map(|of_slot| {
            let (first, rest) = of_slot.split_first()?;
            Some(Adopted {
                worker: first.worker,
                other: rest.first().map(|other| other.worker.generation),
            })
        });
        adopted.collect()
    }

    /// Tells the orphans that are in the way to stop.
    pub(crate) fn end_others(&mut self) {
        self.are_leaving = !self.others.is_empty();
        for process in self.others.drain(..) {
            let worker_pid = process.pid();
            match process.terminate() {
                Ok(()) => event!(orphan_ended, worker_pid),
                Err(error) => event!(orphan_not_ended, worker_pid, %error),
            }
        }
    }
}

/// Returns the processes that have no supervisor, each with its drain timeout.
pub(crate) fn find_orphans(directory: &Directory) -> Vec<(Process, Duration)> {
    let met = meet(directory).into_iter().map(|met| match met {
        Met::Orphan(orphan) => {
            let drain = Duration::from_millis(orphan.introduction.drain_timeout_ms);
            (orphan.process, drain.min(DRAIN_TIMEOUT_MAX))
        }
        Met::Incompatible(process) => (process, Config::default().drain_timeout),
    });
    met.collect()
}

/// Connects to every process in the directory; returns those that introduce themselves in time.
fn meet(directory: &Directory) -> Vec<Met> {
    let me = nix::unistd::geteuid().as_raw();
    let mut waiting = Vec::new();
    for file in directory.files() {
        let path = file.path().display();
        match visit(file.path()) {
            // Only this user, or root, binds a socket in that directory.
            Ok((socket, uid)) if uid == me => waiting.push((socket, file)),
            Ok((_, uid)) => event!(orphan_of_other_user, %path, client_uid = uid),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => file.remove(),
            Err(error) => event!(orphan_not_reached, %path, %error),
        }
    }
    let until = clock::now() + ADOPTION_TIMEOUT;
    let mut met = Vec::new();
    while !waiting.is_empty() {
        let left = until.since(clock::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut sockets: Vec<_> = waiting
            .iter()
            .map(|(socket, _)| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        // An interruption is repeated, within the time.
        let _ = poll(&mut sockets, timeout);
        let ready: Vec<bool> = sockets.iter().map(|it| it.any() == Some(true)).collect();
        let mut ready = ready.into_iter();
        let (answered, rest) = waiting
            .into_iter()
            .partition::<Vec<_>, _>(|_| ready.next() == Some(true));
        for (socket, file) in answered {
            let path = file.path().display().to_string();
            match receive_introduction(&socket)
                .map_err(|error| error.to_string())
                .and_then(|introduction| understand(introduction, socket, file))
            {
                Ok(one) => met.push(one),
                Err(error) => event!(orphan_not_adopted, path, error),
            }
        }
        waiting = rest;
        if clock::now() >= until {
            for (_, file) in waiting.drain(..) {
                let path = file.path().display().to_string();
                event!(orphan_not_adopted, path, error = "no answer");
            }
        }
    }
    met
}

/// Interprets an introduction.
///
/// # Errors
/// Why the worker is not adopted.
fn understand(
    introduction: Introduction,
    socket: OwnedFd,
    file: RendezvousFile,
) -> Result<Met, String> {
    let Introduction {
        frame,
        descriptors,
        sender,
    } = introduction;
    let decoded = Envelope::<FromWorker>::decode(&frame);
    let mut descriptors = descriptors.into_iter();
    // First of all descriptors in every version.
    let mut process = || {
        let pidfd = descriptors.next().ok_or("it sent no pidfd")?;
        Process::sender(sender, pidfd).map_err(|error| format!("its pidfd is not valid: {error}"))
    };
    let (envelope, wanted) = match decoded {
        Ok(decoded) => decoded,
        Err(error) => {
            event!(orphan_incompatible, %error);
            return process().map(Met::Incompatible);
        }
    };
    let introduction = match envelope.message {
        FromWorker::Adoptable(introduction) => *introduction,
        FromWorker::NotAdoptable { cause } => return Err(cause),
        _ => return Err("it sent another message".to_owned()),
    };
    if file.worker() != Some(envelope.worker) {
        return Err(format!("it claims to be {}", envelope.worker));
    }
    let process = process()?;
    let rest: Vec<OwnedFd> = descriptors.collect();
    if rest.len() + 1 != wanted {
        return Err("descriptors were lost in transit; raise the descriptor limit".to_owned());
    }
    let mut rest = rest.into_iter();
    let memory = rest.next().ok_or("it sent no memory")?;
    let memory = SharedMemory::map(memory).map_err(|error| error.to_string())?;
    if !is_believable(&memory) {
        return Err("its memory is not valid".to_owned());
    }
    let wrong = "its listeners are not those of its addresses";
    let addresses = &introduction.listen;
    let mut next = || {
        let listeners = rest.by_ref().take(addresses.len()).collect();
        in_order(listeners, addresses).ok_or(wrong)
    };
    let listeners = match introduction.leaves_within_ms {
        None => next()?,
        Some(_) => Vec::new(),
    };
    let passed = introduction.passed.iter().map(|slot| Ok((*slot, next()?)));
    let passed: Vec<(SlotId, Vec<OwnedFd>)> = passed.collect::<Result<_, &str>>()?;
    let all = passed.iter().map(|(_, passed)| passed).chain([&listeners]);
    let inodes: BTreeSet<u64> = all.clone().flatten().filter_map(inode).collect();
    if inodes.len() != all.flatten().count() {
        return Err("it sent a listener twice".to_owned());
    }
    Ok(Met::Orphan(Box::new(Orphan {
        worker: envelope.worker,
        process,
        channel: Channel::over(socket),
        memory,
        listeners,
        passed,
        introduction,
        file,
    })))
}

fn inode(socket: &OwnedFd) -> Option<u64> {
    Some(fstat(socket).ok()?.st_ino)
}

/// Returns the listeners in the order of their addresses; `None` if one is missing.
pub(crate) fn in_order(listeners: Vec<OwnedFd>, addresses: &[Listen]) -> Option<Vec<OwnedFd>> {
    let mut left = listeners;
    addresses
        .iter()
        .map(|address| {
            let bound = |it: &OwnedFd| SockRef::from(it).local_addr().ok()?.as_socket();
            let mut all = left.iter();
            let at = all.position(|it| bound(it) == Some(address.addr))?;
            Some(left.swap_remove(at))
        })
        .collect()
}

/// Returns whether both are the same addresses, in any order.
fn is_same(these: &[Listen], those: &[Listen]) -> bool {
    let within = |one: &[Listen], other: &[Listen]| one.iter().all(|it| other.contains(it));
    within(these, those) && within(those, these)
}
