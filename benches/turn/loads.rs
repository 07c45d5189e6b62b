//! The loads of which the instructions are counted.
//!
//! Each load warms up and then runs a fixed number of rounds between two calls of
//! [`turn_boundary`]; only instructions in [`counted_turn`] and [`counted_drive`] count.

use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use uppercased::config::Config;
use uppercased::connection::{Outcome, Rules, Stream, drive};
use uppercased::listener;
use uppercased::memory::layout::{Flags, Layout, State};
use uppercased::memory::{self, Memory, RecordMut, counter};
use uppercased::reactor::{Reactor, Reports};
use uppercased::wire::Listen;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::metrics::Counter;

/// Rounds of the warm-up.
const WARM_UP: usize = 20;
/// Rounds that count.
const ROUNDS: usize = 200;
/// Time limit for a reply.
const PATIENCE: Duration = Duration::from_secs(10);
/// Descriptors of the working memory.
const DESCRIPTORS: u32 = 1024;
/// Descriptor number of the connection in memory.
const FD: u32 = 7;
const SMALL: usize = 64;

/// A load. Its figure is the number of instructions per message.
pub(crate) struct Load {
    pub(crate) name: &'static str,
    /// Messages per round.
    messages: usize,
    /// Bytes per message.
    bytes: usize,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// The connection core over an in-memory socket that accepts this many bytes per send.
    InMemory { room: usize },
    /// One message on each of `messages` connections, all ready in the same turn.
    Exchange,
    /// Connect, exchange a message and close.
    Churn,
}

const WHOLE: Kind = Kind::InMemory { room: usize::MAX };
const HALVES: Kind = Kind::InMemory { room: SMALL / 2 };

pub(crate) const LOADS: [Load; 7] = [
    Load::new("64 B in memory", 1, SMALL, WHOLE),
    Load::new("64 B in memory, sent in halves", 1, SMALL, HALVES),
    Load::new("64 B, 1 connection", 1, SMALL, Kind::Exchange),
    Load::new("64 B, 50 connections", 50, SMALL, Kind::Exchange),
    Load::new("16 KiB, 50 connections", 50, 16 << 10, Kind::Exchange),
    Load::new("64 KiB, 4 connections", 4, 64 << 10, Kind::Exchange),
    Load::new("connect, 64 B, close", 1, SMALL, Kind::Churn),
];

impl Load {
    const fn new(name: &'static str, messages: usize, bytes: usize, kind: Kind) -> Self {
        Self {
            name,
            messages,
            bytes,
            kind,
        }
    }

    /// Returns the number of messages that count.
    pub(crate) const fn counted(&self) -> usize {
        ROUNDS * self.messages
    }

    /// Runs the load. For the load number `index`, from 0, part `2 * index + 2` of the profile
    /// counts.
    pub(crate) fn run(&self) {
        match self.kind {
            Kind::InMemory { room } => {
                let (mut memory, mut stream) = (one_connection(), InMemory { waiting: 0, room });
                self.rounds(|| exchange_in_memory(&mut memory, &mut stream, self.bytes));
            }
            Kind::Exchange => {
                let mut worker = Worker::new();
                let mut clients: Vec<_> = (0..self.messages).map(|_| worker.connect()).collect();
                self.rounds(|| worker.exchange(&mut clients, self.bytes));
            }
            Kind::Churn => {
                let mut worker = Worker::new();
                self.rounds(|| {
                    let client = worker.connect();
                    worker.exchange(&mut [client], self.bytes);
                    worker.turns_until(|worker| worker.open_connections() == 0);
                });
            }
        }
    }

    fn rounds(&self, mut round: impl FnMut()) {
        (0..WARM_UP).for_each(|_| round());
        turn_boundary();
        (0..ROUNDS).for_each(|_| round());
        turn_boundary();
    }
}

/// Ends a part of the profile.
#[inline(never)]
fn turn_boundary() {
    black_box(());
}

