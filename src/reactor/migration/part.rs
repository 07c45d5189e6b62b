//! Which connections leave when only a part is to: some that are active, so that their work moves with
//! them, and owe nothing at this instant, so that nothing has to be carried along.
//!
//! Invariants: they are chosen once, at the end of a turn, when what was ready has been served; one
//! that has work when its batch is made up is left out, and nobody takes its place; everything else
//! about the worker goes on as before.
//!
//! It must not decide how many (the order says so).

use std::collections::VecDeque;

use super::super::Reactor;
use super::state::Chosen;
use crate::handover::Part;
use crate::memory::layout::{Flags, State};

impl Reactor {
    /// How many connections of the part can go now. Those that cannot are out of it.
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

    /// As many of the active connections as the order says; first of those that can go now.
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

    /// Whether nothing is owed on the connection and nothing is known to be there to be read.
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
