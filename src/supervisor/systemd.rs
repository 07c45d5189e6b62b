//! The side of systemd: what [`Notifier`] wants said goes over the socket that `NOTIFY_SOCKET` names,
//! descriptors of listeners with it.
//!
//! Invariants: only the supervisor speaks, never one of its children (they do not have the
//! variables); no send waits, and one that is refused is logged once and tried again, so a service
//! manager that does not read costs nothing; without the variable nothing here does anything.
//!
//! It must not decide what is said, nor when.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};

use crate::clock::{self, Tick};
use crate::config::LISTEN_MAX;
use crate::identity::SlotId;
use crate::memory;

use super::Supervisor;
use super::notify::{Change, Message, Notifier, Phase, View, ailing};
use super::resources::SlotResources;

/// Where messages go, and what is known of how they are taken.
#[derive(Debug)]
pub(super) struct Systemd {
    socket: OwnedFd,
    address: SocketAddrUnix,
    notifier: Notifier,
    /// Refused since the last one that was taken.
    refused: u64,
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
                refused: 0,
            }),
            Err(error) => {
                let socket = name.display();
                tracing::warn!(%socket, %error, "the service manager cannot be told anything");
                None
            }
        }
    }

    /// Sends what is due. `listeners` has those of a slot.
    fn flush<'a>(&mut self, listeners: impl Fn(SlotId) -> Vec<BorrowedFd<'a>>, now: Tick) {
        while let Some(message) = self.notifier.poll_message(now) {
            let along = match &message {
                Message::Store(slot) => listeners(*slot),
                _ => Vec::new(),
            };
            if along.is_empty() && matches!(message, Message::Store(_)) {
                // They have been closed meanwhile.
                continue;
            }
            match self.send(&message.text(), &along) {
                Ok(()) if self.refused > 0 => {
                    tracing::info!(refused = self.refused, "the service manager reads again");
                    self.refused = 0;
                }
                Ok(()) => {}
                Err(error) => {
                    if self.refused == 0 {
                        tracing::warn!(%error, "the service manager does not read: trying again");
                    }
                    self.refused += 1;
                    self.notifier.refused(message, now);
                }
            }
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

impl Supervisor {
    /// Tells the service manager what has changed since the last time.
    pub(super) fn notify(&mut self) {
        let Some(mut systemd) = self.systemd.take() else {
            return;
        };
        let now = clock::now();
        let view = self.view();
        let change = systemd.notifier.observe(&view, || self.status_line(), now);
        match change {
            Some(Change::Withheld { cause }) => {
                tracing::warn!(cause, "the watchdog is not fed");
            }
            Some(Change::Fed) => tracing::info!("the watchdog is fed again"),
            None => {}
        }
        let listeners = |slot: SlotId| {
            let slot = self.slots.get(slot.index());
            slot.map(SlotResources::borrowed_listeners)
                .unwrap_or_default()
        };
        systemd.flush(listeners, now);
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

    /// The slot's listeners outlive this process from now on.
    pub(super) fn store_listeners(&mut self, slot: SlotId) {
        if let Some(systemd) = &mut self.systemd {
            systemd.notifier.store(slot);
        }
    }

    /// They do not any more.
    pub(super) fn forget_listeners(&mut self, slots: impl IntoIterator<Item = SlotId>) {
        if let Some(systemd) = &mut self.systemd {
            slots
                .into_iter()
                .for_each(|slot| systemd.notifier.remove(slot));
        }
    }

    /// The listeners of every slot that has some.
    pub(super) fn store_all_listeners(&mut self) {
        let slots = self.slots.iter().zip(0..);
        let slots = slots.filter(|(slot, _)| !slot.listeners().is_empty());
        let slots: Vec<SlotId> = slots.map(|(_, number)| SlotId(number)).collect();
        for slot in slots {
            self.store_listeners(slot);
        }
    }

    fn view(&self) -> View {
        let machine = &self.machine;
        let operating = machine.operation().is_some();
        let phase = match machine.phase_name() {
            "serving" => Phase::Serving,
            "idle" | "booting" => Phase::Starting,
            _ => Phase::Stopping {
                until: machine.poll_timeout(),
            },
        };
        View {
            phase,
            operating,
            renewing: machine.is_renewing(),
            ailing: ailing(machine.slots(), operating || phase != Phase::Serving),
        }
    }

    fn status_line(&self) -> String {
        let children = self.slots.iter().flat_map(SlotResources::children);
        let open: u64 = children
            .map(|child| memory::open_connections(&child.memory))
            .sum();
        let doing = self.machine.operation();
        let phase = match self.machine.phase_name() {
            "serving" => String::new(),
            other => format!("; {other}"),
        };
        let workers = self.machine.policy().workers;
        let doing = doing.map(|doing| format!("; {doing}")).unwrap_or_default();
        format!("{workers} workers, {open} connections{phase}{doing}")
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
