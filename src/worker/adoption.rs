//! The adoption of an orphan: a new supervisor connects at the worker's rendezvous, the connection
//! becomes the worker's channel, and with [`ToWorker::Adopt`] the worker has a supervisor again.
//!
//! Invariants: a worker whose supervisor lives refuses everybody, and an orphan refuses a second
//! supervisor while the first has not left; only root and the user that started the worker are
//! answered; until the adoption is complete the worker is an orphan with its deadline. The channel,
//! the supervisor's pidfd and the lease keep their descriptor numbers, because a keeper knows them by
//! these.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::Worker;
use super::phase::Phase;
use crate::channel::rendezvous::Visitor;
use crate::channel::{self, Channel};
use crate::config::ADOPTION_VISITS_PER_TURN;
use crate::fault;
use crate::log::event;
use crate::sys::fd::replace;
use crate::sys::keeper::own_pidfd;
use crate::wire::{Envelope, FDS_MAX, FromWorker, ToWorker};
use uppercased_ctl::clock::millis;
use uppercased_ctl::identity::SlotId;

impl Worker {
    /// Answers the processes that have connected at the rendezvous.
    pub(super) fn meet_visitors(&mut self) {
        if self.is_orphan() && matches!(self.phase, Phase::HandingOver { last: true }) {
            // They wait until that has ended, a moment later.
            return;
        }
        for _ in 0..ADOPTION_VISITS_PER_TURN {
            let Some(adoption) = &self.adoption else {
                return;
            };
            let Some(visitor) = adoption.rendezvous.accept() else {
                return;
            };
            let owner = adoption.owner;
            if visitor.uid != 0 && visitor.uid != owner {
                event!(visitor_refused, client_uid = visitor.uid);
                continue;
            }
            self.check_supervisor();
            match self.reason_to_refuse() {
                None => self.introduce(visitor),
                Some(cause) => refuse(self, visitor, cause),
            }
        }
    }

    /// Returns why it cannot be adopted now, if so.
    fn reason_to_refuse(&self) -> Option<&'static str> {
        let Some(orphan) = self.orphan else {
            return Some("its supervisor runs");
        };
        if orphan.visited {
            return Some("another supervisor adopts it");
        }
        match self.phase {
            Phase::Serving
            | Phase::HandingOver { last: false }
            | Phase::Undecided { last: false }
            | Phase::Leaving { .. } => None,
            Phase::StandingBy
            | Phase::LameDuck { .. }
            | Phase::HandingOver { last: true }
            | Phase::Undecided { last: true }
            | Phase::Draining { .. }
            | Phase::Done => Some("it is about to exit"),
        }
    }

    /// Makes the connection the channel, and introduces the worker on it.
    fn introduce(&mut self, visitor: Visitor) {
        if let Err(error) = self.try_introduce(visitor) {
            event!(introduction_failed, %error);
        }
    }

    fn try_introduce(&mut self, visitor: Visitor) -> io::Result<()> {
        let Some(adoption) = &mut self.adoption else {
            return Ok(());
        };
        self.channel.replace_socket(visitor.socket)?;
        self.reactor.watch_control_again(&self.channel)?;
        // As many as a message can carry.
        let each = adoption.introduction.listen.len();
        let mut room = FDS_MAX.saturating_sub(2 + each);
        let passed = |slot: &SlotId| {
            let fits = self.reactor.listeners_of(*slot).count() == each && room >= each;
            room -= if fits { each } else { 0 };
            fits
        };
        let lent = self.reactor.lent_slots(self.id.slot).into_iter();
        (adoption.introduction.passed, adoption.introduction.lent) = lent.partition(passed);
        adoption.introduction.is_handing_over = matches!(self.phase, Phase::HandingOver { .. });
        adoption.introduction.leaves_within_ms = match self.phase {
            Phase::Leaving { until } => Some(millis(until.since(self.reactor.now()))),
            _ => None,
        };
        let message = FromWorker::Adoptable(Box::new(adoption.introduction.clone()));
        let envelope = Envelope {
            worker: self.id,
            message,
        };
        let pidfd = own_pidfd()?;
        let memory = self.reactor.memory().shared();
        let mut descriptors = vec![pidfd.as_fd(), memory.as_fd()];
        let passed = adoption.introduction.passed.iter();
        for slot in [&self.id.slot].into_iter().chain(passed) {
            descriptors.extend(self.reactor.listeners_of(*slot));
        }
        self.channel
            .send(&envelope, &descriptors)
            .map_err(io::Error::other)?;
        if let Some(orphan) = &mut self.orphan {
            orphan.visited = true;
        }
        fault::point("worker.introduced");
        Ok(())
    }

    /// Handles the end of the channel, which may be that of a supervisor that did not adopt.
    pub(super) fn handle_channel_end(&mut self, error: &channel::Error) {
        match &mut self.orphan {
            Some(orphan) => {
                orphan.visited = false;
                event!(visitor_left, %error);
                self.decide_alone();
            }
            None => self.handle_supervisor_exit(error),
        }
    }

    /// Continues with a new supervisor, whose pidfd and lease came with its message.
    pub(super) fn become_adopted(&mut self, descriptors: &[OwnedFd]) {
        let (true, [supervisor, lease]) = (self.is_orphan(), descriptors) else {
            return event!(adoption_ignored);
        };
        let watched = replace(&mut self.lease, lease)
            .and_then(|()| replace(&mut self.supervisor, supervisor))
            .and_then(|()| self.reactor.watch_control_again(&self.supervisor));
        if let Err(error) = watched {
            // The end of the channel tells, too.
            event!(supervisor_not_watched, %error);
        }
        self.reactor.memory_mut().set_orphaned(None);
        self.orphan = None;
        let connections = self.reactor.open_connections();
        event!(worker_adopted, connections);
        fault::point("worker.adopted");
    }
}

/// Tells a visitor why the worker is not adopted.
fn refuse(worker: &Worker, visitor: Visitor, cause: &str) {
    let mut channel: Channel<FromWorker, ToWorker> = Channel::over(visitor.socket);
    let message = FromWorker::NotAdoptable {
        cause: cause.to_owned(),
    };
    let envelope = Envelope {
        worker: worker.id,
        message,
    };
    // It may have left.
    let _ = channel.send(&envelope, &[]);
}
