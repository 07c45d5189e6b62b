//! The handovers of a dead process, continued by the next life of its worker.
//!
//! Invariants: answers are given again before anything is served; what the dead process had
//! received and not stored is closed, because the other worker sends it again or has it; a
//! connection whose receiver is gone is taken back from a handover that another process began only
//! if the kernel's counters show that nothing is owed but what its record says.
//!
//! It must not decide what is sent again: `Sender` and `Receiver` do.

use std::os::fd::RawFd;

use super::super::rescue::Descriptors;
use super::super::{Reactor, Token};
use super::state::{Incoming, Link, Outgoing};
use crate::channel::packets::Packets;
use crate::config::{FD_RESERVE, HANDOVER_MESSAGE_BYTES, LISTENERS_MAX};
use crate::handover::machine::{Answer, Received, Receiver, SenderEvent};
use crate::handover::{HandedOver, HandoverEnd};
use crate::log::event;
use crate::memory::layout::State;
use crate::memory::rescue::Kernel;
use crate::memory::transit::{Arrival, Source};
use crate::sys::fd;
use crate::sys::socket::{self, Socket};
use crate::sys::tcp::{self, Kind};
use uppercased_ctl::metrics::CloseReason;

/// More than one message from another process can bring.
const RECEIVED_MAX: u32 = 256;

impl Reactor {
    /// Continues the handovers of the dead process, or keeps the result for
    /// [`Reactor::handed_over`].
    pub(in super::super) fn resume_handovers(&mut self) {
        let arriving: Vec<u32> = self.memory.arriving().collect();
        self.release_batch(&arriving);
        if let Some(arrival) = self.memory.arrival() {
            self.resume_arrival(arrival);
        }
        self.resume_departure();
    }

    fn resume_arrival(&mut self, arrival: Arrival) {
        let Arrival {
            link,
            coming,
            answered,
            answers,
        } = arrival;
        let Some(link) = self.resume_link(link) else {
            return self.memory.end_arrival();
        };
        let answers = answers.into_iter().map(|answer| {
            let (taken, left) = (answer.taken, answer.left);
            (answer.sequence, Answer { taken, left })
        });
        let received = Received {
            last_sequence: answered.last_sequence,
            adopted: answered.adopted,
            is_refusing: answered.is_refusing,
            answers: answers.collect(),
        };
        let mut incoming = Box::new(Incoming {
            link,
            machine: Receiver::resumed(received),
            buffer: vec![0; HANDOVER_MESSAGE_BYTES],
            answered: answered.last_sequence.into(),
        });
        self.memory.note_answered(incoming.answered);
        event!(takeover_resumed, connections = answered.adopted);
        if self.execute_received(&mut incoming, Vec::new()) {
            return self.close_incoming(incoming);
        }
        self.expected = coming.saturating_sub(answered.adopted);
        self.incoming = Some(incoming);
    }

    fn resume_departure(&mut self) {
        let Some(departure) = self.memory.departure() else {
            self.handed_over = self.memory.departed().and_then(|departed| {
                Some(HandedOver {
                    moved: departed.moved,
                    left: departed.left,
                    end: HandoverEnd::of_number(departed.end)?,
                    part: departed.part,
                })
            });
            return;
        };
        let link = self.resume_link(departure.link);
        let is_lost = link.is_none();
        let (batches, resolved) = (self.memory.batches(), self.memory.resolved());
        let mut outgoing = Outgoing::resumed(link, departure, batches, resolved);
        let connections = outgoing.moving;
        event!(handover_resumed, connections);
        self.memory.note_sent(outgoing.sent, outgoing.settled);
        if is_lost {
            outgoing.is_peer_gone = true;
            outgoing.machine.handle(SenderEvent::PeerGone);
            self.execute(&mut outgoing);
        }
        self.outgoing = (!self.finish_handover(&outgoing)).then(|| Box::new(outgoing));
    }

    fn resume_link(&mut self, number: u32) -> Option<Link> {
        let token: Token = self.next_token();
        let link = Link::resumed(number, token, self.poll.registry());
        link.inspect_err(|error| event!(handover_socket_failed, %error))
            .ok()
    }

    /// Returns whether the handover from here is one of all connections, and whether no other worker
    /// accepts from the listeners.
    #[must_use]
    pub fn hands_over_all(&self) -> Option<bool> {
        let outgoing = self.outgoing.as_ref()?;
        outgoing.part.is_none().then_some(outgoing.last)
    }

    /// Returns whether a connection can be taken back from a receiver that is gone, and that may
    /// have served it: if it has answered everything, the record is made to agree.
    pub(super) fn was_returned(&mut self, fd: u32) -> bool {
        let Ok(counters) = Descriptors.counters(fd) else {
            return false;
        };
        let record = self.memory.record(fd);
        let (received, sent) = record.bytes_moved();
        let header = u64::from(record.header_bytes());
        let (state, generation) = (record.state(), record.generation());
        // The record of a lingering connection does not count what it receives.
        let is_unread = match state {
            State::LingeringIdle | State::LingeringStop => true,
            _ => counters.read == received.saturating_add(header),
        };
        if counters.is_over || (counters.written == sent && is_unread) {
            return true;
        }
        let is_answered = counters.written.checked_add(header) == Some(counters.read);
        let frozen = self.memory.record_mut(fd).freeze();
        let Some(mut frozen) = frozen.filter(|_| state == State::Open && is_answered) else {
            return false;
        };
        frozen.unsent.clear();
        frozen.bytes_in = counters.written;
        frozen.bytes_out = counters.written;
        self.memory.thaw(fd, generation, &frozen).is_ok()
    }

    /// Resets a connection that died with its receiver.
    pub(super) fn lose(&mut self, fd: u32) {
        self.close(fd, CloseReason::WorkerDied);
    }

    /// Closes what the dead process had received and not stored, or was about to close. `channel`
    /// is the worker's.
    pub fn close_unnamed(&mut self, channel: RawFd) {
        if !self.memory.has_unnamed() {
            return;
        }
        let was_accepting = self.memory.is_accepting();
        let private = FD_RESERVE + LISTENERS_MAX as u32 + RECEIVED_MAX;
        let numbers = self.memory.used().saturating_add(private);
        for number in 0..numbers.min(self.memory.layout().descriptors) {
            if self.is_named(number) || number.cast_signed() == channel {
                continue;
            }
            match socket::lend(&[number], |fds| tcp::kind_of(fds[0])) {
                // The dead process had accepted it.
                Kind::Connection if was_accepting => continue,
                Kind::Connection => Socket::numbered(number).close(),
                Kind::Listener => drop(fd::inherited_listener(number)),
                Kind::Link => {
                    if let Some(link) = fd::inherited_link(number) {
                        Packets::over(link).purge();
                    }
                }
                Kind::Other => continue,
            }
            event!(unnamed_descriptor_closed, fd = number);
        }
        for source in [Source::Channel, Source::Link] {
            self.memory.set_unnamed(source, false);
        }
    }

    fn is_named(&self, number: u32) -> bool {
        let outgoing = self.outgoing.as_ref().and_then(|it| it.link.as_ref());
        let incoming = self.incoming.as_ref().map(|it| &it.link);
        let mut links = outgoing.into_iter().chain(incoming);
        let is_acceptor = |fd: i32| fd.cast_unsigned() == number;
        self.memory.record(number).state() != State::Free
            || links.any(|link| link.number() == number)
            || self.acceptors.iter().any(|it| is_acceptor(it.number()))
    }
}
