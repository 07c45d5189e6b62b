//! Listening sockets that are inherited from a service manager at the start: sd_listen_fds(3).
//!
//! Invariants: they are read once, before anything is started, and only if they are meant for this
//! process; an unusable socket is closed with a log line (if it was in the store) or refused (if a
//! socket unit has it); no socket is ever shut down.
//!
//! It must not decide which slot gets a socket ([`mod@crate::supervisor::systemd::inheritance`]
//! does).

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::fstat;
use socket2::{Protocol, SockRef, Type};

use crate::config::{Config, LISTEN_MAX};
use crate::listener;
use crate::log::event;
use crate::sys::fd::Inherited;
use crate::wire::Listen;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::limits::WORKERS_MAX;

use super::inheritance::{self, Offer, Origin, Plan};
use super::notify::{STORED_LEASE, stored_slot};

/// The first inherited descriptor (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// Maximum number of descriptors: a listener for each address of each slot, from a socket unit and
/// from the store.
const COUNT_MAX: RawFd = 2 * WORKERS_MAX as RawFd * LISTEN_MAX as RawFd;

/// The reason why a start with these sockets is impossible.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The variables contradict the descriptors.
    #[error("cannot take the sockets of LISTEN_FDS: {0}")]
    Missing(String),
    /// A socket unit has a socket that is not a TCP listener.
    #[error(
        "cannot use socket {name:?} of the socket unit: {what}; it must be a listening TCP socket \
         (ListenStream= with an address and a port)"
    )]
    Unusable {
        /// Its name.
        name: String,
        /// Its kind.
        what: String,
    },
    /// They cannot be assigned to slots.
    #[error("{0}")]
    Unplaceable(String),
    /// A missing socket cannot be bound.
    #[error(transparent)]
    Listener(#[from] listener::Error),
}

/// The sockets of a start.
#[derive(Debug, Default)]
pub(crate) struct Given {
    sockets: Vec<OwnedFd>,
    offers: Vec<Offer>,
    plan: Plan,
    /// Names in the store that have no usable socket.
    useless: Vec<SlotId>,
}

impl Given {
    /// Takes the sockets inherited from a service manager and assigns them to slots; without any,
    /// the addresses are those in `wanted`.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::Listener`].
    pub(crate) fn take(config: &Config, wanted: &[Listen]) -> Result<Self, Error> {
        let mut given = Self::default();
        for (socket, name) in inherited()? {
            let origin = stored_slot(&name).map_or(Origin::Unit, Origin::Store);
            match (describe(&socket, origin), origin) {
                (Ok(offer), _) => {
                    given.sockets.push(socket);
                    given.offers.push(offer);
                }
                (Err(what), Origin::Store(slot)) => {
                    event!(stored_socket_closed, name, error = what);
                    given.useless.push(slot);
                }
                // Of an earlier supervisor; each has one of its own.
                (Err(_), Origin::Unit) if name == STORED_LEASE => {}
                (Err(what), Origin::Unit) => return Err(Error::Unusable { name, what }),
            }
        }
        given.plan = inheritance::plan(&given.offers, wanted, config.workers)
            .map_err(|error| Error::Unplaceable(error.to_string()))?;
        Ok(given)
    }

    /// Returns the addresses to listen on.
    pub(crate) fn addresses(&self) -> &[Listen] {
        &self.plan.addresses
    }

    /// Returns the number of slots that get a socket.
    pub(crate) fn slots(&self) -> u16 {
        u16::try_from(self.plan.slots.len()).unwrap_or(u16::MAX)
    }

    /// Returns the number of slots that have a socket of a socket unit.
    pub(crate) const fn unit_slots(&self) -> u16 {
        self.plan.from_unit
    }

    /// Returns the inodes of the sockets, as in the kernel's lists.
    pub(crate) fn inodes(&self) -> Vec<u64> {
        self.offers.iter().map(|offer| offer.inode).collect()
    }

    /// Returns the listeners of each slot, binding missing ones, and the names to be removed from
    /// the store. The addresses are then the real ones.
    ///
    /// # Errors
    /// [`Error::Listener`].
    pub(crate) fn hand_out(
        self,
        addresses: &mut [Listen],
        config: &Config,
    ) -> Result<(Vec<Vec<OwnedFd>>, Vec<SlotId>), Error> {
        let Self {
            sockets,
            offers,
            plan,
            mut useless,
        } = self;
        for (at, cause) in &plan.dropped {
            let address = offers[*at].listen;
            event!(stored_socket_closed, %address, error = cause);
        }
        let mut sockets: Vec<Option<OwnedFd>> = sockets.into_iter().map(Some).collect();
        let mut slots = Vec::new();
        for row in plan.slots {
            let mut listeners = Vec::new();
            for (address, at) in addresses.iter_mut().zip(row) {
                let listener = match at.and_then(|at| sockets[at].take()) {
                    Some(socket) => socket,
                    None => {
                        let (socket, bound) = listener::bind(address, config)?;
                        *address = bound;
                        socket
                    }
                };
                listeners.push(listener);
            }
            slots.push(listeners);
        }
        if !slots.is_empty() {
            event!(
                listeners_inherited,
                slots = slots.len(),
                from_unit = plan.from_unit
            );
        }
        useless.extend(plan.outdated);
        useless.sort_unstable();
        useless.dedup();
        Ok((slots, useless))
    }
}

/// Returns the inherited descriptors, with their names.
fn inherited() -> Result<Vec<(OwnedFd, String)>, Error> {
    let variable = |name| std::env::var(name).ok();
    let number = |name| variable(name).and_then(|text| text.parse::<RawFd>().ok());
    if number("LISTEN_PID") != Some(std::process::id().cast_signed()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").filter(|count| (0..=COUNT_MAX).contains(count));
    let count = count.ok_or_else(|| Error::Missing("not a number of sockets".to_owned()))?;
    let mut inherited = Inherited::default();
    let numbers = FIRST..FIRST + count;
    let owned = numbers.map(|number| inherited.take(number.into()));
    let owned = owned.collect::<io::Result<Vec<_>>>();
    let owned = owned.map_err(|error| Error::Missing(error.to_string()))?;
    inherited.close();
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned);
    let names = names.chain(std::iter::repeat("unknown".to_owned()));
    Ok(owned.into_iter().zip(names).collect())
}

/// Makes a socket non-blocking and returns its description, or its kind if it is not a TCP
/// listener.
fn describe(socket: &OwnedFd, origin: Origin) -> Result<Offer, String> {
    let text = |error: io::Error| format!("not usable: {error}");
    let reference = SockRef::from(socket);
    let kind = reference.r#type().map_err(|_| "no socket".to_owned())?;
    let local = reference.local_addr().map_err(text)?;
    let Some(addr) = local.as_socket().filter(|_| kind == Type::STREAM) else {
        return Err("not a stream socket".to_owned());
    };
    if reference.protocol().map_err(text)? != Some(Protocol::TCP) {
        return Err("not a TCP socket".to_owned());
    }
    if !getsockopt(socket, sockopt::AcceptConn).unwrap_or(false) {
        return Err("not listening".to_owned());
    }
    let dual_stack = addr.is_ipv6() && !reference.only_v6().map_err(text)?;
    // A service manager may pass on blocking sockets.
    reference.set_nonblocking(true).map_err(text)?;
    let stat = fstat(socket).map_err(|errno| text(errno.into()))?;
    Ok(Offer {
        origin,
        listen: Listen { addr, dual_stack },
        inode: stat.st_ino,
        shares: reference.reuse_port().map_err(text)?,
        ours: stat.st_uid == nix::unistd::geteuid().as_raw(),
    })
}
