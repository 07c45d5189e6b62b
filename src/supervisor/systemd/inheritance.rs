//! Which of the listening sockets that a service manager has handed over belongs to which slot.
//!
//! They come from two places: a *socket unit*, which bound them before the server was there, and
//! the *store*, where an earlier instance left its slots' listeners. Of each address the sockets are
//! put in the order in which they listened (those of the unit, then those of the store by slot), and
//! the i-th is slot i's: so a slot and the place of its socket in the `SO_REUSEPORT` group go on to
//! agree, and no queue is left without a slot. What is missing then is bound.
//!
//! Invariants: a socket is placed once or dropped with a cause; what cannot be served whole (a
//! group that others cannot join, more sockets of a unit than workers) is refused before anything
//! has changed.
//!
//! It must not touch a socket.

use std::collections::BTreeSet;

use crate::wire::Listen;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::limits::WORKERS_MAX;

/// A socket that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// From where.
    pub(crate) origin: Origin,
    /// What it listens on.
    pub(crate) listen: Listen,
    /// Tells sockets apart: one that came twice is one.
    pub(crate) inode: u64,
    /// Whether others may join it (`SO_REUSEPORT`).
    pub(crate) shares: bool,
    /// Whether it belongs to this process's user; only then may this process join it.
    pub(crate) ours: bool,
}

/// Where a socket comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A socket unit.
    Unit,
    /// The store, where it was this slot's.
    Store(SlotId),
}

/// Who gets what. Numbers are places in the list of offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What is listened on; the real port where any was wanted and a socket came for it.
    pub(crate) addresses: Vec<Listen>,
    /// For each slot that gets something: for each address its socket; `None`: to be bound.
    pub(crate) slots: Vec<Vec<Option<usize>>>,
    /// How many slots have a socket of a unit. They never leave: nobody would serve it then.
    pub(crate) from_unit: u16,
    /// Sockets for which there is no use, and why.
    pub(crate) dropped: Vec<(usize, &'static str)>,
    /// Names in the store under which there is something else from now on, or nothing.
    pub(crate) outdated: Vec<SlotId>,
}

/// Why what came cannot be used. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "the socket unit listens on {0}, which `listen` does not name; make ListenStream= and \
         `listen` agree"
    )]
    Unwanted(String),
    #[error(
        "the workers cannot join the socket that the socket unit has for {0}; add ReusePort=yes to \
         it, in [Socket]"
    )]
    NotShared(String),
    #[error(
        "the socket unit has {sockets} sockets for {address} and there are {workers} workers, of \
         which each takes one; have as many workers, or fewer lines ListenStream="
    )]
    TooMany {
        address: String,
        sockets: usize,
        workers: u16,
    },
    #[error(
        "the socket for {address} belongs to another user, whose socket the workers cannot join; \
         leave out User= (and use the setting `user`), or repeat its ListenStream= so that there \
         is one for each of the {workers} workers"
    )]
    OtherUser { address: String, workers: usize },
    #[error(
        "a server of another user has left sockets for {0} in the store, which this one cannot \
         join; stop the service, which empties the store, and start it again"
    )]
    OtherUserStored(String),
    #[error(
        "the socket unit's socket for {0} is younger than those that the server has left in the \
         store; stop the service, which empties the store, and start it again"
    )]
    Younger(String),
    #[error("{0} slots have left listeners in the store; {WORKERS_MAX} are the most")]
    TooManySlots(usize),
}

/// Places every socket.
pub(crate) fn settle(offers: &[Offer], wanted: &[Listen], workers: u16) -> Result<Plan, Error> {
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

/// What is listened on: where any port will do, one for which a socket came.
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

/// The sockets of one address in the order in which they listened, each once; and how many of them
/// a unit has.
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
                "no other socket can join it"
            } else {
                "its address is not listened on any more"
            };
            (at, why)
        })
        .collect()
}

