//! Logs when a slot's accept queue fills, and when it has emptied.
//!
//! The lengths are read from the supervisor's own duplicates of the listeners: this costs the
//! workers nothing, and works with a stalled worker.
//!
//! Invariant: at most one line per slot and [`QUEUE_CHECK_EVERY`], independent of clients.

use std::os::fd::AsFd as _;

use crate::config::QUEUE_CHECK_EVERY;
use crate::log::event;
use crate::sys::accept_queue::{AcceptQueue, accept_queue};
use uppercased_ctl::clock::Tick;

use super::Fleet;

/// A change that a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// The kernel does not answer new clients.
    Filled,
    /// A queue that had filled is empty.
    Emptied,
}

/// Returns the change of a slot whose fullest queue is `now`.
const fn change(was_full: bool, now: AcceptQueue) -> Option<Change> {
    match (was_full, now.is_full(), now.length) {
        (false, true, _) => Some(Change::Filled),
        (true, _, 0) => Some(Change::Emptied),
        _ => None,
    }
}

impl Fleet {
    /// Checks every slot's queues, if a check is due.
    pub(super) fn check_queues(&mut self, now: Tick) {
        if now < self.queues_due {
            return;
        }
        self.queues_due = now + QUEUE_CHECK_EVERY;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let queues = slot.listeners().iter();
            let queues = queues.filter_map(|it| accept_queue(it.as_fd()).ok());
            let Some(fullest) = queues.max_by_key(|it| (it.is_full(), it.length)) else {
                continue;
            };
            let AcceptQueue { length, limit } = fullest;
            match change(slot.queue_filled, fullest) {
                Some(Change::Filled) => {
                    slot.queue_filled = true;
                    event!(accept_queue_full, slot = index, length, limit);
                }
                Some(Change::Emptied) => {
                    slot.queue_filled = false;
                    event!(accept_queue_emptied, slot = index, length, limit);
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_is_reported_once_each_way() {
        let queue = |length| AcceptQueue { length, limit: 4 };
        // The kernel admits one more than the limit.
        assert_eq!(change(false, queue(4)), None);
        assert_eq!(change(false, queue(5)), Some(Change::Filled));
        assert_eq!(change(true, queue(5)), None);
        assert_eq!(change(true, queue(1)), None, "it may fill again at once");
        assert_eq!(change(true, queue(0)), Some(Change::Emptied));
        assert_eq!(change(false, queue(0)), None);
    }
}
