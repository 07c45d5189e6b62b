//! Every process of a planned operation, killed or stopped at every step.
//!
//! Invariants: no slot stays without a worker; no listener is lost; no connection has two owners; a
//! crashing process loses only its own connections, and none if a keeper continues it.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::image::Image;
use crate::support::netns::{KernelCounters, isolated};
use crate::support::observe::{freeze, unacknowledged, until, worker_of};
use crate::support::planned::Planned;
use crate::support::{Client, Deadline, Watched, pattern, wait_gone};

/// Timeouts that end a stall. The tests wait for them, so they are only as long as a healthy
/// process needs on a busy machine.
const QUICK: [&str; 7] = [
    "--listen=127.0.0.1:0",
    "--bake-time=0s",
    "--handover-timeout=2s",
    "--start-timeout=5s",
    "--hang-timeout=2s",
    "--backoff-initial=10ms",
    "--crash-rescue=off",
];

/// The same with keepers.
fn rescued(others: &[&'static str]) -> Vec<&'static str> {
    let on = ["--crash-rescue=on"];
    [&QUICK[..QUICK.len() - 1], &on, others].concat()
}

/// Clients in every relevant state, and their pending replies.
struct Clients {
    idle: Vec<Client>,
    unread: Client,
    full: Client,
    full_sent: usize,
}

impl Clients {
    #[track_caller]
    fn of(planned: &Planned) -> Self {
        // More than the buffers on both sides hold.
        Self::with(planned, 3 << 20)
    }

    /// Like `of`, with up to `full_bytes` sent by the client that reads nothing.
    #[track_caller]
    fn with(planned: &Planned, full_bytes: usize) -> Self {
        let addr = planned.server.addr();
        let mut idle: Vec<_> = (0..20).map(|_| Client::connect(addr)).collect();
        for client in &mut idle {
            client.roundtrip(b"before");
        }
        let mut unread = Client::connect(addr);
        unread.send_all(b"half of a");
        let full = Client::connect(addr);
        let full_sent = full.send_some(&pattern(0, full_bytes));
        Self {
            idle,
            unread,
            full,
            full_sent,
        }
    }

    /// Asserts that every client is still served, byte for byte.
    #[track_caller]
    fn expect_all_served(mut self) {
        for client in &mut self.idle {
            client.roundtrip(b"after");
            client.half_close();
            client.expect_eof();
        }
        self.unread.send_all(b" message");
        self.unread.expect(b"HALF OF A MESSAGE");
        self.unread.half_close();
        self.unread.expect_eof();
        let expected = pattern(0, self.full_sent).to_ascii_uppercase();
        self.full.expect(&expected);
        self.full.half_close();
        self.full.expect_eof();
    }
}

#[track_caller]
fn assert_new_clients_are_served(planned: &Planned) {
    for _ in 0..20 {
        let mut client = Client::connect(planned.server.addr());
        client.roundtrip(b"a new one");
        client.half_close();
        client.expect_eof();
    }
}

#[track_caller]
fn until_all_serve(planned: &Planned) {
    until("every slot serves", || {
        planned
            .workers()
            .0
            .iter()
            .all(|worker| worker.state == "serving")
    });
}

/// The predecessor keeps every connection, no client is affected, and the requester gets the cause.
#[test]
fn successor_failing_before_acknowledging_costs_nothing() {
    isolated(|| {
        let planned = Planned::start(&[&QUICK[..], &["--workers=2"]].concat());
        let points = [
            "worker.starting=kill",
            "worker.ready=kill",
            "worker.standing_by=kill",
            "receiver.requested=kill",
            "receiver.received=kill",
            "receiver.adopted=kill",
            "receiver.requested=stop",
            "receiver.received=stop",
            "receiver.adopted=stop",
            "receiver.adopted=panic",
            "worker.standing_by=stop",
        ];
        for point in points {
            println!("{point}");
            let before = KernelCounters::read();
            let workers = planned.workers();
            let clients = Clients::of(&planned);
            planned.install(Image::copy(planned.folder()).with_faults(point));
            let answered = planned.server.reload();
            assert_eq!(answered.code, 1, "{point}: {answered:?}");
            until_all_serve(&planned);
            planned.workers().assert_untouched_since(&workers);
            clients.expect_all_served();
            assert_new_clients_are_served(&planned);
            KernelCounters::read().assert_no_loss_since(&before);
        }
        planned.install_good();
        let clients = Clients::of(&planned);
        planned.server.reload().expect_success();
        clients.expect_all_served();
    });
}

/// As in any crash, the acknowledged connections are lost with it, and nothing else.
#[test]
fn successor_dying_after_acknowledging_loses_only_its_connections() {
    let planned = Planned::start(&[&QUICK[..], &["--workers=1"]].concat());
    const CLIENTS: usize = 300;
    let addr = planned.server.addr();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::connect(addr)).collect();
    for client in &mut clients {
        client.roundtrip(b"before");
    }
    planned.install(Image::copy(planned.folder()).with_faults("receiver.acknowledged=kill"));
    assert_eq!(planned.server.reload().code, 1);
    until_all_serve(&planned);
    let served = clients.iter_mut().map(|client| client.is_served(b"after"));
    let lost = served.filter(|served| !served).count();
    assert!(
        lost <= 200,
        "{lost} of {CLIENTS} were lost; one batch was given"
    );
    assert_new_clients_are_served(&planned);
}

/// As in any crash, the connections not yet migrated are lost with it; its queue and its slot are
/// not, and the reload continues.
#[test]
fn dying_predecessor_leaves_queue_to_successor() {
    for point in [
        "sender.requested=kill",
        "sender.frozen=kill",
        "sender.sent=kill",
        "sender.acknowledged=kill",
        "sender.done=kill",
    ] {
        println!("{point}");
        let args = [&QUICK[..], &["--workers=2"]].concat();
        let planned = Planned::start_with(&args, |builder| builder.env("FAULT_POINTS", point));
        let before = planned.workers();
        let clients = Clients::of(&planned);
        let answered = planned.server.reload();
        // It was killed before it could report the end of the handover; the result includes this.
        answered.expect_failure("exited before the end of its handover");
        until_all_serve(&planned);
        planned.workers().assert_replaced_since(&before);
        assert_new_clients_are_served(&planned);
        if point == "sender.done=kill" {
            clients.expect_all_served();
        }
    }
}

/// Reloads in a fresh server in which processes have the faults of `sender`, and those of the new
/// binary the faults of `receiver`. Asserts that no client notices; returns the exit code.
#[track_caller]
fn reload_with_rescues(sender: &str, receiver: &str) -> i32 {
    println!("{sender} {receiver}");
    let args = rescued(&["--workers=2"]);
    let planned = Planned::start_with(&args, |builder| builder.env("FAULT_POINTS", sender));
    let before = KernelCounters::read();
    let clients = Clients::of(&planned);
    if !receiver.is_empty() {
        planned.install(Image::copy(planned.folder()).with_faults(receiver));
    }
    let answered = planned.server.reload();
    until_all_serve(&planned);
    clients.expect_all_served();
    assert_new_clients_are_served(&planned);
    KernelCounters::read().assert_no_loss_since(&before);
    if answered.code != 0 {
        // A test that expects success fails now.
        println!("{answered:?}\n{}", planned.server.log().join("\n"));
    }
    answered.code
}

/// A death of the predecessor does not fail the reload.
#[test]
fn rescued_predecessor_loses_no_connection() {
    isolated(|| {
        for point in [
            "sender.requested=kill_first",
            "sender.frozen=kill_first",
            "sender.sent=kill_first",
            "sender.acknowledged=kill_first",
            "sender.done=kill_first",
            "sender.sent=panic_first",
            "sender.frozen=stop",
            "sender.sent=stop",
        ] {
            assert_eq!(reload_with_rescues(point, ""), 0, "{point}");
        }
    });
}

/// A death of the successor fails the reload, and everything returns to the old release.
#[test]
fn rescued_successor_loses_no_connection() {
    isolated(|| {
        for point in [
            "worker.standing_by=kill_first",
            "receiver.requested=kill_first",
            "receiver.received=kill_first",
            "receiver.adopted=kill_first",
            "receiver.acknowledged=kill_first",
            "receiver.adopted=panic_first",
            "receiver.adopted=stop",
        ] {
            assert_eq!(reload_with_rescues("", point), 1, "{point}");
        }
        // The reload may end before it stalls for too long.
        let code = reload_with_rescues("", "receiver.acknowledged=stop");
        assert!(code <= 1);
    });
}

#[test]
fn rescued_workers_lose_no_connection_together() {
    isolated(|| {
        for (sender, receiver) in [
            (
                "sender.requested=kill_first",
                "receiver.requested=kill_first",
            ),
            ("sender.frozen=kill_first", "receiver.received=kill_first"),
            ("sender.sent=kill_first", "receiver.adopted=kill_first"),
            ("sender.sent=kill_first", "receiver.acknowledged=kill_first"),
            (
                "sender.acknowledged=kill_first",
                "receiver.acknowledged=kill_first",
            ),
        ] {
            assert_eq!(
                reload_with_rescues(sender, receiver),
                1,
                "{sender} {receiver}"
            );
        }
    });
}

/// The workers that leave are the senders, and their siblings the receivers.
#[test]
fn rescued_workers_lose_no_connection_in_scale_down() {
    isolated(|| {
        for point in [
            "sender.requested=kill_first",
            "sender.sent=kill_first",
            "receiver.requested=kill_first",
            "receiver.adopted=kill_first",
            "receiver.acknowledged=kill_first",
            "sender.acknowledged=kill_first;receiver.received=kill_first",
        ] {
            println!("{point}");
            let args = rescued(&["--workers=3"]);
            let planned = Planned::start_with(&args, |builder| builder.env("FAULT_POINTS", point));
            let before = KernelCounters::read();
            let clients = Clients::of(&planned);
            planned.server.command(&["scale", "1"]).expect_success();
            clients.expect_all_served();
            assert_new_clients_are_served(&planned);
            KernelCounters::read().assert_no_loss_since(&before);
        }
    });
}

#[test]
fn stalled_predecessor_is_replaced() {
    for point in ["sender.frozen=stop", "sender.sent=stop"] {
        println!("{point}");
        let args = [&QUICK[..], &["--workers=1"]].concat();
        let planned = Planned::start_with(&args, |builder| builder.env("FAULT_POINTS", point));
        let _clients = Clients::of(&planned);
        // A result arrives in any case, and the slot serves.
        let answered = planned.server.reload();
        assert!(answered.code <= 1, "{answered:?}");
        until_all_serve(&planned);
        assert_new_clients_are_served(&planned);
    }
}

/// The receiver cannot read the format, so connections cannot migrate: the reload is rolled back
/// unless draining was requested.
#[test]
fn unmovable_connections_stay_or_drain() {
    let planned = Planned::start(&[&QUICK[..], &["--workers=2", "--drain-timeout=20s"]].concat());
    let before = planned.workers();
    let clients = Clients::of(&planned);
    planned.install(Image::copy(planned.folder()).with_faults("receiver.decode=fail"));
    planned.server.reload().expect_failure("cannot migrate");
    planned.workers().assert_untouched_since(&before);
    assert_new_clients_are_served(&planned);

    let answered = planned.server.command(&["reload", "--drain"]);
    let answered = answered.expect_success();
    assert!(
        answered.stdout.contains("draining (closed after 20s)"),
        "{answered:?}"
    );
    planned.workers().assert_replaced_since(&before);
    assert_new_clients_are_served(&planned);
    clients.expect_all_served();
    until("the old workers have exited", || {
        planned.server.worker_pids().len() == 2
    });

    // A limit below the number of open connections applies to new ones.
    planned.install_good();
    planned.configure("max_connections = 5\n");
    let clients = Clients::of(&planned);
    planned.server.reload().expect_success();
    clients.expect_all_served();
}

/// The supervisor is killed at each step: workers send pending output and exit in time, no listener
/// remains, and another server can start at once.
#[test]
fn killed_supervisor_leaves_no_process_behind() {
    for point in [
        "supervisor.successor_spawned=kill",
        "supervisor.handover_half_ordered=kill",
        "supervisor.handover_ordered=kill",
        "supervisor.committed=kill",
    ] {
        println!("{point}");
        leave_by(point, &["reload"]);
    }
    for point in [
        "supervisor.preflight=kill",
        "supervisor.before_exec=kill",
        "supervisor.resuming=kill",
    ] {
        println!("{point}");
        leave_by(point, &["upgrade"]);
    }
}

#[track_caller]
fn leave_by(point: &str, command: &[&str]) {
    let args = [&QUICK[..], &["--workers=2"]].concat();
    // A private address, on which the server is started again.
    let listen = format!("--listen={}:0", crate::support::own_address());
    let args = [&args[1..], &[&*listen]].concat();
    let planned = Planned::start_with(&args, |builder| builder.env("FAULT_POINTS", point));
    // A stopping worker replies to bytes that have arrived, not to those in transit.
    let clients = Clients::with(&planned, 96 * 1024);
    until("everything sent has arrived", || {
        unacknowledged(&clients.full) == 0
    });
    let pids = planned.server.worker_pids();
    let answered = planned.server.command(command);
    assert_eq!(answered.code, 1, "{point}: {answered:?}");
    let error = format!("{}{}", answered.stdout, answered.stderr);
    assert!(
        error.contains("closed the connection"),
        "{point}: {answered:?}"
    );
    // The current owner answers earlier bytes in full.
    let Clients {
        idle,
        mut unread,
        mut full,
        full_sent,
    } = clients;
    for mut client in idle {
        client.expect_eof();
    }
    unread.expect(b"HALF OF A");
    unread.expect_eof();
    let expected = pattern(0, full_sent).to_ascii_uppercase();
    full.expect(&expected);
    full.expect_eof();
    // A worker also waits for its clients to close.
    drop((unread, full));
    for pid in pids {
        assert!(
            wait_gone(pid, crate::support::DEADLINE),
            "{point}: worker {pid} still runs"
        );
    }
    until("every process has exited", || {
        planned.server.processes().is_empty()
    });
    let listen = format!("--listen={}", planned.server.addr());
    let next = crate::support::Server::start(&[&listen]);
    Client::connect(next.addr()).roundtrip(b"the next server");
}

/// Workers die at an arbitrary moment of each reload or scaling; the clients stay for all of them.
#[test]
fn clients_survive_kills_during_operations() {
    isolated(|| {
        let planned = Planned::start(&rescued(&["--workers=2"]));
        let server = &planned.server;
        let before = KernelCounters::read();
        let seed = std::env::var("E2E_SEED")
            .ok()
            .and_then(|it| it.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("E2E_SEED={seed}");
        let rounds = std::env::var("E2E_ROUNDS")
            .ok()
            .and_then(|it| it.parse().ok());
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut clients: Vec<_> = (0..60).map(|_| Client::connect(server.addr())).collect();
        for round in 0..rounds.unwrap_or(10) {
            for client in &mut clients {
                client.roundtrip(format!("round {round}").as_bytes());
            }
            until("every worker has a keeper", || {
                server.keeper_pids().len() == server.worker_pids().len()
            });
            let command = ["reload", "scale 3", "scale 2"][rng.usize(0..3)];
            let arguments: Vec<&str> = command.split(' ').collect();
            let command = server.start_command(&arguments);
            let later = Deadline::after(Duration::from_micros(rng.u64(0..400_000)));
            while later.left() > Duration::ZERO {
                std::thread::yield_now();
            }
            let mut pids = server.worker_pids();
            rng.shuffle(&mut pids);
            // Sometimes two at once.
            pids.truncate(rng.usize(1..=2));
            for victim in pids.into_iter().filter_map(Watched::open) {
                victim.signal(Signal::SIGKILL);
            }
            let answered = command.wait();
            assert!(answered.code <= 1, "round {round}: {answered:?}");
            until_all_serve(&planned);
            assert_new_clients_are_served(&planned);
        }
        for client in &mut clients {
            client.roundtrip(b"after all of them");
        }
        KernelCounters::read().assert_no_loss_since(&before);
    });
}

/// Workers are killed repeatedly at arbitrary moments.
#[test]
fn workers_killed_during_reloads_leave_no_dead_slot() {
    let planned = Planned::start(&[&QUICK[..], &["--workers=2", "--backoff-max=20ms"]].concat());
    let server = &planned.server;
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..15 {
        let clients: Vec<_> = (0..30).map(|_| Client::connect(server.addr())).collect();
        let command = server.start_command(&["reload"]);
        let spins = rng.u32(0..2_000);
        for _ in 0..spins {
            std::hint::black_box(server.is_running());
        }
        let pids = server.worker_pids();
        let victim = pids.get(rng.usize(0..pids.len().max(1)));
        if let Some(victim) = victim.and_then(|pid| Watched::open(*pid)) {
            if rng.u8(0..4) == 0 {
                freeze(&victim);
            }
            victim.signal(Signal::SIGKILL);
        }
        let answered = command.wait();
        assert!(answered.code <= 1, "round {round}: {answered:?}");
        until_all_serve(&planned);
        assert_new_clients_are_served(&planned);
        drop(clients);
        let _ = worker_of(server, 0);
    }
    server.reload().expect_success();
}
