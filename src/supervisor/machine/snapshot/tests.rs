//! Unit tests of `snapshot.rs`.

use std::time::Duration;

use super::super::{
    Action, Boot, Event, Generation, Machine, Policy, ReleaseId, ReloadConnections, SlotId,
    Snapshot, WorkerId,
};
use super::*;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::RequestId;

/// Written once by version 1. A change of a serialised type that breaks this needs a new version;
/// otherwise running supervisors cannot be upgraded.
const VERSION_1: &str = concat!(
    r#"{"version":1,"machine":{"policy":{"workers":2,"start_timeout":{"secs":5,"nanos":0},"#,
    r#""drain_timeout":{"secs":30,"nanos":0},"lame_duck":{"secs":0,"nanos":0},"#,
    r#""backoff_initial":{"secs":0,"nanos":100000000},"backoff_max":{"secs":10,"#,
    r#""nanos":0},"backoff_reset":{"secs":60,"nanos":0},"lend_after":{"secs":0,"#,
    r#""nanos":50000000},"reload_connections":"handover","boot":"any","#,
    r#""linger_timeout":{"secs":5,"nanos":0},"bake_time":{"secs":1,"nanos":0},"#,
    r#""handover_timeout":{"secs":10,"nanos":0},"handshake_timeout":{"secs":3,"#,
    r#""nanos":0},"hang_timeout":{"secs":8,"nanos":0},"stall_check":null,"#,
    r#""rebalance":null},"rng":42,"phase":"Serving","slots":[{"id":0,"#,
    r#""state":{"Active":2},"since":30000000,"workers":[{"generation":1,"#,
    r#""release":1,"state":{"HandingOver":{"to":{"slot":0,"generation":2},"#,
    r#""deadline":2530000000,"watch":{"progress":{"sent":0,"settled":0,"#,
    r#""answered":0},"misses":0},"back":false}},"since":30000000,"#,
    r#""served_since":7000000,"pulse":{"due":2007000000,"awaited":false,"#,
    r#""turns":null,"moved":7000000,"misses":0},"kept":false,"crashed":[]},{"generation":2,"release":2,"#,
    r#""state":{"Serving":{"owes_report":false}},"since":30000000,"#,
    r#""served_since":30000000,"pulse":{"due":2030000000,"awaited":false,"#,
    r#""turns":null,"moved":30000000,"misses":0},"kept":false,"crashed":[]}],"queue":"Served","#,
    r#""next_release":2,"history":{"born":2,"generation":1,"release":1,"#,
    r#""failures":0,"crashes":0}},{"id":1,"state":{"Active":1},"#,
    r#""since":7000000,"workers":[{"generation":1,"release":1,"state":{"Serving":{"#,
    r#""owes_report":false}},"since":9000000,"served_since":9000000,"pulse":{"#,
    r#""due":2009000000,"awaited":false,"turns":null,"moved":9000000,"misses":0},"kept":false,"crashed":[]}],"#,
    r#""queue":"Served","next_release":1,"history":{"born":1,"generation":0,"#,
    r#""release":1,"failures":0,"crashes":0}}],"release":1,"#,
    r#""operation":{"request":7,"kind":"Reload","since":20000000,"stage":{"Roll":{"#,
    r#""target":2,"policy":{"workers":2,"start_timeout":{"secs":5,"nanos":0},"#,
    r#""drain_timeout":{"secs":30,"nanos":0},"lame_duck":{"secs":0,"nanos":0},"#,
    r#""backoff_initial":{"secs":0,"nanos":100000000},"backoff_max":{"secs":10,"#,
    r#""nanos":0},"backoff_reset":{"secs":60,"nanos":0},"lend_after":{"secs":0,"#,
    r#""nanos":50000000},"reload_connections":"handover","boot":"any","#,
    r#""linger_timeout":{"secs":5,"nanos":0},"bake_time":{"secs":1,"nanos":0},"#,
    r#""handover_timeout":{"secs":10,"nanos":0},"handshake_timeout":{"secs":3,"#,
    r#""nanos":0},"hang_timeout":{"secs":8,"nanos":0},"stall_check":null,"#,
    r#""rebalance":null},"course":{"Forward":{"slot":0,"bake":null}},"#,
    r#""watched":false,"broken":[]}},"replaced":0,"migrated":0,"draining":0,"#,
    r#""cancel":null,"drain":false,"damage":null},"pending":{"waiting":[],"#,
    r#""beginning":null,"deadline":null},"balance":{"due":null,"awaited":false,"#,
    r#""seen":null,"suspect":null,"moving":null,"trials":null},"born_before":0,"#,
    r#""former_crashes":[],"actions":[],"stale_events":0,"repairs":0}}"#,
);

