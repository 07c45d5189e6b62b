//! A script of events for a server, and the invariants during and after it.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use uppercased::connection::Rules;
use uppercased::memory::layout::{Flags, State};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::CloseReason;

use super::server::{Fault, Server, fresh_memory};
use super::{Countdown, Event, Kernel, Meanwhile, Stops, Wire};

/// Maximum number of turns until an undisturbed server is idle.
const TURNS_TO_REST: usize = 5_000;

/// One step of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A client acts.
    Event(Event),
    /// A fault in the middle of the next turn.
    Meanwhile(Meanwhile),
    /// The event loop runs one turn.
    Turn,
    /// Time passes, milliseconds.
    Pass(u16),
    /// The worker receives a stop request.
    Finish,
    /// A successor in another memory adopts every connection.
    HandOver,
    /// A successor exits before it has adopted any connection.
    TakeBack,
}

/// The kernel and the server of one script.
#[derive(Debug)]
pub struct World {
    /// The kernel.
    pub kernel: Kernel,
    /// The server; absent only during its replacement.
    pub server: Server,
    pub countdown: Rc<Countdown>,
}

/// Parameters of a script beside its steps.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Bytes of a buffer.
    pub buffer_bytes: u32,
    /// Limits of connections.
    pub rules: Rules,
}

impl Terms {
    /// Small buffers, a small budget, no deadline that a script could reach by accident.
    pub const PLAIN: Self = Self {
        buffer_bytes: 16,
        rules: Rules {
            bytes_per_turn: 40,
            idle_timeout: None,
            write_stall_timeout: None,
            header_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::ZERO,
            linger_timeout: Duration::from_secs(3600),
            max_age: None,
            age_grace: Duration::from_secs(1),
            since: Tick::ZERO,
        },
    };
}

impl World {
    /// Returns an empty world.
    pub fn new(terms: Terms) -> Self {
        let countdown = Countdown::new();
        let memory = fresh_memory(terms.buffer_bytes, Stops(Rc::clone(&countdown)));
        Self {
            kernel: Kernel::new(3, Rc::clone(&countdown)),
            server: Server::new(memory, terms.rules),
            countdown,
        }
    }

    /// Runs the steps, checking after each turn.
    pub fn run(&mut self, ops: &[Op]) {
        for &op in ops {
            self.step(op);
        }
    }

    /// Runs one step.
    pub fn step(&mut self, op: Op) {
        match op {
            Op::Event(event) => self.kernel.deliver(event),
            Op::Meanwhile(meanwhile) => self.kernel.meanwhile.push_back(meanwhile),
            Op::Turn => self.turn(),
            Op::Pass(ms) => {
                self.kernel.now = self.kernel.now + Duration::from_millis(ms.into());
                // Reports and work come before deadlines, as in the loop.
                self.turn();
            }
            Op::Finish => {
                self.server.finish(&mut self.kernel);
                // As in the event loop: between the reports and the work, so bytes that arrived
                // since the last reports must be found without a report.
                let ready = self.server.ready.len();
                self.server.work(&mut self.kernel, ready);
                self.check();
            }
            Op::HandOver => self.replace(Server::handed_over),
            Op::TakeBack => self.server.taken_back(&mut self.kernel),
        }
    }

    /// Replaces the server by a successor.
    pub fn replace(&mut self, succeed: impl FnOnce(Server, &mut Kernel, Memory) -> Server) {
        let buffer_bytes = self.server.memory.layout().buffer_bytes;
        let memory = || fresh_memory(buffer_bytes, Stops(Rc::clone(&self.countdown)));
        let stopgap = Server::new(memory(), self.server.rules);
        let old = std::mem::replace(&mut self.server, stopgap);
        self.server = succeed(old, &mut self.kernel, memory());
    }

    /// Rescues the worker after its death, which nobody takes for a crash.
    pub fn rescue(&mut self, fault: Fault) {
        let poisoned = &mut BTreeSet::new();
        let rescued = self.server.rescue(&mut self.kernel, fault, poisoned);
        assert_eq!(rescued, Ok(()));
        assert!(poisoned.is_empty(), "reset without a crash: {poisoned:?}");
        self.server.memory.confirm_rescues();
    }

    /// Lets every client read all output and end its stream, until every connection has ended, and
    /// checks the result of each.
    pub fn conclude(&mut self) {
        self.kernel.meanwhile.clear();
        self.rest();
        self.check_at_rest();
        for client in 0..self.kernel.wires.len() as u8 {
            // In parts: the last bytes and the end may arrive in one report, or not.
            self.kernel.deliver(Event::Room { client, bytes: 3 });
            self.rest();
            self.check_at_rest();
            self.kernel.deliver(Event::Room {
                client,
                bytes: u16::MAX,
            });
            self.kernel.deliver(Event::Data { client, len: 5 });
            self.kernel.deliver(Event::End { client });
        }
        self.rest();
        self.check_at_rest();
        assert_eq!(self.server.memory.occupied().count(), 0, "all have ended");
        for client in 0..self.kernel.wires.len() {
            self.check_end(client);
        }
    }

    fn turn(&mut self) {
        self.server.turn(&mut self.kernel);
        self.check();
    }

