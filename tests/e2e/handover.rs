//! Worker processes in a handover, with the test as their supervisor: every command, every outcome,
//! and a crash of either side at every fault point.
//!
//! Each worker is the real program on one end of a channel; the test holds a duplicate of the
//! listener, as a supervisor does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::support::observe::{state, until};
use crate::support::{Client, DEADLINE, Deadline, Watched, own_address, poll_one};
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use uppercased::channel::{self, Channel};
use uppercased::config::{Config, LogLevel};
use uppercased::handover::{HandedOver, HandoverEnd, Part};
use uppercased::memory;
use uppercased::memory::layout::Layout;
use uppercased::memory::life;
use uppercased::sys::lease;
use uppercased::sys::shared::SharedMemory;
use uppercased::wire::{
    Envelope, FromWorker, HandOver, Listen, Rescued, Start, Stop, TakeOver, ToWorker,
};
use uppercased_ctl::identity::{Generation, SlotId, WorkerId};
use uppercased_ctl::metrics::Counter;

const MAX: u32 = 500;
const DESCRIPTORS: u32 = 600;
/// For connections that the receiver does not adopt.
const DRAIN_MS: u64 = 60_000;

/// A worker process. Dropping it kills it.
struct Worker {
    id: WorkerId,
    channel: Channel<ToWorker, FromWorker>,
    child: Child,
    watched: Watched,
    memory: SharedMemory,
}

/// The supervisor's state of the slot.
struct Slot {
    config: Config,
    listen: Listen,
    listener: Option<OwnedFd>,
    generation: u32,
}

impl Slot {
    fn new(config: Config) -> Self {
        Self {
            config: Config {
                log_level: LogLevel::Error,
                ..config
            },
            listen: Listen {
                // A private address, so that no other test can reuse the port.
                addr: (own_address(), 0).into(),
                dual_stack: false,
            },
            listener: None,
            generation: 0,
        }
    }

    fn addr(&self) -> SocketAddr {
        self.listen.addr
    }

    /// Starts a worker and waits until it is ready.
    fn start(&mut self, standby: bool, faults: &str) -> Worker {
        let mut worker = self.spawn(standby, faults, MAX);
        let (message, mut descriptors) = worker.receive().expect("it becomes ready");
        let FromWorker::Ready(ready) = message else {
            panic!("expected Ready, received {message:?}");
        };
        if self.listener.is_none() {
            self.listen = ready.listen[0];
            self.listener = descriptors.pop();
        }
        worker
    }

    fn spawn(&mut self, standby: bool, faults: &str, max_connections: u32) -> Worker {
        self.generation += 1;
        let id = WorkerId {
            slot: SlotId(0),
            generation: Generation(self.generation),
        };
        let layout = Layout {
            descriptors: DESCRIPTORS,
            buffers: max_connections,
            buffer_bytes: self.config.pending_output,
        };
        let file = memory::create(layout).unwrap();
        let (here, there) = pair();
        let mut channel = Channel::over(here);
        let start = Start {
            cpu: None,
            config: self.config.clone(),
            listen: vec![self.listen],
            adopt: self.listener.is_some(),
            adoptable: false,
            standby,
            max_connections,
            room: max_connections,
            descriptors: DESCRIPTORS,
        };
        // The test is its supervisor.
        let supervisor = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let (lease, _) = lease::create().unwrap();
        let mut descriptors = vec![file.as_fd(), supervisor.as_fd(), lease.as_fd()];
        descriptors.extend(self.listener.as_ref().map(AsFd::as_fd));
        let message = ToWorker::Start(Box::new(start));
        let envelope = Envelope {
            worker: id,
            message,
        };
        channel.send(&envelope, &descriptors).unwrap();
        // The shell moves the channel from its standard input to the worker's descriptor number.
        let child = Command::new("sh")
            .args(["-c", "exec \"$0\" worker 3<&0 </dev/null"])
            .arg(env!("CARGO_BIN_EXE_uppercased"))
            .env("FAULT_POINTS", faults)
            .stdin(Stdio::from(there))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Worker {
            id,
            channel,
            watched: Watched::open(child.id()).unwrap(),
            child,
            memory: SharedMemory::map(file).unwrap(),
        }
    }
}

