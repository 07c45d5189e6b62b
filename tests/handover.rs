//! Live handover between event loops, with real sockets: a connection in any state continues at the
//! other worker without a byte lost, duplicated or reordered, and without a reset.
//!
//! The loops run in this process, one turn after the other, so every state can be arranged: events
//! between the handover command and the next turn are still in the kernel when the connection
//! leaves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "e2e/support/bytes.rs"]
#[expect(unreachable_pub, reason = "shared with the end-to-end tests")]
mod bytes;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::{assert_same, pattern, upper};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use socket2::SockRef;
use uppercased::channel::packets::{Error, Packets};
use uppercased::config::{Config, HANDOVER_COUNT_TIMEOUT, HANDOVER_MESSAGE_BYTES};
use uppercased::handover::record::{Message, Packet};
use uppercased::handover::{HandedOver, HandoverEnd, Part};
use uppercased::listener;
use uppercased::memory::layout::{Layout, State};
use uppercased::memory::{self, Memory, counter};
use uppercased::reactor::{Reactor, Reports};
use uppercased::wire::Listen;
use uppercased_ctl::clock::{Tick, now};
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::metrics::{CloseReason, Counter};

const MAX: u32 = 2000;
const SLOT: SlotId = SlotId(0);
/// Maximum number of turns until an expected condition holds.
const TURNS_MAX: usize = 100_000;
/// Maximum time for it if the loops have to wait.
const PATIENCE: Duration = Duration::from_secs(60);

fn config() -> Config {
    Config {
        // So that a read fills a buffer, and a send is short.
        send_buffer: Some(8192),
        recv_buffer: Some(256 * 1024),
        ..Config::default()
    }
}

fn reactor(config: &Config, max: u32) -> Reactor {
    reactor_with_room(config, max, max)
}

/// Returns a loop that accepts up to `max` connections, with `buffers` for the pending output of
/// any.
fn reactor_with_room(config: &Config, max: u32, buffers: u32) -> Reactor {
    let layout = Layout {
        descriptors: 16_384,
        buffers,
        buffer_bytes: config.pending_output,
    };
    let memory = Memory::adopt(memory::create(layout).unwrap(), layout).unwrap();
    Reactor::new(memory, config, max).unwrap()
}

/// Runs a turn that waits until `deadline` at most.
fn turn(one: &mut Reactor, deadline: Option<Tick>) {
    let mut reports = Reports::default();
    one.wait(&mut reports, deadline).unwrap();
    one.handle_reports(&reports);
    one.work();
}

/// Runs only the first phase of a turn: readiness stays unhandled.
fn wait(one: &mut Reactor) {
    one.wait(&mut Reports::default(), Some(Tick::ZERO)).unwrap();
}

fn link() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// Event loops that share a port.
struct Stage {
    loops: Vec<Reactor>,
    listener: OwnedFd,
    addr: SocketAddr,
}

impl Stage {
    /// Starts `count` loops; the first accepts, the others stand by.
    fn new(count: usize, config: &Config) -> Self {
        let asked = Listen {
            addr: ([127, 0, 0, 1], 0).into(),
            dual_stack: false,
        };
        let (listener, listen) = listener::bind(&asked, config).unwrap();
        let mut loops: Vec<Reactor> = (0..count).map(|_| reactor(config, MAX)).collect();
        for (index, one) in loops.iter_mut().enumerate() {
            if index > 0 {
                one.pause_accepting();
            }
            let listener = listener.try_clone().unwrap();
            one.add_listener(SLOT, listener, false).unwrap();
        }
        Self {
            loops,
            listener,
            addr: listen.addr,
        }
    }

    /// Runs a turn of every loop, without waiting.
    fn turn(&mut self) {
        for one in &mut self.loops {
            turn(one, Some(Tick::ZERO));
        }
    }

    /// Runs turns until `done`.
    #[track_caller]
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..TURNS_MAX {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("it never came to that");
    }

    fn connect(&mut self, index: usize) -> Client {
        let before = self.loops[index].open_connections();
        let client = Client::new(self.addr);
        self.until(|stage| stage.loops[index].open_connections() > before);
        client
    }

    /// Begins a handover without running a turn.
    fn order(&mut self, from: usize, to: usize, last: bool) {
        let (ours, theirs) = link();
        let expected = self.loops[from].open_connections();
        self.loops[to].take_over(theirs, expected).unwrap();
        self.loops[to].begin_accepting();
        self.loops[from].hand_over(ours, last).unwrap();
    }

