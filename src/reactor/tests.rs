//! Unit tests of `reactor.rs`: what a turn does beside serving, and what it may leave out.
//!
//! In most tests a client keeps the loop busy, so that every turn brings reports of connections
//! only: whatever else is due must be done all the same.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::listener;
use crate::memory::layout::Layout;
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
        let start = Instant::now();
        while !done(&self.reactor) {
            assert!(start.elapsed() < PATIENCE, "it was left out");
            self.busy_turn();
        }
    }

    /// Returns a new client that the loop has accepted.
    fn client(&mut self) -> TcpStream {
        let client = connect(self.address);
        let open = self.reactor.open;
        self.busy_until(|reactor| reactor.open > open);
        // The new connection is reported as writable.
        self.busy_turn();
        client
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
    let _silent = stage.client();
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
