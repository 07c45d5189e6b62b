//! Migration of a worker's connections: to a successor or a sibling, or from either; all of them or
//! a part.
//!
//! Invariants: at most one handover from this worker and one to it run at a time; a request that
//! arrives during a partial handover waits until that is resolved, which takes milliseconds or until
//! the other worker dies; after a partial handover the worker is in its previous phase.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::Worker;
use super::phase::Phase;
use crate::fault;
use crate::handover::{HandedOver, HandoverEnd, Part};
use crate::log::event;
use crate::reactor::Reactor;
use crate::wire::{FromWorker, HandOver, TakeOver, ToWorker};

impl Worker {
    /// Starts accepting, if it was a standby or could not hand over every connection.
    pub(super) fn start_serving(&mut self) {
        if matches!(self.phase, Phase::StandingBy | Phase::Undecided { .. }) {
            self.enter(Phase::Serving);
            self.reactor.begin_accepting();
        }
    }

    pub(super) fn take_over(&mut self, request: TakeOver, descriptors: Vec<OwnedFd>) {
        if self.reactor.is_taking_over() {
            // A partial handover is still arriving.
            let request = ToWorker::TakeOver(request);
            return self.deferred.push_back((request, descriptors));
        }
        fault::point("receiver.requested");
        let begun = descriptors
            .into_iter()
            .next()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
            .and_then(|link| self.reactor.take_over(link, request.expected));
        match begun {
            Ok(()) => {
                event!(
                    takeover_started,
                    from_slot = request.from.slot.0,
                    from_generation = request.from.generation.0,
                    connections = request.expected
                );
            }
            // The socket is closed by now, so the sender keeps everything.
            Err(error) => {
                event!(takeover_failed, %error, from_slot = request.from.slot.0, from_generation = request.from.generation.0);
            }
        }
        // Only now are places reserved for the expected connections.
        self.start_serving();
    }

    pub(super) fn hand_over(&mut self, request: HandOver, descriptors: Vec<OwnedFd>) {
        if let Some(part) = request.part {
            return self.hand_over_part(&request, part, descriptors);
        }
        if !matches!(self.phase, Phase::HandingOver { .. }) {
            // A partial handover sends no more; connections in flight have to be resolved first.
            self.reactor.stop_handing_over();
            if self.reactor.is_handing_over() {
                let request = ToWorker::HandOver(request);
                return self.deferred.push_back((request, descriptors));
            }
        }
        fault::point("sender.requested");
        let serves = matches!(
            self.phase,
            Phase::Serving | Phase::StandingBy | Phase::Undecided { .. }
        );
        if matches!(self.phase, Phase::HandingOver { .. }) {
            // The supervisor did not know that a process that died had begun it.
            return event!(repeated_handover_ignored, to_slot = request.to.slot.0);
        }
        let Some(link) = descriptors.into_iter().next().filter(|_| serves) else {
            event!(
                handover_impossible,
                to_slot = request.to.slot.0,
                to_generation = request.to.generation.0,
                phase = self.phase.name()
            );
            return;
        };
        // The supervisor lends them to another worker if it must.
        self.reactor.release_lent(self.id.slot);
        match self.reactor.hand_over(link, request.last) {
            Ok(()) => {
                let connections = self.reactor.open_connections();
                event!(
                    connections_leaving,
                    to_slot = request.to.slot.0,
                    to_generation = request.to.generation.0,
                    connections
                );
                self.enter(Phase::HandingOver { last: request.last });
            }
            Err(error) => {
                event!(handover_not_begun, %error, to_slot = request.to.slot.0, to_generation = request.to.generation.0);
                self.report_not_handed_over(HandoverEnd::PeerGone, false);
            }
        }
    }

