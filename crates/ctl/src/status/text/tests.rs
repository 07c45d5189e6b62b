//! Unit tests of `text.rs`.

use proptest::prelude::*;

use super::super::{Durations, Traffic};
use super::*;
use crate::identity::{Generation, ReleaseId, SlotId};
use crate::status::Sandboxed;

#[test]
fn text_shows_service_manager_problems() {
    let mut manager = ServiceManagerStatus {
        sent: 1200,
        ..ServiceManagerStatus::default()
    };
    assert!(service_manager(&manager).is_empty());
    manager.refused = 3;
    manager.pending = 2;
    manager.watchdog_paused = Some("slot 1 is backing off".to_owned());
    let lines = [
        "systemd      1200 notifications sent, 3 attempts refused, 2 pending",
        "watchdog     not fed: slot 1 is backing off",
    ];
    assert_eq!(service_manager(&manager), lines);
}

fn slot(number: u16) -> SlotStatus {
    SlotStatus {
        slot: SlotId(number),
        pid: Some(4712 + u32::from(number)),
        generation: Generation(3),
        release: ReleaseId(2),
        state: SERVING.to_owned(),
        age_ms: 750_000,
        queue: "served".to_owned(),
        traffic: Traffic {
            open: 1200,
            accepted: 1_234_567,
            migrated_in: 100,
            migrated_out: 0,
            closed: BTreeMap::from([("peer_closed".to_owned(), 1_233_000)]),
            refused: BTreeMap::new(),
            untracked: 0,
            received_bytes: 1_000_000_000_000,
            sent_bytes: 999_999_999_999,
            ..Traffic::default()
        },
        ..SlotStatus::default()
    }
}

fn status(slots: u16) -> Status {
    let mut status = Status {
        version: "0.1.0".to_owned(),
        pid: 4711,
        uptime_ms: 3 * 86_400_000,
        phase: SERVING.to_owned(),
        release: ReleaseId(2),
        addresses: vec!["0.0.0.0:9999".to_owned(), "[::1]:9999".to_owned()],
        control: Some("/run/uppercased/4711.sock".to_owned()),
        slots: (0..slots).map(slot).collect(),
        ..Status::default()
    };
    status.sum_up();
    status
}

fn screen(status: &Status) -> String {
    let lines = status.lines();
    assert!(lines.len() <= LINES, "{lines:#?}");
    for line in &lines {
        assert!(line.chars().count() <= COLUMNS, "{line}");
    }
    lines.join("\n")
}

#[test]
fn text_shows_quiet_server() {
    let expected = "uppercased 0.1.0, pid 4711: serving for 3d, release 2, crashes 0
listening on 0.0.0.0:9999 [::1]:9999
control      /run/uppercased/4711.sock
connections  2400 open, 2.46M accepted, 200 migrated
traffic      2.00TB in, 1.99TB out
closed       2.46M peer_closed
balance      accepted 50 50 %; open 50 50 %
slot     pid   gen state          age  open queue   acc  migr    in   out crash
   0    4712     3 serving        12m  1200     0 1.23M   100 1.00T  999G     0
   1    4713     3 serving        12m  1200     0 1.23M   100 1.00T  999G     0";
    assert_eq!(screen(&status(2)), expected);
}