    /// Returns its result.
    #[track_caller]
    fn outcome(&mut self, from: usize) -> HandedOver {
        let mut found = None;
        self.until(|stage| {
            found = stage.loops[from].handed_over();
            found.is_some()
        });
        self.until(|stage| !stage.loops.iter().any(Reactor::is_moving));
        found.unwrap()
    }

    fn count(&self, index: usize, what: Counter) -> u64 {
        counter(self.loops[index].memory().shared(), what)
    }
}

/// A client that checks every byte.
struct Client {
    stream: TcpStream,
    sent: u64,
    got: u64,
    ended: bool,
}

impl Client {
    fn new(addr: SocketAddr) -> Self {
        let domain = socket2::Domain::for_address(addr);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
        // Small buffers, so that output is soon pending at the server.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&addr.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            stream: socket.into(),
            sent: 0,
            got: 0,
            ended: false,
        }
    }

    /// Sends up to `len` bytes, as far as the kernel accepts them.
    fn send(&mut self, len: usize) -> usize {
        match self.stream.write(&pattern(self.sent, len)) {
            Ok(sent) => {
                self.sent += sent as u64;
                sent
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("sending: {error}"),
        }
    }

    fn end(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Reads the available bytes and compares them; returns true once the reply is complete.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        while !self.ended {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => {
                    let expected = upper(&pattern(self.got, length));
                    assert_same(&buffer[..length], &expected, "the answer");
                    self.got += length as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("receiving after {} bytes: {error}", self.got),
            }
        }
        self.got == self.sent
    }

    /// Sends more, ends its stream, and receives every byte up to the end.
    fn conclude(mut self, stage: &mut Stage) {
        let mut more = 20_000;
        stage.until(|_| {
            more -= self.send(more);
            self.read() && more == 0
        });
        self.finish(stage);
    }

    /// Ends its stream and receives every byte up to the end.
    fn finish(self, stage: &mut Stage) {
        self.end();
        self.expect_end(stage);
    }

    /// Receives every byte up to the end.
    fn expect_end(mut self, stage: &mut Stage) {
        stage.until(|_| self.read() && self.ended);
    }

    /// Resets the connection.
    fn reset(self) {
        let linger = Some(Duration::ZERO);
        SockRef::from(&self.stream).set_linger(linger).unwrap();
    }

    /// Sends until the server has output pending and no longer reads.
    fn stuff(&mut self, stage: &mut Stage) {
        // The first read fills a buffer.
        while self.send(64 * 1024) > 0 {}
        let mut quiet = 0;
        stage.until(|_| {
            quiet = if self.send(64 * 1024) > 0 {
                0
            } else {
                quiet + 1
            };
            quiet > 50
        });
    }
}

/// Returns the loop's connection with peer `client`.
fn state_of(stage: &Stage, index: usize, client: &Client) -> Option<(State, u32)> {
    let memory = stage.loops[index].memory();
    let local = client.stream.local_addr().unwrap();
    let fd = memory
        .occupied()
        .find(|&fd| memory.record(fd).peer() == local)?;
    let pending = memory
        .record(fd)
        .pending()
        .map_or(0, |pending| pending.len());
    Some((memory.record(fd).state(), pending))
}

