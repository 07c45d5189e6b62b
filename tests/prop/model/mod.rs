//! A kernel made of queues, for tests of the connection core and of the working memory.
//!
//! It behaves as Linux does for a worker: stream sockets whose calls may be interrupted, refused,
//! short or too early, an edge-triggered event queue, an accept queue and a descriptor table. It
//! records the true state (bytes arrived, read and written), and panics at a call that no correct
//! worker makes. [`server`] is the event loop reduced to its rules, [`script`] runs both and states
//! the invariants.
//!
//! The rules of readiness are those of Linux: data, an end of stream or a reset raises an edge, and
//! so does room that becomes available after a call or a report found too little; the next wait
//! delivers the edge once, with everything that is ready by then.

#![expect(unreachable_pub, reason = "`pub` is what the tests may use")]

pub mod script;
pub mod server;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::panic::resume_unwind;
use std::rc::Rc;

use uppercased::connection::Stream;
use uppercased::memory::Probe;
use uppercased_ctl::clock::Tick;

/// Maximum number of clients per kernel; further ones are turned away.
pub const CLIENTS_MAX: usize = 8;

/// Actions of clients, at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client joins the accept queue. Clients are counted from 0.
    Connect,
    /// The same, behind a proxy: a header of so many bytes, at least one, precedes its stream.
    Proxied { header: u8 },
    /// The next bytes of the client's stream arrive, those of its header first.
    Data { client: u8, len: u16 },
    /// One byte arrives as urgent data in line: reading stops before it once. No header has one.
    Urgent { client: u8 },
    /// The client ends its stream.
    End { client: u8 },
    /// The client resets the connection.
    Reset { client: u8 },
    /// The client reads output, so the kernel accepts this many more bytes.
    Room { client: u8, bytes: u16 },
}

/// A fault in the middle of a turn: it affects the next call on a socket, before that takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meanwhile {
    /// A signal interrupts it.
    Interrupted,
    /// The call fails permanently.
    Refused,
    /// A client acts first.
    Event(Event),
}

/// An unaffected call.
pub const NOTHING: Meanwhile = Meanwhile::Event(Event::Room {
    client: 0,
    bytes: 0,
});

/// Unwinds when it reaches zero: the worker exits at that point.
#[derive(Debug)]
pub struct Countdown {
    left: Cell<u64>,
    taken: Cell<u64>,
}

/// Payload of the unwind by [`Countdown`].
#[derive(Debug)]
pub struct Stopped;

/// The countdown as the working memory's probe.
#[derive(Clone, Debug)]
pub struct Stops(pub Rc<Countdown>);

/// Both ends of one connection.
#[derive(Debug)]
pub struct Wire {
    /// Length of the header that precedes the client's stream; 0 without a proxy.
    pub header: usize,
    /// Number of its bytes that arrived.
    pub header_arrived: usize,
    /// Number of its bytes that the worker has read.
    pub header_taken: usize,
    /// Every byte that arrived from the client.
    pub arrived: Vec<u8>,
    /// Number of them that the worker has read.
    pub consumed: usize,
    /// Every byte the worker wrote.
    pub written: Vec<u8>,
    /// Bytes that the kernel accepts before the client reads some.
    pub room: usize,
    /// Whether the client ended its stream, after the last byte.
    pub peer_ended: bool,
    /// Whether the client reset the connection.
    pub reset: bool,
    /// Whether the worker has received an error for it.
    pub refused: bool,
    /// The worker ended its stream after reading this many of the client's bytes.
    pub ended_at: Option<usize>,
    /// Whether the worker closed it.
    pub closed: bool,
    /// Whether closing resets it.
    pub abortive: bool,
    /// Time at which the worker began to serve it.
    pub accepted: Tick,
    /// Time at which the worker ended its stream.
    pub ended: Tick,
    /// Time of the last read, write, accept or end of stream.
    pub last_moved: Tick,
    /// Number of bytes that had arrived when the worker received the stop request.
    pub arrived_at_stop: usize,
    urgent: BTreeSet<usize>,
    reset_told: bool,
    wants_room: bool,
    edge: bool,
    generation: u32,
}

/// A readiness report.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Descriptor number of the registration.
    pub fd: u32,
    /// Data of the registration.
    pub generation: u32,
    /// Whether input, an end of stream or an error is pending.
    pub readable: bool,
    /// Whether output is possible.
    pub writable: bool,
    /// Whether the stream ended or failed, or urgent data is next.
    pub dry: bool,
}

