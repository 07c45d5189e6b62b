//! Unit tests of `plan.rs`.

use super::*;

const FACTS: Facts = Facts {
    cpus: 4,
    descriptors: 20_000,
    loopback: true,
};

fn with(change: impl FnOnce(&mut Options)) -> Result<Plan, String> {
    let mut options = Options::default();
    change(&mut options);
    settle(&options, &FACTS).map_err(|error| error.to_string())
}

#[test]
fn every_pattern_has_its_defaults() {
    let plan = |pattern| with(|options| options.pattern = Some(pattern)).unwrap();
    let ping = with(|_| {}).unwrap();
    assert_eq!((ping.pattern, ping.connections), (Pattern::Ping, 50));
    assert_eq!((ping.threads, ping.processes), (2, 1));
    assert_eq!((ping.duration, ping.warmup), (DURATION, WARMUP));
    let stream = plan(Pattern::Stream);
    assert_eq!(stream.sizes.most() * stream.pipeline, 1 << 20);
    let hold = plan(Pattern::Hold);
    assert_eq!(hold.summary().rate_per_s, Some(200.0));
    assert_eq!(hold.latency_from(), "planned");
    assert_eq!(plan(Pattern::Idle).pace, Pace::Silence);
    assert_eq!(plan(Pattern::Churn).messages_each, Some(1));
    assert_eq!(plan(Pattern::Rate).summary().rate_per_s, Some(RATE));
}

#[test]
fn nonsensical_plan_is_refused_with_hint() {
    let why = |change: fn(&mut Options)| with(change).unwrap_err();
    assert_eq!(
        why(|o| o.rate = Some(5.0)),
        "cannot use --rate with the pattern `ping`: it does not apply; remove it"
    );
    assert!(why(|o| o.connections = Some(0)).contains("1 to 2000000"));
    assert!(
        why(|o| {
            o.duration = Some(DURATION);
            o.count = Some(5);
        })
        .contains("exclude")
    );
    assert!(
        why(|o| {
            o.target = Some("a:1".to_owned());
            o.reload_every = Some(DURATION);
        })
        .contains("--during")
    );
    assert!(why(|o| o.pids = vec![1]).contains("--pid"));
    assert_eq!(
        why(|o| o.fail_if = vec!["rate < 95%".parse().unwrap()]),
        "cannot check `rate < 95%`: this pattern has no planned rate; remove it"
    );
    assert_eq!(
        why(|o| {
            o.pattern = Some(Pattern::Stall);
            o.count = Some(5);
        }),
        "cannot use --count with the pattern `stall`: it does not apply; remove it"
    );
    assert!(
        why(|o| {
            o.pattern = Some(Pattern::Rate);
            o.rate = Some(f64::NAN);
        })
        .contains("--rate")
    );
}

#[test]
fn every_number_has_bounds() {
    use crate::options::{Action, Job};

    let zero = Some(Duration::ZERO);
    type Change = fn(&mut Options);
    let refused: [(&str, Change); 15] = [
        (
            "cannot use this value of --receive-buffer: it must be 1 to",
            |o| {
                o.receive_buffer = Some(0);
            },
        ),
        (
            "cannot use this value of --pipeline: it must be 1 to 65536",
            |o| {
                o.pipeline = Some(0);
            },
        ),
        ("cannot use this value of --count: it must be 1 to", |o| {
            o.count = Some(0);
        }),
        (
            "cannot use this value of --threads: it must be 1 to 256",
            |o| {
                o.threads = Some(257);
            },
        ),
        (
            "cannot use this value of --processes: it must be 1 to 64",
            |o| {
                o.processes = Some(0);
            },
        ),
        ("cannot use this value of --workers: it must be 1 to", |o| {
            o.workers = Some(0);
        }),
        (
            "cannot use this value of --sources: it must be 1 to 250",
            |o| {
                o.sources = Some(Sources::Count(251));
            },
        ),
        (
            "cannot use this value of --duration: it must be more than 0s, at most 7days",
            |o| {
                o.duration = Some(DURATION_MAX * 2);
            },
        ),
        (
            "cannot use this value of --warmup: it must be at most 7days",
            |o| {
                o.warmup = Some(DURATION_MAX * 2);
            },
        ),
        (
            "cannot use this value of --timeout: it must be more than 0s",
            |o| {
                o.timeout = Some(Duration::ZERO);
            },
        ),
        (
            "cannot use this value of --connect-timeout: it must be more",
            |o| {
                o.connect_timeout = Some(Duration::ZERO);
            },
        ),
        (
            "cannot use this value of --reload-every: it must be more",
            |o| {
                o.reload_every = Some(Duration::ZERO);
            },
        ),
        (
            "cannot use this value of --upgrade-every: it must be more",
            |o| {
                o.upgrade_every = Some(Duration::ZERO);
            },
        ),
        (
            "cannot run the command of --during: it is due after 5s, and 1s are measured",
            |o| {
                o.duration = Some(Duration::from_secs(1));
                o.during = vec![Job {
                    first: Duration::from_secs(5),
                    every: None,
                    action: Action::Shell("true".to_owned()),
                }];
            },
        ),
        (
            "cannot run the command of --reload-every: it is due after 1h",
            |o| {
                o.reload_every = Some(Duration::from_secs(3600));
            },
        ),
    ];
    for (why, change) in refused {
        let error = with(change).unwrap_err();
        assert!(error.starts_with(why), "{error}");
    }
    assert_eq!(with(|o| o.warmup = zero).unwrap().warmup, Duration::ZERO);
    let slow = with(|o| {
        o.pattern = Some(Pattern::Rate);
        o.rate = Some(1e-300);
    });
    let Pace::Schedule { gap_ns, .. } = slow.unwrap().pace else {
        panic!("`rate` has a schedule");
    };
    assert!(gap_ns.is_finite());
}

#[test]
fn many_connections_get_processes_and_addresses() {
    let plan = with(|o| o.connections = Some(100_000)).unwrap();
    assert_eq!((plan.processes, plan.sources.len()), (6, 5));
    let why = with(|o| {
        o.connections = Some(100_000);
        o.processes = Some(2);
    });
    assert_eq!(
        why.unwrap_err(),
        "cannot open 100000 connections: each of 2 processes needs 50064 descriptors and may have \
         20000; use `ulimit -n 50064`, or --processes 6"
    );
    let elsewhere = Facts {
        loopback: false,
        ..FACTS
    };
    let options = Options {
        sources: Some(Sources::Count(2)),
        ..Options::default()
    };
    assert_eq!(settle(&options, &elsewhere), Err(Error::NotLoopback));
}

#[test]
fn series_stays_short() {
    for (seconds, ms) in [(1, 100), (120, 100), (121, 200), (3600, 3000)] {
        let length = interval(Duration::from_secs(seconds));
        assert_eq!(length, Duration::from_millis(ms), "{seconds} s");
    }
}
