//! The worker's event loop: mio, edge-triggered, one thread, blocking only in its wait.
//!
//! A turn has fixed phases: [`Reactor::wait`] waits; [`Reactor::handle_reports`] drives the
//! connections that are ready (each with a report straight from it, then those left over from the
//! last turn); the worker reads its channel; [`Reactor::work`] does the chores: it adopts
//! connections that another worker hands over, accepts, acts on deadlines and hands connections
//! over. A turn that brought reports of connections only, and in which nothing is due, has none.
//!
//! Invariants:
//! - both directions of a connection are registered once, from its accept to its close; readiness
//!   is stored in its record;
//! - a report carries the connection's generation; a report for an earlier connection with the same
//!   descriptor number is counted and dropped;
//! - no connection receives more than its byte budget in a turn and no burst accepts more than its
//!   count; work that is left over makes the next wait zero;
//! - a turn has one time, read right after the wait; the clock is read once more at the end of a
//!   turn that is measured (`measure`).
//!
//! It must not know the supervisor, and it must not decide about bytes: `connection` does.

pub mod accept;
mod admit;
mod gate;
mod header;
mod lines;
mod measure;
mod migration;
mod rescue;
mod serve;
mod spin;
pub mod timers;
mod wait;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};

use crate::admission::{Admission, Networks};
use crate::config::{Config, ProxyListeners};
use crate::connection::Rules;
use crate::handover::HandedOver;
use crate::log::event;
use crate::memory::Memory;
use crate::memory::layout::{Flags, State};
use crate::memory::life::Listener;
use crate::sys::socket::{AcceptFailure, Socket};
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::metrics::{CloseReason, Counter, PauseCause};

use accept::{Acceptor, Gate, pause_cause};
use lines::PeerLines;
use measure::Sampling;
use migration::state::{Incoming, Outgoing};
use spin::Spin;
use timers::Timers;

pub use rescue::Descriptors;
pub use wait::Reports;

/// Reports with this generation are not about connections.
const NO_GENERATION: u32 = 0;
const CONTROL: Token = Token(0);

/// The event loop and everything that it serves.
#[derive(Debug)]
pub struct Reactor {
    poll: Poll,
    memory: Memory,
    timers: Timers,
    /// Descriptor numbers with work left over, in the order in which they are driven.
    ready: VecDeque<u32>,
    fired: Vec<u32>,
    acceptors: Vec<Acceptor>,
    last_token: usize,
    gate: Gate,
    /// Admission rules; `None` if every client is admitted.
    admission: Option<Box<Admission>>,
    /// Log lines caused by peers, not written yet.
    lines: PeerLines,
    /// The logged cause of the present pause in accepting.
    logged_pause: Option<PauseCause>,
    /// Slots with a lost listener, not reported yet.
    lost_listeners: Vec<SlotId>,
    /// Trusted proxies; `None` if no listener requires a PROXY header.
    proxies: Option<Networks>,
    /// Whether this worker accepts: not while it is a standby or hands over.
    accepting: bool,
    /// Whether connections are to end as soon as no output is pending on them.
    finishing: bool,
    outgoing: Option<Box<Outgoing>>,
    incoming: Option<Box<Incoming>>,
    handed_over: Option<HandedOver>,
    rules: Rules,
    accepts_per_turn: u32,
    accept_retry: Duration,
    max_connections: u32,
    open: u32,
    /// Connections that another worker is about to hand over; places are reserved for them.
    expected: u32,
    /// Nothing is accepted before then, unless the number of these connections is known earlier.
    counts_until: Option<Tick>,
    last_generation: u32,
    spin: Spin,
    sampling: Sampling,
    /// Whether this turn does more than serve connections.
    has_chores: bool,
    now: Tick,
}

impl Reactor {
    /// Creates an event loop over `memory`, for at most `max_connections` connections.
    ///
    /// # Errors
    /// What creating the epoll instance returned.
    pub fn new(memory: Memory, config: &Config, max_connections: u32) -> io::Result<Self> {
        Ok(Self::over(Poll::new()?, memory, config, max_connections))
    }

