//! Adoption: a starting supervisor finds the workers of one that has died, and goes on with them.
//!
//! It connects at every rendezvous in its directory. A worker whose supervisor lives refuses; an
//! orphan introduces itself. Those that listen on the same addresses are adopted, one for each slot;
//! those that are in the way are told to stop; all others are left alone.
//!
//! Invariants: nothing here is irrevocable but the signal to stop: an orphan whose connection is
//! closed without [`ToWorker::Adopt`] serves on; the process that is signalled, and later killed, is
//! the one that the kernel names as the sender of the introduction; all waits together are bounded.

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
use crate::memory::{self, is_believable};
use crate::sys::image::Process;
use crate::sys::shared::SharedMemory;
use crate::wire::{Adoptable, Envelope, FromWorker, Listen, ToWorker};
use uppercased_ctl::clock;
use uppercased_ctl::identity::{SlotId, WorkerId};

use super::rendezvous::{Directory, RendezvousFile};

/// Set by systemd for a unit with `RuntimeDirectory=`.
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// A worker without a supervisor.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) worker: WorkerId,
    pub(crate) process: Process,
    pub(crate) channel: Channel<ToWorker, FromWorker>,
    pub(crate) memory: SharedMemory,
    /// In the order of its addresses.
    pub(crate) listeners: Vec<OwnedFd>,
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
    /// The orphans to adopt, one for each slot, by slot.
    pub(crate) orphans: Vec<Orphan>,
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
                adoption.add(*orphan);
            } else if is_of_unit || listen.iter().any(|one| wanted.contains(one)) {
                adoption.others.push(orphan.process);
            }
        }
        adoption.orphans.sort_by_key(|orphan| orphan.worker.slot);
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

    /// Returns the number of slots up to the last that has an orphan.
    pub(crate) fn slots(&self) -> u16 {
        let last = self.orphans.last();
        last.map_or(0, |orphan| orphan.worker.slot.0.saturating_add(1))
    }

    /// Returns duplicates of the listeners of the orphan of `slot`, in the order of the addresses.
    pub(crate) fn listeners_of(&self, slot: SlotId) -> Option<Vec<OwnedFd>> {
        let orphan = self.orphans.iter().find(|it| it.worker.slot == slot)?;
        let duplicates = orphan.listeners.iter().map(OwnedFd::try_clone);
        in_order(
            duplicates.collect::<Result<_, _>>().ok()?,
            self.addresses()?,
        )
    }

    /// Returns the inodes of the orphans' listeners, as in the kernel's lists.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = u64> + '_ {
        let listeners = self.orphans.iter().flat_map(|orphan| &orphan.listeners);
        listeners.filter_map(|it| Some(fstat(it).ok()?.st_ino))
    }

    /// Adds an orphan. Of two of a slot the one with fewer connections stops: their supervisor had
    /// died while one was to replace the other.
    fn add(&mut self, orphan: Orphan) {
        let slot = orphan.worker.slot;
        let mut orphans = self.orphans.iter_mut();
        let Some(other) = orphans.find(|it| it.worker.slot == slot) else {
            return self.orphans.push(orphan);
        };
        let rank = |it: &Orphan| (memory::open_connections(&it.memory), it.worker.generation);
        let mut loser = orphan;
        if rank(&loser) > rank(other) {
            std::mem::swap(other, &mut loser);
        }
        self.others.push(loser.process);
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
                Err(detail) => event!(orphan_not_adopted, path, detail),
            }
        }
        waiting = rest;
        if clock::now() >= until {
            for (_, file) in waiting.drain(..) {
                let path = file.path().display().to_string();
                event!(orphan_not_adopted, path, detail = "no answer");
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
    let listeners = in_order(rest.collect(), &introduction.listen)
        .ok_or("its listeners are not those of its addresses")?;
    Ok(Met::Orphan(Box::new(Orphan {
        worker: envelope.worker,
        process,
        channel: Channel::over(socket),
        memory,
        listeners,
        introduction,
        file,
    })))
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