    /// Hands over a part of its connections; nothing else changes.
    fn hand_over_part(&mut self, request: &HandOver, part: Part, descriptors: Vec<OwnedFd>) {
        let serves = matches!(self.phase, Phase::Serving) && self.deferred.is_empty();
        let begun = descriptors
            .into_iter()
            .next()
            .filter(|_| serves)
            .ok_or_else(|| io::ErrorKind::ResourceBusy.into())
            .and_then(|link| self.reactor.hand_over_part(link, part));
        match begun {
            Ok(()) => event!(
                part_leaving,
                to_slot = request.to.slot.0,
                to_generation = request.to.generation.0,
                permille = part.permille,
                at_most = part.at_most
            ),
            Err(error) => {
                event!(part_not_begun, %error, to_slot = request.to.slot.0, to_generation = request.to.generation.0);
                let cause = error.to_string();
                self.report_not_handed_over(HandoverEnd::Refused { cause }, true);
            }
        }
    }

    /// Handles requests that no longer have to wait.
    pub(super) fn handle_deferred(&mut self) {
        let ready = |request: &ToWorker, reactor: &Reactor| match request {
            ToWorker::TakeOver(_) => !reactor.is_taking_over(),
            _ => !reactor.is_handing_over(),
        };
        while let Some((request, _)) = self.deferred.front()
            && ready(request, &self.reactor)
            && let Some((request, descriptors)) = self.deferred.pop_front()
        {
            self.handle(request, descriptors);
        }
    }

    /// Acts on the result of a handover, if there is one.
    pub(super) fn conclude_handover(&mut self) {
        let Some(result) = self.reactor.handed_over() else {
            return;
        };
        let HandedOver {
            moved, left, end, ..
        } = &result;
        if result.part {
            event!(part_left, migrated = moved, reason = end.name());
            return self.report(result);
        }
        let last = match self.phase {
            Phase::HandingOver { last } => last,
            // The process that entered the phase has died, and may not have reported why.
            Phase::Serving | Phase::Undecided { .. } | Phase::Done => return self.report(result),
            // A stop came between; it resolves everything.
            Phase::StandingBy
            | Phase::LameDuck { .. }
            | Phase::Leaving { .. }
            | Phase::Draining { .. } => return,
        };
        event!(
            connections_left,
            migrated = moved,
            remaining = left,
            reason = end.name()
        );
        match end {
            HandoverEnd::Done => {
                self.enter(Phase::Done);
                fault::point("sender.done");
            }
            HandoverEnd::PeerGone => {
                self.enter(Phase::Serving);
                self.reactor.begin_accepting();
            }
            HandoverEnd::Refused { .. } | HandoverEnd::Incomplete { .. } => {
                self.enter(Phase::Undecided { last });
                self.decide_alone();
            }
        }
        self.report(result);
    }

    /// Reports the result of a handover, also to a supervisor that is about to adopt the worker. The
    /// next life reports it again unless that was stored.
    fn report(&mut self, result: HandedOver) {
        if self.has_channel() {
            self.deliver(FromWorker::HandedOver(result));
        }
        self.reactor.memory_mut().end_report();
    }

    /// Reports a handover that could not begin.
    fn report_not_handed_over(&mut self, end: HandoverEnd, part: bool) {
        self.send(FromWorker::HandedOver(HandedOver {
            moved: 0,
            left: self.reactor.open_connections(),
            end,
            part,
        }));
    }

    pub(super) fn leave(&mut self, drain_timeout: Duration) {
        match self.phase {
            Phase::Serving | Phase::StandingBy | Phase::Undecided { last: false } => {
                self.reactor.drop_listeners();
            }
            // No other worker accepts from the queues.
            Phase::Undecided { last: true } => self.reactor.end_accepting(),
            Phase::LameDuck { .. }
            | Phase::HandingOver { .. }
            | Phase::Leaving { .. }
            | Phase::Draining { .. }
            | Phase::Done => {
                event!(repeated_leave_ignored, phase = self.phase.name());
                return;
            }
        }
        self.enter(Phase::Leaving {
            until: self.reactor.now() + drain_timeout,
        });
        let connections = self.reactor.open_connections();
        event!(worker_leaving, connections);
        self.send(FromWorker::Draining { connections });
    }
}
