//! The service manager: sends the messages of [`Notifier`] to the socket named by `NOTIFY_SOCKET`,
//! with descriptors of listeners and of the lease.
//!
//! Invariants: only the supervisor sends, never one of its children (they do not have the
//! variables); no send blocks, and a refused one is logged once and retried, so a service manager
//! that does not read costs nothing; pending removals survive an exec; without the variable, this
//! does nothing.
//!
//! It must not decide which messages are sent, nor when.

pub(crate) mod activation;
pub(crate) mod inheritance;
pub(crate) mod inquiry;
pub(crate) mod notify;

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};
use serde::{Deserialize, Serialize};

use crate::config::LISTEN_MAX;
use crate::log::event;
use crate::sys::fd::{Descriptor, Inherited, Kept};
use crate::sys::lease;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::status::ServiceManagerStatus;

use super::tokens::Source;
use notify::{Change, Message, Notifier, Unserved, View};

/// The service manager, if there is one. Without one this does nothing.
#[derive(Debug, Default)]
pub(crate) struct Systemd(Option<Manager>);

/// The socket of the service manager, and the messages for it.
#[derive(Debug)]
struct Manager {
    socket: OwnedFd,
    address: SocketAddrUnix,
    notifier: Notifier,
    barrier: Option<Barrier>,
    /// Whether listeners may still be stored that the barrier is to confirm as removed.
    is_releasing: bool,
    /// The service manager's end of the lease, until it is known to be stored.
    lease: Option<OwnedFd>,
    /// Leaving slots whose listeners are no longer stored.
    forgotten: Vec<SlotId>,
    /// The failure of the last request, if it failed: the protocol has no message for that.
    failure: Option<String>,
    counts: Counts,
    /// Messages refused since the last accepted one.
    refused: u64,
}

/// Counts of this instance, across all its programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    sent: u64,
    refused: u64,
}

/// The service manager in a saved state: everything else can be determined by the next program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Slots whose listeners the service manager has yet to remove.
    removals: Vec<SlotId>,
    /// Whether removed listeners may still be stored.
    is_releasing: bool,
    /// [`Manager::lease`].
    lease: Option<Descriptor>,
    counts: Counts,
}

/// A pipe whose end the service manager closes when it has stored and removed what it was to. Until
/// then removed listeners remain in their group and get connections.
#[derive(Debug)]
struct Barrier {
    read: OwnedFd,
    /// The service manager's end, until it has been sent.
    write: Option<OwnedFd>,
}

impl Systemd {
    /// Returns the service manager named by the environment.
    pub(crate) fn from_environment() -> Self {
        Self(Manager::from_environment(Notifier::new))
    }

