//! A status of any server in any state is decoded or refused; its display keeps to its width and
//! height and moves no cursor.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use uppercased_ctl::control::Reply;
use uppercased_ctl::status::{Rates, Sample, Sockets, Status};

mod graft;

use graft::{Edit, graft};

/// Dimensions of a terminal.
const COLUMNS: usize = 80;
const LINES: usize = 24;

#[derive(Arbitrary, Debug)]
struct Seen {
    edits: Vec<Edit>,
    later: Vec<Edit>,
}

/// A status with a value in every field.
fn status() -> Value {
    let counts = json!({"peer_closed": 7, "idle_timeout": 1});
    let durations = json!({"count": 2, "sum_us": 900, "last_us": 400, "within": [1, 1]});
    let neighbour = json!({
        "generation": 4, "release": 2, "pid": 12, "state": "starting", "open": 3
    });
    let sandbox = json!({"layers": ["user nobody", "seccomp"], "missing": ["landlock: no"]});
    let slot = |number: u16| {
        json!({
            "slot": number, "pid": 11, "generation": 3, "release": 1, "cpu": 1,
            "sandbox": sandbox, "state": "serving", "age_ms": 5, "queue": "lent", "lent_to": 1,
            "accept_queues": [
                {"address": "127.0.0.1:1", "length": 3, "limit": 2, "inode": 55},
                {"address": "[::1]:1", "length": 1, "limit": 9, "inode": 56},
            ],
            "open": 9, "accepted": 20, "migrated_in": 1, "migrated_out": 2, "closed": counts,
            "refused": {"denied": 4}, "untracked": 0, "received_bytes": 5, "sent_bytes": 6,
            "counters": {"reads": 5, "busy_ns": 70_000}, "accepted_percent": 50,
            "open_percent": 50, "crashes": 1, "starts": durations, "handovers": durations,
            "history": [4, 5],
            "last_crashes": [
                {"generation": 2, "exit": "exit code 1", "error": "why", "age_ms": 8},
            ],
            "successor": neighbour, "predecessor": neighbour,
        })
    };
    json!({
        "version": "1.2.3", "pid": 10, "uptime_ms": 12_345, "phase": "serving", "rotation": "drain",
        "operation": "a reload is in progress", "release": 2, "addresses": ["127.0.0.1:1"],
        "operations": [{"operation": "reload", "result": "done", "count": 1, "sum_us": 5}],
        "last_operation": {
            "operation": "reload", "result": "failed", "error": "c", "duration_ms": 5, "age_ms": 6
        },
        "control": "/run/it.sock", "capacity": 100,
        "processes": [
            {"process": "supervisor", "slot": null, "pid": 10, "restarts_10m": 1, "usage": {
                "started_at_ms": 5, "age_ms": 7, "cpu_ms": 3, "resident_bytes": 9, "descriptors": 4
            }},
            {"process": "worker", "slot": 1, "pid": 11, "restarts_10m": 0, "usage": null},
        ],
        "admin": {"address": "127.0.0.1:2", "pid": 13, "agent": "127.0.0.1:3", "crashes": 2},
        "totals": {"open": 9, "accepted": 20, "closed": counts, "crashes": 1},
        "slots": [slot(0), slot(1)],
        "sockets": {
            "age_ms": 5000, "states": {"LISTEN": 2, "ESTABLISHED": 9}, "unaccepted": 1,
            "local_clients": {"nc": 3}, "unlisted": 1,
            "others": [{"state": "LISTEN", "local": "127.0.0.1:1", "pid": 5, "program": "nc"}],
        },
    })
}

fn read(edits: &[Edit]) -> Option<(Status, Sample)> {
    let document = graft(status(), edits);
    let line = json!({ "status": document }).to_string();
    let Ok(Reply::Status(status)) = Reply::decode(line.as_bytes()) else {
        return None;
    };
    let sample = serde_json::from_value(document).ok()?;
    Some((*status, sample))
}

fn check(lines: &[String], height: usize) {
    assert!(lines.len() <= height, "{lines:#?}");
    for line in lines {
        assert!(line.chars().count() <= COLUMNS, "{line}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
}

fuzz_target!(|seen: Seen| {
    let (Some((mut before, _)), Some((after, mut sample))) = (read(&seen.edits), read(&seen.later))
    else {
        return;
    };
    sample.rates = Rates::between(&before, &after);
    check(&sample.lines(), usize::MAX);
    check(&after.lines(), LINES);
    let _ = Sockets::count(Vec::new(), &after, Some(1));
    let _ = after.unready();
    before.sum_up();
    check(&before.lines(), LINES);
    // A decoded status can be encoded again, unless it is too long.
    if let Ok(line) = Reply::Status(Box::new(after.clone())).encode() {
        let Ok(Reply::Status(again)) = Reply::decode(&line) else {
            panic!("what was encoded can be decoded");
        };
        assert_eq!(*again, after);
    }
});
