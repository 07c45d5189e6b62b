//! The status of a server as plain data: shown by `uppercased status`, logged on `SIGUSR1`.
//!
//! The supervisor fills it in, the control socket carries it as JSON, and `text` formats it for
//! people. Phases and states are words, not enums: the two ends may have different versions, and an
//! unknown word is still worth showing.
//!
//! Invariants: every field has a default, so that an older program's status can be read; an unknown
//! field is skipped. Pure: it must not read a clock, a counter or a process table.

mod data;
mod durations;
mod processes;
mod rates;
mod rescues;
mod rotation;
mod sample;
mod sandboxed;
mod sockets;
mod text;
mod worker;

pub use data::{
    AcceptQueueStatus, AdminStatus, ConfigReload, Crash, LastOperation, Neighbour, OperationTimes,
    ServiceManagerStatus, SlotStatus, Status, Totals, Traffic,
};
pub use durations::{BOUNDS_MS, Durations};
pub use processes::{ProcessStatus, Usage};
pub use rates::{Rate, Rates};
pub use rescues::Rescues;
pub use rotation::{AgentAnswers, Rotation};
pub use sample::Sample;
pub use sandboxed::Sandboxed;
pub use sockets::{ESTABLISHED, Entry, LISTEN, Owner, SocketStatus, Sockets, Source};

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::metrics::{CloseReason, Counter};

    #[test]
    fn status_survives_json_between_versions() {
        let mut status = Status {
            pid: 7,
            addresses: vec!["[::1]:9".to_owned()],
            slots: vec![SlotStatus {
                traffic: Traffic::read(3, |counter| counter.cell() as u64),
                predecessor: Some(Neighbour::default()),
                last_crashes: vec![Crash::default()],
                ..SlotStatus::default()
            }],
            ..Status::default()
        };
        status.sum_up();
        let mut json = serde_json::to_value(&status).unwrap();
        assert_eq!(
            serde_json::from_value::<Status>(json.clone()).unwrap(),
            status
        );
        // Flat, as documented.
        assert_eq!(json["slots"][0]["sent_bytes"], 9);
        assert_eq!(json["totals"]["open"], 3);

        let fields = json.as_object_mut().unwrap();
        fields.insert("weather".to_owned(), "fine".into());
        fields.remove("totals");
        let read: Status = serde_json::from_value(json).unwrap();
        assert_eq!((read.pid, read.totals), (7, Totals::default()));
    }

    #[test]
    fn totals_are_sums_and_saturate() {
        let slot = |accepted, reason: &str| SlotStatus {
            traffic: Traffic {
                accepted,
                received_bytes: u64::MAX,
                closed: BTreeMap::from([(reason.to_owned(), 2)]),
                refused: BTreeMap::from([(reason.to_owned(), 3)]),
                ..Traffic::default()
            },
            crashes: 1,
            ..SlotStatus::default()
        };
        let mut status = Status {
            slots: vec![slot(1, "a"), slot(2, "b"), slot(3, "a")],
            ..Status::default()
        };
        status.sum_up();
        let Totals { traffic, crashes } = status.totals;
        assert_eq!((traffic.accepted, crashes), (6, 3));
        assert_eq!(traffic.received_bytes, u64::MAX);
        let closed = [("a".to_owned(), 4), ("b".to_owned(), 2)];
        assert_eq!(traffic.closed, BTreeMap::from(closed));
        let refused = [("a".to_owned(), 6), ("b".to_owned(), 3)];
        assert_eq!(traffic.refused, BTreeMap::from(refused));
    }

    #[test]
    fn shares_are_rounded_and_empty_without_workers() {
        let shares = |taken: &[u64]| {
            let slot = |accepted: &u64| SlotStatus {
                traffic: Traffic {
                    accepted: *accepted,
                    ..Traffic::default()
                },
                ..SlotStatus::default()
            };
            let mut status = Status {
                slots: taken.iter().map(slot).collect(),
                ..Status::default()
            };
            status.sum_up();
            let shares = status.slots.iter().map(|slot| slot.accepted_percent);
            shares.collect::<Vec<u8>>()
        };
        assert_eq!(shares(&[0, 0]), [0, 0]);
        assert_eq!(shares(&[1, 2]), [33, 67]);
        assert_eq!(shares(&[u64::MAX]), [100]);
    }

    #[test]
    fn only_counted_reasons_are_listed() {
        let read = Traffic::read(0, |counter| {
            u64::from(counter == Counter::Closed(CloseReason::IdleTimeout))
        });
        let names: Vec<&str> = read.closed.keys().map(String::as_str).collect();
        assert_eq!(names, ["idle_timeout"]);
    }
}