#[test]
fn connection_continues_from_every_state() {
    let mut stage = Stage::new(3, &config());
    let idle = stage.connect(0);
    let mut mid_message = stage.connect(0);
    mid_message.send(100);
    stage.until(|_| mid_message.read());
    let mut full = stage.connect(0);
    full.stuff(&mut stage);
    let mut ended = stage.connect(0);
    ended.stuff(&mut stage);
    ended.end();
    let mut early = stage.connect(0);
    let mut data_and_end = stage.connect(0);
    let only_end = stage.connect(0);
    let gone = stage.connect(0);
    let mut gone_with_data = stage.connect(0);
    for _ in 0..10 {
        stage.turn();
    }
    for client in [&full, &ended] {
        let (_, pending) = state_of(&stage, 0, client).unwrap();
        assert!(pending > 40_000, "only {pending} bytes are pending");
    }

    stage.order(0, 1, false);
    // The leaving loop detects none of these events.
    early.send(1000);
    data_and_end.send(1000);
    data_and_end.end();
    only_end.end();
    gone.reset();
    gone_with_data.send(1000);
    gone_with_data.reset();
    // The pending output fills two batches.
    stage.loops[0].work();
    stage.loops[0].work();
    assert_eq!(stage.outcome(0), done(9));
    assert_eq!(stage.loops[0].open_connections(), 0);
    assert_eq!(stage.count(0, Counter::MigratedOut), 9);
    assert_eq!(stage.count(1, Counter::MigratedIn), 9);
    stage.until(|stage| stage.count(1, Counter::Closed(CloseReason::PeerReset)) == 2);

    // A second handover, in the present states.
    stage.order(1, 2, false);
    let left = stage.loops[1].open_connections();
    assert_eq!(stage.outcome(1), done(left));

    idle.conclude(&mut stage);
    mid_message.conclude(&mut stage);
    full.conclude(&mut stage);
    early.conclude(&mut stage);
    for client in [ended, data_and_end, only_end] {
        client.expect_end(&mut stage);
    }
    assert!(stage.loops.iter().all(|one| one.open_connections() == 0));
    // No output is owed to the client that reset its connection.
    for (index, abandoned) in [0, 1000, 0].into_iter().enumerate() {
        assert_eq!(stage.count(index, Counter::BytesAbandoned), abandoned);
        assert_eq!(stage.loops[index].memory().occupied().count(), 0);
        let shared = stage.loops[index].memory().shared();
        assert_eq!(memory::open_connections(shared), 0);
    }
}

fn done(moved: u32) -> HandedOver {
    HandedOver {
        moved,
        left: 0,
        end: HandoverEnd::Done,
        part: false,
    }
}

#[test]
fn lingering_connection_lingers_to_its_end() {
    let config = Config {
        idle_timeout: Some(Duration::from_millis(10)),
        linger_timeout: Duration::from_secs(60),
        ..config()
    };
    let mut stage = Stage::new(2, &config);
    let mut client = stage.connect(0);
    let deadline = now() + PATIENCE;
    while state_of(&stage, 0, &client) != Some((State::LingeringIdle, 0)) {
        assert!(now() < deadline, "it never lingers");
        turn(&mut stage.loops[0], Some(deadline));
    }
    stage.order(0, 1, false);
    client.send(500); // Too late: discarded by either worker.
    stage.loops[0].work();
    assert_eq!(stage.outcome(0), done(1));
    assert_eq!(
        state_of(&stage, 1, &client),
        Some((State::LingeringIdle, 0)),
        "nothing is reset by a move"
    );
    client.sent = 0;
    stage.until(|_| client.read() && client.ended);
    client.end();
    stage.until(|stage| stage.count(1, Counter::Closed(CloseReason::IdleTimeout)) == 1);
    assert_eq!(stage.count(1, Counter::BytesDiscarded), 500);
}

#[test]
fn many_connections_move_in_batches_while_both_serve() {
    raise_the_descriptor_limit();
    let mut stage = Stage::new(2, &config());
    let mut clients: Vec<Client> = (0..450).map(|_| stage.connect(0)).collect();
    stage.order(0, 1, false);
    let mut turns = 0;
    let mut result = None;
    while result.is_none() {
        for client in &mut clients {
            client.send(100);
        }
        stage.turn();
        for client in &mut clients {
            client.read();
        }
        turns += 1;
        assert!(turns < TURNS_MAX);
        result = stage.loops[0].handed_over();
    }
    assert_eq!(result, Some(done(450)));
    assert!(turns >= 2);
    // New clients connect to the successor.
    clients.push(stage.connect(1));
    stage.until(|_| clients.iter_mut().all(Client::read));
    for client in clients {
        client.finish(&mut stage);
    }
}

/// Returns a link that holds little more than one batch of idle connections.
fn narrow_link() -> (OwnedFd, OwnedFd) {
    let (ours, theirs) = link();
    SockRef::from(&ours).set_send_buffer_size(8192).unwrap();
    (ours, theirs)
}

#[test]
fn full_socket_delays_batch_and_loses_nothing() {
    raise_the_descriptor_limit();
    let mut stage = Stage::new(2, &config());
    let clients: Vec<Client> = (0..450).map(|_| stage.connect(0)).collect();
    let (ours, theirs) = narrow_link();
    stage.loops[1].take_over(theirs, 450).unwrap();
    stage.loops[0].hand_over(ours, false).unwrap();
    // The second batch finds the link full, however often it is offered.
    for _ in 0..100 {
        turn(&mut stage.loops[0], Some(Tick::ZERO));
    }
    assert_eq!(stage.outcome(0), done(450));
    for client in clients {
        client.finish(&mut stage);
    }
}

