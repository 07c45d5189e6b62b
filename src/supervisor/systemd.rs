//! The side of systemd: what [`Notifier`] wants said goes over the socket that `NOTIFY_SOCKET` names,
//! descriptors of listeners with it.
//!
//! Invariants: only the supervisor speaks, never one of its children (they do not have the
//! variables); no send waits, and one that is refused is logged once and tried again, so a service
//! manager that does not read costs nothing; what it has still to let go of is not forgotten by an
//! exec in place; without the variable nothing here does anything.
//!
//! It must not decide what is said, nor when.

pub(crate) mod activation;
pub(crate) mod inheritance;
pub(crate) mod notify;

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use mio::Interest;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};
use serde::{Deserialize, Serialize};

use crate::config::LISTEN_MAX;
use crate::memory;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::status::ServiceManagerStatus;

use super::Supervisor;
use super::fleet::resources::SlotResources;
use super::machine::{Life, Planned};
use super::systemd::notify::{Change, Message, Notifier, View, ailing};
use super::tokens::Source;

/// Where messages go, and what is known of how they are taken.
#[derive(Debug)]
pub(super) struct Systemd {
    socket: OwnedFd,
    address: SocketAddrUnix,
    notifier: Notifier,
    barrier: Option<Barrier>,
    /// Slots that were about to leave, and whose listeners are not kept any more.
    forgotten: Vec<SlotId>,
    /// How the last reload or the like failed, if it did: there is no message for that.
    failure: Option<String>,
    counts: Counts,
    /// Refused since the last one that was taken.
    refused: u64,
}

/// Of this instance, over all its programs.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Counts {
    /// Messages that were taken.
    taken: u64,
    /// Times that one was not.
    refused: u64,
}

/// What the program after an exec needs: all else it can see for itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SavedSystemd {
    /// Slots whose listeners the service manager has not been told to let go of.
    removals: Vec<SlotId>,
    /// It was asked to say when it has let go, and has not.
    barrier: bool,
    counts: Counts,
}

/// A pipe of which the service manager closes its end when it has let go of the listeners that it
/// was told to. As long as it has not, those are in their group and get connections.
#[derive(Debug)]
struct Barrier {
    read: OwnedFd,
    /// Until it has been sent.
    write: Option<OwnedFd>,
}

impl Systemd {
    /// As the environment says; `None`: nobody wants to know.
    pub(super) fn from_environment(make: fn(Option<Duration>) -> Notifier) -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        match open(&name) {
            Ok((socket, address)) => Some(Self {
                socket,
                address,
                notifier: make(watchdog()),
                barrier: None,
                forgotten: Vec::new(),
                failure: None,
                counts: Counts::default(),
                refused: 0,
            }),
            Err(error) => {
                let socket = name.display();
                tracing::warn!(%socket, %error, "the service manager cannot be told anything");
                None
            }
        }
    }

    /// Sends what is due.
    fn flush(&mut self, slots: &[SlotResources], now: Tick) {
        while let Some(message) = self.notifier.poll_message(now) {
            let along = match &message {
                Message::Store(slot) => slots
                    .get(slot.index())
                    .map(SlotResources::borrowed_listeners)
                    .filter(|listeners| !listeners.is_empty()),
                Message::Barrier => self.barrier.as_ref().and_then(Barrier::end),
                _ => Some(Vec::new()),
            };
            // What should go along has been closed meanwhile.
            let Some(along) = along else { continue };
            let sent = self.send(&message.text(), &along);
            drop(along);
            match sent {
                Ok(()) => self.note_taken(&message),
                Err(error) => {
                    if self.refused == 0 {
                        tracing::warn!(%error, "the service manager does not read: trying again");
                    }
                    self.refused += 1;
                    self.counts.refused += 1;
                    self.notifier.refused(message, now);
                }
            }
        }
    }

    fn note_taken(&mut self, message: &Message) {
        self.counts.taken += 1;
        if self.refused > 0 {
            tracing::info!(refused = self.refused, "the service manager reads again");
            self.refused = 0;
        }
        if *message == Message::Barrier
            && let Some(barrier) = &mut self.barrier
        {
            // The last one is the service manager's.
            barrier.write = None;
        }
    }

    fn send(&self, text: &str, along: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTEN_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !along.is_empty() && !control.push(SendAncillaryMessage::ScmRights(along)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let bytes = [IoSlice::new(text.as_bytes())];
        sendmsg_addr(&self.socket, &self.address, &bytes, &mut control, flags)?;
        Ok(())
    }
}

