//! Unit tests of `admission.rs`.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const FULL: Decision = Decision::Refuse(RefusalCause::PerSourceLimit);
const FAST: Decision = Decision::Refuse(RefusalCause::PerSourceRate);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn limits(connections: Option<u32>, rate: Option<u32>) -> Config {
    Config {
        max_connections_per_source: connections,
        accept_rate_per_source: rate,
        ..Config::default()
    }
}

#[test]
fn configuration_without_rules_makes_no_admission() {
    assert!(Admission::new(&Config::default()).is_none());
}

#[test]
fn deny_overrides_allow_for_mapped_addresses_too() {
    let config = Config {
        allow: nets(&["10.0.0.0/8", "2001:db8::/32"]),
        deny: nets(&["10.1.0.0/16", "10.0.0.9/32"]),
        ..Config::default()
    };
    let mut admission = Admission::new(&config).unwrap();
    let mut decide = |text| admission.decide(ip(text), Tick::ZERO);
    let denied = Decision::Refuse(RefusalCause::Denied);
    let foreign = Decision::Refuse(RefusalCause::NotAllowed);
    for (text, decision) in [
        ("10.0.0.1", Decision::Admit),
        ("::ffff:10.0.0.1", Decision::Admit),
        ("2001:db8::1", Decision::Admit),
        ("10.0.0.9", denied),
        ("10.1.2.3", denied),
        ("::ffff:10.1.2.3", denied),
        ("11.0.0.0", foreign),
        ("9.255.255.255", foreign),
        ("2001:db9::", foreign),
        ("::1", foreign),
    ] {
        assert_eq!(decide(text), decision, "{text}");
    }
    assert_eq!(admission.sources(), 0);
}

#[test]
fn source_is_limited_to_its_connections() {
    let mut config = limits(Some(2), None);
    config.source_prefix_v4 = 24;
    let mut admission = Admission::new(&config).unwrap();
    let now = Tick::ZERO;
    for (fd, text) in [(10, "192.0.2.1"), (11, "192.0.2.255")] {
        assert_eq!(admission.decide(ip(text), now), Decision::Admit);
        assert!(admission.opened(fd, ip(text)));
    }
    assert_eq!(admission.decide(ip("192.0.2.7"), now), FULL);
    assert_eq!(admission.decide(ip("192.0.3.7"), now), Decision::Admit);
    // A migrated connection counts, and is never refused.
    assert!(admission.opened(12, ip("192.0.2.7")));
    admission.closed(10, ip("192.0.2.1"), now);
    assert_eq!(admission.decide(ip("192.0.2.7"), now), FULL);
    admission.closed(11, ip("192.0.2.255"), now);
    assert_eq!(admission.decide(ip("192.0.2.7"), now), Decision::Admit);
    admission.closed(12, ip("192.0.2.7"), now);
    assert_eq!(admission.sources(), 0);
}

#[test]
fn ipv6_prefix_is_one_source() {
    let mut admission = Admission::new(&limits(Some(1), None)).unwrap();
    assert!(admission.opened(9, ip("2001:db8::1")));
    assert_eq!(admission.decide(ip("2001:db8::2"), Tick::ZERO), FULL);
    let other = admission.decide(ip("2001:db8:0:1::1"), Tick::ZERO);
    assert_eq!(other, Decision::Admit);
}

#[test]
fn large_table_frees_its_memory() {
    let mut admission = Admission::new(&limits(Some(2), None)).unwrap();
    let many = 4 * SPARE_SOURCES as u32;
    let address = |number: u32| IpAddr::from((0x0a00_0000 + number).to_be_bytes());
    for number in 0..many {
        assert!(admission.opened(number, address(number)));
    }
    let room = |admission: &Admission| admission.sources.as_ref().unwrap().known.capacity();
    assert!(room(&admission) >= many as usize);
    for number in 0..many {
        admission.closed(number, address(number), Tick::ZERO);
    }
    assert!(room(&admission) < many as usize / 2);
}

