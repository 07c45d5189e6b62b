//! Moving connections between workers that serve: one test per rule, and simulated hours of steady
//! load.

use super::planned::{calm, reload, scale};
use super::*;
use crate::config::{
    REBALANCE_ACTIVE_WITHIN, REBALANCE_CONNECTIONS, REBALANCE_REST_MAX, REBALANCE_SAMPLES,
};
use crate::handover::Part;

const THRESHOLD: u16 = 50;

fn watched(workers: u16) -> Stage {
    let policy = Policy {
        rebalance: Some(THRESHOLD),
        ..calm(workers)
    };
    Stage::booted(policy, 0)
}

/// Returns the loads of the first generation's workers. `still` makes no turns.
fn loads(calls: &[u64], turns: u64, still: Option<WorkerId>) -> Event {
    let workers = (0_u16..).map(|slot| worker(slot, 1));
    let load = |(worker, &calls): (WorkerId, &u64)| Load {
        worker,
        calls,
        turns: if still == Some(worker) { 0 } else { turns },
    };
    Event::Loads {
        loads: workers.zip(calls).map(load).collect(),
    }
}

/// Removes the pings to possible receivers.
fn no_pings(mut actions: Vec<Action>) -> Vec<Action> {
    actions.retain(|action| !matches!(action, Action::Ping { .. }));
    actions
}

fn moves(from: WorkerId, to: WorkerId, permille: u16) -> Action {
    Action::Rebalance {
        from,
        to,
        part: Part {
            permille,
            at_most: REBALANCE_CONNECTIONS,
            active_within: REBALANCE_ACTIVE_WITHIN,
        },
    }
}

const fn rebalanced(from: WorkerId, moved: u32) -> Event {
    Event::Rebalanced {
        worker: from,
        moved,
        end: HandoverEnd::Done,
    }
}

/// Workers of the first generation whose counters grow evenly.
struct Steady<'a> {
    stage: &'a mut Stage,
    counted: Vec<u64>,
    still: Option<WorkerId>,
}

impl<'a> Steady<'a> {
    fn new(stage: &'a mut Stage, workers: usize) -> Self {
        let counted = vec![0; workers];
        Self {
            stage,
            counted,
            still: None,
        }
    }

    /// Takes the next sample, one second after the latest, with these calls per second; returns its
    /// time and actions.
    fn sample(&mut self, rates: &[u64]) -> (u64, Vec<Action>) {
        let (at, asked) = self.stage.next_timeout();
        assert_eq!(asked, [Action::TakeLoads]);
        for (counted, rate) in self.counted.iter_mut().zip(rates) {
            *counted += rate;
        }
        let told = loads(&self.counted, at, self.still);
        (at, no_pings(self.stage.at(at, told)))
    }
}

#[test]
fn persistently_busy_worker_gives_half_of_excess() {
    let mut stage = watched(3);
    let mut steady = Steady::new(&mut stage, 3);
    // The first sample has nothing to compare with, and one that finds another worker restarts the
    // count.
    for rates in [[9_000, 0, 0], [9_000, 0, 0], [0, 9_000, 0], [9_000, 0, 0]] {
        assert_eq!(steady.sample(&rates).1, []);
    }
    assert_eq!(steady.sample(&[9_000, 3_000, 4_000]).1, []);
    let (at, ordered) = steady.sample(&[9_000, 3_000, 4_000]);
    let (from, to) = (worker(0, 1), worker(1, 1));
    assert_eq!(ordered, [moves(from, to, 333)]);
    // No samples are taken while a move is in progress.
    assert_eq!(
        stage.machine.poll_timeout(),
        Some(Tick::from_millis(at + 10_000))
    );
    assert_eq!(stage.at(at + 5, rebalanced(from, 7)), []);
    assert!(stage.notices.contains(&Notice::RebalanceEnded {
        from,
        to,
        moved: 7,
        end: HandoverEnd::Done,
        took: ms(5),
    }));
    assert_eq!(stage.at(at + 6, rebalanced(from, 7)), []);
    assert_eq!(stage.machine.stale_events(), 1);
    assert_eq!(stage.next_timeout(), (at + 1_005, vec![Action::TakeLoads]));
}

#[test]
fn stalled_worker_is_not_idle() {
    let mut stage = watched(2);
    let mut steady = Steady::new(&mut stage, 2);
    steady.still = Some(worker(1, 1));
    for _ in 0..10 {
        assert_eq!(steady.sample(&[9_000, 0]).1, []);
    }
    // Each sample that finds no new turn pings the worker.
    let (at, _) = steady.stage.next_timeout();
    let counted = [steady.counted[0] + 9_000, 0];
    let told = loads(&counted, at, steady.still);
    let ping = Action::Ping {
        worker: worker(1, 1),
    };
    assert_eq!(steady.stage.at(at, told), [ping]);
    steady.counted[0] += 9_000;
    steady.still = None;
    let (from, to) = (worker(0, 1), worker(1, 1));
    assert_eq!(steady.sample(&[9_000, 0]).1, [moves(from, to, 500)]);
}

