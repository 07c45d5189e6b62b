//! Assigns inherited listening sockets to slots.
//!
//! They have two origins: a *socket unit*, which bound them before the server started, and the
//! *store*, where an earlier instance left its slots' listeners. The sockets of each address are
//! put in the order in which they listened (those of the unit, then those of the store by slot),
//! and the i-th belongs to slot i: so slots still match the places of their sockets in the
//! `SO_REUSEPORT` group, and no queue is left without a slot. Missing sockets are then bound.
//!
//! Invariants: a socket is placed once or dropped with a cause; sockets that cannot be served
//! completely (a group that others cannot join, more sockets of a unit than workers) are refused
//! before anything has changed.
//!
//! It must not touch a socket.

use std::collections::BTreeSet;

use crate::wire::Listen;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::limits::WORKERS_MAX;

/// An inherited socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Its origin.
    pub(crate) origin: Origin,
    /// Its address.
    pub(crate) listen: Listen,
    /// Identifies the socket: one inherited twice is one.
    pub(crate) inode: u64,
    /// Whether others may join it (`SO_REUSEPORT`).
    pub(crate) shares: bool,
    /// Whether it belongs to this process's user; only then may this process join its group.
    pub(crate) ours: bool,
}

/// The origin of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A socket unit.
    Unit,
    /// The store, under this slot's name.
    Store(SlotId),
}

/// The sockets of each slot. Numbers are indexes into the list of offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The addresses; where any port was wanted and a socket was inherited, with its real port.
    pub(crate) addresses: Vec<Listen>,
    /// For each slot that has a socket: for each address its socket; `None`: to be bound.
    pub(crate) slots: Vec<Vec<Option<usize>>>,
    /// The number of slots that have a socket of a unit. They never leave: no worker would serve
    /// the socket.
    pub(crate) from_unit: u16,
    /// Unused sockets, each with the cause.
    pub(crate) dropped: Vec<(usize, &'static str)>,
    /// Names in the store whose sockets have changed or no longer exist.
    pub(crate) outdated: Vec<SlotId>,
}

/// The reason why inherited sockets cannot be used. Each names a remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "the socket unit listens on {0}, which `listen` does not name; make ListenStream= and \
         `listen` agree"
    )]
    Unwanted(String),
    #[error(
        "cannot share the socket for {0} of the socket unit; add ReusePort=yes to \
         it, in [Socket]"
    )]
    NotShared(String),
    #[error(
        "cannot serve the {sockets} sockets for {address} of the socket unit with {workers} \
         workers; use as many workers, or fewer lines ListenStream="
    )]
    TooMany {
        address: String,
        sockets: usize,
        workers: u16,
    },
    #[error(
        "cannot share the socket for {address}: it belongs to another user; omit User= (and use \
         the setting `user`), or repeat its ListenStream= once for each of the {workers} workers"
    )]
    OtherUser { address: String, workers: usize },
    #[error(
        "cannot share the stored sockets for {0}: they belong to another user; stop the service, \
         which empties the store, and start it again"
    )]
    OtherUserStored(String),
    #[error(
        "cannot use the socket unit's socket for {0}: it is newer than the stored ones; stop the \
         service, which empties the store, and start it again"
    )]
    Younger(String),
    #[error("cannot use the listeners of {0} slots in the store: the limit is {WORKERS_MAX}")]
    TooManySlots(usize),
}