#[test]
fn rate_allows_a_burst_then_its_pace() {
    let mut admission = Admission::new(&limits(None, Some(10))).unwrap();
    let mut taken = |ms| (0..100).filter(|_| at(&mut admission, ms)).count();
    fn at(admission: &mut Admission, ms: u64) -> bool {
        let decision = admission.decide(ip("::1"), Tick::from_millis(ms));
        assert!([Decision::Admit, FAST].contains(&decision));
        decision == Decision::Admit
    }
    assert_eq!(taken(5000), 10);
    assert_eq!(taken(5099), 0);
    assert_eq!(taken(5100), 1);
    assert_eq!(taken(5400), 3);
    assert_eq!(taken(60_000), 10);
    // A refused connection uses no rate.
    assert_eq!(taken(60_100), 1);
}

#[test]
fn full_table_forgets_idle_sources_first() {
    let config = limits(Some(1), Some(1));
    let mut admission = Admission::with_room_for(&config, 2).unwrap();
    let ms = Tick::from_millis;
    assert_eq!(admission.decide(ip("10.0.0.1"), ms(0)), Decision::Admit);
    assert_eq!(admission.decide(ip("10.0.0.2"), ms(1)), Decision::Admit);
    // The place of the first source, whose rate was nearly unused again.
    assert_eq!(admission.decide(ip("10.0.0.3"), ms(2)), Decision::Admit);
    assert_eq!(admission.decide(ip("10.0.0.2"), ms(2)), FAST);
    assert!(admission.opened(8, ip("10.0.0.2")));
    assert!(admission.opened(9, ip("10.0.0.3")));
    assert_eq!(admission.sources(), 2);
    // No room for it: admitted without limits, and reported.
    for fd in [10, 11] {
        assert_eq!(admission.decide(ip("10.0.0.4"), ms(3)), Decision::Admit);
        assert!(!admission.opened(fd, ip("10.0.0.4")));
    }
    admission.closed(8, ip("10.0.0.2"), ms(4));
    // Now there is; its earlier connections do not reduce the new count.
    assert_eq!(admission.decide(ip("10.0.0.4"), ms(5)), Decision::Admit);
    assert!(admission.opened(12, ip("10.0.0.4")));
    admission.closed(10, ip("10.0.0.4"), ms(6));
    admission.closed(11, ip("10.0.0.4"), ms(6));
    assert_eq!(admission.open_of(ip("10.0.0.4")), 1);
    assert_eq!(admission.decide(ip("10.0.0.4"), ms(9000)), FULL);
}

#[test]
fn table_shrinks_after_a_flood() {
    let mut admission = Admission::with_room_for(&limits(Some(9), None), 50_000).unwrap();
    let address = |at: u32| IpAddr::V4((at % 60_000).into());
    let counted = (0..100_000).filter(|&fd| admission.opened(fd, address(fd)));
    assert_eq!(
        counted.count(),
        50_000 + 40_000,
        "those of the sources there is room for"
    );
    (0..100_000).for_each(|fd| admission.closed(fd, address(fd), Tick::ZERO));
    let sources = admission.sources.unwrap();
    let kept = [sources.known.capacity(), sources.untracked.capacity()];
    assert!(
        kept.iter().all(|kept| *kept < 4 * SPARE_SOURCES),
        "{kept:?}"
    );
}

/// One step of a schedule: a source tries to connect, one of its connections ends, or one migrates
/// here from another worker; and the time since the previous step.
#[derive(Clone, Debug)]
enum Step {
    Connects(u8),
    Ends(usize),
    Arrives(u8),
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        4 => (0_u8..6).prop_map(Step::Connects),
        3 => any::<usize>().prop_map(Step::Ends),
        1 => (0_u8..6).prop_map(Step::Arrives),
    ];
    prop::collection::vec((0_u64..400, step), 0..200)
}

