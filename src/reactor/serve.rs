//! The part of a turn in which connections are driven: which ones, and in which order.
//!
//! A report of an ordinary connection (open, with input, without pending output) causes a receive;
//! several of these are in hand before the first is answered, because the kernel's code for each
//! call then runs several times in a row. Before anything else is driven they are all answered. A
//! connection with any other report is driven at once; one that used up its budget in the last turn
//! is queued and driven after those.
//!
//! Invariants: no connection is driven twice in a turn; a report for an earlier connection with the
//! same descriptor number is counted and dropped; nothing is in hand after the reports.
//!
//! It must not interpret bytes: `connection` does.

use std::io;

use mio::event::Event;

use super::{CONTROL, NO_GENERATION, Reactor, Reports, timers, unpack_token};
use crate::connection::{self, ORDINARY, Outcome};
use crate::log::event;
use crate::memory::layout::{Flags, State};
use crate::sys::socket::Socket;
use uppercased_ctl::metrics::Counter;

impl Reactor {
    /// Serves every connection that is ready: those with a report, then those left over from the
    /// last turn. Notes readiness of anything else. Returns whether the channel is to be read.
    pub fn handle_reports(&mut self, reports: &Reports) -> bool {
        let left_over = self.ready.len();
        let (mut control, mut worked) = (false, false);
        for event in &reports.0 {
            let token = event.token();
            let (fd, generation) = unpack_token(token);
            if generation != NO_GENERATION {
                self.handle_report(fd, generation, readiness_of(event));
            } else if token == CONTROL {
                control = true;
                self.has_chores = true;
                continue;
            } else if let Some(acceptor) = self.acceptors.iter_mut().find(|a| a.has(token)) {
                acceptor.ready = true;
                self.has_chores = true;
            } else {
                self.note_link_ready(token);
                self.has_chores = true;
            }
            worked = true;
        }
        self.answer_hands();
        if worked {
            self.spin.worked(self.now);
        }
        self.drive_queue(left_over);
        control
    }

    /// Receives from the connection of a report, if it is ordinary.
    #[inline]
    pub(super) fn handle_report(&mut self, fd: u32, generation: u32, readiness: Flags) {
        let mut record = self.memory.record_mut(fd);
        if readiness != ORDINARY || !record.is_open_with(generation, Flags::WRITABLE) {
            return self.handle_odd_report(fd, generation, readiness);
        }
        record.set_flags(ORDINARY);
        let mut socket = Traced(Socket::numbered(fd));
        let outcome = connection::receive(&mut record, &mut socket, &self.rules, self.now);
        if let Some(outcome) = outcome {
            self.conclude(fd, outcome);
        } else if self.memory.must_answer() {
            self.answer_hands();
        }
    }

    /// Answers everything in hand, in the order of its receipt.
    #[inline]
    pub(super) fn answer_hands(&mut self) {
        while let Some(hand) = self.memory.next_in_hand() {
            let fd = hand.fd();
            let mut record = self.memory.record_mut(fd);
            let mut socket = Traced(Socket::numbered(fd));
            let outcome = connection::answer(&mut record, &mut socket, &self.rules, hand, self.now);
            match outcome {
                Some(outcome) => self.conclude(fd, outcome),
                None if self.rules.idle_timeout.is_some() => self.arm(fd),
                None => {}
            }
        }
    }

    /// Records the readiness that a report carries, and drives the connection unless its turn is
    /// still to come: no connection is driven twice in a turn.
    fn handle_odd_report(&mut self, fd: u32, generation: u32, readiness: Flags) {
        let mut record = self.memory.record_mut(fd);
        let gone = matches!(record.state(), State::Free | State::Closing | State::Handed);
        if record.generation() != generation || gone {
            return record.count(Counter::StaleEvents, 1);
        }
        let flags = record.flags().with(readiness);
        record.set_flags(flags);
        // A connection that is only writable and owes nothing has no work.
        let has_work = flags.has(Flags::READABLE) || record.pending().is_some();
        if has_work && !flags.has(Flags::QUEUED) {
            self.answer_hands();
            self.drive(fd);
        }
    }

