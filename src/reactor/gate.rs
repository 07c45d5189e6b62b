//! Opens and shuts the accept gate, as `accept::Gate` decides.
//!
//! Invariant: the listeners are watched exactly while this worker accepts. It must not accept.

use super::Reactor;
use super::accept::Gate;
use super::lines::PeerLine;
use crate::log::event;
use uppercased_ctl::metrics::{Counter, PauseCause};

impl Reactor {
    pub(super) fn gate_after_close(&mut self) {
        let taken = self.places_taken();
        self.set_gate(self.gate.after_close(taken, self.max_connections, self.now));
    }

    pub(super) const fn places_taken(&self) -> u32 {
        self.open.saturating_add(self.expected)
    }

    /// Shuts the gate if every place is taken.
    pub(super) fn pause_at_limit(&mut self) {
        if self.gate == Gate::Open && self.places_taken() >= self.max_connections {
            let cause = PauseCause::ConnectionLimit;
            self.memory.count(Counter::Paused(cause), 1);
            if let Some(times) = self.lines.note(PeerLine::AtLimit, self.now) {
                event!(
                    accept_paused,
                    reason = cause.name(),
                    connections = self.open,
                    times
                );
            }
            self.set_gate(Gate::AtLimit);
        }
    }

    pub(super) fn set_gate(&mut self, gate: Gate) {
        if gate == self.gate {
            return;
        }
        let was = self.is_accepting();
        let at_limit = matches!(self.gate, Gate::AtLimit | Gate::Freed(_));
        self.gate = gate;
        self.update_watches(was);
        // After a pause for another cause the first accept decides.
        if at_limit
            && self.gate == Gate::Open
            && let Some(times) = self.lines.note(PeerLine::BelowLimit, self.now)
        {
            event!(accept_resumed, connections = self.open, times);
        }
    }

    pub(super) const fn is_accepting(&self) -> bool {
        self.accepting && self.counts_until.is_none() && matches!(self.gate, Gate::Open)
    }

    /// Watches the listeners exactly while this worker accepts; `was` says whether it did before.
    pub(super) fn update_watches(&mut self, was: bool) {
        let is = self.is_accepting();
        if was == is {
            return;
        }
        for acceptor in &mut self.acceptors {
            if let Err(error) = acceptor.watch(self.poll.registry(), is) {
                if let Some(times) = self.lines.note(PeerLine::Unwatched, self.now) {
                    let listener = acceptor.number();
                    event!(listener_watch_failed, %error, fd = listener, times);
                }
                if is {
                    // An unwatched listener does not accept: retry soon.
                    self.gate = Gate::Resting(self.now + self.accept_retry);
                }
            }
        }
    }
}
