//! Workers killed repeatedly under churn; the kernel's counters decide the result.
//!
//! A client cannot distinguish a refused or reset connection from one that it retried, and a test
//! that forgives some errors forgives bugs. So the test runs in its own network namespace and reads
//! the kernel's counters of resets sent, connections aborted, attempts failed and handshakes
//! dropped. They must not change *at all* while workers are killed, so no crash may cause even a
//! permitted reset: the connections of a killed worker end with a FIN if they have no unread input,
//! otherwise with a RST. Hence each round
//! 1. parks the churn, so that no churn connection is open;
//! 2. stops the victim, which has a few idle connections without unread input, and resumes the
//!    churn: clients that the kernel assigns to the victim wait in its accept queue;
//! 3. kills it while they wait. The churn continues during and after the crash and the restart.
//!
//! Every churn connection must be answered, byte for byte, and no counter may change; only the idle
//! connections end, gracefully. Another test shows that the counters change when the queue is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::netns::{KernelCounters, isolated};
use crate::support::observe::{
    freeze, kill_keepers, lose_worker, number, owner, queued, until, wait_ready, worker_of,
};
use crate::support::{Client, Server, Watched, in_background, pattern};

/// Number of concurrent clients.
const CHURNERS: usize = 6;
/// Time limit of one step of the churn: several connections for each client.
const PATIENCE: Duration = Duration::from_secs(120);

/// Clients that connect, exchange and close repeatedly, and can be parked between two connections.
struct Churn {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    running: bool,
    over: bool,
    parked: usize,
    exchanges: u64,
    failure: Option<String>,
}

impl Churn {
    /// Starts the clients, parked.
    fn against(server: &Server) -> Self {
        let shared = Arc::<Shared>::default();
        let addr = server.addr();
        let threads = (0..CHURNERS).map(|index| {
            let shared = Arc::clone(&shared);
            in_background(move || {
                let mut offset = index as u64 * 1000;
                while shared.admit() {
                    offset += 37;
                    let exchange = AssertUnwindSafe(|| {
                        let mut client = Client::connect(addr);
                        client.roundtrip(&pattern(offset, 1 + offset as usize % 5000));
                        client.half_close();
                        client.expect_eof();
                    });
                    shared.conclude(catch_unwind(exchange).err());
                }
            })
        });
        Self {
            threads: threads.collect(),
            shared,
        }
    }

    fn resume(&self) {
        self.shared.change(|state| state.running = true);
    }

    /// Waits until every client and the server have closed the connection and the client has opened
    /// no other.
    #[track_caller]
    fn park(&self) {
        self.shared.change(|state| state.running = false);
        self.shared
            .wait("the churn is parked", |state| state.parked == CHURNERS);
    }

    /// Waits for `exchanges` more exchanges.
    #[track_caller]
    fn go_on_for(&self, exchanges: u64) {
        let goal = self.exchanges() + exchanges;
        self.shared
            .wait("the churn continues", |state| state.exchanges >= goal);
    }