#[test]
fn text_shows_troubled_server() {
    let mut status = status(3);
    status.capacity = 12_000;
    status.operation = Some("reload: 1 of 3 slots replaced".to_owned());
    status.pending = ["reload (signal)", "scale to 5 (command)"]
        .map(str::to_owned)
        .to_vec();
    status.slots[0].traffic.refused = BTreeMap::from([("denied".to_owned(), 12_345)]);
    status.slots[0].successor = Some(Neighbour {
        generation: Generation(4),
        release: ReleaseId(3),
        pid: Some(4800),
        state: "starting".to_owned(),
        open: 0,
    });
    status.slots[1].predecessor = Some(Neighbour {
        generation: Generation(2),
        release: ReleaseId(1),
        pid: None,
        state: "handing over".to_owned(),
        open: 12_345,
    });
    status.slots[2] = SlotStatus {
        pid: None,
        state: "backing off".to_owned(),
        age_ms: 312,
        queue: "lent".to_owned(),
        lent_to: Some(SlotId(0)),
        crashes: 7,
        last_crashes: vec![Crash {
            generation: Generation(3),
            exit: Some("exit code 1".to_owned()),
            error: Some("cannot\nraise the limit of open files, and so on".to_owned()),
            age_ms: 1312,
        }],
        ..slot(2)
    };
    status.sum_up();
    let expected = "uppercased 0.1.0, pid 4711: serving for 3d, release 2, crashes 7
listening on 0.0.0.0:9999 [::1]:9999
degraded     1 of 3 workers missing; slot 2 is backing off, its queue lent
control      /run/uppercased/4711.sock
operation    reload: 1 of 3 slots replaced
pending      reload (signal), scale to 5 (command)
connections  3600 open of 12.0k, 3.70M accepted, 300 migrated
traffic      3.00TB in, 2.99TB out
closed       3.69M peer_closed
refused      12.3k denied
balance      accepted 33 33 33 %; open 33 33 33 %
slot     pid   gen state          age  open queue   acc  migr    in   out crash
   0    4712     3 serving        12m  1200     0 1.23M   100 1.00T  999G     0
   1    4713     3 serving        12m  1200     0 1.23M   100 1.00T  999G     0
   2       -     3 backing off  312ms  1200     0 1.23M   100 1.00T  999G     7
slot 0: successor generation 4, pid 4800, release 3: starting, 0 open
slot 1: predecessor generation 2, release 1: handing over, 12.3k open
slot 2: its queue is lent to slot 0
slot 2: generation 3 exited 1s ago, exit code 1: cannot raise the limit of open…";
    assert_eq!(screen(&status), expected);
}