    fn rest(&mut self) {
        for _ in 0..TURNS_TO_REST {
            if self.server.is_quiet(&self.kernel) {
                return;
            }
            self.turn();
        }
        panic!("never at rest: {:?}", self.server.ready);
    }

    /// Checks the invariants between any two turns.
    fn check(&mut self) {
        let memory = &self.server.memory;
        let occupied: Vec<u32> = memory.occupied().collect();
        let open: Vec<u32> = self.kernel.descriptors.keys().copied().collect();
        assert_eq!(occupied, open, "records and descriptors are the same");
        for fd in occupied {
            let record = memory.record(fd);
            let pending = record.pending();
            let wire = self.kernel.wire(fd);
            let waiting = pending.map_or(0, |pending| pending.len() as usize);
            assert!(waiting <= memory.layout().buffer_bytes as usize);
            assert_eq!(record.generation(), wire.generation());
            match wire.ended_at {
                None => assert_eq!(waiting, wire.owed(), "unsent bytes are pending"),
                Some(_) => assert_eq!(waiting, 0),
            }
            assert_eq!(memory.next_in_hand(), None, "all is answered");
            let has_turn = self.server.ready.contains(&fd);
            assert_eq!(has_turn, record.flags().has(Flags::QUEUED));
            let work = match record.state() {
                State::Open if waiting > 0 => wire.room > 0 || wire.reset,
                State::Open if self.server.ends_unseen(fd) => wire.readable(),
                State::Open => wire.readable() || record.flags().has(Flags::FINISH),
                State::AwaitingHeader => wire.header_readable(),
                _ => wire.readable(),
            };
            let coming = has_turn || wire.reported_next();
            assert!(
                !work || coming,
                "work of {fd} was lost: {record:?} {wire:?}"
            );
            let (moved, accepted, now) = (wire.last_moved, wire.accepted, self.kernel.now);
            if let (State::Open, Some(age)) = (record.state(), self.server.rules.max_age) {
                let oldest = accepted + age + age / 10;
                let is_finishing = record.flags().has(Flags::FINISH);
                assert!(now < oldest || is_finishing, "{fd} is past its age");
                // Its pending output is sent first, and its first byte has a time of its own.
                let is_served = waiting > 0 || record.bytes_moved().0 == 0;
                let grace = self.server.rules.age_grace;
                assert!(now < oldest + grace || is_served, "{fd} is past its grace");
            }
            // An interrupted peek at a header is repeated in the next turn.
            let repeats = has_turn && record.state() == State::AwaitingHeader;
            assert!(
                repeats || !self.server.overdue(fd, moved, now),
                "{fd} is past its deadline"
            );
        }
    }

    /// Checks the invariants of an idle server.
    fn check_at_rest(&mut self) {
        self.check();
        let open: Vec<u32> = self.kernel.descriptors.keys().copied().collect();
        for fd in open {
            let wire = self.kernel.wire(fd);
            assert!(!wire.reset, "a reset connection is over");
            assert!(
                wire.owed() > 0 || wire.consumed == wire.arrived.len(),
                "all is read"
            );
            assert!(
                wire.owed() > 0 || !wire.peer_ended,
                "an end of stream is answered"
            );
        }
    }

    /// Checks the final state of a connection.
    fn check_end(&self, client: usize) {
        let wire = &self.kernel.wires[client];
        let answer = wire.answer();
        assert!(wire.closed, "client {client} is closed");
        assert!(
            answer.starts_with(&wire.written),
            "client {client} got other bytes"
        );
        let complete = wire.written == answer && !wire.abortive;
        let answered = wire.ended_at == Some(wire.written.len()) && !wire.abortive;
        let Some(reason) = self.server.end_of(client) else {
            // Its close was in progress when the worker was killed, or it had been reset by then.
            let unserved = wire.header_taken < wire.header;
            assert!(
                wire.reset || wire.refused || complete || answered || wire.abortive || unserved
            );
            return;
        };
        let right = match reason {
            CloseReason::PeerClosed => complete && wire.consumed == wire.arrived.len(),
            CloseReason::PeerReset => wire.reset,
            CloseReason::SystemError => wire.refused,
            CloseReason::IdleTimeout => answered,
            CloseReason::WriteStall => wire.abortive,
            CloseReason::Drained => answered && wire.written.len() >= wire.arrived_at_stop,
            CloseReason::MaxAge => answered && self.is_aged(wire),
            CloseReason::Refused => wire.header_taken < wire.header && wire.abortive,
            CloseReason::PeerVanished
            | CloseReason::DrainTimeout
            | CloseReason::WorkerDied
            | CloseReason::Corrupt
            | CloseReason::Poisoned => false,
        };
        assert!(right, "client {client} ended as {reason:?}: {wire:?}");
    }

    /// Returns whether the stream was ended at its age, give or take a tenth, or later.
    fn is_aged(&self, wire: &Wire) -> bool {
        // Recorded times are rounded down by less than a millisecond.
        let earliest = |age| wire.accepted + (age - age / 10);
        let age = self.server.rules.max_age.map(earliest);
        age.is_some_and(|earliest| earliest <= wire.ended + Duration::from_millis(1))
    }
}

/// The memory of a model server.
pub type Memory = uppercased::memory::Memory<Stops>;

/// Converts milliseconds on the virtual clock.
pub fn ms(ms: u64) -> Tick {
    Tick::from_millis(ms)
}