    fn over(poll: Poll, memory: Memory, config: &Config, max_connections: u32) -> Self {
        let now = clock::now();
        Self {
            poll,
            timers: Timers::new(memory.layout().descriptors, now),
            memory,
            ready: VecDeque::new(),
            fired: Vec::new(),
            acceptors: Vec::new(),
            last_token: CONTROL.0,
            gate: Gate::Open,
            admission: Admission::new(config).map(Box::new),
            lines: PeerLines::default(),
            logged_pause: None,
            lost_listeners: Vec::new(),
            proxies: (config.proxy_protocol != ProxyListeners::None)
                .then(|| Networks::new(&config.proxy_trust)),
            accepting: true,
            finishing: false,
            outgoing: None,
            incoming: None,
            handed_over: None,
            rules: Rules::new(config, now),
            accepts_per_turn: config.accepts_per_turn,
            accept_retry: config.accept_retry,
            max_connections,
            open: 0,
            expected: 0,
            counts_until: None,
            last_generation: NO_GENERATION,
            spin: Spin::new(config.busy_poll),
            sampling: Sampling::default(),
            has_chores: false,
            now,
        }
    }

    /// Watches the worker's channel; [`Reactor::handle_reports`] returns whether it is to be read.
    ///
    /// # Errors
    /// What `epoll_ctl` returned.
    pub fn watch_control(&self, channel: &impl AsFd) -> io::Result<()> {
        let number = channel.as_fd().as_raw_fd();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut SourceFd(&number), CONTROL, interest)
    }

    /// Adds a listener of slot `owner`; `proxied`: whether its connections begin with a PROXY
    /// header.
    ///
    /// # Errors
    /// What `epoll_ctl` returned, or the memory has no entry left; the descriptor is then closed.
    pub fn add_listener(
        &mut self,
        owner: SlotId,
        listener: OwnedFd,
        proxied: bool,
    ) -> io::Result<()> {
        let mut acceptor = Acceptor::new(owner, listener, self.next_token(), proxied);
        let fd = acceptor.number().cast_unsigned();
        let entry = Listener { fd, owner, proxied };
        let entered = self.memory.enter_listener(entry);
        entered.map_err(io::Error::other)?;
        if self.is_accepting()
            && let Err(error) = acceptor.watch(self.poll.registry(), true)
        {
            self.memory.clear_listener(fd);
            return Err(error);
        }
        self.acceptors.push(acceptor);
        Ok(())
    }

    /// Returns the listeners of slot `owner`.
    pub fn listeners_of(&self, owner: SlotId) -> impl Iterator<Item = BorrowedFd<'_>> {
        let own = self.acceptors.iter().filter(move |it| it.owner == owner);
        own.map(Acceptor::listener)
    }

    /// Returns the slots, except `own`, whose listeners it has.
    #[must_use]
    pub fn lent_slots(&self, own: SlotId) -> Vec<SlotId> {
        let mut lent: Vec<SlotId> = self.acceptors.iter().map(|it| it.owner).collect();
        lent.retain(|&owner| owner != own);
        lent.sort_unstable();
        lent.dedup();
        lent
    }

    /// Stops accepting from the listeners of slot `owner` and closes them.
    pub fn release_listeners(&mut self, owner: SlotId) {
        self.release_where(|acceptor| acceptor.owner == owner);
    }

    /// Accepts every connection in the queues of slot `owner`, also above the connection limit: no
    /// worker will serve these queues any more, and closing one resets the connections in it.
    pub fn empty_listeners(&mut self, owner: SlotId) {
        // New connections are steered elsewhere, so the queues run empty; the bound limits the work
        // if they do not.
        let mut budget = self.memory.layout().descriptors;
        self.memory.begin_accept();
        for which in 0..self.acceptors.len() {
            while self.acceptors[which].owner == owner && budget > 0 {
                budget -= 1;
                match self.acceptors[which].accept() {
                    Ok((socket, peer)) if self.acceptors[which].proxied => {
                        self.admit_proxy(socket, peer);
                    }
                    Ok((socket, peer)) => self.admit(socket, peer),
                    Err(AcceptFailure::ThisOne) => self.memory.count(Counter::AcceptFailed, 1),
                    Err(AcceptFailure::Empty) => break,
                    Err(failure) => {
                        event!(
                            sibling_queue_not_emptied,
                            error = failure.to_string(),
                            from_slot = owner.0
                        );
                        break;
                    }
                }
            }
        }
        self.memory.end_accept();
    }

    /// Releases the listeners that siblings lent, which are all but those of slot `own`.
    pub fn release_lent(&mut self, own: SlotId) {
        self.release_where(|acceptor| acceptor.owner != own);
    }

    /// Starts accepting, within the limit.
    pub fn begin_accepting(&mut self) {
        let was = self.is_accepting();
        self.accepting = true;
        self.update_watches(was);
    }

    /// Stops accepting for now. The listeners stay open: new connections wait in their queues, or
    /// another worker accepts them.
    pub fn pause_accepting(&mut self) {
        let was = self.is_accepting();
        self.accepting = false;
        self.update_watches(was);
    }

    /// Stops accepting for good and closes every listener.
    pub fn drop_listeners(&mut self) {
        self.set_gate(Gate::Ended);
        self.release_where(|_| true);
    }

    /// Accepts the connections in the queues, if this worker is to accept; then stops accepting for
    /// good and closes every listener.
    pub fn end_accepting(&mut self) {
        if self.accepting {
            self.accept_all();
        }
        self.drop_listeners();
    }

    /// Ends every connection as soon as no output is pending on it, including those that arrive
    /// later from another worker or return from one. Stops handing over.
    pub fn finish_connections(&mut self) {
        self.finishing = true;
        self.stop_handing_over();
        for fd in self.local_connections() {
            self.memory.record_mut(fd).finish();
            self.enqueue(fd);
        }
    }

    /// Closes every connection now. Pending output is abandoned and counted.
    pub fn cut_connections(&mut self) {
        self.abandon_migration();
        for fd in self.local_connections() {
            let reason = match self.memory.record(fd).state() {
                State::LingeringIdle => CloseReason::IdleTimeout,
                State::LingeringStop => CloseReason::Drained,
                State::Open
                | State::AwaitingHeader
                | State::Free
                | State::Closing
                | State::Handed => CloseReason::DrainTimeout,
            };
            self.close(fd, reason);
        }
    }

    /// Does the chores, if there are any, and measures the turn. Returns whether there were any.
    pub fn work(&mut self) -> bool {
        if self.has_chores {
            self.do_chores();
        }
        self.measure_turn();
        self.has_chores
    }

    /// Adopts connections, accepts, acts on deadlines and hands connections over.
    fn do_chores(&mut self) {
        self.receive_connections();
        let gate = self
            .gate
            .at(self.places_taken(), self.max_connections, self.now);
        self.set_gate(gate);
        if self.is_accepting() {
            self.accept_burst();
        }
        self.expire();
        self.send_connections();
        self.lines.write_overdue(self.open, self.now);
    }

    /// Counts this turn and the duration of its work, if it is to be measured.
    #[inline]
    fn measure_turn(&mut self) {
        if let Some(turns) = self.sampling.turns(self.has_chores, self.now) {
            let took = clock::now().since(self.now);
            self.sampling.note(took, self.has_chores);
            self.memory.count_turns(turns, took);
        }
    }

    /// Returns the number of open connections.
    #[must_use]
    pub const fn open_connections(&self) -> u32 {
        self.open
    }

    /// Returns the time of this turn.
    #[must_use]
    pub const fn now(&self) -> Tick {
        self.now
    }

    /// Returns the working memory.
    #[must_use]
    pub const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Accepts from every ready listener in turn, up to the budget. Returns whether some listener
    /// may have more.
    fn accept_burst(&mut self) -> bool {
        if !self.acceptors.iter().any(|acceptor| acceptor.ready) {
            return false;
        }
        self.memory.begin_accept();
        let mut budget = self.accepts_per_turn;
        let mut index = 0;
        while budget > 0 && self.gate == Gate::Open {
            let count = self.acceptors.len();
            let next = (0..count).map(|step| (index + step) % count);
            let Some(which) = next.into_iter().find(|&i| self.acceptors[i].ready) else {
                break;
            };
            index = which + 1;
            budget -= 1;
            match self.acceptors[which].accept() {
                Ok((socket, peer)) => {
                    self.note_accept();
                    if self.acceptors[which].proxied {
                        self.admit_proxy(socket, peer);
                    } else {
                        self.admit(socket, peer);
                    }
                }
                Err(failure) => self.accept_failed(which, failure),
            }
        }
        self.memory.end_accept();
        self.acceptors.iter().any(|acceptor| acceptor.ready)
    }

    fn accept_failed(&mut self, which: usize, failure: AcceptFailure) {
        if let Some(cause) = pause_cause(failure) {
            self.memory.count(Counter::Paused(cause), 1);
            // Once: each retry would log the same.
            if self.logged_pause.replace(cause) != Some(cause) {
                event!(
                    accept_paused,
                    reason = cause.name(),
                    connections = self.open,
                    error = failure.to_string()
                );
            }
            return self.set_gate(Gate::Resting(self.now + self.accept_retry));
        }
        match failure {
            AcceptFailure::Empty => {
                self.note_accept();
                self.acceptors[which].ready = false;
            }
            AcceptFailure::Listener(errno) => self.lose_listener(which, errno),
            _ => self.memory.count(Counter::AcceptFailed, 1),
        }
    }

    /// Notes that accepting works again.
    fn note_accept(&mut self) {
        if self.logged_pause.take().is_some() {
            event!(accept_resumed, connections = self.open);
        }
    }

    /// Stops watching a socket that no longer listens; [`Reactor::next_lost_listener`] returns its
    /// slot.
    fn lose_listener(&mut self, which: usize, errno: i32) {
        self.memory.count(Counter::AcceptFailed, 1);
        let acceptor = &mut self.acceptors[which];
        let (owner, number) = (acceptor.owner, acceptor.number());
        // Fails only if it is not watched, which is the goal.
        let _ = acceptor.retire(self.poll.registry());
        let error = io::Error::from_raw_os_error(errno);
        event!(listener_lost, %error, fd = number, owner_slot = owner.0);
        if !self.lost_listeners.contains(&owner) {
            self.lost_listeners.push(owner);
        }
    }

    /// Returns the listeners' descriptor numbers, for tests that misuse them.
    #[cfg(debug_assertions)]
    pub fn listener_numbers(&self) -> Vec<u32> {
        let numbers = self.acceptors.iter().map(Acceptor::number);
        numbers.map(i32::cast_unsigned).collect()
    }

    /// Returns a slot that has lost a listener since the last call.
    pub fn next_lost_listener(&mut self) -> Option<SlotId> {
        self.lost_listeners.pop()
    }

    fn close(&mut self, fd: u32, reason: CloseReason) {
        self.uncount_source(fd);
        let via = self.proxy_of(fd).map(tracing::field::display);
        let mut record = self.memory.record_mut(fd);
        let abandoned = record.begin_close();
        let peer = record.peer();
        let (received, sent) = record.bytes_moved();
        let age = self.now.since(record.opened_at());
        event!(connection_closed, connection = Socket::numbered(fd).cookie(), %peer, via, fd, received_bytes = received, sent_bytes = sent, abandoned_bytes = abandoned, reason = reason.name(), duration_ms = age.as_millis());
        record.count(Counter::BytesAbandoned, abandoned);
        record.count(Counter::Closed(reason), 1);
        self.timers.disarm(fd);
        let socket = Socket::numbered(fd);
        if abandoned > 0 || matches!(reason, CloseReason::Refused | CloseReason::WorkerDied) {
            // An end of stream would tell the peer that it has received everything; a reset also
            // frees at once the kernel's memory for a peer that does not read.
            socket.reset();
        } else {
            socket.close();
        }
        record.end_close();
        self.open -= 1;
        self.gate_after_close();
    }

    /// Accepts the connections in the queues. Returns whether the queues are empty.
    fn accept_all(&mut self) -> bool {
        // Connections that arrived since the last wait have not been reported yet.
        for acceptor in &mut self.acceptors {
            acceptor.mark_ready();
        }
        while self.gate == Gate::Open && self.accept_burst() {}
        self.gate == Gate::Open || self.acceptors.is_empty()
    }

    fn release_where(&mut self, gone: impl Fn(&Acceptor) -> bool) {
        for acceptor in self.acceptors.iter_mut().filter(|one| gone(one)) {
            // Fails only if it was not watched; closing it is all that matters then.
            let _ = acceptor.watch(self.poll.registry(), false);
            self.memory
                .clear_listener(acceptor.number().cast_unsigned());
        }
        self.acceptors.retain(|acceptor| !gone(acceptor));
    }

    /// Returns the connections that are not migrating.
    fn local_connections(&self) -> Vec<u32> {
        let settled = |&fd: &u32| !self.memory.record(fd).flags().has(Flags::MOVING);
        self.memory.occupied().filter(settled).collect()
    }

    const fn next_token(&mut self) -> Token {
        self.last_token += 1;
        Token(self.last_token)
    }

    fn next_generation(&mut self) -> u32 {
        let next = self.last_generation.checked_add(1);
        self.last_generation = next.unwrap_or(NO_GENERATION + 1);
        self.last_generation
    }
}

/// Returns a connection's token: generation in the upper half, descriptor number in the lower.
const fn pack_token(fd: u32, generation: u32) -> Token {
    Token(((generation as usize) << 32) | fd as usize)
}

const fn unpack_token(token: Token) -> (u32, u32) {
    (token.0 as u32, (token.0 >> 32) as u32)
}

#[cfg(test)]
mod tests;
