//! Where connections and workers go: which socket gets a new connection, which CPU a worker, and what
//! it takes for connections to move from one worker to another that serves.
//!
//! Invariants: worker and socket of a slot belong to the same CPU, by the same rule (slot `i` to
//! the `i`-th CPU that the supervisor may use, beginning again with the first); a group of sockets
//! that other servers share is never touched.
//!
//! It must not decide when: the machine says so, and says how many slots there are.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::channel::packets::Packets;
use crate::config::{REBALANCE_BYTES_PER_CALL, Steer};
use crate::handover::{HandoverEnd, Part};
use crate::memory;
use crate::supervisor::Supervisor;
use crate::supervisor::fleet::children::Child;
use crate::supervisor::fleet::resources::SlotResources;
use crate::supervisor::machine::{Event, Load};
use crate::sys::{cpus, steering};
use crate::wire::{self, ToWorker};
use uppercased_ctl::identity::{SlotId, WorkerId};
use uppercased_ctl::metrics::Counter;

/// The CPU that a worker of `slot` is to stay on, if it is to stay on one.
pub(crate) fn cpu_of(slot: SlotId, pin: bool) -> Option<u16> {
    if !pin {
        return None;
    }
    // Asked anew each time: the set may be changed from outside at any time.
    let usable = usable_cpus();
    let at = slot.index().checked_rem(usable.len())?;
    usable.get(at).copied()
}

fn usable_cpus() -> Vec<u16> {
    cpus::usable().unwrap_or_else(|error| {
        tracing::warn!(%error, "it is not known which CPUs may be used: workers are not pinned");
        Vec::new()
    })
}

impl Supervisor {
    /// Gives new connections to the first `slots` slots only: the others are about to leave.
    pub(crate) fn steer_to_first(&self, slots: u16) {
        if self.config().share_port {
            tracing::warn!(
                "the port is shared with other servers, so new connections cannot be steered: \
                 handshakes that begin while a listener closes may be reset"
            );
            return;
        }
        self.each_group(|listener| steering::steer_to_first(listener, slots));
    }

    /// Spreads new connections over all slots that listen, as the configuration in force says.
    pub(crate) fn spread(&self) {
        let config = self.config();
        if config.share_port {
            return;
        }
        let listening = |slot: &&SlotResources| !slot.listeners().is_empty();
        let sockets = self.slots.iter().filter(listening).count();
        let sockets = u16::try_from(sockets).unwrap_or(u16::MAX);
        match config.steer {
            Steer::Hash if !self.store_lets_go() => self.each_group(steering::unsteer),
            // The hash would count sockets that nobody serves any more.
            Steer::Hash | Steer::Random => {
                self.each_group(|listener| steering::steer_to_first(listener, sockets));
            }
            Steer::Cpu => {
                let cpus = usable_cpus();
                self.each_group(|listener| steering::steer_by_cpu(listener, sockets, &cpus));
            }
        }
        tracing::debug!(steer = ?config.steer, sockets, "new connections are spread");
    }

    /// Connects two workers that stay, so that a part of the connections of `from` moves to `to`.
    pub(crate) fn rebalance(&mut self, from: WorkerId, to: WorkerId, part: Part) {
        let (near, far) = match Packets::pair() {
            Ok(pair) => pair,
            Err(error) => {
                let cause = format!("no socket pair for the handover: {error}");
                return self.happened(Event::Rebalanced {
                    worker: from,
                    moved: 0,
                    end: HandoverEnd::Refused { cause },
                });
            }
        };
        let take_over = wire::TakeOver {
            from,
            expected: part.of(self.open_connections(from)),
        };
        self.say(to, ToWorker::TakeOver(take_over), &[far.as_fd()]);
        let hand_over = wire::HandOver {
            to,
            last: false,
            part: Some(part),
        };
        self.say(from, ToWorker::HandOver(hand_over), &[near.as_fd()]);
    }

    /// Tells the machine how much each worker has done.
    ///
    /// Calls and not CPU time: what a worker spends on its connections is calls, of which the kernel
    /// makes nearly all of the price, and one that polls before it sleeps would always look busy.
    pub(crate) fn take_loads(&mut self) {
        let load = |child: &Child| {
            let count = |counter| memory::counter(&child.memory, counter);
            let bytes = count(Counter::BytesIn).saturating_add(count(Counter::BytesOut));
            let calls = [
                count(Counter::Reads),
                count(Counter::Writes),
                bytes / REBALANCE_BYTES_PER_CALL,
            ];
            Load {
                worker: child.worker,
                calls: calls.into_iter().fold(0, u64::saturating_add),
                turns: count(Counter::Turns),
            }
        };
        let children = self.slots.iter().flat_map(SlotResources::children);
        let loads = children.map(load).collect();
        self.happened(Event::Loads { loads });
    }

    /// Does something to the group of each address, through a listener of the first slot.
    fn each_group(&self, steer: impl Fn(&OwnedFd) -> io::Result<()>) {
        for listener in self.slots.iter().take(1).flat_map(SlotResources::listeners) {
            if let Err(error) = steer(listener) {
                tracing::error!(%error, "cannot steer new connections: the kernel spreads them as \
                    it did before, and handshakes that begin while a listener closes may be reset");
            }
        }
    }
}