#[test]
fn text_shows_rates_and_sockets() {
    let mut status = status(2);
    status.admin = Some(AdminStatus {
        address: "127.0.0.1:9100".to_owned(),
        pid: Some(4720),
        ..AdminStatus::default()
    });
    status.last_operation = Some(LastOperation {
        operation: "scale to 2".to_owned(),
        result: "failed".to_owned(),
        error: Some("slot 1 died".to_owned()),
        duration_ms: 312,
        age_ms: 120_000,
    });
    status.slots[1].release = ReleaseId(1);
    for (slot, length) in status.slots.iter_mut().zip([3, 513]) {
        slot.accept_queues = vec![AcceptQueueStatus {
            address: "0.0.0.0:9999".to_owned(),
            length,
            limit: 512,
            inode: 7,
        }];
    }
    let rate = Rate {
        accepted: 0.5,
        messages: 45_000.0,
        received_bytes: 1_200_000.0,
        sent_bytes: 1_199_999.0,
        busy: 0.456,
    };
    let rates = Rates {
        span_ms: 1000,
        totals: rate,
        slots: BTreeMap::from([(SlotId(0), rate)]),
        cpu: BTreeMap::new(),
    };
    let counts = |counts: &[(&str, u64)]| {
        let owned = counts
            .iter()
            .map(|&(state, count)| (state.to_owned(), count));
        owned.collect::<BTreeMap<String, u64>>()
    };
    let other = |pid: Option<i32>| SocketStatus {
        local: "127.0.0.1:9999".to_owned(),
        owner: crate::status::Owner {
            pid,
            program: pid.map(|_| "nginx".to_owned()),
            slot: None,
        },
        ..SocketStatus::default()
    };
    let sockets = Sockets {
        states: counts(&[("ESTABLISHED", 2400), ("LISTEN", 4), ("TIME_WAIT", 12)]),
        unaccepted: 516,
        age_ms: 2000,
        local_clients: counts(&[("TIME_WAIT", 40)]),
        others: vec![other(Some(77)), other(None)],
        ..Sockets::default()
    };
    let sample = super::super::Sample {
        status,
        sockets: Some(sockets),
        rates: Some(rates),
    };
    let expected = "uppercased 0.1.0, pid 4711: serving for 3d, release 2, crashes 0
listening on 0.0.0.0:9999 [::1]:9999
control      /run/uppercased/4711.sock
admin        127.0.0.1:9100, pid 4720, crashes 0
last         scale to 2 failed 2m ago, took 312 ms: slot 1 died
connections  2400 open, 2.46M accepted, 200 migrated
traffic      2.00TB in, 1.99TB out
rates 1s     0.50 acc/s, 45.0k msg/s; 1.20MB/s in, 1.19MB/s out; busy 0.46/2
closed       2.46M peer_closed
queues       516 pending, limit 512 per queue; 1 full
balance      accepted 50 50 %; open 50 50 %
sockets      2s ago: 2400 ESTABLISHED, 12 TIME_WAIT, 4 LISTEN; 516 not accepted
local clients 40 TIME_WAIT
also bound   pid 77 (nginx) on 127.0.0.1:9999
also bound   a process of another user, on 127.0.0.1:9999
slot     pid   gen state          age  open queue acc/s msg/s  in/s  busy crash
   0    4712     3 serving        12m  1200     3  0.50 45.0k 1.20M   46%     0
   1    4713     3 serving        12m  1200   513     -     -     -     -     0
slot 1: running release 1
slot 1: the accept queue of 0.0.0.0:9999 is full (512)";
    assert_eq!(sample.lines().join("\n"), expected);
    for height in 0..25 {
        assert!(lines(sample.view(), height).len() <= height, "{height}");
    }
    let last = lines(sample.view(), 17).pop().unwrap();
    let words = "… slots not shown: 2 (0 not serving); notes not shown: 2; see status --json";
    assert_eq!(last, words);
    // Without a limit every slot has a line.
    let many = super::super::Sample {
        status: self::status(64),
        ..super::super::Sample::default()
    };
    let shown = many.lines();
    assert_eq!(shown.iter().filter(|l| l.starts_with(' ')).count(), 64);
}

#[test]
fn text_shows_sandbox_on_one_line() {
    let entered = |missing: &[&str]| {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Some(Sandboxed {
            layers: owned(&[
                "user=nobody",
                "no_new_privs",
                "no_caps",
                "no_dump",
                "seccomp",
            ]),
            missing: owned(missing),
        })
    };
    let mut status = status(16);
    status.operation = Some("reload".to_owned());
    for slot in &mut status.slots {
        slot.sandbox = entered(&["landlock: none here"]);
    }
    let shown = screen(&status);
    let line = "sandbox      user=nobody no_new_privs no_caps no_dump seccomp; without landlock\n";
    assert!(shown.contains(line), "{shown}");
    status.slots[1].sandbox = entered(&[]);
    assert!(screen(&status).contains("sandbox      differs between workers"));
    for slot in &mut status.slots {
        slot.sandbox = Some(Sandboxed::default());
    }
    assert!(screen(&status).contains("sandbox      off\n"));
}