/// The kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Connections by client.
    pub wires: Vec<Wire>,
    /// The worker's descriptor table: number to client.
    pub descriptors: BTreeMap<u32, usize>,
    /// Connections not accepted yet.
    pub queue: VecDeque<usize>,
    /// Faults of the next calls, one each.
    pub meanwhile: VecDeque<Meanwhile>,
    /// The worker's other descriptors.
    pub others: BTreeSet<u32>,
    /// Lowest number of a new descriptor.
    pub first_fd: u32,
    /// Time of this turn, for the true deadlines.
    pub now: Tick,
    /// Number of reads and writes requested.
    pub calls: u64,
    /// Whether ends and errors are reported as data. No kernel does so; this tests that the checks
    /// detect it.
    pub hides_ends: bool,
    countdown: Rc<Countdown>,
}

/// One socket of the kernel, as seen by the connection core.
#[derive(Debug)]
pub struct Handle<'a> {
    /// The kernel.
    pub kernel: &'a mut Kernel,
    /// The descriptor number.
    pub fd: u32,
}

/// Returns the byte at `offset` of the stream of `client`: half of them lower-case letters, the
/// rest any.
pub fn byte_at(client: usize, offset: usize) -> u8 {
    let seed = (client as u64 + 1) << 32 | offset as u64;
    let mixed = (seed ^ seed >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    if mixed & 0x100 == 0 {
        b'a' + (mixed % 26) as u8
    } else {
        mixed as u8
    }
}

impl Countdown {
    /// Returns a countdown that reaches zero only after [`Countdown::arm`].
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            left: Cell::new(u64::MAX),
            taken: Cell::new(0),
        })
    }

    /// Unwinds at the step after `steps` more.
    pub fn arm(&self, steps: u64) {
        self.left.set(steps);
        self.taken.set(0);
    }

    /// Returns the steps since it was armed.
    pub fn taken(&self) -> u64 {
        self.taken.get()
    }

    fn step(&self) {
        let left = self.left.get();
        if left == 0 {
            self.left.set(u64::MAX);
            resume_unwind(Box::new(Stopped));
        }
        self.left.set(left - 1);
        self.taken.set(self.taken.get() + 1);
    }
}

impl Probe for Stops {
    fn stored(&mut self) {
        self.0.step();
    }
}

impl Wire {
    fn new(header: usize) -> Self {
        Self {
            header,
            header_arrived: 0,
            header_taken: 0,
            arrived: Vec::new(),
            consumed: 0,
            written: Vec::new(),
            room: 0,
            peer_ended: false,
            reset: false,
            refused: false,
            ended_at: None,
            closed: false,
            abortive: false,
            accepted: Tick::ZERO,
            ended: Tick::ZERO,
            last_moved: Tick::ZERO,
            arrived_at_stop: 0,
            urgent: BTreeSet::new(),
            reset_told: false,
            wants_room: false,
            edge: false,
            generation: 0,
        }
    }

    /// Returns the bytes that must eventually be written, if the connection is not cut.
    pub fn answer(&self) -> Vec<u8> {
        self.arrived.to_ascii_uppercase()
    }

    /// Returns the bytes read and not written.
    pub fn owed(&self) -> usize {
        self.consumed - self.written.len()
    }

    /// Returns whether a read would return anything new.
    pub fn readable(&self) -> bool {
        self.header_taken < self.header_arrived
            || self.consumed < self.arrived.len()
            || self.peer_ended
            || self.reset
    }

    /// Returns whether a peek at the header would return anything that ends the wait for it.
    pub fn header_readable(&self) -> bool {
        self.header_arrived == self.header || self.peer_ended || self.reset
    }

    /// Returns whether a report is pending.
    pub fn reported_next(&self) -> bool {
        self.edge && (self.readable() || self.writable())
    }

    /// Returns the generation of its latest registration.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    fn writable(&self) -> bool {
        self.room > 0 || self.reset || self.ended_at.is_some()
    }

    fn report(&mut self, fd: u32) -> Option<Report> {
        if !std::mem::take(&mut self.edge) {
            return None;
        }
        if !self.writable() {
            self.wants_room = true;
        }
        let urgent = self.urgent.range(self.consumed..).next().is_some();
        let report = Report {
            fd,
            generation: self.generation,
            readable: self.readable(),
            writable: self.writable(),
            dry: self.peer_ended || self.reset || urgent,
        };
        (report.readable || report.writable).then_some(report)
    }
}