#[test]
fn unsendable_batch_stays_with_sender() {
    let mut stage = Stage::new(2, &config());
    let mut large = stage.connect(0);
    large.stuff(&mut stage);
    let (ours, theirs) = narrow_link();
    // It is in the same batch.
    let small = stage.connect(0);
    stage.loops[1].take_over(theirs, 1).unwrap();
    stage.loops[0].hand_over(ours, false).unwrap();
    let result = stage.outcome(0);
    let why = |end| matches!(end, HandoverEnd::Incomplete { cause } if cause.contains("could not be sent"));
    assert!(why(result.end));
    assert_eq!(result.moved, 0);
    large.finish(&mut stage);
    small.conclude(&mut stage);
}

#[test]
fn dead_receiver_leaves_everything_with_sender() {
    let mut stage = Stage::new(1, &config());
    let mut clients: Vec<Client> = (0..5).map(|_| stage.connect(0)).collect();
    clients[1].stuff(&mut stage);
    clients[2].stuff(&mut stage);
    clients[2].end();
    let (ours, theirs) = link();
    stage.loops[0].hand_over(ours, false).unwrap();
    let receiver = Packets::over(theirs);
    clients[0].send(10);
    stage.loops[0].work();
    let mut buffer = vec![0; HANDOVER_MESSAGE_BYTES];
    let mut batches = Vec::new();
    // Two large ones do not fit into one message; the rest is in the window.
    stage.turn();
    while let Some(packet) = receiver.receive(&mut buffer).unwrap() {
        let read = Packet::decode(&buffer[..packet.length]).unwrap();
        let connections = match read.message {
            Message::Batch(connections) => connections,
            Message::Begin { coming: 5 } => continue,
            other => panic!("{other:?}"),
        };
        assert_eq!(connections.len(), packet.descriptors.len());
        batches.push((read.sequence, connections.len(), packet.descriptors));
    }
    let numbers: Vec<u32> = batches.iter().map(|batch| batch.0).collect();
    assert_eq!(numbers, [1, 2]);
    // The first is acknowledged before the end: it is lost with its connections.
    let first = batches.remove(0);
    let acknowledged = Packet {
        sequence: 1,
        message: Message::Acknowledged {
            taken: first.1 as u32,
            left: None,
        },
    };
    assert!(receiver.send(&acknowledged.encode(), &[]).unwrap());
    drop((receiver, batches));
    let result = stage.outcome(0);
    let moved = first.1 as u32;
    let end = HandoverEnd::PeerGone;
    assert_eq!(
        result,
        HandedOver {
            moved,
            left: 5 - moved,
            end,
            part: false
        }
    );
    assert_eq!(stage.loops[0].open_connections(), 5 - moved);
    // It accepts again, and the returned connections continue.
    let newcomer = stage.connect(0);
    newcomer.conclude(&mut stage);
    let lost: Vec<SocketAddr> = first
        .2
        .into_iter()
        .map(|fd| TcpStream::from(fd).peer_addr().unwrap())
        .collect();
    for client in clients {
        if lost.contains(&client.stream.local_addr().unwrap()) {
            continue;
        }
        client.finish(&mut stage);
    }
}

#[test]
fn adopted_connections_exceed_policy_limits() {
    let mut stage = Stage::new(2, &config());
    let mut clients: Vec<Client> = (0..5).map(|_| stage.connect(0)).collect();
    for client in &mut clients[..2] {
        client.stuff(&mut stage);
    }
    // Both have more output pending than the new worker reads at once; all exceed its limit.
    let tight = Config {
        pending_output: 4096,
        ..config()
    };
    stage.loops[1] = reactor_with_room(&tight, 3, 5);
    stage.loops[1].pause_accepting();
    let listener = stage.listener.try_clone().unwrap();
    stage.loops[1].add_listener(SLOT, listener, false).unwrap();
    stage.order(0, 1, false);
    assert_eq!(stage.outcome(0), done(5));
    let newcomer = Client::new(stage.addr);
    for _ in 0..10 {
        stage.turn();
    }
    assert_eq!(stage.loops[1].open_connections(), 5, "new ones wait");
    for client in clients {
        client.finish(&mut stage);
    }
    newcomer.conclude(&mut stage);
}