#[test]
fn text_shows_processes_if_they_fit() {
    let mut status = status(1);
    let process = |process: &str, slot, pid, usage| ProcessStatus {
        process: process.to_owned(),
        slot,
        pid,
        restarts_10m: 3,
        usage,
    };
    let usage = Usage {
        started_at_ms: 1_700_000_000_000,
        age_ms: 750_000,
        cpu_ms: 12_000,
        resident_bytes: Some(12_345_678),
        descriptors: Some(1234),
    };
    status.processes = vec![
        process(ProcessStatus::SUPERVISOR, None, 4711, Some(usage)),
        process(
            ProcessStatus::PREDECESSOR,
            Some(SlotId(1023)),
            4_194_304,
            Some(usage),
        ),
        process(ProcessStatus::KEEPER, Some(SlotId(0)), 4713, None),
    ];
    let rates = Rates {
        cpu: BTreeMap::from([(4711, 0.07)]),
        ..Rates::default()
    };
    let view = View {
        status: &status,
        sockets: None,
        rates: Some(&rates),
    };
    let shown = lines(view, usize::MAX);
    let table = [
        "process            pid   mem  cpu   fds   age restarts",
        "supervisor        4711 12.3M   7%  1234   12m        3",
        "predecessor 1… 4194304 12.3M    -  1234   12m        3",
        "keeper 0          4713     -    -     -     -        3",
    ];
    assert!(shown.ends_with(&table.map(str::to_owned)), "{shown:#?}");
    let others = shown.len() - table.len();
    assert_eq!(lines(view, shown.len()), shown);
    assert_eq!(lines(view, shown.len() - 1).len(), others);
}

#[test]
fn text_shows_keepers_and_rescues() {
    let mut status = status(2);
    assert_eq!((keepers(&status), rescues(&status)), (None, None));
    status.slots[0].keeper_pid = Some(4713);
    assert_eq!(keepers(&status).unwrap(), "keepers      4713 -");
    let figures = Rescues {
        times: Durations {
            count: 2,
            sum_us: 2_500,
            ..Durations::default()
        },
        connections: 3000,
        owed_bytes: 12_345,
        keepers_lost: 1,
        keepers_replaced: 1,
    };
    status.slots[1].rescues = figures.clone();
    status.former = vec![SlotStatus {
        rescues: figures,
        ..SlotStatus::default()
    }];
    let lines = [
        "keepers      4713 -; 2 lost, 2 replaced",
        "rescues      4 of 6000 connections, 24.6kB owed; 1.25 ms on average",
    ];
    assert!(screen(&status).contains(&lines.join("\n")));
    status.slots = self::status(16).slots;
    assert_eq!(
        keepers(&status).unwrap(),
        "keepers      0 of 16 workers; 1 lost, 1 replaced"
    );
}

#[test]
fn sixteen_slots_fit_and_more_are_counted() {
    let screen16 = screen(&status(16));
    assert_eq!(screen16.lines().filter(|l| l.starts_with(' ')).count(), 16);
    assert!(!screen16.contains('…'));

    let mut many = status(1024);
    many.slots[1000].state = "starting".to_owned();
    many.slots[3].lent_to = Some(SlotId(4));
    many.operation = Some("reload".to_owned());
    let last = screen(&many).lines().last().map(str::to_owned).unwrap();
    assert_eq!(
        last,
        "… slots not shown: 1009 (1 not serving); notes not shown: 1; see status --json"
    );
    assert_eq!(screen(&many).lines().count(), LINES);
}

