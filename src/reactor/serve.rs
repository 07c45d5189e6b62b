//! The part of a turn in which connections are driven: which ones, and in which order.
//!
//! A connection with a readiness report is driven at once; one that used up its budget in the last
//! turn is queued and driven after those. Invariants: no connection is driven twice in a turn; a
//! report for an earlier connection with the same descriptor number is counted and dropped.
//!
//! It must not interpret bytes: `connection` does.

use std::io;

use mio::event::Event;

use super::timers::Timers;
use super::{CONTROL, NO_GENERATION, Reactor, Reports, unpack_token};
use crate::connection::{self, Outcome, Rules};
use crate::log::event;
use crate::memory::RecordMut;
use crate::memory::layout::{Flags, State};
use crate::sys::socket::Socket;
use uppercased_ctl::clock::Tick;
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
                self.handle_report(fd, generation, event);
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
        if worked {
            self.spin.worked(self.now);
        }
        self.drive_queue(left_over);
        control
    }

    /// Records the readiness that a report carries, and drives the connection unless its turn is
    /// still to come: no connection is driven twice in a turn.
    #[inline]
    fn handle_report(&mut self, fd: u32, generation: u32, event: &Event) {
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
            let outcome = drive(&mut record, &mut self.timers, &self.rules, self.now);
            self.apply(fd, outcome);
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
                let outcome = drive(&mut record, &mut self.timers, &self.rules, self.now);
                self.apply(fd, outcome);
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
        let outcome = drive(&mut record, &mut self.timers, &self.rules, self.now);
        self.apply(fd, outcome);
    }

    /// Arms the timer of connection `fd`, if it has a deadline.
    pub(super) fn arm(&mut self, fd: u32) {
        let record = self.memory.record_mut(fd);
        arm(&record, &mut self.timers, &self.rules, self.now);
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
        if matches!(outcome, Outcome::Waiting | Outcome::Again) {
            arm(record, &mut self.timers, &self.rules, self.now);
        }
        if was_nobodys {
            // Its stream was ended by a stop: until it closes it counts for its proxy.
            self.count_source(fd);
        }
        self.apply(fd, outcome);
    }
}

/// Drives the connection of `record`, and arms its timer if it continues.
#[inline]
fn drive(record: &mut RecordMut<'_>, timers: &mut Timers, rules: &Rules, now: Tick) -> Outcome {
    let mut socket = Traced(Socket::numbered(record.fd()));
    let outcome = connection::drive(record, &mut socket, rules, now);
    if matches!(outcome, Outcome::Waiting | Outcome::Again) {
        arm(record, timers, rules, now);
    }
    outcome
}

/// Arms the timer of the connection of `record`, unless it fires in time already.
#[inline]
fn arm(record: &RecordMut<'_>, timers: &mut Timers, rules: &Rules, now: Tick) {
    if let Some(due) = connection::deadline(record, rules)
        && !timers.is_armed_by(record.fd(), due, now)
    {
        timers.arm(record.fd(), due, now);
    }
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