/// Returns the machine of `VERSION_1`: slot 0 has a new worker, to which the old one hands over;
/// slot 1 is still to be replaced.
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
        reload_connections: ReloadConnections::Handover,
        boot: Boot::Any,
        stall_check: None,
        linger_timeout: Duration::from_secs(5),
        bake_time: Duration::from_secs(1),
        handover_timeout: Duration::from_secs(10),
        handshake_timeout: Duration::from_secs(3),
        hang_timeout: Some(Duration::from_secs(8)),
        rebalance: None,
    };
    let mut machine = Machine::new(policy.clone(), 42);
    let ready = |slot, generation| Event::Ready {
        worker: WorkerId {
            slot: SlotId(slot),
            generation: Generation(generation),
        },
    };
    let reload = Event::Reload {
        request: RequestId(7),
        release: ReleaseId(2),
        policy,
        drain: false,
    };
    machine.handle(Event::Boot, Tick::ZERO);
    machine.handle(ready(0, 1), Tick::from_millis(7));
    machine.handle(ready(1, 1), Tick::from_millis(9));
    machine.handle(reload, Tick::from_millis(20));
    while machine.poll_action().is_some() {}
    machine.handle(ready(0, 2), Tick::from_millis(30));
    while let Some(action) = machine.poll_action() {
        if matches!(action, Action::HandOver { .. }) {
            break;
        }
    }
    machine
}

#[test]
fn version_1_is_read_and_written_alike() {
    let snapshot = Snapshot::from_json(VERSION_1.as_bytes()).unwrap();
    assert_eq!(snapshot, machine().snapshot());
    assert_eq!(snapshot.to_json().unwrap(), VERSION_1.as_bytes());
    assert_eq!(
        Machine::restore(snapshot).unwrap().snapshot(),
        machine().snapshot()
    );
}

#[test]
fn unknown_version_is_reported_before_format() {
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
fn contradictory_snapshot_is_refused() {
    let cases = [
        // A queue recorded as served without a server, and as unserved with one.
        (r#""queue":"Served""#, r#""queue":{"Unserved":{"since":1}}"#),
        (r#""state":{"Active":2}"#, r#""state":"Stopped""#),
        // An active worker that leaves, and one that does not exist.
        (r#""state":{"Active":2}"#, r#""state":{"Active":1}"#),
        (r#""state":{"Active":2}"#, r#""state":{"Active":7}"#),
        // Lent to itself, and to a worker that does not exist.
        (
            r#""queue":"Served""#,
            r#""queue":{"Lent":{"since":1,"to":{"slot":1,"generation":1}}}"#,
        ),
        (
            r#""queue":"Served""#,
            r#""queue":{"Lent":{"since":1,"to":{"slot":77,"generation":1}}}"#,
        ),
        // Closed for good, and served.
        (r#""queue":"Served""#, r#""queue":"Closed""#),
        // Handing over to a worker that does not exist, without an operation, and under another's
        // name.
        (
            r#""to":{"slot":0,"generation":2}"#,
            r#""to":{"slot":0,"generation":3}"#,
        ),
        (r#""operation":{"#, r#""operation":null,"was":{"#),
        (
            r#""workers":[{"generation":1"#,
            r#""workers":[{"generation":2"#,
        ),
        // Work on slots that do not exist, or in the wrong state.
        (r#"{"Forward":{"slot":0,"#, r#"{"Forward":{"slot":9,"#),
        (
            r#"{"Forward":{"slot":0,"bake":null}}"#,
            r#"{"Back":{"cause":"","todo":[3]}}"#,
        ),
        (r#""phase":"Serving""#, r#""phase":{"Booting":{"slot":1}}"#),
        (r#""phase":"Serving""#, r#""phase":"Idle""#),
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