impl Kernel {
    /// Returns a kernel with empty tables; every call is a step of `countdown`, before it and after
    /// it.
    pub fn new(first_fd: u32, countdown: Rc<Countdown>) -> Self {
        Self {
            wires: Vec::new(),
            descriptors: BTreeMap::new(),
            others: BTreeSet::new(),
            queue: VecDeque::new(),
            meanwhile: VecDeque::new(),
            first_fd,
            now: Tick::ZERO,
            calls: 0,
            hides_ends: false,
            countdown,
        }
    }

    /// Carries out a client's action. Actions of clients that do not exist, or have ended, are
    /// ignored.
    pub fn deliver(&mut self, event: Event) {
        let client = match event {
            Event::Connect => return self.connect(0),
            Event::Proxied { header } => return self.connect(usize::from(header).max(1)),
            Event::Data { client, .. }
            | Event::Urgent { client }
            | Event::End { client }
            | Event::Reset { client }
            | Event::Room { client, .. } => usize::from(client),
        };
        let Some(wire) = self.wires.get_mut(client).filter(|wire| !wire.reset) else {
            return;
        };
        let at = wire.arrived.len();
        match event {
            Event::Connect | Event::Proxied { .. } => {}
            Event::Room { bytes, .. } => {
                wire.room += usize::from(bytes);
                wire.edge |= wire.wants_room && wire.room > 0;
                wire.wants_room &= wire.room == 0;
            }
            Event::Reset { .. } => {
                wire.reset = true;
                wire.edge = true;
            }
            _ if wire.peer_ended => {}
            Event::End { .. } => {
                wire.peer_ended = true;
                wire.edge = true;
            }
            Event::Data { len, .. } => {
                let of_header = usize::from(len).min(wire.header - wire.header_arrived);
                wire.header_arrived += of_header;
                let coming = at..at + usize::from(len) - of_header;
                wire.arrived.extend(coming.map(|at| byte_at(client, at)));
                wire.edge |= len > 0;
            }
            Event::Urgent { .. } if wire.header_arrived < wire.header => {}
            Event::Urgent { .. } => {
                wire.urgent.insert(at);
                wire.arrived.push(byte_at(client, at));
                wire.edge = true;
            }
        }
    }

    fn connect(&mut self, header: usize) {
        if self.wires.len() < CLIENTS_MAX {
            self.queue.push_back(self.wires.len());
            self.wires.push(Wire::new(header));
        }
    }