#[test]
fn connection_without_room_stays_and_others_move() {
    let mut stage = Stage::new(2, &config());
    let mut clients: Vec<Client> = (0..6).map(|_| stage.connect(0)).collect();
    for client in &mut clients[1..4] {
        client.stuff(&mut stage);
    }
    // One buffer for the pending output of three connections.
    stage.loops[1] = reactor_with_room(&config(), 10, 1);
    stage.order(0, 1, false);
    let result = stage.outcome(0);
    assert_eq!((result.moved, stage.loops[0].open_connections()), (4, 2));
    assert!(matches!(result.end, HandoverEnd::Incomplete { cause } if cause.contains("buffer")));
    // The sender may accept again.
    stage.loops[0].begin_accepting();
    let newcomer = stage.connect(0);
    newcomer.conclude(&mut stage);
    for client in clients {
        client.finish(&mut stage);
    }
}

#[test]
fn connections_return_after_incomplete_handover() {
    let mut stage = Stage::new(2, &config());
    let mut clients: Vec<Client> = (0..6).map(|_| stage.connect(0)).collect();
    for client in &mut clients[1..4] {
        client.stuff(&mut stage);
    }
    stage.loops[1] = reactor_with_room(&config(), 10, 1);
    stage.order(0, 1, false);
    assert_eq!(stage.outcome(0).moved, 4);
    stage.order(1, 0, false);
    assert_eq!(stage.outcome(1), done(4));
    assert_eq!(stage.loops[0].open_connections(), 6);
    for client in clients {
        client.finish(&mut stage);
    }
}

#[test]
fn successor_accepts_after_learning_count() {
    let mut stage = Stage::new(1, &config());
    stage.loops[0].pause_accepting();
    let (ours, theirs) = link();
    stage.loops[0].take_over(theirs, 0).unwrap();
    stage.loops[0].begin_accepting();
    let sender = Packets::over(ours);
    let early = Client::new(stage.addr);
    for _ in 0..10 {
        stage.turn();
    }
    assert_eq!(stage.loops[0].open_connections(), 0);
    let begin = Packet {
        sequence: 0,
        message: Message::Begin { coming: 1 },
    };
    assert!(sender.send(&begin.encode(), &[]).unwrap());
    early.conclude(&mut stage);

    // A sender that does not report it blocks no other worker for long.
    let mut stage = Stage::new(1, &config());
    stage.loops[0].pause_accepting();
    let (_ours, theirs) = link();
    let before = now();
    stage.loops[0].take_over(theirs, 0).unwrap();
    stage.loops[0].begin_accepting();
    let late = Client::new(stage.addr);
    while stage.loops[0].open_connections() == 0 {
        assert!(now().since(before) < PATIENCE);
        turn(&mut stage.loops[0], None);
    }
    assert!(now().since(before) >= HANDOVER_COUNT_TIMEOUT);
    late.conclude(&mut stage);
}

#[test]
fn acknowledgement_flood_never_blocks_sender() {
    let mut stage = Stage::new(1, &config());
    let client = stage.connect(0);
    let (ours, theirs) = link();
    stage.loops[0].hand_over(ours, false).unwrap();
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&over);
    let send_on = move || {
        let answer = Packet {
            sequence: 9,
            message: Message::Acknowledged {
                taken: 1,
                left: None,
            },
        }
        .encode();
        let receiver = Packets::over(theirs);
        let begun = now();
        while !flag.load(std::sync::atomic::Ordering::Relaxed) && now().since(begun) < PATIENCE {
            let _ = receiver.send(&answer, &[]);
        }
        now().since(begun) < PATIENCE
    };
    let flood = std::thread::Builder::new().spawn(send_on).unwrap();
    for _ in 0..20 {
        stage.turn();
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(flood.join().unwrap(), "a turn lasted as long as the flood");
    assert_eq!(stage.outcome(0).moved, 0);
    client.conclude(&mut stage);
}

