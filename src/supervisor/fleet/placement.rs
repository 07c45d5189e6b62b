//! Assigns new connections to sockets, and workers to CPUs.
//!
//! Invariants: worker and socket of a slot belong to the same CPU, by the same rule (slot `i` to
//! the `i`-th CPU that the supervisor may use, cyclically); a group of sockets shared with other
//! servers is never changed.
//!
//! It must not decide when, nor how many slots there are (the machine does).

use std::io;
use std::os::fd::OwnedFd;

use crate::config::Steer;
use crate::log::event;
use crate::sys::{cpus, steering};
use uppercased_ctl::identity::SlotId;

use super::Fleet;
use super::resources::SlotResources;

/// Returns the CPU that a worker of `slot` is pinned to, if any.
pub(crate) fn cpu_of(slot: SlotId, pin: bool) -> Option<u16> {
    if !pin {
        return None;
    }
    // Read each time: the set may be changed from outside.
    let usable = usable_cpus();
    let at = slot.index().checked_rem(usable.len())?;
    usable.get(at).copied()
}

fn usable_cpus() -> Vec<u16> {
    cpus::usable().unwrap_or_else(|error| {
        event!(cpu_set_unknown, %error);
        Vec::new()
    })
}

impl Fleet {
    /// Steers new connections to the first `slots` slots only: the others are about to leave.
    pub(crate) fn steer_to_first(&self, slots: u16) {
        if self.config().share_port {
            event!(steering_unavailable);
            return;
        }
        self.each_group(|listener| steering::steer_to_first(listener, slots));
    }

    /// Spreads new connections over all slots that listen, by the configuration in force.
    /// `store_lets_go`: the service manager may still have listeners of slots that have left.
    pub(crate) fn spread(&self, store_lets_go: bool) {
        let config = self.config();
        if config.share_port {
            return;
        }
        let sockets = u16::try_from(self.listening().count()).unwrap_or(u16::MAX);
        match config.steer {
            Steer::Hash if !store_lets_go => self.each_group(steering::unsteer),
            // The hash would include sockets that no worker serves any more.
            Steer::Hash | Steer::Random => {
                self.each_group(|listener| steering::steer_to_first(listener, sockets));
            }
            Steer::Cpu => {
                let cpus = usable_cpus();
                self.each_group(|listener| steering::steer_by_cpu(listener, sockets, &cpus));
            }
        }
        event!(connections_spread, steer = config.steer.name(), sockets);
    }

    /// Calls `steer` for the group of each address, with a listener of the first slot.
    fn each_group(&self, steer: impl Fn(&OwnedFd) -> io::Result<()>) {
        for listener in self.slots.iter().take(1).flat_map(SlotResources::listeners) {
            if let Err(error) = steer(listener) {
                event!(steering_failed, %error);
            }
        }
    }
}