    /// Sends the changes since the last call. `status_line` returns the status text given the last
    /// failure, `unserved` returns a slot whose queue is not served, `listeners` returns those of
    /// a slot.
    pub(crate) fn notify<'a>(
        &mut self,
        view: View,
        status_line: impl FnOnce(Option<&str>) -> String,
        unserved: impl FnOnce() -> Option<Unserved>,
        listeners: impl Fn(SlotId) -> Vec<BorrowedFd<'a>>,
        now: Tick,
    ) {
        let Some(manager) = &mut self.0 else {
            return;
        };
        let status = || status_line(manager.failure.as_deref());
        match manager.notifier.observe(view, status, unserved, now) {
            Some(Change::Withheld(Unserved { slot, state })) => {
                event!(watchdog_paused, slot = slot.0, state);
            }
            Some(Change::Fed) => event!(watchdog_resumed),
            None => {}
        }
        manager.flush(listeners, now);
    }

    /// Returns whether there is a service manager.
    pub(crate) const fn is_present(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn deadline(&self) -> Option<Tick> {
        self.0.as_ref()?.notifier.deadline()
    }

    /// Records that a signal requests a reload or an upgrade.
    pub(crate) const fn note_reload_request(&mut self) {
        if let Some(manager) = &mut self.0 {
            manager.notifier.note_reload_request();
        }
    }

    /// Sets or clears the failure of the last request.
    pub(crate) fn set_failure(&mut self, failure: Option<String>) {
        if let Some(manager) = &mut self.0 {
            manager.failure = failure;
        }
    }

    /// Stores the slot's listeners, so that they outlive this process.
    pub(crate) fn store(&mut self, slot: SlotId) {
        if let Some(manager) = &mut self.0 {
            manager.notifier.store(slot);
        }
    }

    /// Stores the service manager's end of the lease. Once it is stored, the lease counts.
    pub(crate) fn store_lease(&mut self, end: OwnedFd, registry: &Registry) {
        if let Some(manager) = &mut self.0 {
            manager.lease = Some(end);
            manager.notifier.store_lease();
            manager.await_store(registry);
        }
    }

    /// Removes listeners from the store that have an outdated name.
    pub(crate) fn remove(&mut self, outdated: impl IntoIterator<Item = SlotId>) {
        if let Some(manager) = &mut self.0 {
            for slot in outdated {
                manager.notifier.remove(slot);
            }
        }
    }

    /// Removes the listeners of slots that are about to leave from the store, since they would
    /// still get connections, and has new connections steered away until the removal is certain.
    pub(crate) fn forget(&mut self, slots: impl Iterator<Item = SlotId>, registry: &Registry) {
        let Some(manager) = &mut self.0 else {
            return;
        };
        for slot in slots {
            manager.notifier.remove(slot);
            manager.forgotten.push(slot);
        }
        manager.is_releasing = true;
        manager.await_store(registry);
    }

    /// Stores the listeners of slots that stay after all: no slot leaves any more.
    pub(crate) fn store_forgotten(&mut self, stays: impl Fn(SlotId) -> bool) {
        let Some(manager) = &mut self.0 else {
            return;
        };
        for slot in std::mem::take(&mut manager.forgotten) {
            if stays(slot) {
                manager.notifier.store(slot);
            }
        }
    }

    /// Returns whether the service manager may still have listeners of slots that have left.
    pub(crate) fn is_releasing(&self) -> bool {
        self.0.as_ref().is_some_and(|manager| manager.is_releasing)
    }

    /// Handles a readable barrier. Returns whether the service manager has now closed every listener
    /// that it was to remove.
    pub(crate) fn on_ready(&mut self) -> bool {
        let Some(manager) = &mut self.0 else {
            return false;
        };
        if !manager.barrier.as_ref().is_some_and(Barrier::is_over) {
            return false;
        }
        manager.barrier = None;
        if let Some(Err(error)) = manager.lease.take().map(lease::confirm) {
            event!(lease_not_stored, %error);
        }
        std::mem::take(&mut manager.is_releasing)
    }

    pub(crate) fn status(&self) -> Option<ServiceManagerStatus> {
        let manager = self.0.as_ref()?;
        Some(ServiceManagerStatus {
            sent: manager.counts.sent,
            refused: manager.counts.refused,
            pending: manager.notifier.waiting(),
            releasing: manager.is_releasing,
            watchdog_paused: manager.notifier.withheld().map(str::to_owned),
        })
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        let saved = self.0.as_ref().map(|manager| Saved {
            removals: manager.notifier.removals(),
            is_releasing: manager.is_releasing,
            lease: manager.lease.as_ref().map(|end| kept.keep(end)),
            counts: manager.counts,
        });
        saved.unwrap_or_default()
    }

    /// Restores the state saved by the earlier binary of this process: sends pending messages, and
    /// a new barrier in place of one in progress.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub(crate) fn restore(
        saved: Saved,
        stored: impl IntoIterator<Item = SlotId>,
        inherited: &mut Inherited,
        registry: &Registry,
    ) -> io::Result<Self> {
        let mut restored = Self(Manager::from_environment(Notifier::resumed));
        restored.remove(saved.removals);
        for slot in stored {
            restored.store(slot);
        }
        if let Some(manager) = &mut restored.0 {
            manager.counts = saved.counts;
            manager.is_releasing = saved.is_releasing;
            if saved.is_releasing {
                manager.await_store(registry);
            }
        }
        if let Some(end) = saved.lease {
            restored.store_lease(inherited.take(end)?, registry);
        }
        Ok(restored)
    }
}

