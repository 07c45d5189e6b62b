//! Unit tests of `reactor.rs`: what a turn does beside serving, and what it may leave out.
//!
//! In most tests a client keeps the loop busy, so that every turn brings reports of connections
//! only: whatever else is due must be done all the same.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::connection::ORDINARY;
use crate::listener;
use crate::memory::layout::{HANDS, Layout, SCRATCH_BYTES};
use crate::memory::{self, counter};
use crate::wire::Listen;

/// Maximum time for what is due within a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// An event loop with one client that keeps it busy.
struct Stage {
    reactor: Reactor,
    address: SocketAddr,
    busy: TcpStream,
}

impl Stage {
    fn new(config: &Config, max_connections: u32) -> Self {
        let layout = Layout {
            descriptors: 1024,
            buffers: 64,
            buffer_bytes: config.pending_output,
        };
        let memory = Memory::adopt(memory::create(layout).unwrap(), layout).unwrap();
        let mut reactor = Reactor::new(memory, config, max_connections).unwrap();
        let asked = Listen {
            addr: ([127, 0, 0, 1], 0).into(),
            dual_stack: false,
        };
        let (listener, listen) = listener::bind(&asked, config).unwrap();
        reactor.add_listener(SlotId(0), listener, false).unwrap();
        let address = listen.addr;
        let busy = connect(address);
        let mut stage = Self {
            reactor,
            address,
            busy,
        };
        stage.turn(None);
        assert_eq!(stage.reactor.open, 1);
        // The first report of a new connection has no input.
        stage.busy_turn();
        stage
    }

    /// Runs a turn. Returns whether it had chores.
    fn turn(&mut self, deadline: Option<Tick>) -> bool {
        let mut reports = Reports::default();
        self.reactor.wait(&mut reports, deadline).unwrap();
        self.reactor.handle_reports(&reports);
        assert_eq!(self.reactor.memory.next_in_hand(), None);
        self.reactor.work()
    }

    /// Runs a turn with a message of the busy client. Returns whether it had chores.
    fn busy_turn(&mut self) -> bool {
        self.busy.write_all(b"x").unwrap();
        let had_chores = self.turn(None);
        let mut answer = [0];
        self.busy.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"X");
        had_chores
    }

    /// Keeps the loop busy until `done`.
    #[track_caller]
    fn busy_until(&mut self, done: impl Fn(&Reactor) -> bool) {
        let start = clock::now();
        while !done(&self.reactor) {
            assert!(clock::now().since(start) < PATIENCE, "it was left out");
            self.busy_turn();
        }
    }

    /// Returns a new client that the loop has accepted, its descriptor number and generation.
    fn client(&mut self) -> (TcpStream, u32, u32) {
        let client = connect(self.address);
        let before: Vec<u32> = self.reactor.memory.occupied().collect();
        let open = self.reactor.open;
        self.busy_until(|reactor| reactor.open > open);
        // The new connection is reported as writable.
        self.busy_turn();
        let mut occupied = self.reactor.memory.occupied();
        let fd = occupied.find(|fd| !before.contains(fd)).unwrap();
        let generation = self.reactor.memory.record(fd).generation();
        (client, fd, generation)
    }

    fn count(&self, which: Counter) -> u64 {
        counter(self.reactor.memory.shared(), which)
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_nodelay(true).unwrap();
    client
}

#[track_caller]
fn expect(client: &mut TcpStream, answer: &[u8]) {
    let mut received = vec![0; answer.len()];
    client.read_exact(&mut received).unwrap();
    assert!(received == answer, "another answer");
}

#[test]
fn connection_reports_alone_cause_no_chores() {
    let mut stage = Stage::new(&Config::default(), 10);
    assert!(!stage.busy_turn());
    let far = stage.reactor.now + PATIENCE;
    stage.busy.write_all(b"x").unwrap();
    assert!(stage.turn(Some(far)), "the worker has a deadline");
}

#[test]
fn rest_of_burst_is_accepted_amid_traffic() {
    let config = Config {
        accepts_per_turn: 1,
        ..Config::default()
    };
    let mut stage = Stage::new(&config, 10);
    let waiting: Vec<TcpStream> = (0..3).map(|_| connect(stage.address)).collect();
    for open in 2..=1 + waiting.len() as u32 {
        stage.busy_turn();
        assert_eq!(stage.reactor.open, open);
    }
}

#[test]
fn deadline_is_met_amid_traffic() {
    let config = Config {
        idle_timeout: Some(Duration::from_millis(200)),
        linger_timeout: Duration::from_millis(10),
        ..Config::default()
    };
    let mut stage = Stage::new(&config, 10);
    let (_silent, ..) = stage.client();
    stage.busy_until(|reactor| reactor.open == 1);
    let idle = Counter::Closed(CloseReason::IdleTimeout);
    assert_eq!(stage.count(idle), 1);
}

#[test]
fn gate_reopens_amid_traffic() {
    let mut stage = Stage::new(&Config::default(), 20);
    let mut clients: Vec<_> = (1..20).map(|_| stage.client()).collect();
    let _waiting = connect(stage.address);
    drop(clients.pop());
    stage.busy_until(|reactor| matches!(reactor.gate, Gate::Freed(_)));
    assert_eq!(stage.reactor.open, 19);
    stage.busy_until(|reactor| reactor.open == 20);
}