#[test]
fn full_server_migrates_before_accepting_queue() {
    let mut stage = Stage::new(1, &config());
    stage.loops[0] = reactor(&config(), 10);
    let listener = stage.listener.try_clone().unwrap();
    stage.loops[0].add_listener(SLOT, listener, false).unwrap();
    let mut clients: Vec<Client> = (0..10).map(|_| stage.connect(0)).collect();
    let waiting: Vec<Client> = (0..5).map(|_| Client::new(stage.addr)).collect();
    stage.loops.push(reactor(&config(), 10));
    stage.loops[1].pause_accepting();
    let listener = stage.listener.try_clone().unwrap();
    stage.loops[1].add_listener(SLOT, listener, false).unwrap();
    stage.order(0, 1, false);
    // The successor runs many turns before any message arrives.
    for _ in 0..10 {
        turn(&mut stage.loops[1], Some(Tick::ZERO));
    }
    assert_eq!(stage.loops[1].open_connections(), 0);
    // Some end at the last moment: their places are reused.
    for client in clients.drain(..5) {
        client.reset();
    }
    wait(&mut stage.loops[0]);
    assert_eq!(stage.outcome(0).end, HandoverEnd::Done);
    stage.until(|stage| stage.loops[1].open_connections() == 10);
    for client in clients.into_iter().chain(waiting) {
        client.conclude(&mut stage);
    }
}

#[test]
fn future_format_and_stopping_worker_are_refused() {
    let mut stage = Stage::new(2, &config());
    let client = stage.connect(0);
    let (ours, theirs) = link();
    stage.loops[0].hand_over(ours, false).unwrap();
    let receiver = Packets::over(theirs);
    let mut refusal = Packet {
        sequence: 1,
        message: Message::Refused {
            cause: "version".into(),
        },
    }
    .encode();
    refusal[4] = 9;
    assert!(receiver.send(&refusal, &[]).unwrap());
    let result = stage.outcome(0);
    assert!(matches!(result.end, HandoverEnd::Refused { cause } if cause == "version"));
    client.conclude(&mut stage);

    // This batch only: the program would read another one.
    let mut stage = Stage::new(2, &config());
    let client = stage.connect(0);
    let (ours, theirs) = link();
    stage.loops[0].hand_over(ours, false).unwrap();
    stage.loops[0].work();
    let receiver = Packets::over(theirs);
    let mut declined = Packet {
        sequence: 1,
        message: Message::Declined {
            cause: "version".into(),
        },
    }
    .encode();
    declined[4] = 9;
    assert!(receiver.send(&declined, &[]).unwrap());
    let result = stage.outcome(0);
    assert!(matches!(result.end, HandoverEnd::Incomplete { cause } if cause == "version"));
    drop(receiver); // With the descriptor in its queue.
    client.conclude(&mut stage);

    let mut stage = Stage::new(2, &config());
    let client = stage.connect(0);
    stage.loops[1].end_accepting();
    stage.loops[1].finish_connections();
    let (ours, theirs) = link();
    stage.loops[1].take_over(theirs, 0).unwrap();
    stage.loops[0].hand_over(ours, false).unwrap();
    let result = stage.outcome(0);
    assert!(matches!(result.end, HandoverEnd::Refused { cause } if cause.contains("leaving")));
    client.conclude(&mut stage);
}

#[test]
fn last_worker_serves_queue_to_its_end() {
    let mut stage = Stage::new(1, &config());
    let clients: Vec<Client> = (0..3).map(|_| stage.connect(0)).collect();
    stage.loops.push(reactor(&config(), MAX));
    // Connected, but not accepted.
    let queued: Vec<Client> = (0..40).map(|_| Client::new(stage.addr)).collect();
    stage.order(0, 1, true);
    stage.loops[0].work();
    assert_eq!(stage.outcome(0), done(43));
    for client in clients.into_iter().chain(queued) {
        client.conclude(&mut stage);
    }
    // Only this duplicate remains of it.
    let listener = std::net::TcpListener::from(stage.listener);
    assert_eq!(
        listener.accept().map(drop).map_err(|error| error.kind()),
        Err(ErrorKind::WouldBlock)
    );
}

#[test]
fn stop_during_handover_resolves_connections_in_flight() {
    raise_the_descriptor_limit();
    let mut stage = Stage::new(2, &config());
    let mut clients: Vec<Client> = (0..450).map(|_| stage.connect(0)).collect();
    let (ours, theirs) = narrow_link();
    stage.loops[1].take_over(theirs, 450).unwrap();
    stage.loops[1].begin_accepting();
    stage.loops[0].hand_over(ours, false).unwrap();
    for client in &mut clients {
        client.send(50);
    }
    stage.loops[0].work(); // One batch is in flight.
    for one in &mut stage.loops {
        one.end_accepting();
        one.finish_connections();
    }
    stage.until(|stage| !stage.loops.iter().any(Reactor::is_moving));
    assert_eq!(stage.loops[0].handed_over(), None);
    assert_eq!(stage.count(0, Counter::MigratedOut), 200);
    assert_eq!(stage.count(1, Counter::MigratedIn), 200);
    // Every connection is answered and closed gracefully, wherever it is.
    for client in &mut clients {
        stage.until(|_| client.read() && client.ended);
    }
    drop(clients);
    stage.until(|stage| stage.loops.iter().all(|one| one.open_connections() == 0));
    let drained = Counter::Closed(CloseReason::Drained);
    assert_eq!(stage.count(0, drained) + stage.count(1, drained), 450);
}

