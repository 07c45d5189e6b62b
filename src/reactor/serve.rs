//! The part of a turn in which connections are served: who has something to do, and in which order.
//!
//! A connection with a readiness report is served straight from it; one that used up its budget in the
//! last turn stands in a queue and comes after those. Invariants: nobody has two shares of one turn; a
//! report carries the connection's generation, and one for a predecessor on the same descriptor number
//! is counted and dropped.
//!
//! It must not decide anything about bytes: `connection` does.

use std::io;

use mio::Events;
use mio::event::Event;

use super::{NO_GENERATION, Reactor, unpack_token};
use crate::connection::{self, Outcome};
use crate::memory::layout::{Flags, State};
use crate::sys::socket::Socket;
use uppercased_ctl::metrics::Counter;

impl Reactor {
    /// Gives every connection with something to do its share of this turn.
    pub(super) fn serve_ready(&mut self) {
        let left_over = self.ready.len();
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            self.serve_reported(event);
        }
        events.clear();
        self.events = events;
        for _ in 0..left_over {
            let Some(fd) = self.ready.pop_front() else {
                break;
            };
            let mut record = self.memory.record_mut(fd);
            let flags = record.flags();
            // If it is not, it was closed since, and possibly opened anew under the same number.
            if flags.has(Flags::QUEUED) {
                record.set_flags(flags.without(Flags::QUEUED));
                self.serve(fd);
            }
        }
    }

    /// Remembers what a report says of a connection, and serves it unless its turn is still to come:
    /// nobody has two shares of one turn.
    #[inline]
    fn serve_reported(&mut self, event: &Event) {
        let (fd, generation) = unpack_token(event.token());
        if generation == NO_GENERATION {
            return;
        }
        let mut record = self.memory.record_mut(fd);
        let gone = matches!(record.state(), State::Free | State::Closing | State::Handed);
        if record.generation() != generation || gone {
            return record.count(Counter::StaleEvents, 1);
        }
        let mut flags = record.flags();
        if event.is_readable() || event.is_priority() {
            flags = flags.with(Flags::READABLE);
        }
        if event.is_writable() {
            flags = flags.with(Flags::WRITABLE);
        }
        if event.is_read_closed() || event.is_error() || event.is_priority() {
            flags = flags.with(Flags::READABLE).with(Flags::READ_DRY);
        }
        record.set_flags(flags);
        // A connection that is only writable and owes nothing has no work.
        let has_work = flags.has(Flags::READABLE) || record.pending().is_some();
        if has_work && !flags.has(Flags::QUEUED) {
            self.serve(fd);
        }
    }

    #[inline]
    pub(super) fn serve(&mut self, fd: u32) {
        let mut socket = Traced(Socket::numbered(fd));
        let record = &mut self.memory.record_mut(fd);
        let outcome = connection::drive(record, &mut socket, &self.rules, self.now);
        self.conclude(fd, outcome);
    }

    pub(super) fn enqueue(&mut self, fd: u32) {
        let mut record = self.memory.record_mut(fd);
        let flags = record.flags();
        if !flags.has(Flags::QUEUED) {
            record.set_flags(flags.with(Flags::QUEUED));
            self.ready.push_back(fd);
        }
    }

    pub(super) fn conclude(&mut self, fd: u32, outcome: Outcome) {
        match outcome {
            Outcome::Waiting => {}
            Outcome::Again => self.enqueue(fd),
            Outcome::Close(reason) => return self.close(fd, reason),
            Outcome::Header => return self.introduce(fd),
            Outcome::Refuse(cause) => return self.dismiss(fd, cause, None),
        }
        if let Some(due) = connection::deadline(&self.memory.record(fd), &self.rules)
            && !self.timers.is_armed_by(fd, due, self.now)
        {
            self.timers.arm(fd, due, self.now);
        }
    }

    /// Acts on the deadlines that have passed.
    pub(super) fn expire(&mut self) {
        let mut fired = std::mem::take(&mut self.fired);
        self.timers.expire(self.now, &mut fired);
        for fd in fired.drain(..) {
            let record = self.memory.record(fd);
            let due = connection::is_due(&record, &self.rules, self.now);
            if due && record.state() == State::AwaitingHeader {
                self.introduce(fd);
            } else {
                self.expire_one(fd);
            }
        }
        self.fired = fired;
    }

    /// Acts on the deadline of `fd`, if it has passed.
    pub(super) fn expire_one(&mut self, fd: u32) {
        let mut socket = Traced(Socket::numbered(fd));
        let record = &mut self.memory.record_mut(fd);
        let was_nobodys = record.state() == State::AwaitingHeader;
        let outcome = connection::expire(record, &mut socket, &self.rules, self.now);
        if was_nobodys {
            // A stop has ended its stream: until it closes it is its proxy's.
            self.arrived(fd);
        }
        self.conclude(fd, outcome);
    }
}

/// A socket that logs its bytes at trace level, as received and as sent.
struct Traced(Socket);

impl connection::Stream for Traced {
    #[inline(always)]
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let received = self.0.recv(into)?;
        tracing::trace!(fd = self.0.number(), bytes = &into[..received], "received");
        Ok(received)
    }

    #[inline(always)]
    fn send(&mut self, from: &[u8]) -> io::Result<usize> {
        let sent = self.0.send(from)?;
        tracing::trace!(fd = self.0.number(), bytes = &from[..sent], "sent");
        Ok(sent)
    }

    fn end_output(&mut self) -> io::Result<()> {
        self.0.end_output()
    }
}
