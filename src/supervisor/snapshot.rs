//! The machine's whole state as a value that survives an exec in place.
//!
//! Invariants: `restore(snapshot())` changes nothing that can be observed, pending actions and the
//! random generator included; a snapshot of an unknown version, or one that contradicts itself, is
//! refused and never half-read. Change any serialised type of the machine ⇒ raise
//! [`SNAPSHOT_VERSION`].

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::exchange::Action;
use super::machine::{Operation, Phase, Policy};
use super::slot::Slot;
use crate::identity::{Generation, ReleaseId};

/// The format this program writes, and the only one it reads.
pub const SNAPSHOT_VERSION: u32 = 2;

/// Why saved state was refused.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Written by another version of the program.
    #[error(
        "the supervisor's saved state has version {found} and this program reads version {SNAPSHOT_VERSION}; start anew instead of upgrading in place"
    )]
    Version {
        /// The version it claims.
        found: u32,
    },
    /// Not what it should look like.
    #[error("the supervisor's saved state cannot be read ({source}); start anew")]
    Format {
        /// What the decoder said.
        #[from]
        source: serde_json::Error,
    },
    /// Well-formed, but impossible.
    #[error("the supervisor's saved state contradicts itself ({what}); start anew")]
    Contradiction {
        /// In what.
        what: String,
    },
}

/// All that a machine is. Made by `Machine::snapshot`, taken by `Machine::restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`SNAPSHOT_VERSION`] of the writer.
    pub version: u32,
    pub(super) policy: Policy,
    pub(super) rng_state: u64,
    pub(super) phase: Phase,
    pub(super) slots: Vec<Slot>,
    pub(super) release: ReleaseId,
    pub(super) operation: Option<Operation>,
    pub(super) born_before: Generation,
    pub(super) actions: VecDeque<Action>,
    pub(super) stale_events: u64,
}

impl Snapshot {
    /// As bytes, to be read by [`Snapshot::from_json`] of this or a later program.
    ///
    /// # Errors
    /// [`SnapshotError::Format`], which no state of the machine is known to cause.
    pub fn to_json(&self) -> Result<Vec<u8>, SnapshotError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads what [`Snapshot::to_json`] wrote.
    ///
    /// # Errors
    /// [`SnapshotError::Version`] before anything else is looked at, so that a stranger's format is
    /// reported as such and not as a missing field; [`SnapshotError::Format`] otherwise.
    pub fn from_json(bytes: &[u8]) -> Result<Self, SnapshotError> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let Header { version } = serde_json::from_slice(bytes)?;
        if version != SNAPSHOT_VERSION {
            return Err(SnapshotError::Version { found: version });
        }
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::machine::{Event, Generation, Machine, RestartConnections, SlotId, WorkerId};
    use super::*;
    use crate::clock::Tick;

    /// Written once by version 1 and never to be edited: a change of a serialised type that breaks
    /// this needs a new version, or running supervisors cannot be upgraded.
    const VERSION_1: &str = concat!(
        r#"{"version":1,"policy":{"workers":2,"#,
        r#""start_timeout":{"secs":5,"nanos":0},"drain_timeout":{"secs":30,"nanos":0},"#,
        r#""lame_duck":{"secs":0,"nanos":0},"backoff_initial":{"secs":0,"nanos":100000000},"#,
        r#""backoff_max":{"secs":10,"nanos":0},"backoff_reset":{"secs":60,"nanos":0},"#,
        r#""lend_after":{"secs":0,"nanos":50000000},"#,
        r#""restart_connections":"handover","linger_timeout":{"secs":5,"nanos":0},"#,
        r#""bake_time":{"secs":1,"nanos":0},"handover_timeout":{"secs":10,"nanos":0},"#,
        r#""handshake_timeout":{"secs":3,"nanos":0},"hang_timeout":null},"#,
        r#""rng_state":42,"phase":{"Booting":{"slot":1}},"slots":["#,
        r#"{"id":0,"generation":1,"state":"Serving","since":7000000,"queue":"Served","#,
        r#""failures":0,"deaths":0,"last_death":null},"#,
        r#"{"id":1,"generation":1,"state":{"Starting":{"deadline":5007000000,"words":null}},"#,
        r#""since":7000000,"queue":"Unbound","failures":0,"deaths":0,"last_death":null}],"#,
        r#""actions":[],"stale_events":0}"#,
    );

    /// The machine that `VERSION_1` is.
    fn machine() -> Machine {
        let policy = Policy {
            workers: 2,
            start_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
            lame_duck: Duration::ZERO,
            backoff_initial: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            backoff_reset: Duration::from_secs(60),
            lend_after: Duration::from_millis(50),
            restart_connections: RestartConnections::Handover,
            linger_timeout: Duration::from_secs(5),
            bake_time: Duration::from_secs(1),
            handover_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(3),
            hang_timeout: None,
        };
        let mut machine = Machine::new(policy, 42);
        let worker = WorkerId {
            slot: SlotId(0),
            generation: Generation(1),
        };
        machine.handle(Event::Boot, Tick::ZERO);
        machine.handle(Event::Ready { worker }, Tick::from_millis(7));
        while machine.poll_action().is_some() {}
        machine
    }

    #[test]
    fn what_version_1_wrote_is_read_and_written_alike() {
        let snapshot = Snapshot::from_json(VERSION_1.as_bytes()).unwrap();
        assert_eq!(snapshot, machine().snapshot());
        assert_eq!(snapshot.to_json().unwrap(), VERSION_1.as_bytes());
        assert_eq!(
            Machine::restore(snapshot).unwrap().snapshot(),
            machine().snapshot()
        );
    }

    #[test]
    fn a_stranger_s_version_is_named_before_its_format_is_looked_at() {
        let error = Snapshot::from_json(br#"{"version":2,"cells":[]}"#).unwrap_err();
        assert!(matches!(error, SnapshotError::Version { found: 2 }));
        let error = Snapshot::from_json(br#"{"version":1,"cells":[]}"#).unwrap_err();
        assert!(matches!(error, SnapshotError::Format { .. }));
        let mut snapshot = machine().snapshot();
        snapshot.version = 0;
        let error = Machine::restore(snapshot).unwrap_err();
        assert!(matches!(error, SnapshotError::Version { found: 0 }));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let cases = [
            // A served queue without a server, and the other way round.
            (r#""queue":"Served""#, r#""queue":{"Unserved":{"since":1}}"#),
            (r#""state":"Serving""#, r#""state":"Stopped""#),
            // A boot of a slot that does not exist.
            (r#"{"slot":1}"#, r#"{"slot":9}"#),
            // A slot nobody would ever start again.
            (r#"{"Booting":{"slot":1}}"#, r#""Idle""#),
            // Lent to itself, and to nobody.
            (
                r#""queue":"Unbound""#,
                r#""queue":{"Lent":{"since":1,"to":{"slot":1,"generation":1}}}"#,
            ),
            (
                r#""queue":"Unbound""#,
                r#""queue":{"Lent":{"since":1,"to":{"slot":77,"generation":1}}}"#,
            ),
            (r#"{"id":0,"#, r#"{"id":1,"#),
            (r#"{"workers":2,"#, r#"{"workers":3,"#),
        ];
        for (sound, broken) in cases {
            assert!(VERSION_1.contains(sound), "{sound}");
            let snapshot = Snapshot::from_json(VERSION_1.replacen(sound, broken, 1).as_bytes());
            let error = Machine::restore(snapshot.unwrap()).unwrap_err();
            assert!(
                matches!(error, SnapshotError::Contradiction { .. }),
                "{broken}: {error}"
            );
        }
    }
}