#[test]
fn sender_exit_keeps_arrived_connections() {
    let mut stage = Stage::new(1, &config());
    let (ours, theirs) = link();
    let sender = Packets::over(ours);
    stage.loops[0].take_over(theirs, 0).unwrap();
    drop(sender);
    stage.until(|stage| !stage.loops[0].is_moving());
    let client = stage.connect(0);
    client.conclude(&mut stage);
}

#[test]
fn malformed_packets_are_refused() {
    let message = Message::Begin { coming: 1 };
    let mut foreign = Packet {
        sequence: 0,
        message,
    }
    .encode();
    foreign[4] = 9;
    for (noise, expected) in [
        (&b"noise"[..], ""),
        (b"UPHO\x01\x00\x01\x00", ""),
        (&[0xff; 4096], ""),
        (&foreign, "version 9"),
    ] {
        let mut stage = Stage::new(1, &config());
        let client = stage.connect(0);
        let (ours, theirs) = link();
        let sender = Packets::over(ours);
        stage.loops[0].take_over(theirs, 0).unwrap();
        assert!(sender.send(noise, &[]).unwrap());
        let mut answer = [0; 1024];
        let mut read = None;
        stage.until(|_| {
            read = sender.receive(&mut answer).unwrap();
            read.is_some()
        });
        let packet = Packet::decode(&answer[..read.unwrap().length]).unwrap();
        let Message::Refused { cause } = packet.message else {
            panic!("{packet:?}");
        };
        assert!(cause.contains(expected), "{cause}");
        drop(sender);
        stage.until(|stage| !stage.loops[0].is_moving());
        client.conclude(&mut stage);
    }
}

#[test]
fn misplaced_answer_ends_handover_and_frees_nothing() {
    let mut stage = Stage::new(1, &config());
    let client = stage.connect(0);
    let (ours, theirs) = link();
    let receiver = Packets::over(theirs);
    stage.loops[0].hand_over(ours, false).unwrap();
    stage.loops[0].work();
    let wrong = Packet {
        sequence: 7,
        message: Message::Acknowledged {
            taken: 1,
            left: None,
        },
    };
    assert!(receiver.send(&wrong.encode(), &[]).unwrap());
    for _ in 0..20 {
        stage.turn();
    }
    assert_eq!(stage.loops[0].handed_over(), None, "it may be served there");
    assert_eq!(stage.loops[0].open_connections(), 1);
    assert!(matches!(receiver.receive(&mut [0; 4096]), Ok(Some(_))));
    assert!(!matches!(
        receiver.receive(&mut [0; 64]),
        Err(Error::Closed)
    ));
    drop(receiver);
    assert_eq!(stage.outcome(0).moved, 0);
    client.conclude(&mut stage);
}

fn raise_the_descriptor_limit() {
    let raised = uppercased_ctl::process::raise_descriptor_limit();
    let limit: Result<u64, io::Error> = raised.map_err(io::Error::other);
    assert!(
        limit.is_ok_and(|limit| limit >= 3000),
        "too few descriptors for this test"
    );
}

/// Starts two loops with an address each: both serve and accept.
fn siblings(config: &Config) -> (Stage, SocketAddr) {
    let mut stage = Stage::new(1, config);
    let asked = Listen {
        addr: ([127, 0, 0, 1], 0).into(),
        dual_stack: false,
    };
    let (listener, listen) = listener::bind(&asked, config).unwrap();
    let mut second = reactor(config, MAX);
    second.add_listener(SlotId(1), listener, false).unwrap();
    stage.loops.push(second);
    (stage, listen.addr)
}

fn half() -> Part {
    Part {
        permille: 500,
        at_most: 3,
        active_within: PATIENCE,
    }
}

fn order_part(stage: &mut Stage, part: Part) {
    let (ours, theirs) = link();
    stage.loops[1].take_over(theirs, 1).unwrap();
    stage.loops[0].hand_over_part(ours, part).unwrap();
}