impl Barrier {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let write = Some(write);
        Ok(Self { read, write })
    }

    /// Whether the service manager has closed its end. Readiness alone does not say so: it may have
    /// been reported of an earlier barrier, which this one has replaced in the same turn.
    fn is_over(&self) -> bool {
        self.write.is_none() && nix::unistd::read(&self.read, &mut [0]) == Ok(0)
    }

    /// What the service manager is to close.
    fn end(&self) -> Option<Vec<BorrowedFd<'_>>> {
        Some(vec![self.write.as_ref()?.as_fd()])
    }
}

impl Supervisor {
    /// Tells the service manager what has changed since the last time.
    pub(super) fn notify(&mut self) {
        let Some(mut systemd) = self.systemd.take() else {
            return;
        };
        let now = clock::now();
        let machine = &self.machine;
        let view = View {
            life: machine.life(),
            // To a service manager, one that waits has begun.
            planned: if machine.renewal_is_pending() {
                Some(Planned::Renewal)
            } else {
                machine.planned()
            },
        };
        let excused = view.planned.is_some() || view.life != Life::Serving;
        let status = || self.status_line(systemd.failure.as_deref());
        let ailing = || ailing(machine.slots(), excused);
        match systemd.notifier.observe(view, status, ailing, now) {
            Some(Change::Withheld { cause }) => tracing::warn!(cause, "the watchdog is not fed"),
            Some(Change::Fed) => tracing::info!("the watchdog is fed again"),
            None => {}
        }
        systemd.flush(&self.slots, now);
        self.systemd = Some(systemd);
    }

    /// When to tell more.
    pub(super) fn notify_timeout(&self) -> Option<Tick> {
        self.systemd.as_ref()?.notifier.poll_timeout()
    }

    /// A signal asks for a reload or an upgrade.
    pub(super) const fn note_reload_asked(&mut self) {
        if let Some(systemd) = &mut self.systemd {
            systemd.notifier.reload_asked();
        }
    }

    /// What was asked for last has failed, or has not.
    pub(super) fn note_failure(&mut self, failure: Option<String>) {
        if let Some(systemd) = &mut self.systemd {
            systemd.failure = failure;
        }
    }

    /// The slot's listeners outlive this process from now on.
    pub(super) fn store_listeners(&mut self, slot: SlotId) {
        if let Some(systemd) = &mut self.systemd {
            systemd.notifier.store(slot);
        }
    }

    /// The same for every slot that has some; names in the store that mean something else by now
    /// are `outdated`.
    pub(super) fn store_all_listeners(&mut self, outdated: Vec<SlotId>) {
        let Some(systemd) = &mut self.systemd else {
            return;
        };
        for slot in outdated {
            systemd.notifier.remove(slot);
        }
        for (slot, number) in self.slots.iter().zip(0..) {
            if !slot.listeners().is_empty() {
                systemd.notifier.store(SlotId(number));
            }
        }
    }

    /// What the next program has to know.
    pub(super) fn saved_systemd(&self) -> SavedSystemd {
        let saved = self.systemd.as_ref().map(|systemd| SavedSystemd {
            removals: systemd.notifier.removals(),
            barrier: systemd.barrier.is_some(),
            counts: systemd.counts,
        });
        saved.unwrap_or_default()
    }

    /// What the earlier program could not say is said now, and what is known already is no matter. It
    /// may have been waiting for an answer that would have come to it: that is asked for again.
    pub(super) fn resume_systemd(&mut self, saved: SavedSystemd) {
        if let Some(systemd) = &mut self.systemd {
            systemd.counts = saved.counts;
        }
        self.store_all_listeners(saved.removals);
        if saved.barrier {
            self.await_store();
        }
    }

    /// How the service manager takes what it is told.
    pub(super) fn service_manager_status(&self) -> Option<ServiceManagerStatus> {
        let systemd = self.systemd.as_ref()?;
        Some(ServiceManagerStatus {
            taken: systemd.counts.taken,
            refused: systemd.counts.refused,
            waiting: systemd.notifier.waiting(),
            lets_go: self.store_lets_go(),
            unfed: systemd.notifier.withheld().map(str::to_owned),
        })
    }

