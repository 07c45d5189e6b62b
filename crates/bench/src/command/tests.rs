//! Unit tests of `command.rs`.

use super::*;
use crate::options::{Close, Expect, Sources};
use crate::size::Sizes;

fn parsed(args: &[&str]) -> Result<Task, String> {
    let typed = command()
        .try_get_matches_from([&[BENCH], args].concat())
        .map_err(|error| error.to_string())?;
    task(&typed, String::new()).map_err(|misuse| misuse.why)
}

fn read(args: &[&str]) -> Result<Options, String> {
    match parsed(args)? {
        Task::Measure(options) => Ok(*options),
        other => panic!("{other:?}"),
    }
}

#[test]
fn pattern_and_address_may_each_be_left_out() {
    let found = |args: &[&str]| {
        let options = read(args).unwrap();
        (options.pattern.unwrap(), options.target)
    };
    let there = || Some("a:1".to_owned());
    assert_eq!(found(&[]), (Pattern::Ping, None));
    assert_eq!(found(&["rate"]), (Pattern::Rate, None));
    assert_eq!(found(&["a:1"]), (Pattern::Ping, there()));
    assert_eq!(found(&["idle", "a:1"]), (Pattern::Idle, there()));
    assert_eq!(found(&["a:1", "idle"]), (Pattern::Idle, there()));
    for (word, target) in [
        (":7", "127.0.0.1:7"),
        ("localhost", "localhost:9999"),
        ("www.a.b", "www.a.b:9999"),
        ("http://a/", "http://a/"),
    ] {
        assert_eq!(found(&[word]).1.as_deref(), Some(target));
    }
    assert_eq!(found(&["ping", "web"]).1.as_deref(), Some("web:9999"));
    assert!(read(&["png"]).unwrap_err().contains("neither a pattern"));
    for wrong in [["a:1", "b:2"].as_slice(), &["a:1", "ping", "b:2"]] {
        assert!(read(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn flags_may_precede_pattern_that_has_them() {
    let options = read(&["-c", "7", "--pid=3", "churn", "--pid=4"]).unwrap();
    assert_eq!(options.pattern, Some(Pattern::Churn));
    assert_eq!(options.connections, Some(7));
    assert_eq!(options.pids, [4, 3]);
    let why = read(&["--pipeline=3", "idle"]).unwrap_err();
    assert!(why.contains("--pipeline with `idle`"), "{why}");
    let typed = command()
        .try_get_matches_from([BENCH, "-c7", "compare", "a", "b"])
        .unwrap();
    let misuse = task(&typed, String::new()).unwrap_err();
    assert_eq!(misuse.command, "bench compare");
}

#[test]
fn capacity_needs_target() {
    let quest = |args: &[&str]| {
        parsed(args).map(|task| match task {
            Task::Capacity(quest) => *quest,
            other => panic!("{other:?}"),
        })
    };
    let found = quest(&["-c7", "capacity", "--p99", "5ms", "--p99.9", "20ms", "a:1"]).unwrap();
    assert_eq!(found.options.connections, Some(7));
    assert_eq!(found.options.target.as_deref(), Some("a:1"));
    let limits: Vec<_> = found
        .targets
        .iter()
        .map(|one| (one.quantile, one.limit_ns))
        .collect();
    assert_eq!(limits, [(0.99, 5_000_000), (0.999, 20_000_000)]);
    for (args, why) in [
        (["capacity", "a:1"], "use for example --p99 5ms"),
        (["capacity", "--p99=0s"], "greater than zero"),
    ] {
        assert!(quest(&args).unwrap_err().contains(why), "{args:?}");
    }
}

#[test]
fn versus_has_flags_for_each_server() {
    let duel = |args: &[&str]| {
        parsed(args).map(|task| match task {
            Task::Versus(duel) => *duel,
            other => panic!("{other:?}"),
        })
    };
    let args = "versus :1 b:2 --label x --label y --pid 3 --pid 4 --expect echo --pattern rate";
    let args: Vec<&str> = args.split(' ').collect();
    let rest = ["--json=j", "--fail-if=slower", "--fail-if=cpu > 1.1"];
    let found = duel(&[&args[..], &rest].concat()).unwrap();
    let [a, b] = &found.sides;
    assert_eq!((found.runs, found.results.files.len()), (8, 1));
    assert_eq!(found.results.criteria.len(), 2);
    assert_eq!(a.target.as_deref(), Some("127.0.0.1:1"));
    assert_eq!(
        (b.target.as_deref(), b.label.as_deref()),
        (Some("b:2"), Some("y"))
    );
    assert_eq!((a.pids.as_slice(), b.pids.as_slice()), (&[3][..], &[4][..]));
    assert_eq!((a.expect, a.expect), (b.expect, Some(Expect::Echo)));
    assert_eq!(b.pattern, Some(Pattern::Rate));
    for (args, why) in [
        (
            ["versus", "a", "b", "--pid=1"].as_slice(),
            "for A, then for B",
        ),
        (&["versus", "a", "b", "--runs=0"], "without runs"),
        (&["a:1", "versus", "a", "b"], "after `versus`"),
        (
            &["--fail-if=p99 > 5ms", "versus", "a", "b"],
            "--fail-if after `versus`",
        ),
        (
            &["versus", "a", "b", "--fail-if=cpu > 1.1"],
            "not measured without --pid",
        ),
    ] {
        let found = duel(args).unwrap_err();
        assert!(found.contains(why), "{found}");
    }
}

#[test]
fn every_pattern_has_its_own_flags() {
    let whole = command();
    for pattern in Pattern::ALL {
        let command = whole.find_subcommand(pattern.word()).unwrap();
        for arg in command.get_arguments() {
            let id = arg.get_id().as_str();
            assert!(pattern.takes(id), "{} {id}", pattern.word());
        }
        let has_rate = command.get_arguments().any(|arg| arg.get_id() == "rate");
        assert_eq!(has_rate, *pattern == Pattern::Rate);
    }
}

#[test]
fn flags_of_other_tools_are_aliases_or_hints() {
    let options = read(&["rate", "-q", "5", "-z", "3s", "--no-tui"]).unwrap();
    assert_eq!(options.rate, Some(5.0));
    assert_eq!(options.duration, Some(std::time::Duration::from_secs(3)));
    assert!(options.no_progress);
    assert_eq!(read(&["rate", "-R9"]).unwrap().rate, Some(9.0));
    assert_eq!(hint("-R").as_deref(), Some("it applies to `bench rate`"));
    assert_eq!(hint("--nonsense"), None);
    // A flag that exists needs no hint, and each named flag exists.
    let all: Vec<_> = Pattern::ALL
        .iter()
        .flat_map(|one| flags::of(*one))
        .collect();
    for (flags, text) in foreign::FOREIGN {
        for flag in *flags {
            assert_eq!(hint(flag).as_deref(), Some(*text), "{flag}");
        }
        for word in text
            .split(['`', ' '])
            .filter_map(|word| word.strip_prefix("--"))
        {
            assert!(all.iter().any(|arg| arg.get_long() == Some(word)), "{word}");
        }
    }
}

#[test]
fn zone_of_a_source_may_be_a_name() {
    assert_eq!(
        flags::with_zone_numbers("fe80::1%lo,10.0.0.1"),
        "fe80::1%1,10.0.0.1"
    );
    let options = read(&["--sources", "fe80::1%lo"]).unwrap();
    assert!(matches!(options.sources, Some(Sources::Addresses(_))));
    assert!(read(&["--sources", "fe80::1%no-such"]).is_err());
}

#[test]
fn bench_flags_are_parsed() {
    let args = "churn -c 7 -s 8..9 --close half --during every_1s --pid 3 --pid 4";
    let args: Vec<&str> = args.split(' ').collect();
    let mut with_job = args.clone();
    let at = with_job.iter().position(|arg| *arg == "every_1s").unwrap();
    with_job[at] = "every 1s: true";
    let options = read(&with_job).unwrap();
    assert_eq!(options.connections, Some(7));
    assert_eq!(options.size, Some(Sizes::Uniform(8, 9)));
    assert_eq!(options.close, Some(Close::Half));
    assert_eq!((options.pids, options.during.len()), (vec![3, 4], 1));
    assert!(read(&args).unwrap_err().contains("every 2s: COMMAND"));
    let options = read(&["--", "--log-level", "debug"]).unwrap();
    assert_eq!(options.server_args, ["--log-level", "debug"]);
    for wrong in [
        ["--rate=x"],
        ["-c=-1"],
        ["--close=x"],
        ["--duration=5"],
        ["--size=0"],
    ] {
        assert!(read(&wrong).is_err(), "{wrong:?}");
    }
}

/// For every measurement: advice must not suggest flags that the command rejects.
#[test]
fn every_flag_in_advice_is_accepted() {
    use crate::outcome::{Latency, Outcome, Percentile, Server};
    use crate::plan::{Facts, settle};
    use crate::report::Advice;

    let facts = Facts {
        cpus: 4,
        descriptors: 1 << 20,
        loopback: true,
    };
    let mut tried = 0;
    let patterns = Pattern::ALL.iter().map(|pattern| pattern.word());
    for pattern in patterns {
        for (messages, samples, measured_ms, count) in [
            (0, 1, 10_000, false),
            (3, 3, 10_000, false),
            (61_700, 61_700, 10_000, false),
            (1, 1, 600_000_000, false),
            (5, 5, 0, true),
            (5, 5, 700, true),
        ] {
            if count && ["idle", "stall"].contains(&pattern) {
                continue;
            }
            let mut outcome = Outcome {
                measured_ms,
                longest_stall_ms: 100.0,
                latency_from: "sent".to_owned(),
                ..Outcome::default()
            };
            outcome.plan.pattern = pattern.to_owned();
            outcome.plan.connections = 1_900_000;
            outcome.plan.threads = 256;
            outcome.plan.pipeline = 65_536;
            outcome.plan.duration_ms = if count { 0 } else { measured_ms };
            outcome.plan.rate_per_s = ["rate", "hold"].contains(&pattern).then_some(1e6);
            outcome.machine.cpus = 400;
            outcome.client.is_bottleneck = true;
            outcome.totals.messages = messages;
            let percentile = |quantile| Percentile {
                quantile,
                value_ns: 1,
                ..Percentile::default()
            };
            outcome.latency = Some(Latency {
                count: samples,
                percentiles: [0.5, 0.9, 0.99, 0.999, 0.9999].map(percentile).to_vec(),
                ..Latency::default()
            });
            outcome.server = Some(Server {
                connections_by_worker: vec![9, 0],
                ..Server::default()
            });
            for advice in Advice::on(&outcome) {
                let text = advice.to_string();
                let other = text.contains("the pattern `rate`");
                let mut words = text.split([' ', ',', ';']).peekable();
                while let Some(word) = words.next() {
                    let value = words.peek().copied().unwrap_or_default();
                    if !word.starts_with("--") || !value.starts_with(char::is_numeric) {
                        continue;
                    }
                    let pattern = if other { "rate" } else { pattern };
                    let options = read(&[pattern, word, value]).unwrap();
                    let plan = settle(&options, &facts);
                    assert!(plan.is_ok(), "{text}: {plan:?}");
                    tried += 1;
                }
                assert!(!text.contains("--rate 0"), "{text}");
            }
        }
    }
    assert!(tried > 10, "{tried}");
}