/// Returns a client of the first loop that has exchanged a message.
fn talking(stage: &mut Stage) -> Client {
    let mut client = stage.connect(0);
    client.send(1000);
    stage.until(|_| client.read());
    client
}

#[test]
fn partial_handover_leaves_both_serving() {
    let (mut stage, other) = siblings(&config());
    let mut clients: Vec<Client> = (0..10).map(|_| talking(&mut stage)).collect();
    for moved in [3, 3, 3, 2, 1] {
        order_part(&mut stage, half());
        let end = HandoverEnd::Done;
        let part = true;
        let outcome = stage.outcome(0);
        assert_eq!(
            (outcome.moved, outcome.end, outcome.part),
            (moved, end, part)
        );
        for client in &mut clients {
            client.send(100);
        }
        stage.until(|_| clients.iter_mut().all(Client::read));
        clients.push(talking(&mut stage));
    }
    assert_eq!(stage.count(0, Counter::MigratedOut), 12);
    assert_eq!(stage.count(1, Counter::MigratedIn), 12);
    let newcomer = Client::new(other);
    newcomer.conclude(&mut stage);
    for client in clients {
        client.conclude(&mut stage);
    }
    assert!(stage.loops.iter().all(|one| one.open_connections() == 0));
}

#[test]
fn partial_handover_keeps_pending_and_silent_connections() {
    let (mut stage, _) = siblings(&config());
    let mut full = stage.connect(0);
    full.stuff(&mut stage);
    let mut ended = stage.connect(0);
    ended.stuff(&mut stage);
    ended.end();
    let mut unread = talking(&mut stage);
    let mut quiet = talking(&mut stage);
    let part = Part {
        permille: 1000,
        at_most: 100,
        active_within: PATIENCE,
    };
    order_part(&mut stage, part);
    // In this turn its message is read; input beyond the turn's limit remains.
    let budget = config().bytes_per_turn as usize;
    let mut sent = 0;
    while sent < budget {
        match unread.send(budget) {
            0 => break,
            more => sent += more,
        }
    }
    let result = stage.outcome(0);
    assert_eq!(result.end, HandoverEnd::Done);
    assert!(result.moved <= 2, "{result:?}");
    for client in [&full, &ended] {
        assert!(state_of(&stage, 0, client).is_some(), "it stays");
    }
    assert!(state_of(&stage, 1, &quiet).is_some(), "it has gone");
    quiet.send(100);
    stage.until(|_| quiet.read());

    // No connection was active within a duration of zero.
    stage.until(|_| unread.read());
    let part = Part {
        active_within: Duration::ZERO,
        ..part
    };
    wait(&mut stage.loops[0]);
    order_part(&mut stage, part);
    assert_eq!(stage.outcome(0).moved, 0);
    for client in [full, unread, quiet] {
        client.conclude(&mut stage);
    }
    ended.expect_end(&mut stage);
}

#[test]
fn refused_connections_stay_with_sender() {
    // Refused: the receiver is leaving.
    let (mut stage, _) = siblings(&config());
    stage.loops[1].drop_listeners();
    let clients: Vec<Client> = (0..4).map(|_| talking(&mut stage)).collect();
    order_part(&mut stage, half());
    let result = stage.outcome(0);
    assert!(
        matches!(result.end, HandoverEnd::Refused { .. }),
        "{result:?}"
    );
    assert_eq!((result.moved, stage.loops[0].open_connections()), (0, 4));

    // Exited without a reply.
    let (ours, theirs) = link();
    let receiver = Packets::over(theirs);
    stage.loops[0].hand_over_part(ours, half()).unwrap();
    let mut buffer = vec![0; HANDOVER_MESSAGE_BYTES];
    let mut received = None;
    stage.until(|_| {
        received = receiver.receive(&mut buffer).unwrap();
        received.is_some()
    });
    let held = received.unwrap().descriptors;
    assert_eq!(held.len(), 2);
    drop((receiver, held));
    let result = stage.outcome(0);
    assert_eq!((result.moved, result.end), (0, HandoverEnd::PeerGone));
    assert!(result.part);

    assert_eq!(stage.loops[0].open_connections(), 4);
    let newcomer = stage.connect(0);
    newcomer.conclude(&mut stage);
    for client in clients {
        client.conclude(&mut stage);
    }
}