    /// Returns how many bytes of the header of `fd` there are, without reading them; 0 at the end of
    /// the stream.
    pub fn peek_header(&mut self, fd: u32) -> io::Result<usize> {
        self.before_call(fd)?;
        let wire = self.wire(fd);
        assert_eq!(wire.header_taken, 0, "the header was received already");
        if wire.header_arrived > 0 {
            return Ok(wire.header_arrived);
        }
        if wire.reset && !wire.reset_told {
            wire.reset_told = true;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if wire.peer_ended || wire.reset {
            return Ok(0);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Receives the header of `fd`, all of which has arrived.
    pub fn receive_header(&mut self, fd: u32) -> io::Result<()> {
        self.before_call(fd)?;
        let now = self.now;
        let wire = self.wire(fd);
        wire.header_taken = wire.header;
        wire.last_moved = now;
        self.countdown.step();
        Ok(())
    }

    /// Delivers the pending reports.
    pub fn wait(&mut self) -> Vec<Report> {
        let (wires, hides_ends) = (&mut self.wires, self.hides_ends);
        let watched = self.descriptors.iter().filter_map(|(&fd, &client)| {
            let wire = &mut wires[client];
            let mut report = (wire.generation != 0).then(|| wire.report(fd)).flatten()?;
            report.dry &= !hides_ends;
            Some(report)
        });
        watched.collect()
    }

    /// Accepts a connection from the queue.
    pub fn accept(&mut self) -> Option<u32> {
        self.countdown.step();
        let client = self.queue.pop_front()?;
        let fd = self.free_number();
        self.descriptors.insert(fd, client);
        self.wires[client].last_moved = self.now;
        self.countdown.step();
        Some(fd)
    }

    /// Registers a descriptor; existing readiness is reported.
    pub fn watch(&mut self, fd: u32, generation: u32) {
        self.countdown.step();
        let wire = self.wire(fd);
        wire.generation = generation;
        wire.edge = true;
        self.countdown.step();
    }

    /// Makes the next close a reset.
    pub fn abort(&mut self, fd: u32) {
        self.countdown.step();
        self.wire(fd).abortive = true;
        self.countdown.step();
    }

    /// Closes a descriptor. An unused number is ignored.
    pub fn close(&mut self, fd: u32) {
        self.countdown.step();
        if let Some(client) = self.descriptors.remove(&fd) {
            self.wires[client].closed = true;
        }
        self.others.remove(&fd);
        self.countdown.step();
    }

    /// Opens a descriptor that is no connection.
    pub fn open_other(&mut self) -> u32 {
        let fd = self.free_number();
        self.others.insert(fd);
        fd
    }

    /// Gives a connection another number, unregistered, as if another process had received it.
    pub fn transfer(&mut self, fd: u32, first_fd: u32) -> u32 {
        let client = self
            .descriptors
            .remove(&fd)
            .expect("the descriptor is open");
        self.first_fd = first_fd;
        let number = self.free_number();
        self.descriptors.insert(number, client);
        let wire = &mut self.wires[client];
        wire.edge = false;
        wire.generation = 0;
        number
    }

    /// Returns the connection of an open descriptor.
    pub fn wire(&mut self, fd: u32) -> &mut Wire {
        let client = self.descriptors[&fd];
        &mut self.wires[client]
    }

    fn free_number(&self) -> u32 {
        let mut free = self.first_fd..;
        free.find(|fd| !self.descriptors.contains_key(fd) && !self.others.contains(fd))
            .expect("there are free numbers")
    }

    /// Applies the fault of the next call before it takes effect.
    fn before_call(&mut self, fd: u32) -> io::Result<()> {
        self.countdown.step();
        self.calls += 1;
        match self.meanwhile.pop_front() {
            None => Ok(()),
            Some(Meanwhile::Event(event)) => {
                self.deliver(event);
                Ok(())
            }
            Some(Meanwhile::Interrupted) => Err(io::ErrorKind::Interrupted.into()),
            Some(Meanwhile::Refused) => {
                self.wire(fd).refused = true;
                Err(io::ErrorKind::OutOfMemory.into())
            }
        }
    }
}

impl Stream for Handle<'_> {
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.kernel.before_call(self.fd)?;
        let now = self.kernel.now;
        let wire = self.kernel.wire(self.fd);
        assert!(!into.is_empty(), "an empty call");
        assert!(
            wire.ended_at.is_some() || wire.owed() == 0,
            "received while output is pending"
        );
        if wire.header_taken < wire.header {
            // The stream of a connection that its peer has reset cannot be ended.
            let is_over = wire.ended_at.is_some() || wire.reset;
            assert!(is_over, "received before the header");
            let length = into.len().min(wire.header_arrived - wire.header_taken);
            wire.header_taken += length;
            if length > 0 {
                self.kernel.countdown.step();
                return Ok(length);
            }
        }
        let mark = wire.urgent.range(wire.consumed + 1..).next();
        let until = mark.copied().unwrap_or(wire.arrived.len());
        let length = into.len().min(until - wire.consumed);
        if length > 0 {
            let from = wire.consumed;
            into[..length].copy_from_slice(&wire.arrived[from..from + length]);
            wire.consumed += length;
            if wire.ended_at.is_none() {
                wire.last_moved = now;
            }
        } else if wire.reset && !wire.reset_told {
            wire.reset_told = true;
            return Err(io::ErrorKind::ConnectionReset.into());
        } else if !wire.peer_ended && !wire.reset {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.kernel.countdown.step();
        Ok(length)
    }

    fn send(&mut self, from: &[u8]) -> io::Result<usize> {
        self.kernel.before_call(self.fd)?;
        let now = self.kernel.now;
        let wire = self.kernel.wire(self.fd);
        assert!(!from.is_empty(), "an empty call");
        assert_eq!(wire.ended_at, None, "sent after the end");
        if wire.reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let length = from.len().min(wire.room);
        wire.wants_room |= length < from.len();
        if length == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        wire.room -= length;
        wire.written.extend_from_slice(&from[..length]);
        wire.last_moved = now;
        let at = wire.written.len();
        let expected = wire.arrived[at - length..at].to_ascii_uppercase();
        assert_eq!(from[..length], expected, "wrong bytes before offset {at}");
        self.kernel.countdown.step();
        Ok(length)
    }

    fn end_output(&mut self) -> io::Result<()> {
        self.kernel.countdown.step();
        let now = self.kernel.now;
        let wire = self.kernel.wire(self.fd);
        if wire.reset {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if wire.ended_at.is_none() {
            assert_eq!(wire.owed(), 0, "the stream ends before its last byte");
            wire.ended_at = Some(wire.consumed);
            wire.ended = now;
            wire.last_moved = now;
            wire.edge = true;
        }
        self.kernel.countdown.step();
        Ok(())
    }
}