proptest! {
    #[test]
    fn limits_hold_and_counts_return_to_zero(
        most in prop::option::of(1_u32..4),
        rate in prop::option::of(1_u32..8),
        room in 1_usize..8,
        steps in steps(),
    ) {
        let Some(mut admission) = Admission::with_room_for(&limits(most, rate), room) else {
            return Ok(());
        };
        let address = |source: u8| IpAddr::from([10, 0, 0, source]);
        let (mut ms, mut next_fd) = (0, 0);
        // Descriptor, source and whether it is counted for it; admission times.
        let mut open: Vec<(u32, u8, bool)> = Vec::new();
        let mut admitted: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
        for (passed, step) in steps {
            ms += passed;
            let now = Tick::from_millis(ms);
            match step {
                Step::Connects(source) => {
                    let before = admission.open_of(address(source));
                    let decision = admission.decide(address(source), now);
                    if decision == Decision::Admit {
                        prop_assert!(most.is_none_or(|most| before < most));
                        let counted = admission.opened(next_fd, address(source));
                        open.push((next_fd, source, counted));
                        next_fd += 1;
                        admitted.entry(source).or_default().push(ms);
                    } else if decision == FULL {
                        prop_assert!(most.is_some_and(|most| before >= most));
                    } else {
                        prop_assert_eq!(decision, FAST);
                        prop_assert!(rate.is_some());
                    }
                }
                Step::Ends(which) if !open.is_empty() => {
                    let (fd, source, _) = open.swap_remove(which % open.len());
                    admission.closed(fd, address(source), now);
                }
                Step::Ends(_) => {}
                Step::Arrives(source) => {
                    let counted = admission.opened(next_fd, address(source));
                    open.push((next_fd, source, counted));
                    next_fd += 1;
                }
            }
            prop_assert!(admission.sources() <= room);
            for source in 0..6 {
                let counted = open.iter().filter(|(_, of, counted)| *of == source && *counted);
                prop_assert_eq!(admission.open_of(address(source)) as usize, counted.count());
            }
        }
        // Where no source was evicted, no second has more than a burst plus the rate.
        if let Some(rate) = rate.filter(|_| room >= 6) {
            for times in admitted.values() {
                for (at, first) in times.iter().enumerate() {
                    let within = times[at..].iter().take_while(|t| **t < first + 1000).count();
                    prop_assert!(within <= 2 * rate as usize, "{times:?}");
                }
            }
        }
        let end = Tick::from_millis(ms + 60_000);
        for (fd, source, _) in open.drain(..) {
            admission.closed(fd, address(source), end);
        }
        // Each decision forgets some of those with an unused rate, and none stays idle for long.
        for _ in 0..10 {
            let _ = admission.decide(IpAddr::from([10, 9, 9, 9]), end);
        }
        let left = usize::from(rate.is_some());
        prop_assert!(admission.sources() <= left, "{admission:?}");
    }

    #[test]
    fn list_search_agrees_with_a_scan(
        networks in prop::collection::vec((any::<u32>(), 0_u8..=32, any::<bool>()), 0..20),
        addresses in prop::collection::vec((any::<u32>(), any::<bool>()), 0..20),
    ) {
        // Few distinct leading bits, so that they overlap, and some addresses lie inside.
        let place = |bits: u32, v6: bool| match v6 {
            true => IpAddr::V6((u128::from(bits & 0xf000_ffff) << 96).into()),
            false => IpAddr::V4((bits & 0xf000_ffff).into()),
        };
        let networks: Vec<IpNet> = networks
            .into_iter()
            .map(|(bits, prefix, v6)| IpNet::new(place(bits, v6), prefix).unwrap().trunc())
            .collect();
        let list = Networks::new(&networks);
        for (bits, v6) in addresses {
            let address = place(bits, v6);
            let one_by_one = networks.iter().any(|network| network.contains(&address));
            prop_assert_eq!(list.contain(address), one_by_one, "{}", address);
        }
    }
}