/// Runs an iteration of the worker's event loop.
#[inline(never)]
fn counted_turn(reactor: &mut Reactor, reports: &mut Reports) {
    reactor.wait(reports, None).unwrap();
    reactor.handle_reports(reports);
    reactor.work();
}

#[inline(never)]
fn counted_drive(record: &mut RecordMut<'_>, stream: &mut InMemory, rules: &Rules) -> Outcome {
    drive(record, stream, rules, Tick::ZERO)
}

/// A worker's event loop, with the default configuration.
struct Worker {
    reactor: Reactor,
    reports: Reports,
    addr: SocketAddr,
}

impl Worker {
    fn new() -> Self {
        let config = Config::default();
        let layout = Layout {
            descriptors: DESCRIPTORS,
            buffers: DESCRIPTORS,
            buffer_bytes: config.pending_output,
        };
        let memory = Memory::adopt(memory::create(layout).unwrap(), layout).unwrap();
        let mut reactor = Reactor::new(memory, &config, DESCRIPTORS).unwrap();
        let loopback = Listen {
            addr: ([127, 0, 0, 1], 0).into(),
            dual_stack: false,
        };
        let (listener, listen) = listener::bind(&loopback, &config).unwrap();
        reactor.add_listener(SlotId(0), listener, false).unwrap();
        Self {
            reactor,
            reports: Reports::default(),
            addr: listen.addr,
        }
    }

    fn turns_until(&mut self, done: impl Fn(&Reactor) -> bool) {
        while !done(&self.reactor) {
            counted_turn(&mut self.reactor, &mut self.reports);
        }
    }

    fn connect(&mut self) -> TcpStream {
        let open = self.reactor.open_connections();
        let client = TcpStream::connect(self.addr).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        self.turns_until(|worker| worker.open_connections() > open);
        client
    }

    /// Sends a message of `bytes` on each connection and receives the replies.
    fn exchange(&mut self, clients: &mut [TcpStream], bytes: usize) {
        let sent = |worker: &Reactor| counter(worker.memory().shared(), Counter::BytesOut);
        let all = sent(&self.reactor) + (clients.len() * bytes) as u64;
        let message = vec![b'm'; bytes];
        for client in &mut *clients {
            client.write_all(&message).unwrap();
        }
        self.turns_until(|worker| sent(worker) == all);
        let mut reply = message;
        for client in clients {
            client.read_exact(&mut reply).unwrap();
            assert!(reply.iter().all(|&byte| byte == b'M'), "a wrong reply");
        }
    }
}

/// An in-memory socket. It moves no bytes.
struct InMemory {
    /// Bytes that can be received.
    waiting: usize,
    /// Maximum bytes per send.
    room: usize,
}

impl Stream for InMemory {
    #[inline]
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        black_box(into);
        match std::mem::take(&mut self.waiting) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            received => Ok(received),
        }
    }

    #[inline]
    fn send(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(black_box(from).len().min(self.room))
    }

    fn end_output(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn one_connection() -> Memory {
    let layout = Layout {
        descriptors: FD + 1,
        buffers: 1,
        buffer_bytes: Config::default().pending_output,
    };
    let mut memory = Memory::adopt(memory::create(layout).unwrap(), layout).unwrap();
    memory.begin_accept();
    let peer = SocketAddr::from(([127, 0, 0, 1], 4000));
    memory.open(FD, 1, peer, Tick::ZERO, State::Open);
    memory.end_accept();
    memory
}

/// Reports readiness until the message is answered.
fn exchange_in_memory(memory: &mut Memory, stream: &mut InMemory, bytes: usize) {
    let rules = Rules::new(&Config::default(), Tick::ZERO);
    stream.waiting = bytes;
    let record = &mut memory.record_mut(FD);
    let ready = Flags::READABLE.with(Flags::WRITABLE);
    record.set_flags(record.flags().with(ready));
    assert_eq!(counted_drive(record, stream, &rules), Outcome::Waiting);
    if record.pending().is_some() {
        record.set_flags(record.flags().with(Flags::WRITABLE));
        assert_eq!(counted_drive(record, stream, &rules), Outcome::Waiting);
    }
}