    /// Drives the first `count` connections of the queue.
    fn drive_queue(&mut self, count: usize) {
        for _ in 0..count {
            let Some(fd) = self.ready.pop_front() else {
                break;
            };
            let mut record = self.memory.record_mut(fd);
            let flags = record.flags();
            // If it is not, it was closed since, and possibly opened again under the same number.
            if flags.has(Flags::QUEUED) {
                record.set_flags(flags.without(Flags::QUEUED));
                self.drive(fd);
            }
        }
    }

    pub(super) fn enqueue(&mut self, fd: u32) {
        let mut record = self.memory.record_mut(fd);
        let flags = record.flags();
        if !flags.has(Flags::QUEUED) {
            record.set_flags(flags.with(Flags::QUEUED));
            self.ready.push_back(fd);
        }
    }

    /// Arms the timer of connection `fd` if it continues, and acts on the outcome.
    #[inline]
    fn conclude(&mut self, fd: u32, outcome: Outcome) {
        if matches!(outcome, Outcome::Waiting | Outcome::Again) {
            self.arm(fd);
        }
        self.apply(fd, outcome);
    }

    /// Acts on the outcome for connection `fd`.
    #[inline]
    pub(super) fn apply(&mut self, fd: u32, outcome: Outcome) {
        match outcome {
            Outcome::Waiting => {}
            Outcome::Again => self.enqueue(fd),
            Outcome::Close(reason) => self.close(fd, reason),
            Outcome::Header => self.read_header(fd),
            Outcome::Refuse(cause) => self.refuse_header(fd, cause, None),
        }
    }

    /// Drives connection `fd`.
    pub(super) fn drive(&mut self, fd: u32) {
        let mut record = self.memory.record_mut(fd);
        let mut socket = Traced(Socket::numbered(fd));
        let outcome = connection::drive(&mut record, &mut socket, &self.rules, self.now);
        self.conclude(fd, outcome);
    }

    /// Arms the timer of connection `fd`, if it has a deadline, unless it fires in time already.
    #[inline]
    pub(super) fn arm(&mut self, fd: u32) {
        let record = self.memory.record(fd);
        let Some(mut due) = connection::deadline(&record, &self.rules) else {
            return;
        };
        if self.rules.max_age.is_some() {
            // The end of an age is followed by a short time of grace, so it must not come late.
            due = timers::ahead(due, self.now);
        }
        if !self.timers.is_armed_by(fd, due, self.now) {
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
                self.read_header(fd);
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
            // Its stream was ended by a stop: until it closes it counts for its proxy.
            self.count_source(fd);
        }
        self.conclude(fd, outcome);
    }
}

/// Returns the readiness that a report carries.
#[inline]
fn readiness_of(event: &Event) -> Flags {
    let mut flags = Flags::default();
    if event.is_readable() || event.is_priority() {
        flags = flags.with(Flags::READABLE);
    }
    if event.is_writable() {
        flags = flags.with(Flags::WRITABLE);
    }
    if event.is_read_closed() || event.is_error() || event.is_priority() {
        flags = flags.with(Flags::READABLE).with(Flags::READ_DRY);
    }
    flags
}

/// A socket that logs its bytes at trace level, as received and as sent.
struct Traced(Socket);

impl connection::Stream for Traced {
    #[inline(always)]
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let received = self.0.recv(into)?;
        event!(
            bytes_received,
            fd = self.0.number(),
            bytes = &into[..received]
        );
        Ok(received)
    }

    #[inline(always)]
    fn send(&mut self, from: &[u8]) -> io::Result<usize> {
        let sent = self.0.send(from)?;
        event!(bytes_sent, fd = self.0.number(), bytes = &from[..sent]);
        Ok(sent)
    }

    fn end_output(&mut self) -> io::Result<()> {
        self.0.end_output()
    }
}
