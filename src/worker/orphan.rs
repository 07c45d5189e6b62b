//! A worker whose supervisor has exited: it goes on serving, and accepting, for `orphan_timeout`, or
//! until its lease ends, which says that the service manager will start no other supervisor.
//!
//! The end of the channel tells, and so does a pidfd of the supervisor: a copy of the other end of
//! the channel, in a child of the supervisor that has not executed its program yet, delays its end.
//!
//! Invariants: an orphan always has a deadline, which is in the working memory before anything else
//! is done, so that a keeper continues it with the same one; a signal sent while the supervisor ran
//! has no effect.

use std::fmt;

use super::Worker;
use super::phase::{Orphan, Phase};
use crate::config::ORPHAN_CHECK_EVERY;
use crate::log::event;
use crate::sys::keeper::has_ended;
use crate::sys::lease;
use crate::sys::signals::{Signal, take_pending};
use uppercased_ctl::clock::{self, Tick};

/// The signals that end an orphan. A worker blocks all signals: while it has a supervisor, that one
/// stops it.
const STOP_SIGNALS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

impl Worker {
    pub(super) const fn is_orphan(&self) -> bool {
        self.orphan.is_some()
    }

    /// Returns whether messages may come on the channel.
    pub(super) fn has_channel(&self) -> bool {
        self.orphan.is_none_or(|orphan| orphan.visited)
    }

    /// Checks whether the supervisor has exited.
    pub(super) fn check_supervisor(&mut self) {
        if !self.is_orphan() && has_ended(&self.supervisor) {
            self.handle_supervisor_exit(&"its process has ended");
        }
    }

    /// Continues without a supervisor.
    pub(super) fn handle_supervisor_exit(&mut self, error: &dyn fmt::Display) {
        let now = clock::now();
        let timeout = self.config.orphan_timeout;
        let connections = self.reactor.open_connections();
        event!(supervisor_lost, %error, connections, timeout_ms = timeout.as_millis());
        // They were meant for the whole server.
        while take_pending(&STOP_SIGNALS).is_some() {}
        self.serve_as_orphan(now + timeout, false, now);
    }

    /// Continues as the orphan that the dead process was, if it was one.
    pub(super) fn continue_orphan(&mut self) {
        self.orphan = None;
        let now = clock::now();
        if let Some(until) = self.reactor.memory().orphaned_until() {
            // The stored deadline may have been overwritten. The channel may lead to a supervisor that
            // is adopting the worker.
            let until = until.min(now + self.config.orphan_timeout);
            self.serve_as_orphan(until, true, now);
        }
    }

    fn serve_as_orphan(&mut self, until: Tick, visited: bool, now: Tick) {
        self.reactor.memory_mut().set_orphaned(Some(until));
        self.orphan = Some(Orphan {
            until,
            check_at: now + ORPHAN_CHECK_EVERY,
            visited,
        });
        if matches!(self.phase, Phase::StandingBy) {
            // The worker that it was to replace serves.
            self.enter(Phase::Done);
        }
        if matches!(self.phase, Phase::HandingOver { last: true }) {
            self.reactor.stop_handing_over();
        }
        self.decide_alone();
        self.advance_orphan(now);
    }

    /// Serves on after a handover with which the slot was to be removed: an orphan stops that, because
    /// only a supervisor can find another receiver if there must be one. The next one decides anew.
    pub(super) fn keep_slot(&mut self) {
        if self.is_orphan()
            && matches!(self.phase, Phase::HandingOver { last: true })
            && !self.reactor.is_handing_over()
        {
            self.enter(Phase::Serving);
            self.reactor.begin_accepting();
        }
    }

    /// Serves the connections that could not be handed over if no supervisor decides about them.
    pub(super) fn decide_alone(&mut self) {
        let is_alone = self.orphan.is_some_and(|orphan| !orphan.visited);
        if is_alone && matches!(self.phase, Phase::Undecided { .. }) {
            self.start_serving();
        }
    }

    /// Stops an orphan whose time or lease is over, or that has received a signal.
    pub(super) fn advance_orphan(&mut self, now: Tick) {
        let phase = self.phase;
        let Some(orphan) = self.orphan.as_mut().filter(|it| it.is_due(phase, now)) else {
            return;
        };
        orphan.check_at = now + ORPHAN_CHECK_EVERY;
        let signal = take_pending(&STOP_SIGNALS).map(Signal::as_str);
        let is_given_up = lease::has_ended(&self.lease);
        let Some(reason) = orphan.reason_to_stop(phase, signal, is_given_up, now) else {
            // Not all may have been accepted at the last report.
            return self.meet_visitors();
        };
        event!(orphan_stopped, reason);
        self.drain(self.config.drain_timeout);
    }
}