#[test]
fn small_skew_and_idle_server_move_nothing() {
    let mut stage = watched(2);
    let mut steady = Steady::new(&mut stage, 2);
    for _ in 0..20 {
        assert_eq!(steady.sample(&[15_000, 10_000]).1, []);
    }
    for _ in 0..20 {
        assert_eq!(steady.sample(&[499, 0]).1, []);
    }
}

#[test]
fn rebalancing_is_opt_in_and_needs_sibling() {
    let stage = Stage::booted(calm(2), 0);
    assert_eq!(stage.machine.poll_timeout(), None);
    let stage = watched(1);
    assert_eq!(stage.machine.poll_timeout(), None);
}

#[test]
fn operation_pauses_rebalancing_without_waiting() {
    let mut stage = watched(2);
    let mut steady = Steady::new(&mut stage, 2);
    while steady.sample(&[9_000, 0]).1.is_empty() {}
    // Requested, and in progress.
    let now = 10_000;
    let policy = Policy {
        rebalance: Some(THRESHOLD),
        ..calm(2)
    };
    assert_eq!(stage.at(now, reload(policy)).len(), 1);
    let ordered = stage.at(now + 1, ready(0, 2));
    assert!(matches!(ordered[..], [Action::HandOver { .. }]));
    // A late report of the part is ignored, and not mistaken for that of another one.
    assert_eq!(stage.at(now + 2, rebalanced(worker(0, 1), 5)), []);
    assert_eq!(stage.machine.stale_events(), 1);
    assert_eq!(
        stage.machine.poll_timeout(),
        Some(Tick::from_millis(now + 1 + 2_500)),
        "nothing but the sample of the handover"
    );

    // A sample taken before the operation is not used after it.
    let mut stage = watched(2);
    assert_eq!(stage.next_timeout().1, [Action::TakeLoads]);
    stage.at(1_000, scale(3));
    assert_eq!(stage.at(1_001, loads(&[9], 1, None)), []);
    assert_eq!(stage.machine.stale_events(), 1);
}

#[test]
fn death_or_silence_ends_move() {
    for (victim, slot) in [(0, 0), (1, 1)] {
        let mut stage = watched(2);
        let mut steady = Steady::new(&mut stage, 2);
        while steady.sample(&[9_000, 0]).1.is_empty() {}
        assert_eq!(stage.at(20_000, killed(victim, 1)), [adopt(slot, 2)]);
        if victim == 1 {
            // The sender reports that and continues.
            let gone = Event::Rebalanced {
                worker: worker(0, 1),
                moved: 0,
                end: HandoverEnd::PeerGone,
            };
            assert_eq!(stage.at(20_001, gone), []);
        }
        assert_eq!(stage.machine.stale_events(), 0);
        stage.at(20_010, ready(slot, 2));
        // The new worker has no history: two samples until it can be compared.
        assert_eq!(
            stage.next_timeout(),
            (21_010, vec![Action::TakeLoads]),
            "{victim}"
        );
    }

    let mut stage = watched(2);
    let mut steady = Steady::new(&mut stage, 2);
    while steady.sample(&[9_000, 0]).1.is_empty() {}
    assert_eq!(stage.next_timeout().1, [], "nobody is killed");
    assert!(matches!(
        stage.notices.last(),
        Some(Notice::RebalanceTimedOut { .. })
    ));
}

#[test]
fn stop_ends_rebalancing() {
    let mut stage = watched(2);
    let mut steady = Steady::new(&mut stage, 2);
    while steady.sample(&[9_000, 0]).1.is_empty() {}
    stage.at(20_000, stop("SIGTERM"));
    assert_eq!(
        stage.machine.poll_timeout(),
        Some(Tick::from_millis(20_000 + 33_000)),
        "nothing but the drain's deadline"
    );
}

#[test]
fn rebalancing_state_survives_upgrade() {
    let mut stage = watched(2);
    let mut steady = Steady::new(&mut stage, 2);
    while steady.sample(&[9_000, 0]).1.is_empty() {}
    let saved = stage.machine.snapshot();
    let read = Snapshot::from_json(&saved.to_json().unwrap()).unwrap();
    assert_eq!(read, saved);
    assert_eq!(Machine::restore(read).unwrap().snapshot(), saved);
}

/// Connections with a constant load each, on workers that move some of them.
struct World {
    stage: Stage,
    /// The worker of each connection, and its calls per second.
    connections: Vec<(usize, u64)>,
    counted: Vec<u64>,
    now: u64,
    /// The moves: time, sender, receiver, number of connections.
    moves: Vec<(u64, usize, usize, u32)>,
}