/// Names in the store whose sockets are not, all of them, what their slot has now.
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listen(port: u16) -> Listen {
        Listen {
            addr: ([127, 0, 0, 1], port).into(),
            dual_stack: false,
        }
    }

    fn offer(origin: Origin, port: u16, inode: u64) -> Offer {
        Offer {
            origin,
            listen: listen(port),
            inode,
            shares: true,
            ours: true,
        }
    }

    fn unit(port: u16, inode: u64) -> Offer {
        offer(Origin::Unit, port, inode)
    }

    fn stored(slot: u16, port: u16, inode: u64) -> Offer {
        offer(Origin::Store(SlotId(slot)), port, inode)
    }

    fn settled(offers: &[Offer], wanted: &[u16], workers: u16) -> Result<Plan, Error> {
        let wanted: Vec<Listen> = wanted.iter().map(|&port| listen(port)).collect();
        settle(offers, &wanted, workers)
    }

    #[test]
    fn without_sockets_everything_is_bound() {
        let plan = settled(&[], &[80, 0], 4).unwrap();
        let addresses = vec![listen(80), listen(0)];
        assert_eq!(
            plan,
            Plan {
                addresses,
                ..Plan::default()
            }
        );
    }

    #[test]
    fn a_stored_socket_that_no_other_can_join_is_closed_and_one_is_bound_instead() {
        let alone = Offer {
            shares: false,
            ..stored(0, 80, 1)
        };
        let plan = settled(&[alone], &[80], 2).unwrap();
        assert!(plan.slots.is_empty());
        assert_eq!(plan.dropped, [(0, "no other socket can join it")]);
        assert_eq!(plan.outdated, [SlotId(0)]);
    }

    #[test]
    fn every_slot_gets_its_own_back_whatever_the_order() {
        let offers = [
            stored(1, 81, 11),
            stored(0, 80, 1),
            stored(1, 80, 2),
            stored(0, 81, 10),
        ];
        let plan = settled(&offers, &[80, 81], 2).unwrap();
        let slots = [vec![Some(1), Some(3)], vec![Some(2), Some(0)]];
        assert_eq!(plan.slots, slots);
        assert!(plan.dropped.is_empty() && plan.outdated.is_empty());
    }

    #[test]
    fn a_unit_s_socket_is_the_first_slot_s_and_the_same_from_the_store_is_no_other() {
        let offers = [
            unit(80, 1),
            stored(0, 80, 1),
            stored(0, 81, 10),
            stored(1, 80, 2),
        ];
        let plan = settled(&offers, &[80, 81], 2).unwrap();
        let slots = [vec![Some(0), Some(2)], vec![Some(3), None]];
        assert_eq!(plan.slots, slots);
        assert_eq!(plan.from_unit, 1);
        assert!(plan.dropped.is_empty() && plan.outdated.is_empty());
    }

    #[test]
    fn more_slots_than_workers_are_all_kept() {
        let offers: Vec<Offer> = (0..5).map(|slot| stored(slot, 80, slot.into())).collect();
        let plan = settled(&offers, &[80], 2).unwrap();
        assert_eq!(plan.slots.len(), 5);
        assert_eq!(plan.from_unit, 0);
    }

    #[test]
    fn a_gap_is_closed_in_order_and_the_names_follow() {
        let offers = [stored(3, 80, 4), stored(1, 80, 2)];
        let plan = settled(&offers, &[80], 1).unwrap();
        assert_eq!(plan.slots, [vec![Some(1)], vec![Some(0)]]);
        assert_eq!(plan.outdated, [SlotId(1), SlotId(3)]);
    }

    #[test]
    fn an_address_that_is_not_wanted_any_more_is_dropped_and_its_name_renewed() {
        let offers = [stored(0, 80, 1), stored(0, 81, 2)];
        let plan = settled(&offers, &[81, 82], 1).unwrap();
        assert_eq!(plan.slots, [vec![Some(1), None]]);
        assert_eq!(plan.dropped.len(), 1);
        assert_eq!(plan.dropped[0].0, 0);
        assert_eq!(plan.outdated, [SlotId(0)]);
    }

    #[test]
    fn where_any_port_will_do_it_is_the_one_for_which_sockets_came() {
        let offers = [
            stored(0, 4000, 1),
            stored(0, 5000, 2),
            stored(1, 4000, 3),
            stored(1, 5000, 4),
        ];
        let plan = settled(&offers, &[0, 4000, 0], 2).unwrap();
        assert_eq!(plan.addresses, [listen(5000), listen(4000), listen(0)]);
        assert_eq!(plan.slots[1], [Some(3), Some(2), None]);
    }

    #[test]
    fn what_cannot_be_served_whole_is_refused() {
        let eighty = || listen(80).to_string();
        let alone = Offer {
            shares: false,
            ..unit(80, 1)
        };
        let strange = Offer {
            ours: false,
            ..unit(80, 1)
        };
        let strange_stored = Offer {
            ours: false,
            ..stored(0, 80, 1)
        };
        let cases = [
            (vec![unit(79, 1)], Error::Unwanted(listen(79).to_string())),
            (vec![alone], Error::NotShared(eighty())),
            (
                vec![unit(80, 1), unit(80, 2), unit(80, 3)],
                Error::TooMany {
                    address: eighty(),
                    sockets: 3,
                    workers: 2,
                },
            ),
            (
                vec![strange.clone()],
                Error::OtherUser {
                    address: eighty(),
                    workers: 2,
                },
            ),
            (vec![strange_stored], Error::OtherUserStored(eighty())),
            (
                vec![unit(80, 9), stored(0, 80, 1)],
                Error::Younger(eighty()),
            ),
        ];
        for (offers, error) in cases {
            assert_eq!(settled(&offers, &[80], 2), Err(error));
        }
        // One for each worker: nobody has to join.
        let other = Offer {
            inode: 2,
            ..strange.clone()
        };
        settled(&[strange, other], &[80], 2).unwrap();
    }

    proptest! {
        /// Whatever was in the store: each socket is given to one slot or dropped, a slot is never
        /// skipped, the order is kept, and a name that stays says the truth.
        #[test]
        fn every_stored_socket_has_a_place_or_a_cause(
            kept in prop::collection::btree_set((0..6_u16, 80..84_u16), 0..20),
            wanted in prop::collection::btree_set(80..84_u16, 1..4),
            workers in 1..5_u16,
        ) {
            let kept: Vec<Offer> = kept
                .iter()
                .zip(1..)
                .map(|(&(slot, port), inode)| stored(slot, port, inode))
                .collect();
            let wanted: Vec<u16> = wanted.into_iter().collect();
            let plan = settled(&kept, &wanted, workers).unwrap();
            let placed = plan.slots.iter().flatten().flatten().copied();
            let mut all: Vec<usize> = placed.chain(plan.dropped.iter().map(|it| it.0)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..kept.len()).collect::<Vec<_>>());
            for (column, port) in wanted.iter().enumerate() {
                let row: Vec<_> = plan.slots.iter().map(|slot| slot[column]).collect();
                let given: Vec<usize> = row.iter().flatten().copied().collect();
                prop_assert!(row[..given.len()].iter().all(Option::is_some), "a gap");
                let origin = |at: &usize| match kept[*at].origin {
                    Origin::Store(slot) => slot.0,
                    Origin::Unit => u16::MAX,
                };
                prop_assert!(given.iter().map(origin).is_sorted());
                prop_assert!(given.iter().all(|&at| kept[at].listen == listen(*port)));
            }
            for (number, slot) in (0..).zip(&plan.slots) {
                let name = Origin::Store(SlotId(number));
                let same = |at: &usize| kept[*at].origin == name;
                if !plan.outdated.contains(&SlotId(number)) {
                    let under_it = kept.iter().filter(|it| it.origin == name).count();
                    let of_it = slot.iter().flatten().copied().filter(|at| same(at)).count();
                    prop_assert_eq!(under_it, of_it);
                }
            }
        }
    }
}