    /// The slots from number `first` on are about to leave: what would go on getting connections
    /// after them is not kept any more, and is steered away from until that is certain.
    pub(super) fn forget_listeners_from(&mut self, first: u16) {
        let Some(systemd) = &mut self.systemd else {
            return;
        };
        let all = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        for slot in first..all {
            systemd.notifier.remove(SlotId(slot));
        }
        systemd.forgotten.extend((first..all).map(SlotId));
        self.await_store();
    }

    /// Nobody leaves any more: of the slots that were about to, those that have stayed are to be kept
    /// again.
    pub(super) fn store_forgotten_listeners(&mut self) {
        let Some(systemd) = &mut self.systemd else {
            return;
        };
        for slot in std::mem::take(&mut systemd.forgotten) {
            let stays = self.slots.get(slot.index());
            if stays.is_some_and(|slot| !slot.listeners().is_empty()) {
                systemd.notifier.store(slot);
            }
        }
    }

    /// Has the service manager say when it has let go of all that it was told to let go of.
    fn await_store(&mut self) {
        let Some(systemd) = &mut self.systemd else {
            return;
        };
        systemd.notifier.barrier();
        let earlier = match Barrier::new() {
            Ok(barrier) => systemd.barrier.replace(barrier),
            Err(error) => {
                tracing::warn!(%error, "it will not be known when the store has let go");
                systemd.barrier.take()
            }
        };
        // Its registration ends with it.
        drop(earlier);
        let barrier = self.systemd.as_ref().and_then(|it| it.barrier.as_ref());
        if let Some(number) = barrier.map(|barrier| barrier.read.as_raw_fd())
            && let Err(error) = self.watch(number, Source::Barrier, Interest::READABLE)
        {
            tracing::warn!(%error, "it will not be known when the store has let go");
        }
    }

    /// Whether the service manager may still have listeners of slots that have left.
    pub(super) fn store_lets_go(&self) -> bool {
        self.systemd.as_ref().is_some_and(|it| it.barrier.is_some())
    }

    /// The service manager has let go of what it was told to.
    pub(super) fn look_at_barrier(&mut self) {
        let barrier = self
            .systemd
            .as_mut()
            .and_then(|it| it.barrier.take_if(|barrier| barrier.is_over()));
        // One that changes the number of slots steers by itself, and spreads when it is done.
        if barrier.is_some() && self.machine.planned() != Some(Planned::Scaling) {
            self.spread();
        }
    }

    fn status_line(&self, failure: Option<&str>) -> String {
        let children = self.slots.iter().flat_map(SlotResources::children);
        let open: u64 = children
            .map(|child| memory::open_connections(&child.memory))
            .sum();
        let workers = self.machine.policy().workers;
        let mut line = format!("{workers} workers, {open} connections");
        if self.machine.life() == Life::Serving {
            let status = self.status();
            let unready = status.unready().map(|why| format!("not ready: {why}"));
            let degraded = || status.degraded().map(|what| format!("degraded: {what}"));
            let told = unready.or_else(degraded);
            line.extend(told.map(|told| format!("; {told}")));
        } else {
            line = format!("{line}; {}", self.machine.phase_name());
        }
        if let Some(doing) = self.machine.operation() {
            line = format!("{line}; {doing}");
        }
        if let Some(failure) = failure {
            line = format!("{line}; {failure}");
        }
        line
    }
}

/// How long the service manager waits for a sign of life of this process, if it does.
fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let limit_us = number("WATCHDOG_USEC").filter(|us| meant && *us > 0)?;
    Some(Duration::from_micros(limit_us))
}

/// A socket to send from, and where to: a path, or `@` and a name that is in no file system.
fn open(name: &OsStr) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let address = match name.as_bytes() {
        [b'/', ..] => SocketAddrUnix::new(name)?,
        [b'@', rest @ ..] => SocketAddrUnix::new_abstract_name(rest)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no such kind of address",
            ));
        }
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barrier_is_over_when_every_writer_is_gone() {
        let mut barrier = Barrier::new().unwrap();
        assert!(!barrier.is_over(), "it has not been sent");
        let sent = barrier.write.take().unwrap();
        // What a report of an earlier barrier finds.
        assert!(!barrier.is_over(), "the service manager still has it");
        drop(sent);
        assert!(barrier.is_over());
    }
}
