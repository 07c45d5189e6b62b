//! Chooses the connections of a partial handover: active ones, so that their work migrates with
//! them, without pending output at this instant, so that no output travels.
//!
//! Invariants: they are chosen once, at the end of a turn, when ready connections have been served;
//! one that has work when its batch is built is left out and not replaced; the worker's other work
//! is unaffected.
//!
//! It must not decide how many: the request does.

use std::collections::VecDeque;

use super::super::Reactor;
use super::state::Chosen;
use crate::handover::Part;
use crate::memory::layout::{Flags, State};

impl Reactor {
    /// Counts the connections of the part that can migrate now, and drops the others.
    pub(super) fn choose(&self, part: &mut Chosen) -> u32 {
        let mut left = match part {
            Chosen::Pending(part) => self.active(*part),
            Chosen::Made(left) => std::mem::take(left),
        };
        left.retain(|(fd, generation)| self.is_quiet(*fd, *generation));
        let count = left.len() as u32;
        *part = Chosen::Made(left);
        count
    }

    /// Returns as many of the active connections as requested, of those that can migrate now.
    fn active(&self, part: Part) -> VecDeque<(u32, u32)> {
        let settled = self.local_connections().into_iter();
        let active = settled.filter(|&fd| {
            let quiet_for = self.now.since(self.memory.record(fd).last_progress());
            quiet_for <= part.active_within
        });
        let active: Vec<(u32, u32)> = active
            .map(|fd| (fd, self.memory.record(fd).generation()))
            .collect();
        let most = part.of(active.len() as u32);
        let quiet = active.into_iter();
        let quiet = quiet.filter(|(fd, generation)| self.is_quiet(*fd, *generation));
        quiet.take(most as usize).collect()
    }

    /// Returns whether nothing is owed on the connection and no input is known.
    fn is_quiet(&self, fd: u32, generation: u32) -> bool {
        let record = self.memory.record(fd);
        let busy = [
            Flags::READABLE,
            Flags::QUEUED,
            Flags::MOVING,
            Flags::FINISH,
            Flags::PEER_ENDED,
        ];
        record.state() == State::Open
            && record.generation() == generation
            && !busy.into_iter().any(|flag| record.flags().has(flag))
            && record.pending().is_none()
    }
}