#[test]
fn overdue_line_is_written_amid_traffic() {
    let mut stage = Stage::new(&Config::default(), 10);
    let now = stage.reactor.now;
    let lines = &mut stage.reactor.lines;
    assert_eq!(lines.note(lines::PeerLine::AtLimit, now), Some(1));
    assert_eq!(lines.note(lines::PeerLine::AtLimit, now), None);
    assert!(lines.due().is_some());
    stage.busy_until(|reactor| reactor.lines.due().is_none());
}

#[test]
fn takeover_continues_amid_traffic() {
    let mut stage = Stage::new(&Config::default(), 10);
    stage.reactor.pause_accepting();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (here, _there) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    // The sender never sends the number of its connections.
    stage.reactor.take_over(here, 1).unwrap();
    stage.busy_until(|reactor| reactor.counts_until.is_none());
    assert!(stage.reactor.is_taking_over());
}

#[test]
fn channel_report_causes_chores() {
    let mut stage = Stage::new(&Config::default(), 10);
    let (here, mut there) = UnixStream::pair().unwrap();
    stage.reactor.watch_control(&here).unwrap();
    assert!(stage.busy_turn(), "the channel is writable");
    assert!(!stage.busy_turn());
    there.write_all(b"m").unwrap();
    assert!(stage.busy_turn());
}

#[test]
fn many_clients_are_answered_in_order() {
    let mut stage = Stage::new(&Config::default(), 100);
    let mut clients: Vec<TcpStream> = (0..2 * HANDS + 3).map(|_| stage.client().0).collect();
    let message = |client: usize| vec![b'a' + (client % 26) as u8; 1 + 100 * client];
    // Beside those with a message one fills the scratch buffer several times, one ends its stream
    // after a message, one without any, one resets its connection.
    let large = vec![b'z'; 3 * SCRATCH_BYTES];
    for (number, client) in clients.iter_mut().enumerate() {
        match number {
            3 => client.write_all(&large).unwrap(),
            5 => client.shutdown(Shutdown::Write).unwrap(),
            7 => {
                client.write_all(&message(7)).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            }
            9 => {
                socket2::SockRef::from(&*client)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
                *client = connect(stage.address);
            }
            _ => client.write_all(&message(number)).unwrap(),
        }
    }
    stage.busy_turn();
    stage.busy_until(|reactor| reactor.ready.is_empty());
    for (number, client) in clients.iter_mut().enumerate() {
        match number {
            3 => {
                // The kernel's buffers may not have room for all of it at once.
                client.set_nonblocking(true).unwrap();
                let (mut answer, mut part) = (Vec::new(), vec![0; SCRATCH_BYTES]);
                while answer.len() < large.len() {
                    match client.read(&mut part) {
                        Ok(count) => answer.extend_from_slice(&part[..count]),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            stage.busy_turn();
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                assert!(answer == large.to_ascii_uppercase());
            }
            5 => assert_eq!(client.read(&mut [0]).unwrap(), 0),
            7 => {
                expect(client, &message(7).to_ascii_uppercase());
                assert_eq!(client.read(&mut [0]).unwrap(), 0);
            }
            9 => {}
            _ => expect(client, &message(number).to_ascii_uppercase()),
        }
    }
    let reset = Counter::Closed(CloseReason::PeerReset);
    stage.busy_until(|reactor| counter(reactor.memory.shared(), reset) == 1);
    assert_eq!(stage.count(Counter::Closed(CloseReason::PeerClosed)), 2);
}

#[test]
fn connection_reported_twice_is_answered_in_order() {
    let mut stage = Stage::new(&Config::default(), 10);
    let (mut first, fd, generation) = stage.client();
    let (mut second, other, others) = stage.client();
    first.write_all(b"ab").unwrap();
    second.write_all(b"yz").unwrap();
    stage.reactor.handle_report(fd, generation, ORDINARY);
    stage.reactor.handle_report(other, others, ORDINARY);
    if HANDS > 2 {
        let next = stage.reactor.memory.next_in_hand();
        assert_eq!(next.map(memory::Hand::fd), Some(fd));
    }
    first.write_all(b"cd").unwrap();
    let again = ORDINARY.with(Flags::READ_DRY);
    stage.reactor.handle_report(fd, generation, again);
    stage.reactor.answer_hands();
    expect(&mut second, b"YZ");
    stage.busy_until(|reactor| reactor.ready.is_empty());
    expect(&mut first, b"ABCD");
}

#[test]
fn stale_and_queued_reports_receive_nothing() {
    let mut stage = Stage::new(&Config::default(), 10);
    let (mut client, fd, generation) = stage.client();
    client.write_all(b"ab").unwrap();
    let reads = stage.count(Counter::Reads);
    stage.reactor.handle_report(fd, generation + 1, ORDINARY);
    assert_eq!(stage.count(Counter::StaleEvents), 1);
    stage.reactor.enqueue(fd);
    stage.reactor.handle_report(fd, generation, ORDINARY);
    stage.reactor.answer_hands();
    assert_eq!(stage.count(Counter::Reads), reads, "its turn comes later");
    stage.busy_turn();
    expect(&mut client, b"AB");
    assert_eq!(stage.count(Counter::Reads), reads + 2);
}