    fn exchanges(&self) -> u64 {
        self.shared.lock().exchanges
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.shared.change(|state| state.over = true);
        for thread in self.threads.drain(..) {
            // A panic was caught and recorded in the state.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Waits until a new connection is permitted; returns false at the end.
    fn admit(&self) -> bool {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while !state.running && !state.over {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        !state.over
    }

    fn conclude(&self, panic: Option<Box<dyn std::any::Any + Send>>) {
        self.change(|state| match panic {
            None => state.exchanges += 1,
            Some(panic) => {
                let text = panic.downcast::<String>();
                state.failure = Some(text.map_or_else(|_| "a panic".to_owned(), |text| *text));
            }
        });
    }

    #[track_caller]
    fn wait(&self, what: &str, done: impl Fn(&State) -> bool) {
        let waiting = |state: &mut State| state.failure.is_none() && !done(state);
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        assert_eq!(state.failure, None);
        assert!(done(&state), "not within {PATIENCE:?}: {what}");
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens idle connections; returns those of `victim` and the others.
fn idle_clients(server: &Server, victim: &Watched) -> (Vec<Client>, Vec<Client>) {
    let mut clients: Vec<_> = (0..6).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.roundtrip(b"idle from now on");
    }
    let victim = std::slice::from_ref(victim);
    clients
        .into_iter()
        .partition(|client| owner(client, server.addr(), victim).is_some())
}

/// What dies with a worker's process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Death {
    /// Nothing else: its keeper continues its connections.
    OfProcess,
    /// Its keeper, so that its connections are lost.
    WithKeeper,
}

/// Kills the worker of `slot` with clients in its queue and the churn running; returns the number
/// of connections in addition to the churn, and the number of queued clients.
fn kill_with_a_full_queue(server: &Server, churn: &Churn, slot: u16, death: Death) -> (u64, usize) {
    churn.park();
    let victim = worker_of(server, slot);
    let (of_victim, of_others) = idle_clients(server, &victim);
    let count = of_victim.len() + of_others.len();
    freeze(&victim);
    churn.resume();
    let port = server.addr().port();
    until("a client waits in the queue of the stopped worker", || {
        queued(victim.pid(), port) > 0
    });
    let waiting = queued(victim.pid(), port);
    let (lost, kept) = match death {
        Death::OfProcess => {
            victim.signal(Signal::SIGKILL);
            (Vec::new(), of_victim.into_iter().chain(of_others).collect())
        }
        Death::WithKeeper => {
            lose_worker(server, slot);
            (of_victim, of_others)
        }
    };
    for mut client in lost {
        client.expect_eof();
    }
    for mut client in kept {
        client.roundtrip(b"of a living worker");
        client.half_close();
        client.expect_eof();
    }
    (count as u64, waiting)
}

/// Asserts that every connection was accepted once, answered, and closed gracefully.
fn assert_nothing_lost(server: Server, churn: Churn, before: &KernelCounters, others: u64) {
    churn.park();
    let connections = churn.exchanges() + others;
    drop(churn);
    let after = KernelCounters::read();
    after.assert_no_loss_since(before);
    for name in ["ActiveOpens", "PassiveOpens"] {
        let opened = after.count(name) - before.count(name);
        assert_eq!(opened.cast_unsigned(), connections, "{name}");
    }
    assert_eq!(server.stop().code(), Some(0));
    KernelCounters::read().assert_no_loss_since(before);
    let log = server.whole_log();
    let total = log.iter().rfind(|line| line.contains("server stopped "));
    let accepted = number(total.expect("the totals are logged"), "accepted");
    assert_eq!(
        accepted, connections,
        "accepted by all generations together"
    );
}

#[test]
fn clients_survive_killed_workers() {
    isolated(|| {
        let before = KernelCounters::read();
        let server = Server::start(&[
            "--hang-timeout=off",
            "--workers=2",
            "--listen=127.0.0.1:0",
            // Each worker is replaced at once, however often it is killed.
            "--backoff-initial=1ms",
            "--backoff-max=1ms",
        ]);
        let churn = Churn::against(&server);
        let mut others = 0;
        for round in 0..10 {
            let mark = server.log_len();
            let (count, _) = kill_with_a_full_queue(&server, &churn, round % 2, Death::OfProcess);
            others += count;
            server.wait_log_from(mark, |line| line.contains("worker rescued"));
            churn.go_on_for(50);
        }
        for round in 0..10 {
            let slot = round % 2;
            let mark = server.log_len();
            let (count, _) = kill_with_a_full_queue(&server, &churn, slot, Death::WithKeeper);
            others += count;
            wait_ready(&server, mark, slot, u64::from(round / 2 + 2));
            churn.go_on_for(50);
        }
        assert_nothing_lost(server, churn, &before, others);
    });
}

#[test]
fn clients_survive_killed_only_worker() {
    isolated(|| {
        let before = KernelCounters::read();
        let server = Server::start(&[
            "--hang-timeout=off",
            "--workers=1",
            "--listen=127.0.0.1:0",
            "--backoff-initial=1ms",
            "--backoff-max=1ms",
        ]);
        let churn = Churn::against(&server);
        let mut others = 0;
        for round in 0..10 {
            let mark = server.log_len();
            let (count, _) = kill_with_a_full_queue(&server, &churn, 0, Death::WithKeeper);
            others += count;
            wait_ready(&server, mark, 0, round + 2);
            churn.go_on_for(50);
        }
        assert_nothing_lost(server, churn, &before, others);
    });
}

#[test]
fn clients_survive_slot_backoff() {
    isolated(|| {
        let before = KernelCounters::read();
        let server = Server::start(&[
            "--hang-timeout=off",
            "--workers=3",
            "--listen=127.0.0.1:0",
            "--backoff-initial=100ms",
            "--backoff-max=200ms",
            "--backoff-reset=1h",
            "--lend-after=0s",
        ]);
        let churn = Churn::against(&server);
        let mut others = 0;
        for round in 0..8 {
            let mark = server.log_len();
            let (count, waiting) = kill_with_a_full_queue(&server, &churn, 1, Death::WithKeeper);
            others += count;
            if round > 0 {
                server.wait_log_from(mark, |line| line.contains("queue lent to sibling"));
                // Queued and new clients are served by the sibling, by the replacement, or by both
                // while the loan ends.
                churn.go_on_for(waiting as u64 + 50);
                wait_ready(&server, mark, 1, round + 2);
                server.wait_log_from(mark, |line| line.contains("queue recalled"));
            }
            wait_ready(&server, mark, 1, round + 2);
            churn.go_on_for(50);
        }
        assert_nothing_lost(server, churn, &before, others);
    });
}

/// Shows that the tests above can fail: losing a queue's last holder affects clients and counters.
#[test]
fn clients_and_counters_notice_lost_queue() {
    isolated(|| {
        const WAITING: usize = 5;
        let server = Server::start(&["--hang-timeout=off", "--workers=1", "--listen=127.0.0.1:0"]);
        let before = KernelCounters::read();
        let worker = worker_of(&server, 0);
        freeze(&worker);
        let clients: Vec<_> = (0..WAITING)
            .map(|_| Client::connect(server.addr()))
            .collect();
        until("all of them wait", || {
            queued(worker.pid(), server.addr().port()) == WAITING
        });
        // The custodian first, then the worker, so that no process holds the listener any more.
        kill_keepers(&server, 0);
        server.kill();
        KernelCounters::read().assert_no_loss_since(&before);
        worker.signal(Signal::SIGKILL);
        for mut client in clients {
            client.expect_reset();
        }
        let after = KernelCounters::read();
        assert_eq!(after.delta(&before)["OutRsts"], WAITING as i64);
        let verdict = catch_unwind(|| after.assert_no_loss_since(&before));
        assert!(
            verdict.is_err(),
            "the check of the tests above noticed nothing"
        );
    });
}

/// Shows with plain sockets the kernel rule that custody relies on: a listener's queue exists as
/// long as a process holds the listener, regardless of the rest of its group.
#[test]
fn held_listener_preserves_queue() {
    isolated(|| {
        let first = listener("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = first.local_addr().unwrap();
        let second = listener(addr).unwrap();
        let clients: Vec<_> = (0..40).map(|_| Client::connect(addr)).collect();
        let both = queued(std::process::id(), addr.port());
        assert_eq!(both, clients.len());
        let before = KernelCounters::read();

        let custody = first.try_clone().unwrap();
        drop(first);
        KernelCounters::read().assert_no_loss_since(&before);
        assert_eq!(queued(std::process::id(), addr.port()), both);

        drop(custody);
        let lost = both - queued(std::process::id(), addr.port());
        assert!(
            lost > 0 && lost < both,
            "{lost} of {both} in the first queue"
        );
        let after = KernelCounters::read();
        assert_eq!(after.delta(&before)["OutRsts"], lost as i64);
        drop(second);
    });
}

fn listener(addr: std::net::SocketAddr) -> std::io::Result<std::net::TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}