impl Worker {
    fn send(&mut self, message: ToWorker, descriptors: &[OwnedFd]) {
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let worker = self.id;
        match self
            .channel
            .send(&Envelope { worker, message }, &descriptors)
        {
            // A worker that crashed intentionally may not have received the command.
            Ok(()) | Err(channel::Error::Closed) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns the next message; `None` if the channel closes first.
    fn receive(&mut self) -> Option<(FromWorker, Vec<OwnedFd>)> {
        let deadline = Deadline::after(DEADLINE);
        loop {
            match self.channel.receive() {
                Ok(Some(received)) => {
                    assert_eq!(received.envelope.worker, self.id);
                    return Some((received.envelope.message, received.descriptors));
                }
                Err(channel::Error::Closed) => return None,
                Err(error) => panic!("{error}"),
                Ok(None) => assert!(
                    poll_one(&self.channel, PollFlags::POLLIN, deadline.left()),
                    "{} sends nothing",
                    self.id
                ),
            }
        }
    }

    #[track_caller]
    fn expect_handed_over(&mut self) -> HandedOver {
        match self.receive() {
            Some((FromWorker::HandedOver(result), _)) => result,
            other => panic!("expected HandedOver, received {other:?}"),
        }
    }

    #[track_caller]
    fn expect_rescued(&mut self) -> Rescued {
        match self.receive() {
            Some((FromWorker::Rescued(rescued), _)) => {
                self.send(ToWorker::Confirm, &[]);
                rescued
            }
            other => panic!("expected Rescued, received {other:?}"),
        }
    }

    /// Kills the worker's keeper, then its process.
    fn end(&self) {
        for pid in [life::keeper(&self.memory), life::process(&self.memory)] {
            let process = pid.and_then(|pid| Watched::open(pid.unsigned_abs()));
            // A worker that has ended may have left the IDs of processes of others.
            if let Some(process) = process.filter(|it| is_child(it.pid())) {
                process.signal(Signal::SIGKILL);
            }
        }
    }

    #[track_caller]
    fn expect_exit(&mut self) -> ExitStatus {
        assert!(self.watched.wait_gone(DEADLINE), "{} still runs", self.id);
        self.child.wait().unwrap()
    }

    fn count(&self, counter: Counter) -> u64 {
        memory::counter(&self.memory, counter)
    }

    /// Waits until the counter reaches `wanted`.
    #[track_caller]
    fn until(&self, counter: Counter, wanted: u64) {
        let deadline = Deadline::after(DEADLINE);
        while self.count(counter) < wanted {
            assert!(
                deadline.left() > Duration::ZERO,
                "{counter:?} stays below {wanted}"
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_child(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(1));
    parent == Some(&std::process::id().to_string())
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// Connects two workers, as the supervisor does: the successor gets its command first.
fn hand_over(from: &mut Worker, to: &mut Worker, last: bool) {
    let (ours, theirs) = pair();
    let expected = memory::open_connections(&from.memory) as u32;
    let take_over = TakeOver {
        from: from.id,
        expected,
    };
    to.send(ToWorker::TakeOver(take_over), &[theirs]);
    let order = HandOver {
        to: to.id,
        last,
        part: None,
    };
    from.send(ToWorker::HandOver(order), &[ours]);
}

/// Opens clients of `worker` with exchanges in progress.
fn clients(slot: &Slot, worker: &Worker, count: usize) -> Vec<Client> {
    let before = worker.count(Counter::Accepted);
    let mut clients: Vec<_> = (0..count).map(|_| Client::connect(slot.addr())).collect();
    worker.until(Counter::Accepted, before + count as u64);
    for client in &mut clients {
        client.roundtrip(b"before");
    }
    clients
}

fn serves(clients: &mut [Client]) {
    for client in clients {
        client.roundtrip(b"it goes on");
    }
}

#[test]
fn successor_takes_over_and_predecessor_exits() {
    let mut slot = Slot::new(Config::default());
    let mut old = slot.start(false, "");
    let mut clients = clients(&slot, &old, 20);
    let mut new = slot.start(true, "");
    // The successor stands by, so the predecessor serves new clients.
    let early = Client::connect(slot.addr());
    old.until(Counter::Accepted, 21);
    assert_eq!(new.count(Counter::Accepted), 0);
    hand_over(&mut old, &mut new, false);
    let result = old.expect_handed_over();
    let (moved, left, end) = (21, 0, HandoverEnd::Done);
    assert_eq!(
        result,
        HandedOver {
            moved,
            left,
            end,
            part: false
        }
    );
    assert!(old.expect_exit().success());
    clients.push(early);
    serves(&mut clients);
    let mut late = Client::connect(slot.addr());
    late.roundtrip(b"late");
    assert_eq!(new.count(Counter::MigratedIn), 21);
    assert_eq!(old.count(Counter::MigratedOut), 21);
    clients.push(late);
    for client in &mut clients {
        client.half_close();
        client.expect_eof();
    }
    // The same without clients.
    let mut third = slot.start(true, "");
    hand_over(&mut new, &mut third, false);
    assert_eq!(new.expect_handed_over().end, HandoverEnd::Done);
    assert!(new.expect_exit().success());
    Client::connect(slot.addr()).roundtrip(b"third");
}

fn without_rescue() -> Config {
    Config {
        crash_rescue: false,
        ..Config::default()
    }
}

#[test]
fn dead_receiver_returns_unacknowledged_connections() {
    let points = [
        ("receiver.requested", 4, 0),
        ("receiver.received", 4, 0),
        ("receiver.adopted", 4, 0),
        // More than one batch: the sender has more to send when the first is acknowledged.
        ("receiver.acknowledged", 250, 200),
    ];
    for (point, count, moved) in points {
        let mut slot = Slot::new(without_rescue());
        let mut old = slot.start(false, "");
        let mut clients = clients(&slot, &old, count);
        let mut new = slot.start(true, &format!("{point}=kill"));
        hand_over(&mut old, &mut new, false);
        let result = old.expect_handed_over();
        let (left, end) = (count as u32 - moved, HandoverEnd::PeerGone);
        assert_eq!(
            result,
            HandedOver {
                moved,
                left,
                end,
                part: false
            },
            "{point}"
        );
        assert!(!new.expect_exit().success());
        if moved == 0 {
            serves(&mut clients);
        }
        // It accepts again, and the next successor can take over.
        let mut newcomer = Client::connect(slot.addr());
        newcomer.roundtrip(b"newcomer");
        let mut next = slot.start(true, "");
        hand_over(&mut old, &mut next, false);
        assert_eq!(old.expect_handed_over().moved, left + 1, "{point}");
        assert!(old.expect_exit().success());
        newcomer.roundtrip(b"again");
        if moved == 0 {
            serves(&mut clients);
        }
    }
}

#[test]
fn dead_sender_leaves_sent_connections_with_receiver() {
    let points = [
        ("sender.requested", false),
        ("sender.frozen", false),
        ("sender.sent", true),
        ("sender.acknowledged", true),
        ("sender.done", true),
    ];
    for (point, arrives) in points {
        let mut slot = Slot::new(without_rescue());
        let mut old = slot.start(false, &format!("{point}=kill"));
        let mut clients = clients(&slot, &old, 4);
        let mut new = slot.start(true, "");
        hand_over(&mut old, &mut new, false);
        assert!(!old.expect_exit().success());
        if arrives {
            new.until(Counter::MigratedIn, 4);
            serves(&mut clients);
        }
        let mut newcomer = Client::connect(slot.addr());
        newcomer.roundtrip(b"newcomer");
        assert_eq!(
            new.count(Counter::MigratedIn),
            if arrives { 4 } else { 0 },
            "{point}"
        );
    }
}

/// Starts the receiver and the sender of a handover, each with its faults, in a slot whose workers
/// are rescued, and clients in more than one batch.
fn rescued_pair(sender: &str, receiver: &str) -> (Slot, Worker, Worker, Vec<Client>) {
    let mut slot = Slot::new(Config {
        crash_rescue: true,
        ..Config::default()
    });
    let old = slot.start(false, sender);
    let clients = clients(&slot, &old, RESCUED_CLIENTS as usize);
    let new = slot.start(true, receiver);
    (slot, old, new, clients)
}

const RESCUED_CLIENTS: u32 = 250;

/// Asserts that everything has migrated: `old` has reported it, and has ended.
#[track_caller]
fn expect_all_moved(old: &mut Worker, new: &Worker, slot: &Slot, clients: &mut [Client]) {
    let expected = HandedOver {
        moved: RESCUED_CLIENTS,
        left: 0,
        end: HandoverEnd::Done,
        part: false,
    };
    assert_eq!(old.expect_handed_over(), expected);
    serves(clients);
    Client::connect(slot.addr()).roundtrip(b"newcomer");
    for (worker, counter) in [
        (&*old, Counter::MigratedOut),
        (new, Counter::MigratedIn),
        (new, Counter::Accepted),
    ] {
        let wanted = if counter == Counter::Accepted {
            1
        } else {
            RESCUED_CLIENTS.into()
        };
        assert_eq!(worker.count(counter), wanted, "{counter:?}");
    }
}

#[test]
fn rescued_receiver_loses_no_connection() {
    for point in ["received", "adopted", "acknowledged"] {
        println!("{point}");
        let fault = format!("receiver.{point}=kill_first");
        let (slot, mut old, mut new, mut clients) = rescued_pair("", &fault);
        hand_over(&mut old, &mut new, false);
        expect_all_moved(&mut old, &new, &slot, &mut clients);
        assert!(old.expect_exit().success());
        assert!(new.expect_rescued().reset == 0);
    }
}

#[test]
fn rescued_sender_loses_no_connection() {
    for point in ["frozen", "sent", "acknowledged", "done"] {
        println!("{point}");
        let fault = format!("sender.{point}=kill_first");
        let (slot, mut old, mut new, mut clients) = rescued_pair(&fault, "");
        hand_over(&mut old, &mut new, false);
        if point != "done" {
            let rescued = old.expect_rescued();
            assert_eq!((rescued.reset, rescued.is_handing_over), (0, true));
        }
        expect_all_moved(&mut old, &new, &slot, &mut clients);
    }
}

#[test]
fn rescued_pair_loses_no_connection() {
    for sender in ["frozen", "sent", "acknowledged"] {
        for receiver in ["received", "adopted", "acknowledged"] {
            println!("{sender} {receiver}");
            let (slot, mut old, mut new, mut clients) = rescued_pair(
                &format!("sender.{sender}=kill_first"),
                &format!("receiver.{receiver}=kill_first"),
            );
            hand_over(&mut old, &mut new, false);
            assert_eq!(old.expect_rescued().reset, 0);
            expect_all_moved(&mut old, &new, &slot, &mut clients);
            assert_eq!(new.expect_rescued().reset, 0);
        }
    }
}

/// Hands over until everything has migrated: a request that was lost is repeated.
#[track_caller]
fn hand_over_to_the_end(old: &mut Worker, new: &mut Worker) {
    hand_over(old, new, false);
    loop {
        match old.receive() {
            Some((FromWorker::Rescued(rescued), _)) => {
                assert_eq!(rescued.reset, 0);
                old.send(ToWorker::Confirm, &[]);
                if !rescued.is_handing_over {
                    hand_over(old, new, false);
                }
            }
            Some((FromWorker::HandedOver(result), _)) => match result.end {
                HandoverEnd::PeerGone => hand_over(old, new, false),
                HandoverEnd::Done => return,
                _ => panic!("{result:?}"),
            },
            other => panic!("expected a report, received {other:?}"),
        }
    }
}

/// Kills the sender, the receiver or both after a store of the handover.
#[test]
fn rescued_worker_loses_no_connection_at_any_store() {
    let number = |name: &str| std::env::var(name).ok().and_then(|it| it.parse().ok());
    let only = number("E2E_STORE");
    let step = number("E2E_STORE_STEP").unwrap_or(41);
    let (mut sent, mut received) = (0, 0);
    let stores = only.map_or(0..STORES_MAX, |only: usize| only..only + 1);
    for store in stores.step_by(step) {
        for side in ["sender", "receiver", "both"] {
            println!("store {store}, {side}");
            let plan = format!("store={}", store + 1);
            let of = |which: &str| {
                if [which, "both"].contains(&side) {
                    &plan
                } else {
                    ""
                }
            };
            let mut slot = Slot::new(Config {
                crash_rescue: true,
                ..Config::default()
            });
            let mut old = slot.start(false, of("sender"));
            let mut clients: Vec<_> = (0..8).map(|_| Client::connect(slot.addr())).collect();
            clients[0].roundtrip(b"before");
            let mut new = slot.start(true, of("receiver"));
            hand_over_to_the_end(&mut old, &mut new);
            if life::lives(&new.memory) > 1 {
                // It may have died before it began to accept.
                assert_eq!(new.expect_rescued().reset, 0);
                new.send(ToWorker::Serve, &[]);
            }
            serves(&mut clients);
            Client::connect(slot.addr()).roundtrip(b"newcomer");
            sent += life::lives(&old.memory) - 1;
            received += life::lives(&new.memory) - 1;
        }
    }
    println!("{sent} senders and {received} receivers were rescued");
    assert!(only.is_some() || (sent > 5 && received > 5));
}

/// More stores than a worker makes in a handover of a few connections.
const STORES_MAX: usize = 400;

/// The request and its socket are lost with the process; the supervisor repeats both.
#[test]
fn lost_request_for_handover_is_repeated() {
    let (slot, mut old, mut new, mut clients) = rescued_pair("sender.requested=kill_first", "");
    hand_over(&mut old, &mut new, false);
    let rescued = old.expect_rescued();
    assert!(!rescued.is_handing_over);
    hand_over(&mut old, &mut new, false);
    expect_all_moved(&mut old, &new, &slot, &mut clients);

    let (slot, mut old, mut new, mut clients) = rescued_pair("", "receiver.requested=kill_first");
    hand_over(&mut old, &mut new, false);
    let result = old.expect_handed_over();
    let (left, end) = (RESCUED_CLIENTS, HandoverEnd::PeerGone);
    assert_eq!((result.moved, result.left, result.end), (0, left, end));
    assert_eq!(new.expect_rescued().connections, 0);
    hand_over(&mut old, &mut new, false);
    expect_all_moved(&mut old, &new, &slot, &mut clients);
}

/// A request that waits for the end of a partial handover is lost with the process, and its socket
/// with it; the partial handover goes on.
#[test]
fn lost_deferred_request_is_repeated() {
    let (mut slot, mut old, mut new, mut clients) = rescued_pair("", "");
    let mut sibling = slot.start(false, "receiver.received=stop");
    let (ours, theirs) = pair();
    let take_over = TakeOver {
        from: old.id,
        expected: PART,
    };
    sibling.send(ToWorker::TakeOver(take_over), &[theirs]);
    let part = Part {
        permille: 1000,
        at_most: PART,
        active_within: DEADLINE,
    };
    let request = HandOver {
        to: sibling.id,
        last: false,
        part: Some(part),
    };
    old.send(ToWorker::HandOver(request), &[ours]);
    until("the receiver has the part", || {
        state(sibling.watched.pid()) == Some('T')
    });
    hand_over(&mut old, &mut new, false);
    // Its answer shows that the request before it is waiting.
    old.send(ToWorker::Keep, &[]);
    assert!(matches!(old.receive(), Some((FromWorker::Kept, _))));
    let process = life::process(&old.memory).and_then(|pid| Watched::open(pid.unsigned_abs()));
    process.unwrap().signal(Signal::SIGKILL);
    let rescued = old.expect_rescued();
    assert_eq!((rescued.reset, rescued.is_handing_over), (0, false));
    hand_over(&mut old, &mut new, false);
    sibling.watched.signal(Signal::SIGCONT);
    // That of the part is not reported, because a handover of all followed.
    let result = old.expect_handed_over();
    assert_eq!((result.moved, result.part), (RESCUED_CLIENTS - PART, false));
    assert_eq!(result.end, HandoverEnd::Done);
    serves(&mut clients);
    assert_eq!(sibling.count(Counter::MigratedIn), u64::from(PART));
}

/// Fewer connections than in a batch.
const PART: u32 = 20;

/// The sender may have read an answer and died before it stored that, and the only process that
/// knows it is gone: connections that it has not served since then are taken back.
#[test]
fn rescued_sender_survives_lost_receiver() {
    let (_, mut old, mut new, mut clients) = rescued_pair(
        "sender.acknowledged=kill_first",
        "receiver.acknowledged=stop",
    );
    hand_over(&mut old, &mut new, false);
    assert_eq!(old.expect_rescued().reset, 0);
    new.end();
    let result = old.expect_handed_over();
    assert_eq!((result.moved, result.end), (0, HandoverEnd::PeerGone));
    serves(&mut clients);
}

#[test]
fn unreadable_packets_make_predecessor_drain() {
    let mut slot = Slot::new(Config::default());
    let mut old = slot.start(false, "");
    let mut clients = clients(&slot, &old, 4);
    let mut new = slot.start(true, "receiver.decode=fail");
    hand_over(&mut old, &mut new, false);
    let result = old.expect_handed_over();
    assert_eq!((result.moved, result.left), (0, 4));
    assert!(
        matches!(result.end, HandoverEnd::Refused { cause } if cause.contains("receiver.decode"))
    );
    serves(&mut clients);
    let mut newcomer = Client::connect(slot.addr());
    newcomer.roundtrip(b"the successor accepts");
    assert_eq!(new.count(Counter::Accepted), 1);
    let drain_timeout_ms = DRAIN_MS;
    old.send(ToWorker::Leave { drain_timeout_ms }, &[]);
    for client in &mut clients {
        client.half_close();
        client.expect_eof();
    }
    assert!(old.expect_exit().success());
}

#[test]
fn worker_without_room_leaves_rest_to_peer() {
    let mut slot = Slot::new(Config::default());
    let mut old = slot.start(false, "");
    let mut clients = clients(&slot, &old, 4);
    // The receiver cannot watch every second connection.
    let mut new = slot.start(true, "receiver.watch=fail_alternately");
    hand_over(&mut old, &mut new, false);
    let result = old.expect_handed_over();
    assert_eq!(result.moved + result.left, 4);
    assert!(result.moved > 0 && result.left > 0, "{result:?}");
    assert!(matches!(result.end, HandoverEnd::Incomplete { .. }));
    new.until(Counter::MigratedIn, u64::from(result.moved));
    serves(&mut clients);
    // All of them return to the old worker, which accepts again.
    hand_over(&mut new, &mut old, false);
    let result = new.expect_handed_over();
    assert_eq!((result.left, result.end), (0, HandoverEnd::Done));
    assert!(new.expect_exit().success());
    serves(&mut clients);
    let mut newcomer = Client::connect(slot.addr());
    newcomer.roundtrip(b"newcomer");
}

/// Connections return to a worker that has kept some, and whose process dies: before it has stored
/// that connections arrive, or later.
#[test]
fn dead_receiver_of_returned_connections_costs_nothing() {
    for point in ["requested", "received", "adopted", "acknowledged"] {
        println!("{point}");
        let mut slot = Slot::new(Config {
            crash_rescue: true,
            ..Config::default()
        });
        let mut old = slot.start(false, &format!("receiver.{point}=kill_first"));
        let mut clients = clients(&slot, &old, 8);
        let mut new = slot.start(true, "receiver.watch=fail_alternately");
        hand_over(&mut old, &mut new, false);
        let kept = old.expect_handed_over().left;
        assert!(kept > 0 && kept < 8, "{point}: {kept}");
        hand_over(&mut new, &mut old, false);
        let result = new.expect_handed_over();
        let rescued = old.expect_rescued();
        assert_eq!(rescued.reset, 0, "{point}");
        serves(&mut clients);
        if point == "requested" {
            assert_eq!((result.moved, result.end), (0, HandoverEnd::PeerGone));
            hand_over(&mut new, &mut old, false);
            assert_eq!(new.expect_handed_over().end, HandoverEnd::Done);
        } else {
            assert_eq!(result.end, HandoverEnd::Done, "{point}");
        }
        assert!(new.expect_exit().success());
        serves(&mut clients);
    }
}

#[test]
fn leaving_worker_serves_and_then_finishes() {
    let mut slot = Slot::new(Config::default());
    let mut old = slot.start(false, "");
    let mut clients = clients(&slot, &old, 4);
    let mut new = slot.start(true, "");
    new.send(ToWorker::Serve, &[]);
    // Longer than the steps below take.
    let drain_timeout_ms = 3000;
    old.send(ToWorker::Leave { drain_timeout_ms }, &[]);
    let (message, _) = old.receive().unwrap();
    assert_eq!(message, FromWorker::Draining { connections: 4 });
    serves(&mut clients);
    let mut newcomer = Client::connect(slot.addr());
    newcomer.roundtrip(b"newcomer");
    assert_eq!(new.count(Counter::Accepted), 1);
    for client in &mut clients {
        client.expect_eof(); // Half-closed after the timeout, never reset.
    }
    drop(clients);
    assert!(old.expect_exit().success());
}

#[test]
fn last_worker_empties_queue_before_close() {
    let mut slot = Slot::new(Config::default());
    let mut old = slot.start(false, "");
    let mut sibling_slot = Slot::new(Config::default());
    let mut sibling = sibling_slot.start(false, "");
    let mut clients = clients(&slot, &old, 4);
    slot.listener = None; // The test holds no duplicate, so the queue is lost with the worker.
    clients.extend((0..4).map(|_| Client::connect(slot.addr())));
    hand_over(&mut old, &mut sibling, true);
    let result = old.expect_handed_over();
    let (moved, left, end) = (8, 0, HandoverEnd::Done);
    assert_eq!(
        result,
        HandedOver {
            moved,
            left,
            end,
            part: false
        }
    );
    assert!(old.expect_exit().success());
    serves(&mut clients);
    assert!(
        Client::try_connect(slot.addr()).is_err(),
        "no process listens there"
    );
}

#[test]
fn stop_during_handover_ends_both_workers() {
    let mut slot = Slot::new(Config::default());
    let mut old = slot.start(false, "");
    let mut clients = clients(&slot, &old, 100);
    let mut new = slot.start(true, "");
    hand_over(&mut old, &mut new, false);
    let stop = || {
        ToWorker::Stop(Stop {
            lame_duck_ms: 0,
            drain_timeout_ms: DRAIN_MS,
        })
    };
    old.send(stop(), &[]);
    new.send(stop(), &[]);
    for client in &mut clients {
        client.expect_eof();
    }
    drop(clients);
    assert!(old.expect_exit().success());
    assert!(new.expect_exit().success());
    let moved = [
        old.count(Counter::MigratedOut),
        new.count(Counter::MigratedIn),
    ];
    assert_eq!(moved[0], moved[1]);
    for worker in [&old, &new] {
        assert_eq!(memory::open_connections(&worker.memory), 0);
    }
}

#[test]
fn standby_worker_exits_without_touching_queue() {
    let mut slot = Slot::new(Config::default());
    let mut old = slot.start(false, "");
    let mut new = slot.start(true, "");
    let mut client = Client::connect(slot.addr());
    new.send(
        ToWorker::Stop(Stop {
            lame_duck_ms: 0,
            drain_timeout_ms: DRAIN_MS,
        }),
        &[],
    );
    assert!(new.expect_exit().success());
    assert_eq!(new.count(Counter::Accepted), 0);
    client.roundtrip(b"untouched");
    // The same without its supervisor.
    let new = slot.start(true, "");
    let Worker { channel, .. } = &new;
    let _ = rustix::net::shutdown(channel.as_fd(), rustix::net::Shutdown::Both);
    assert!(new.watched.wait_gone(DEADLINE));
    client.roundtrip(b"still");
    old.send(ToWorker::Ping, &[]);
}

#[test]
fn ping_wakes_idle_worker() {
    let mut slot = Slot::new(Config::default());
    let mut worker = slot.start(false, "");
    let before = worker.count(Counter::Turns);
    worker.send(ToWorker::Ping, &[]);
    worker.until(Counter::Turns, before + 1);
}