/// Places every socket.
pub(crate) fn plan(offers: &[Offer], wanted: &[Listen], workers: u16) -> Result<Plan, Error> {
    let mut plan = Plan {
        addresses: resolve(offers, wanted),
        ..Plan::default()
    };
    let is_unwanted = |offer: &Offer| !plan.addresses.contains(&offer.listen);
    let units = offers.iter().filter(|offer| offer.origin == Origin::Unit);
    if let Some(unwanted) = units.clone().find(|offer| is_unwanted(offer)) {
        return Err(Error::Unwanted(unwanted.listen.to_string()));
    }
    if let Some(alone) = units.clone().find(|offer| !offer.shares) {
        return Err(Error::NotShared(alone.listen.to_string()));
    }
    let mut rows = Vec::new();
    for address in &plan.addresses {
        let (unit, row) = line_up(offers, address);
        if unit > usize::from(workers) {
            let address = address.to_string();
            let sockets = unit;
            return Err(Error::TooMany {
                address,
                sockets,
                workers,
            });
        }
        let elder = |at: &usize| match offers[*at].origin {
            Origin::Store(slot) => slot.index() < unit,
            Origin::Unit => false,
        };
        if row.iter().any(elder) {
            return Err(Error::Younger(address.to_string()));
        }
        plan.from_unit = plan.from_unit.max(u16::try_from(unit).unwrap_or(u16::MAX));
        rows.push(row);
    }
    let given = rows.iter().map(Vec::len).max().unwrap_or(0);
    if given > usize::from(WORKERS_MAX) {
        return Err(Error::TooManySlots(given));
    }
    let slots = given.max(usize::from(workers));
    for (address, row) in plan.addresses.iter().zip(&rows) {
        let stranger = row.iter().find(|&&at| !offers[at].ours);
        if let Some(&at) = stranger
            && row.len() < slots
        {
            let (address, workers) = (address.to_string(), slots);
            return Err(match offers[at].origin {
                Origin::Unit => Error::OtherUser { address, workers },
                Origin::Store(_) => Error::OtherUserStored(address),
            });
        }
    }
    plan.slots = (0..given)
        .map(|slot| rows.iter().map(|row| row.get(slot).copied()).collect())
        .collect();
    plan.dropped = leftovers(offers, &plan);
    plan.outdated = outdated(offers, &plan);
    Ok(plan)
}

/// Returns the addresses to listen on: where any port is wanted, that of an inherited socket.
fn resolve(offers: &[Offer], wanted: &[Listen]) -> Vec<Listen> {
    let mut taken: Vec<Listen> = wanted.to_vec();
    let mut resolved = Vec::new();
    for want in wanted {
        let fits = |offer: &&Offer| {
            offer.listen.addr.ip() == want.addr.ip()
                && offer.listen.dual_stack == want.dual_stack
                && !taken.contains(&offer.listen)
        };
        let found = match want.addr.port() {
            0 => offers.iter().find(fits).map(|offer| offer.listen),
            _ => None,
        };
        taken.extend(found);
        resolved.push(found.unwrap_or(*want));
    }
    resolved
}

/// Returns the sockets of one address in the order in which they listened, each once; and the
/// number of those that belong to a unit.
fn line_up(offers: &[Offer], address: &Listen) -> (usize, Vec<usize>) {
    let here = |at: &usize| offers[*at].listen == *address && offers[*at].shares;
    let mut row: Vec<usize> = (0..offers.len()).filter(here).collect();
    row.sort_by_key(|&at| match offers[at].origin {
        Origin::Unit => (0, 0),
        Origin::Store(slot) => (1, slot.0),
    });
    let mut seen = BTreeSet::new();
    row.retain(|&at| seen.insert(offers[at].inode));
    let unit = row.iter().filter(|&&at| offers[at].origin == Origin::Unit);
    (unit.count(), row)
}

fn leftovers(offers: &[Offer], plan: &Plan) -> Vec<(usize, &'static str)> {
    let placed: BTreeSet<usize> = plan.slots.iter().flatten().flatten().copied().collect();
    let unplaced = (0..offers.len()).filter(|at| !placed.contains(at));
    let inodes: BTreeSet<u64> = placed.iter().map(|&at| offers[at].inode).collect();
    unplaced
        .filter(|&at| !inodes.contains(&offers[at].inode))
        .map(|at| {
            let why = if plan.addresses.contains(&offers[at].listen) {
                "no other socket can share its address"
            } else {
                "its address is no longer configured"
            };
            (at, why)
        })
        .collect()
}

/// Returns the names in the store whose sockets are not exactly those of their slot now.
fn outdated(offers: &[Offer], plan: &Plan) -> Vec<SlotId> {
    let has = |slot: SlotId, inode: u64| {
        let row = plan.slots.get(slot.index()).into_iter().flatten().flatten();
        row.clone().any(|&at| offers[at].inode == inode)
    };
    let mut names = BTreeSet::new();
    for offer in offers {
        if let Origin::Store(slot) = offer.origin
            && !has(slot, offer.inode)
        {
            names.insert(slot);
        }
    }
    names.into_iter().collect()
}

#[cfg(test)]
mod tests;