impl World {
    fn new(workers: u16, connections: Vec<(usize, u64)>) -> Self {
        Self {
            stage: watched(workers),
            connections,
            counted: vec![0; usize::from(workers)],
            now: 0,
            moves: Vec::new(),
        }
    }

    fn rates(&self) -> Vec<u64> {
        let mut rates = vec![0; self.counted.len()];
        for (worker, calls) in &self.connections {
            rates[*worker] += calls;
        }
        rates
    }

    /// Advances time. A sender moves its first, heaviest or random connections, as `rng` chooses;
    /// it cannot know their loads.
    fn run(&mut self, seconds: u64, rng: &mut fastrand::Rng) {
        loop {
            let (at, asked) = self.stage.next_timeout();
            if at > seconds * 1_000 {
                return;
            }
            assert_eq!(asked, [Action::TakeLoads]);
            let rates = self.rates();
            for (counted, rate) in self.counted.iter_mut().zip(rates) {
                *counted += rate * (at - self.now) / 1_000;
            }
            self.now = at;
            let told = loads(&self.counted, at, None);
            for action in no_pings(self.stage.at(at, told)) {
                let Action::Rebalance { from, to, part } = action else {
                    panic!("only moves are ordered: {action:?}");
                };
                let moved = self.give(from.slot.index(), to.slot.index(), part, rng);
                let give = (at, from.slot.index(), to.slot.index(), moved);
                self.moves.push(give);
                self.stage.at(at, rebalanced(from, moved));
            }
        }
    }

    fn give(&mut self, from: usize, to: usize, part: Part, rng: &mut fastrand::Rng) -> u32 {
        let mut own: Vec<usize> = (0..self.connections.len())
            .filter(|&index| self.connections[index].0 == from)
            .filter(|&index| self.connections[index].1 > 0)
            .collect();
        match rng.u8(0..3) {
            0 => {}
            1 => own.sort_by_key(|&index| std::cmp::Reverse(self.connections[index].1)),
            _ => rng.shuffle(&mut own),
        }
        let count = part.of(own.len() as u32);
        for &index in own.iter().take(count as usize) {
            self.connections[index].0 = to;
        }
        count
    }
}

#[test]
fn equal_connections_are_spread_once() {
    for workers in 2..6 {
        for count in [2_usize, 3, 10, 50, 400] {
            let mut world = World::new(workers, vec![(0, 1_000); count]);
            let mut rng = fastrand::Rng::with_seed(7);
            world.run(600, &mut rng);
            let settled = world.moves.len();
            let rates = world.rates();
            let (most, least) = (rates.iter().max(), rates.iter().min());
            let (most, least) = (*most.unwrap() / 1_000, *least.unwrap() / 1_000);
            // Balanced, or as balanced as whole connections allow.
            assert!(
                most * 100 <= least * u64::from(100 + THRESHOLD) || most - least <= 2,
                "{count} on {workers}: {rates:?} after {:?}",
                world.moves
            );
            world.run(4_200, &mut rng);
            let later: u32 = world.moves[settled..].iter().map(|it| it.3).sum();
            assert_eq!(later, 0, "{count} on {workers}: {:?}", world.moves);
        }
    }
}

/// One connection that is most of the load moves around in the worst case: each of its workers is
/// overloaded.
#[test]
fn uneven_load_is_not_chased() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let workers = rng.u16(2..6);
        let mut connections: Vec<(usize, u64)> = (0..rng.usize(1..80))
            .map(|_| (rng.usize(0..usize::from(workers)), rng.u64(0..300)))
            .collect();
        connections.push((0, rng.u64(1_000..100_000)));
        let mut world = World::new(workers, connections);
        world.run(3_600, &mut rng);
        let moves: Vec<_> = world.moves.iter().map(|it| (it.0 / 1_000, it.3)).collect();
        // Doubling from 5 s to 600 s takes seven moves and 20 minutes; after that there is one move
        // per ten minutes. Some have helped before that.
        assert!(moves.len() <= 40, "seed {seed}: {moves:?}");
        let late = moves.iter().filter(|(at, _)| *at >= 3_600 / 2).count();
        let most = 1_800 / REBALANCE_REST_MAX.as_secs() as usize + 2;
        assert!(late <= most, "seed {seed}: {moves:?}");
    }
}

#[test]
fn single_connection_is_never_moved() {
    let mut world = World::new(2, vec![(0, 50_000)]);
    world.run(3_600, &mut fastrand::Rng::with_seed(1));
    assert!(world.moves.iter().all(|it| it.3 == 0), "{:?}", world.moves);
    assert!(world.moves.len() < 20, "{:?}", world.moves);
    let first = world.moves[0].0;
    assert_eq!(first, 1_000 * u64::from(REBALANCE_SAMPLES + 1));
}
