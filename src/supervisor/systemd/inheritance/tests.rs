//! Unit tests of `inheritance.rs`.

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
    plan(offers, &wanted, workers)
}

#[test]
fn every_address_is_bound_without_sockets() {
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
fn unjoinable_stored_socket_is_rebound() {
    let alone = Offer {
        shares: false,
        ..stored(0, 80, 1)
    };
    let plan = settled(&[alone], &[80], 2).unwrap();
    assert!(plan.slots.is_empty());
    assert_eq!(plan.dropped, [(0, "no other socket can share its address")]);
    assert_eq!(plan.outdated, [SlotId(0)]);
}

#[test]
fn slots_reclaim_sockets_in_any_order() {
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
fn unit_socket_and_stored_duplicate_become_one() {
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
fn surplus_slots_are_kept() {
    let offers: Vec<Offer> = (0..5).map(|slot| stored(slot, 80, slot.into())).collect();
    let plan = settled(&offers, &[80], 2).unwrap();
    assert_eq!(plan.slots.len(), 5);
    assert_eq!(plan.from_unit, 0);
}

#[test]
fn gap_is_closed_and_names_follow() {
    let offers = [stored(3, 80, 4), stored(1, 80, 2)];
    let plan = settled(&offers, &[80], 1).unwrap();
    assert_eq!(plan.slots, [vec![Some(1)], vec![Some(0)]]);
    assert_eq!(plan.outdated, [SlotId(1), SlotId(3)]);
}

#[test]
fn unlistened_address_is_dropped() {
    let offers = [stored(0, 80, 1), stored(0, 81, 2)];
    let plan = settled(&offers, &[81, 82], 1).unwrap();
    assert_eq!(plan.slots, [vec![Some(1), None]]);
    assert_eq!(plan.dropped.len(), 1);
    assert_eq!(plan.dropped[0].0, 0);
    assert_eq!(plan.outdated, [SlotId(0)]);
}

#[test]
fn port_0_adopts_port_of_sockets() {
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
fn partially_servable_sockets_are_refused() {
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
    // One for each worker: no other process has to join.
    let other = Offer {
        inode: 2,
        ..strange.clone()
    };
    settled(&[strange, other], &[80], 2).unwrap();
}

proptest! {
    /// For any content of the store, each socket is assigned to one slot or dropped, no slot is
    /// skipped, the order is kept, and a remaining name is correct.
    #[test]
    fn every_stored_socket_is_placed_or_explained(
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