impl Manager {
    fn from_environment(make: fn(Option<Duration>) -> Notifier) -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        match open(&name) {
            Ok((socket, address)) => Some(Self {
                socket,
                address,
                notifier: make(watchdog()),
                barrier: None,
                is_releasing: false,
                lease: None,
                forgotten: Vec::new(),
                failure: None,
                counts: Counts::default(),
                refused: 0,
            }),
            Err(error) => {
                let socket = name.display();
                event!(notify_unusable, %socket, %error);
                None
            }
        }
    }

    /// Sends due messages.
    fn flush<'a>(&mut self, listeners: impl Fn(SlotId) -> Vec<BorrowedFd<'a>>, now: Tick) {
        while let Some(message) = self.notifier.poll_message(now) {
            let along = match &message {
                Message::Store(slot) => {
                    Some(listeners(*slot)).filter(|listeners| !listeners.is_empty())
                }
                Message::StoreLease => self.lease.as_ref().map(|end| vec![end.as_fd()]),
                Message::Barrier => self.barrier.as_ref().and_then(Barrier::end),
                _ => Some(Vec::new()),
            };
            // The descriptors to be sent with it have been closed meanwhile.
            let Some(along) = along else { continue };
            let sent = self.send(&message.text(), &along);
            drop(along);
            match sent {
                Ok(()) => self.note_sent(&message),
                Err(error) => {
                    if self.refused == 0 {
                        event!(notify_blocked, %error);
                    }
                    self.refused += 1;
                    self.counts.refused += 1;
                    self.notifier.refused(message, now);
                }
            }
        }
    }

    fn note_sent(&mut self, message: &Message) {
        self.counts.sent += 1;
        if self.refused > 0 {
            event!(notify_recovered, refused = self.refused);
            self.refused = 0;
        }
        if *message == Message::Barrier
            && let Some(barrier) = &mut self.barrier
        {
            // The last copy is the service manager's.
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

    /// Makes the service manager report when it has handled every message so far.
    fn await_store(&mut self, registry: &Registry) {
        self.notifier.barrier();
        // The registration of an earlier one ends with it.
        self.barrier = None;
        let made = Barrier::new().and_then(|barrier| {
            let number = barrier.read.as_raw_fd();
            let token = Source::Barrier.token();
            let watched = registry.register(&mut SourceFd(&number), token, Interest::READABLE);
            self.barrier = Some(barrier);
            watched
        });
        if let Err(error) = made {
            event!(fdstore_removal_unconfirmed, %error);
        }
    }
}

impl Barrier {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let write = Some(write);
        Ok(Self { read, write })
    }

    /// Returns whether the service manager has closed its end. Readiness alone is not enough: it
    /// may have been reported for an earlier barrier, which this one has replaced in the same turn.
    fn is_over(&self) -> bool {
        self.write.is_none() && nix::unistd::read(&self.read, &mut [0]) == Ok(0)
    }

    /// Returns the end that the service manager closes.
    fn end(&self) -> Option<Vec<BorrowedFd<'_>>> {
        Some(vec![self.write.as_ref()?.as_fd()])
    }
}

/// Asks the service manager, if there is one, to wait this long for the calling process.
pub(crate) fn extend_timeout(within: Duration) {
    if let Some(manager) = Manager::from_environment(Notifier::new)
        && let Err(error) = manager.send(&Message::Extend { within }.text(), &[])
    {
        event!(notify_blocked, %error);
    }
}

/// Returns the watchdog timeout of the service manager, if it has one.
fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let limit_us = number("WATCHDOG_USEC").filter(|us| meant && *us > 0)?;
    Some(Duration::from_micros(limit_us))
}

/// Returns a socket to send from, and the destination: a path, or `@` and an abstract name.
fn open(name: &OsStr) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let address = match name.as_bytes() {
        [b'/', ..] => SocketAddrUnix::new(name)?,
        [b'@', rest @ ..] => SocketAddrUnix::new_abstract_name(rest)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "unsupported kind of address",
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
    fn barrier_ends_after_every_writer_closed() {
        let mut barrier = Barrier::new().unwrap();
        assert!(!barrier.is_over(), "it has not been sent");
        let sent = barrier.write.take().unwrap();
        // A stale report of an earlier barrier.
        assert!(!barrier.is_over(), "the service manager still has it");
        drop(sent);
        assert!(barrier.is_over());
    }
}