proptest! {
    #[test]
    fn text_stays_within_screen(
        numbers in prop::array::uniform6(any::<u64>()),
        small in any::<(u16, u32, u32, u32)>(),
        text in ".{0,200}", slots in 0usize..40, extras: bool,
    ) {
        let traffic = Traffic {
            open: numbers[0], accepted: numbers[1], migrated_in: numbers[2],
            migrated_out: numbers[3], received_bytes: numbers[4], sent_bytes: numbers[5],
            closed: BTreeMap::from([(text.clone(), numbers[0])]),
            refused: BTreeMap::from([(text.clone(), numbers[1])]), untracked: numbers[2],
            ..Traffic::default()
        };
        let neighbour = extras.then(|| Neighbour {
            generation: Generation(small.1), release: ReleaseId(small.2),
            pid: Some(small.3), state: text.clone(), open: numbers[0],
        });
        let queues = numbers[3..].iter().map(|&length| AcceptQueueStatus {
            address: text.clone(), length, limit: numbers[0], inode: 0,
        });
        let queues = queues.collect();
        let rescues = Rescues {
            times: Durations { count: numbers[0], sum_us: numbers[1], ..Durations::default() },
            connections: numbers[2], owed_bytes: numbers[3], keepers_lost: numbers[4],
            keepers_replaced: numbers[5],
        };
        let one = SlotStatus {
            unserved_ms: 0,
            turn_age_ms: None,
            worker_starts: numbers[0],
            worker_restarts_10m: small.2,
            keeper_restarts_10m: small.3,
            stalled_ms: None,
            lost_listener_ms: None,
            slot: SlotId(small.0), pid: Some(small.1), keeper_pid: extras.then_some(small.1), cpu: extras.then_some(small.0),
            accepted_percent: 100, open_percent: 100, generation: Generation(small.2),
            release: ReleaseId(small.3), state: text.clone(), age_ms: numbers[0],
            sandbox: extras.then(|| Sandboxed {
                layers: vec![text.clone()], missing: vec![text.clone()],
            }),
            queue: text.clone(), lent_to: None, accept_queues: queues, traffic, crashes: numbers[1],
            starts: Durations::default(), handovers: Durations::default(), rescues,
            history: numbers.iter().map(|&number| number as u32).collect(),
            last_crashes: vec![Crash {
                generation: Generation(small.1), exit: Some(text.clone()),
                error: Some(text.clone()), age_ms: numbers[2],
            }; usize::from(extras) * 2],
            successor: neighbour.clone(), predecessor: neighbour,
        };
        let mut status = Status {
            version: text.clone(), pid: small.1, uptime_ms: numbers[0], phase: text.clone(),
            operation: Some(text.clone()), release: ReleaseId(small.2),
            addresses: vec![text.clone(), text.clone()], control: Some(text),
            slots: vec![one; slots], ..Status::default()
        };
        status.sum_up();
        status.processes = vec![ProcessStatus {
            process: status.phase.clone(), slot: Some(SlotId(small.0)), pid: small.1,
            restarts_10m: small.2,
            usage: extras.then(|| Usage {
                started_at_ms: numbers[0], age_ms: numbers[1], cpu_ms: numbers[2],
                resident_bytes: Some(numbers[3]), descriptors: extras.then_some(numbers[4]),
            }),
        }];
        status.admin = extras.then(|| AdminStatus {
            address: status.phase.clone(), agent: Some(status.phase.clone()),
            crashes: numbers[0], ..AdminStatus::default()
        });
        status.last_operation = extras.then(|| LastOperation {
            operation: status.phase.clone(), result: status.phase.clone(),
            error: Some(status.phase.clone()), duration_ms: numbers[0], age_ms: numbers[1],
        });
        let lines = status.lines();
        prop_assert!(lines.len() <= LINES);
        let rate = Rate {
            accepted: numbers[0] as f64, messages: numbers[1] as f64,
            received_bytes: numbers[2] as f64, sent_bytes: numbers[3] as f64, busy: numbers[4] as f64,
        };
        let rates = Rates {
            span_ms: numbers[5], totals: rate, slots: BTreeMap::from([(SlotId(small.0), rate)]),
            cpu: BTreeMap::from([(small.1, numbers[5] as f64)]),
        };
        let sockets = Sockets {
            states: status.totals.traffic.closed.clone(), unaccepted: numbers[0],
            local_clients: status.totals.traffic.closed.clone(),
            others: vec![SocketStatus { local: status.phase.clone(), ..SocketStatus::default() }],
            others_omitted: numbers[1], ..Sockets::default()
        };
        let sample = super::super::Sample { status, sockets: Some(sockets), rates: Some(rates) };
        for line in lines.into_iter().chain(sample.lines()) {
            prop_assert!(line.chars().count() <= COLUMNS);
            prop_assert!(!line.chars().any(char::is_control));
        }
    }
}
