//! The load generator against the real server, and against stand-ins with known faults: they send
//! wrong bytes, reset, close early, stay silent, refuse, or pause.
//!
//! No test asserts a speed or a time, except that a delayed reply shows its delay.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uppercased_bench::outcome::Outcome;

use crate::support::netns::isolated;
use crate::support::observe::{field, until};
use crate::support::{
    DEADLINE, Server, give_children_default_signals, in_background, own_address, poll_one,
};

/// The result of a measurement.
struct Said {
    code: i32,
    outcome: Option<Outcome>,
    stdout: String,
    stderr: String,
}

/// Runs `bench` with `args` and parses its JSON.
#[track_caller]
fn bench(args: &[&str]) -> Said {
    bench_by(
        Command::new(env!("CARGO_BIN_EXE_uppercased")).arg("bench"),
        args,
    )
}

#[track_caller]
fn bench_by(command: &mut Command, args: &[&str]) -> Said {
    let folder = tempfile::tempdir().expect("a folder for the outcome");
    let file = folder.path().join("outcome.json");
    // Flags precede the server's own arguments.
    let own = args
        .iter()
        .position(|arg| *arg == "--")
        .unwrap_or(args.len());
    let output = command
        .args(&args[..own])
        .arg("--json")
        .arg(&file)
        .args(&args[own..])
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    Said {
        code: output.status.code().expect("it ends by itself"),
        outcome: serde_json::from_str(&text).ok(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

impl Said {
    #[track_caller]
    fn outcome(&self) -> &Outcome {
        let stderr_text = || panic!("no outcome: {} {}", self.stdout, self.stderr);
        self.outcome.as_ref().unwrap_or_else(stderr_text)
    }

    /// Asserts that it found no failure.
    #[track_caller]
    fn is_clean(&self) -> &Outcome {
        let outcome = self.outcome();
        let Outcome {
            failures,
            first_failures,
            ..
        } = outcome;
        assert!(failures.is_empty(), "{failures:?} {first_failures:?}");
        assert_eq!(self.code, 0, "{}", self.stderr);
        outcome
    }
}

/// A server in threads of the test, for any number of connections; dropping it closes its port.
struct Bad {
    addr: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Bad {
    /// Calls `answer` with every connection and its number. The first connection is only a probe.
    fn serve(answer: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let addr = listener.local_addr().expect("a bound socket");
        let over = Arc::new(AtomicBool::new(false));
        let (is_over, answer) = (Arc::clone(&over), Arc::new(answer));
        in_background(move || {
            for number in 0.. {
                let (stream, _) = listener.accept().expect("accept");
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let answer = Arc::clone(&answer);
                in_background(move || answer(number, stream));
            }
        });
        Self { addr, over }
    }

    /// Calls `answer` with the offset and the bytes received, and sends the result; `None` closes
    /// the connection.
    fn reply(answer: impl Fn(u64, &[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::serve(move |_, mut stream| {
            let mut piece = [0; 4096];
            let mut before = 0;
            while let Ok(count @ 1..) = stream.read(&mut piece) {
                let Some(reply) = answer(before, &piece[..count]) else {
                    return;
                };
                before += count as u64;
                if stream.write_all(&reply).is_err() {
                    return;
                }
            }
        })
    }

    fn target(&self) -> String {
        self.addr.to_string()
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the accepting thread so that it checks the flag.
        drop(TcpStream::connect(self.addr));
    }
}

fn upper(bytes: &[u8]) -> Vec<u8> {
    bytes.to_ascii_uppercase()
}

/// Waits until the peer has closed or `within` has passed.
fn wait_closed(stream: &mut TcpStream, within: Duration) {
    let mut piece = [0; 4096];
    while poll_one(&*stream, PollFlags::POLLIN, within) {
        match stream.read(&mut piece) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

const SHORT: [&str; 4] = [
    "--duration=600ms",
    "--warmup=50ms",
    "--no-progress",
    "--threads=2",
];

fn short<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&SHORT, args].concat()
}

#[test]
fn every_pattern_passes_own_server() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "2"]);
    let target = server.addr().to_string();
    for pattern in [
        vec!["ping"],
        vec!["ping", "--pipeline=16", "--size=1..5000", "-c8"],
        vec!["ping", "--size=mixed", "-c8"],
        vec!["rate", "--rate=500"],
        vec!["rate", "--rate=500", "--arrivals=poisson", "--pipeline=4"],
        vec!["stream"],
        vec!["churn", "--connections=8"],
        vec![
            "churn",
            "--connections=8",
            "--close=half",
            "--messages-each=3",
            "--pipeline=3",
        ],
        vec!["churn", "--connections=8", "--close=rst"],
        vec!["hold", "--connections=100", "--every=200ms"],
    ] {
        let run = bench(&[&pattern[..], &[&target], &SHORT].concat());
        let outcome = run.is_clean();
        let totals = outcome.totals;
        assert!(
            totals.messages > 0 && totals.bytes_received > 0,
            "{pattern:?}: {totals:?}"
        );
        assert_eq!(outcome.plan.pattern, pattern[0]);
        let latency = outcome.latency.as_ref().unwrap();
        assert!(
            latency.min_ns > 0 && latency.min_ns <= latency.max_ns,
            "{pattern:?}"
        );
        let in_series: u64 = outcome.series.iter().map(|piece| piece.messages).sum();
        assert_eq!(in_series, totals.messages, "{pattern:?}");
        assert_eq!(outcome.series.len(), 6, "{pattern:?}");
        assert!(run.stdout.contains("every byte checked"), "{}", run.stdout);
    }
    let run = bench(&short(&["idle", &target, "--connections=100"]));
    assert_eq!(run.is_clean().totals.connections, 100);
}

#[test]
fn stalled_readers_check_replies_at_end() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "2"]);
    let small = [
        "--receive-buffer=4096",
        "--connections=8",
        "--duration=600ms",
    ];
    let target = server.addr().to_string();
    let said = bench(&[&["stall", &target], &small[..]].concat());
    let outcome = said.is_clean();
    let totals = outcome.totals;
    assert_eq!((totals.messages, totals.bytes_received), (0, 0));
    assert!(totals.bytes_sent > 8 * 64 * 1024, "{totals:?}");
    assert_eq!(outcome.latency, None);
    // A wrong byte is found even if it is read only at the end.
    let bad = Bad::reply(|before, bytes| {
        let mut reply = upper(bytes);
        reply[0] ^= u8::from(before == 0) << 7;
        Some(reply)
    });
    let said = bench(&[&["stall", &bad.target()], &small[..]].concat());
    assert_eq!(said.code, 1, "{}", said.stdout);
    assert_eq!(said.outcome().failures["wrong_byte"], 8);
}

#[test]
fn every_connection_sends_proxy_header() {
    let server = Server::start(&[
        "--listen=127.0.0.1:0",
        "--workers=2",
        "--proxy-protocol=all",
        "--log-level=debug",
    ]);
    let target = server.addr().to_string();
    for version in ["v1", "v2"] {
        let header = format!("--proxy-protocol={version}");
        for pattern in [
            vec!["ping"],
            vec!["rate", "--rate=500"],
            vec!["stream"],
            vec!["churn", "--connections=4", "--close=half"],
            vec!["hold", "--connections=20", "--every=200ms"],
            vec!["idle", "--connections=20", "--processes=2"],
            vec!["stall", "--connections=4"],
        ] {
            let run = bench(&[&pattern[..], &[&target, &header], &SHORT].concat());
            let plan = &run.is_clean().plan;
            assert_eq!(plan.proxy_protocol.as_deref(), Some(version));
            let stderr_text = format!("PROXY {version}");
            assert!(run.stdout.contains(&stderr_text), "{}", run.stdout);
        }
    }
    // Detection of the server does not depend on the source address.
    let sources = "--sources=127.0.1.7";
    bench(&short(&["churn", &target, "--proxy-protocol=v2", sources])).is_clean();
    let line = server
        .wait_log(|line| line.contains(" proxy header accepted") && line.contains("127.0.1.7"));
    assert_eq!(field(&line, "peer"), field(&line, "via"), "{line}");
    assert_eq!(
        server.status_json()["totals"]["refused"],
        serde_json::json!({})
    );
    // Without a source address it fails with an error.
    let run = bench(&short(&["ping", &target, "--connections=1"]));
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.outcome().failures.contains_key("reset"));
}

#[test]
fn own_server_requires_proxy_headers_when_sent() {
    for own in [&[][..], &["--", "--proxy-protocol", "all"]] {
        let args = ["churn", "--connections=2", "--proxy-protocol=v2"];
        let run = bench(&[&short(&args)[..], own].concat());
        assert!(run.is_clean().totals.messages > 0);
    }
}

#[test]
fn bench_starts_and_stops_own_server() {
    let run = bench(&short(&[
        "--workers=2",
        "--connections=40",
        "--",
        "--log-level",
        "debug",
    ]));
    let outcome = run.is_clean();
    let server = outcome.server.as_ref().unwrap();
    assert!(
        server.pids.len() >= 3,
        "a supervisor and two workers: {server:?}"
    );
    assert_eq!(server.connections_by_worker.iter().sum::<u64>(), 40);
    assert!(server.memory_bytes > 0);
    for pid in &server.pids {
        assert!(
            crate::support::wait_gone(*pid, DEADLINE),
            "{pid} is still there"
        );
    }
}

#[test]
fn bench_reports_failed_start_of_own_server() {
    let run = bench(&short(&["--", "--backlog", "none"]));
    assert_eq!((run.code, run.outcome.is_none()), (1, true));
    assert!(run.stderr.contains("backlog"), "{}", run.stderr);
}

#[test]
fn bench_reports_position_of_wrong_byte() {
    let bad = Bad::reply(|before, bytes| {
        let mut reply = upper(bytes);
        let at = 100u64.checked_sub(before).map(|at| at as usize);
        if let Some(byte) = at.and_then(|at| reply.get_mut(at)) {
            *byte ^= 0x80;
        }
        Some(reply)
    });
    let run = bench(&short(&["ping", &bad.target(), "-c1"]));
    let outcome = run.outcome();
    assert_eq!(run.code, 1);
    assert!(outcome.failures["wrong_byte"] > 0, "{:?}", outcome.failures);
    assert_eq!(outcome.first_failures[0].position, Some(100));
}

#[test]
fn echo_fails_unless_expected() {
    let bad = Bad::reply(|_, bytes| Some(bytes.to_vec()));
    let target = bad.target();
    assert_eq!(bench(&short(&["ping", &target, "-c2"])).code, 1);
    bench(&short(&["ping", &target, "-c2", "--expect=echo"])).is_clean();
    bench(&short(&["ping", &target, "-c2", "--expect=none"])).is_clean();
}

#[test]
fn bench_detects_lost_and_surplus_bytes() {
    let loses = Bad::reply(|before, bytes| {
        let from = usize::from(before == 0);
        Some(upper(&bytes[from..]))
    });
    let run = bench(&short(&["ping", &loses.target(), "-c1", "--pipeline=2"]));
    assert_eq!(run.outcome().first_failures[0].kind, "wrong_byte");
    let adds = Bad::reply(|_, bytes| Some([upper(bytes), b"!".to_vec()].concat()));
    let run = bench(&short(&["ping", &adds.target(), "-c1", "--expect=none"]));
    let first = &run.outcome().first_failures[0];
    assert_eq!(
        (first.kind.as_str(), first.position),
        ("wrong_byte", Some(64))
    );
}

#[test]
fn bench_reports_position_of_early_end() {
    let bad = Bad::serve(|_, mut stream| {
        let mut message = [0; 64];
        if stream.read_exact(&mut message).is_ok() {
            let _ = stream.write_all(&upper(&message[..40]));
        }
    });
    let run = bench(&short(&["ping", &bad.target(), "-c1"]));
    assert_eq!(run.code, 1);
    let first = &run.outcome().first_failures[0];
    assert_eq!(
        (first.kind.as_str(), first.position),
        ("early_eof", Some(40))
    );
    assert!(first.detail.contains("24 bytes"), "{first:?}");
}

#[test]
fn bench_reports_reset() {
    let bad = Bad::serve(|_, mut stream| {
        let _ = stream.read(&mut [0; 64]);
        let linger = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        linger.unwrap();
    });
    let run = bench(&short(&["ping", &bad.target(), "-c3"]));
    assert_eq!(run.code, 1);
    let failures = &run.outcome().failures;
    assert!(failures["reset"] >= 3, "{failures:?}");
}

#[test]
fn silence_counts_as_timeout_and_stall() {
    let bad = Bad::serve(|_, mut stream| wait_closed(&mut stream, DEADLINE));
    let run = bench(&short(&["ping", &bad.target(), "-c2", "--timeout=150ms"]));
    assert_eq!(run.code, 1);
    let outcome = run.outcome();
    assert!(outcome.failures["timeout"] >= 2, "{:?}", outcome.failures);
    assert_eq!(outcome.first_failures[0].position, Some(0));
    assert!(
        outcome.longest_stall_ms >= 150.0,
        "{}",
        outcome.longest_stall_ms
    );
}

/// Starts a server that stops: its first connection is the probe, its second ends the service, and
/// later connections are refused.
fn serve_twice() -> String {
    let listener = TcpListener::bind((own_address(), 0)).expect("listen");
    let target = listener.local_addr().expect("its address").to_string();
    in_background(move || {
        drop(listener.accept());
        let last = listener.accept();
        drop(listener);
        drop(last);
    });
    target
}

#[test]
fn vanished_server_counts_as_refusing() {
    let target = serve_twice();
    // Long enough for a second connection on a busy machine.
    let args = ["-c1", "--duration=2s", "--warmup=0s", "--no-progress"];
    let run = bench(&[&["churn", target.as_str()], &args[..]].concat());
    assert_eq!(run.code, 1);
    let failures = &run.outcome().failures;
    assert!(failures.contains_key("refused"), "{failures:?}");
}

#[test]
fn bench_gives_up_unreachable_count() {
    let target = serve_twice();
    let run = bench(&["ping", &target, "-c1", "--count=10", "--timeout=200ms"]);
    assert_eq!(run.code, 1);
    let failures = &run.outcome().failures;
    assert!(failures.contains_key("refused"), "{failures:?}");
}

#[test]
fn missing_server_is_one_clear_error() {
    // A private address: another test cannot reuse a port closed there.
    let listener = TcpListener::bind((own_address(), 0)).expect("listen");
    let target = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let run = bench(&["ping", &target]);
    assert_eq!(run.code, 1);
    let line = format!(
        "uppercased: cannot connect to {target}: Connection refused; check that the server is \
         running on this port\n"
    );
    assert_eq!(run.stderr, line);
    let run = bench(&["ping", "no such host:1"]);
    assert!(
        run.code == 2 && run.stderr.contains("HOST:PORT"),
        "{}",
        run.stderr
    );
}

#[test]
fn bad_usage_is_one_clear_error() {
    for (args, words) in [
        (&["ping", "--rate=5"][..], "it applies to `bench rate`"),
        (&["--pipeline=3", "idle"], "it applies to"),
        (&["png"], "neither a pattern"),
        (&["http://localhost:9/"], "it is a URL"),
        (&["--connections=0"], "1 to 2000000"),
        (&["--duration=1s", "--count=5"], "exclude each other"),
        (&["--during=now: x"], "every 2s: COMMAND"),
        (&["--fail-if=p98 > 5ms"], "use one of p50"),
        (&["idle", "--fail-if=p99 > 5ms"], "measures no replies"),
    ] {
        let run = bench(args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn failed_criterion_has_its_exit_code() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "1"]);
    let target = server.addr().to_string();
    let args = ["rate", &target, "--rate=200", "--fail-if=p99 > 3600s"];
    let run = bench(&short(&args));
    assert!(!run.is_clean().criteria[0].is_failed);
    let run = bench(&short(&[&args[..], &["--fail-if=rate > 1%"]].concat()));
    assert_eq!(run.code, 3, "{}", run.stdout);
    assert!(run.outcome().criteria[1].is_failed);
    for line in ["1 of 2 criteria", "rate > 1%: FAILED"] {
        assert!(run.stdout.contains(line), "{}", run.stdout);
    }
    // A failure is worse than a criterion.
    let bad = Bad::reply(|_, bytes| Some(bytes.to_vec()));
    let run = bench(&short(&[
        "ping",
        &bad.target(),
        "-c1",
        "--fail-if=p50 < 3600s",
    ]));
    assert_eq!(run.code, 1, "{}", run.stdout);
}

/// A server with a known capacity: it takes this long for a message of a connection.
fn limited(gap: Duration) -> Bad {
    Bad::serve(move |number, mut stream| {
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let mut message = [0; 64];
        while stream.read_exact(&mut message).is_ok() {
            // The first connection is only a probe.
            assert!(number == 0 || !poll_one(&nobody, PollFlags::POLLIN, gap));
            if stream.write_all(&upper(&message)).is_err() {
                return;
            }
        }
    })
}

#[test]
fn capacity_of_limited_server_is_found() {
    let server = limited(Duration::from_millis(1));
    let args = [
        "capacity",
        &server.target(),
        "-c1",
        "--pipeline=64",
        "--p50=20ms",
    ];
    let args = [
        &args[..],
        &["--probe=200ms", "--no-progress", "--threads=1"],
    ]
    .concat();
    let run = bench(&args);
    let outcome = run.is_clean();
    let found = outcome.capacity.as_ref().expect("a capacity");
    let rate = found.rate_per_s.expect("a rate");
    // The probes are too short to be exact, and the machine is busy.
    assert!((300.0..=1000.0).contains(&rate), "{rate}: {}", run.stdout);
    assert!(
        found
            .probes
            .iter()
            .any(|probe| probe.confirms && probe.holds)
    );
    assert!(found.probes.iter().any(|probe| !probe.holds));
    assert!(run.stdout.contains("CAPACITY"), "{}", run.stdout);
    let run = bench(&[&args[..], &["--fail-if=rate < 1000"]].concat());
    assert_eq!(run.code, 3, "{}", run.stdout);
}

#[test]
fn missing_capacity_is_a_failure() {
    let bad = Bad::serve(|_, mut stream| wait_closed(&mut stream, DEADLINE));
    let args = [
        "--p99=1ms",
        "--probe=50ms",
        "--timeout=100ms",
        "-c2",
        "--time-limit=1s",
    ];
    let run = bench(&[&["capacity", &bad.target()], &args[..]].concat());
    assert_eq!(run.code, 1, "{}", run.stdout);
    let outcome = run.outcome();
    assert_eq!(
        outcome.capacity.as_ref().and_then(|found| found.rate_per_s),
        None
    );
    assert!(!outcome.problems.is_empty());
    for args in [&["capacity"][..], &["capacity", "--p99=0s"]] {
        let run = bench(args);
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    }
}

#[test]
fn versus_tells_slow_server_from_fast() {
    let [fast, slow] = [Duration::ZERO, Duration::from_millis(20)].map(|wait| {
        Bad::reply(move |_, bytes| {
            let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
            assert!(!poll_one(&nobody, PollFlags::POLLIN, wait));
            Some(upper(bytes))
        })
    });
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args([
            "bench",
            "versus",
            &fast.target(),
            &slow.target(),
            "--runs=6",
            "-c1",
        ])
        .args([
            "--label=fast one",
            "--label=slow one",
            "--duration=100ms",
            "--warmup=0s",
        ])
        .args(["--json", &path("json"), "--report", &path("html")])
        .args(["--markdown", &path("md")])
        .args(["--fail-if=slower", "--fail-if=p50 < 1"])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(
        text.contains("slower: FAILED") && text.contains("p50 < 1: ok"),
        "{text}"
    );
    let words: Vec<&str> = text.split_whitespace().collect();
    let result = "result B (slow one) is slower than A (fast one)";
    assert!(words.join(" ").contains(result), "{text}");
    let read = |name: &str| std::fs::read_to_string(path(name)).expect("written");
    let json: serde_json::Value = serde_json::from_str(&read("json")).expect("JSON");
    assert_eq!(json["result"], "slower");
    assert_eq!(json["criteria"][0]["is_failed"], true);
    let runs = |side: &str| json[side]["runs"].as_array().expect("runs").clone();
    assert_eq!((runs("a").len(), runs("b").len()), (6, 6));
    // In pairs, of which each side begins every other one.
    let start = |run: &serde_json::Value| run["started_unix_ms"].as_u64().expect("a time");
    let first = |at: usize| start(&runs("a")[at]) < start(&runs("b")[at]);
    assert_eq!([first(0), first(1), first(2)], [true, false, true]);
    assert!(
        read("html").contains("slow one") && read("md").contains("B: slow one"),
        "{text}"
    );
}

#[test]
fn every_export_is_written() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "1"]);
    let folder = tempfile::tempdir().expect("a folder");
    let formats = ["json", "report", "csv", "markdown", "hgrm"];
    let path = |format: &str| folder.path().join(format);
    let flags = formats.map(|format| format!("--{format}={}", path(format).display()));
    let output = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args(["bench", "rate", &server.addr().to_string(), "--label=ours"])
        .args(SHORT)
        .args(&flags)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let text = |format: &str| std::fs::read_to_string(path(format)).expect("written");
    assert!(text("csv").starts_with("at_ms,length_ms,messages"));
    assert!(text("markdown").contains("| rate on ours at 127.0.0.1:"));
    assert!(text("hgrm").contains("#[Max     ="));
    assert!(String::from_utf8_lossy(&output.stdout).contains("rate on ours at 127.0.0.1:"));
    // The page contains the JSON, so it can be compared like it.
    let output = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args(["bench", "compare"])
        .args([path("json"), path("report")])
        .output()
        .expect("it runs");
    let compared = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && compared.contains("1.00"),
        "{compared}"
    );
    let run = bench(&["idle", &format!("--hgrm={}", path("none").display())]);
    assert!(
        run.code == 2 && run.stderr.contains("--hgrm"),
        "{}",
        run.stderr
    );
}

#[test]
fn only_open_loop_shows_stall() {
    // So long that half of it exceeds delays on a busy machine.
    const STALL: Duration = Duration::from_secs(2);
    // One connection is answered at once, except for one pause.
    let stalls = || {
        Bad::serve(|_, mut stream| {
            let mut piece = [0; 4096];
            let mut answered = 0;
            let mut paused = false;
            while let Ok(count @ 1..) = stream.read(&mut piece) {
                answered += count;
                if answered > 64 * 20 && !paused {
                    paused = true;
                    // Nothing connects here; the duration ends the run.
                    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                    assert!(!poll_one(&nobody, PollFlags::POLLIN, STALL));
                }
                if stream.write_all(&upper(&piece[..count])).is_err() {
                    return;
                }
            }
        })
    };
    let measure = |args: &[&str]| {
        let bad = stalls();
        let target = bad.target();
        let rest = ["-c1", "--warmup=0s", "--no-progress"];
        let run = bench(&[args, &[target.as_str()], &rest].concat());
        let outcome = run.is_clean().clone();
        let longest = Duration::from_secs_f64(outcome.longest_stall_ms / 1000.0);
        assert!(longest >= STALL, "{longest:?}");
        let latency = outcome.latency.unwrap();
        let p99 = latency.percentiles.iter().find(|p| p.quantile == 0.99);
        (
            outcome.latency_from,
            Duration::from_nanos(p99.unwrap().value_ns),
        )
    };
    let (from, p99) = measure(&["rate", "--rate=500", "--duration=4s"]);
    // 1000 of the 2000 messages were due during the pause; their median wait is half of it.
    assert_eq!(from, "planned");
    assert!(p99 >= STALL / 2, "{p99:?}");
    // A closed loop sends one message of a thousand during the pause.
    let (from, p99) = measure(&["ping", "--count=1000"]);
    assert_eq!(from, "sent");
    assert!(p99 < STALL / 2, "{p99:?}");
}

#[test]
fn series_marks_operations() {
    let args = [
        "rate",
        "--rate=300",
        "--duration=900ms",
        "--warmup=0s",
        "--no-progress",
        "--workers=2",
        "--during=at 100ms: echo first; echo last",
        "--during=at 200ms: exit 7",
        "--reload-every=250ms",
    ];
    let run = bench(&args);
    let outcome = run.outcome();
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    let marks = &outcome.marks;
    assert!(marks.len() >= 3, "{marks:?}");
    assert!(marks.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms));
    let echo = marks.iter().find(|mark| mark.command.contains("echo"));
    let echo = echo.unwrap();
    assert_eq!((echo.exit_code, echo.output.as_str()), (Some(0), "last"));
    assert!(echo.at_ms >= 100 && echo.seen.window_ms > 0, "{echo:?}");
    let reload = marks
        .iter()
        .find(|mark| mark.command.contains("reload"))
        .unwrap();
    assert_eq!(reload.exit_code, Some(0), "{reload:?}");
    assert!(reload.output.starts_with("reloaded"), "{reload:?}");
    assert!(marks.iter().any(|mark| mark.exit_code == Some(7)));
    // A failed disturbance invalidates the measurement.
    assert_eq!(run.code, 1);
    let problems = &outcome.problems;
    assert_eq!(*problems, ["1 of 1 runs of the command `exit 7` failed."]);
    assert!(run.stdout.contains("NOT DONE"), "{}", run.stdout);
}

#[test]
fn bench_observes_upgrade_under_load() {
    let args = ["--upgrade-every=200ms", "--connections=10"];
    let run = bench(
        &[
            &args[..],
            &["--duration=1s", "--warmup=0s", "--no-progress"],
        ]
        .concat(),
    );
    let outcome = run.is_clean();
    let mark = &outcome.marks[0];
    assert!(
        mark.exit_code == Some(0) && mark.output.starts_with("upgraded"),
        "{mark:?}"
    );
}

#[test]
fn threads_and_processes_share_exact_count() {
    let args = [
        "--count=1001",
        "--connections=7",
        "--threads=2",
        "--processes=2",
    ];
    let run = bench(&[&args[..], &["--pipeline=3", "--no-progress"]].concat());
    let outcome = run.is_clean();
    assert_eq!(outcome.totals.messages, 1001);
    assert_eq!(outcome.totals.bytes_received, 1001 * 64);
    assert_eq!(outcome.plan.processes, 2);
}

#[test]
fn more_processes_extend_descriptor_limit() {
    let limited = |args: &[&str]| {
        let program = env!("CARGO_BIN_EXE_uppercased");
        let script = format!("ulimit -n 164; exec '{program}' bench \"$@\"");
        let mut command = Command::new("sh");
        bench_by(command.args(["-c", &script, "sh"]), &short(args))
    };
    let server = Server::start(&["--listen", "127.0.0.1:0"]);
    let target = server.addr().to_string();
    let run = limited(&["idle", &target, "--connections=250"]);
    let outcome = run.is_clean();
    assert_eq!(
        (outcome.plan.processes, outcome.totals.connections),
        (3, 250)
    );
    let run = limited(&["idle", &target, "--connections=250", "--processes=2"]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("`ulimit -n 189`"), "{}", run.stderr);
}

#[test]
fn connections_use_given_source_addresses() {
    let seen = Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
    let seeing = Arc::clone(&seen);
    let bad = Bad::serve(move |number, mut stream| {
        if number > 0 {
            seeing
                .lock()
                .unwrap()
                .insert(stream.peer_addr().unwrap().ip().to_string());
        }
        wait_closed(&mut stream, DEADLINE);
    });
    bench(&short(&["idle", &bad.target(), "-c9", "--sources=3"])).is_clean();
    let seen: Vec<String> = seen.lock().unwrap().iter().cloned().collect();
    assert_eq!(seen, ["127.0.1.1", "127.0.1.2", "127.0.1.3"]);
    for (source, why) in [("192.0.2.1", "of this machine"), ("::1", "family")] {
        let run = bench(&short(&["idle", &bad.target(), "--sources", source]));
        assert!(run.code == 1 && run.stderr.contains(why), "{}", run.stderr);
    }
}

#[test]
fn more_source_addresses_resolve_port_exhaustion() {
    // The port range belongs to the network namespace.
    isolated(|| {
        let range = "/proc/sys/net/ipv4/ip_local_port_range";
        std::fs::write(range, "40000 40009").unwrap();
        let listen = ["--listen", "127.0.0.1:9", "--workers", "1"];
        let server = Server::start(&listen);
        let target = server.addr().to_string();
        let run = bench(&short(&["idle", &target, "-c30"]));
        assert_eq!(run.code, 1);
        let outcome = run.outcome();
        assert!(
            outcome.failures["no_source_port"] > 0,
            "{:?}",
            outcome.failures
        );
        assert!(
            outcome
                .warnings
                .iter()
                .any(|text| text.contains("--sources"))
        );
        let run = bench(&short(&["idle", &target, "-c20", "--sources=4"]));
        assert_eq!(run.is_clean().totals.connections, 20);
    });
}

#[test]
fn watched_process_must_exist() {
    let bad = Bad::reply(|_, bytes| Some(upper(bytes)));
    let run = bench(&short(&["ping", &bad.target(), "--pid=4194304"]));
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("--pid"), "{}", run.stderr);
    let own = std::process::id().to_string();
    let run = bench(&short(&["ping", &bad.target(), "-c2", "--pid", &own]));
    let server = run.is_clean().server.clone().unwrap();
    assert!(server.pids.contains(&std::process::id()), "{server:?}");
}

#[test]
fn failed_measurement_keeps_earlier_results() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("outcome.json");
    std::fs::write(&file, "kept").expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args(["bench", "ping", "127.0.0.1:9", "--connections=0", "--json"])
        .arg(&file)
        .output()
        .expect("it runs");
    assert_ne!(output.status.code(), Some(0));
    let text = std::fs::read_to_string(&file).expect("it is still there");
    assert_eq!(text, "kept");
}

/// Starts `bench` with `args` in the background, in its own process group.
fn in_the_background(args: &[&str], change: impl FnOnce(&mut Command)) -> Child {
    give_children_default_signals();
    let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
    command
        .arg("bench")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    change(&mut command);
    command.spawn().expect("it starts")
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it is there");
}

/// Waits until `is_enough` accepts the number of entries in `folder`.
fn wait_entries(folder: &Path, is_enough: impl Fn(usize) -> bool) {
    until("files of the measurement", || {
        is_enough(std::fs::read_dir(folder).expect("a folder").count())
    });
}

#[test]
fn interrupts_show_results_and_leave_nothing() {
    for signals in [
        &[Signal::SIGTERM, Signal::SIGTERM][..],
        &[Signal::SIGINT],
        &[Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM],
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let (there, pids) = (folder.path().join("there"), folder.path().join("pids"));
        std::fs::create_dir(&there).expect("made");
        // The command signals its own process and the server, another child of its parent, which
        // would continue.
        let command = format!(
            "--during=at 50ms: echo $$ >> {0}; pgrep -P $PPID >> {0}; trap '' TERM; sleep 3600",
            pids.display()
        );
        let args = [
            "churn",
            "--duration=1h",
            "--warmup=0s",
            "--workers=1",
            &command,
        ];
        let child = in_the_background(&args, |command| {
            command.env("TMPDIR", &there);
        });
        until("the command", || {
            std::fs::read_to_string(&pids).is_ok_and(|text| text.lines().count() >= 3)
        });
        wait_entries(&there, |count| count == 1);
        signals.iter().for_each(|signal| send(&child, *signal));
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(
            output.status.code(),
            Some(1),
            "the command was ended: {text}"
        );
        assert!(
            text.contains("Interrupted") && text.contains("problem"),
            "{text}"
        );
        assert_eq!(std::fs::read_dir(&there).expect("a folder").count(), 0);
        let pids = std::fs::read_to_string(&pids).expect("text");
        for pid in pids.lines() {
            let pid = pid.parse().expect("a number");
            assert!(
                crate::support::wait_gone(pid, DEADLINE),
                "{pid} is still there"
            );
        }
    }
}

#[test]
fn interrupt_before_the_load_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let change = |command: &mut Command| {
        command.env("TMPDIR", folder.path());
    };
    // Debug logging makes the start longer; the signal may arrive at any point of it.
    let child = in_the_background(&["ping", "--", "--log-level=debug"], change);
    wait_entries(folder.path(), |count| count == 1);
    send(&child, Signal::SIGTERM);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let (text, errors) = (&output.stdout, &output.stderr);
    assert!(!text.is_empty() || !errors.is_empty());
    wait_entries(folder.path(), |count| count == 0);
}

#[test]
fn ignored_signal_stays_ignored() {
    let bad = Bad::reply(|_, bytes| Some(upper(bytes)));
    let target = bad.target();
    let args = [
        "bench",
        "ping",
        &target,
        "-c1",
        "--duration=500ms",
        "--warmup=0s",
    ];
    for (name, signal) in [("HUP", Signal::SIGHUP), ("INT", Signal::SIGINT)] {
        let script = format!("trap '' {name}; echo ready; exec \"$@\"");
        let mut child = Command::new("sh")
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_uppercased")])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("its first line");
        send(&child, signal);
        let mut text = String::new();
        output.read_to_string(&mut text).expect("text");
        assert!(child.wait().expect("it ends").success(), "{text}");
        assert!(
            !text.contains("Interrupted") && text.contains("OK"),
            "{text}"
        );
    }
}

/// Runs `bench` briefly with its built-in server, without the JSON of [`bench`].
fn briefly(args: &[&str], change: impl FnOnce(&mut Command)) -> Output {
    let base = ["-c1", "--count=20", "--workers=1", "--no-progress"];
    let child = in_the_background(&[&base, args].concat(), change);
    child.wait_with_output().expect("it ends")
}

#[test]
fn unwritable_results_are_an_error() {
    let full = || {
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full")
    };
    let output = briefly(&[], |command| {
        command.stdout(full());
    });
    let stderr_text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr_text}");
    assert!(
        stderr_text.contains("No space left") && stderr_text.contains("20 messages"),
        "{stderr_text}"
    );
    let output = briefly(&["--json=/dev/full", "--report=/dev/full"], |_| {});
    assert_eq!(output.status.code(), Some(1));
    let stderr_text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        stderr_text.matches("cannot write /dev/full").count(),
        2,
        "{stderr_text}"
    );
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("20 messages"), "{shown}");
    // A closed pipe is no error; the other outputs are still written.
    let folder = tempfile::tempdir().expect("a folder");
    let report = format!("--report={}", folder.path().join("page").display());
    let output = briefly(&["--json=-", &report], |command| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        command.stdout(writer);
    });
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(std::fs::read_to_string(folder.path().join("page")).is_ok());
}

#[test]
fn same_path_for_two_outputs_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x").display().to_string();
    for place in [file.as_str(), "-"] {
        let outputs = [format!("--json={place}"), format!("--report={place}")];
        let output = briefly(&[&outputs[0], &outputs[1]], |_| {});
        let stderr_text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr_text}");
        assert!(stderr_text.contains("--json and --report"), "{stderr_text}");
    }
    let out = folder.path().join("out");
    let output = briefly(&[&format!("--json={}", out.display())], |command| {
        command.stdout(File::create(&out).expect("made"));
    });
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn bench_uses_or_names_temporary_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let long = folder.path().join("x".repeat(100));
    for below in [long.as_path(), &folder.path().join("tmp")] {
        std::fs::create_dir(below).expect("made");
    }
    for place in [long.as_os_str(), OsStr::new("tmp"), OsStr::new("")] {
        let output = briefly(&[], |command| {
            command.env("TMPDIR", place).current_dir(folder.path());
        });
        assert!(output.status.success(), "{place:?}: {output:?}");
    }
    let missing = folder.path().join("none");
    let output = briefly(&[], |command| {
        command.env("TMPDIR", &missing);
    });
    let stderr_text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr_text.contains(missing.to_str().expect("text")),
        "{stderr_text}"
    );
}

#[test]
fn own_server_ignores_settings_of_another() {
    let busy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let output = briefly(&[], |command| {
        let address = busy.local_addr().expect("an address").to_string();
        command
            .env("UPPERCASED_ADMIN", address)
            .env("UPPERCASED_NO_SUCH_SETTING", "1")
            .env("NOTIFY_SOCKET", "/nowhere");
    });
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn bench_reports_rate_below_plan() {
    // It answers the first messages of each connection, then stops.
    let bad = Bad::serve(|_, mut stream| {
        let mut message = [0; 64];
        for _ in 0..3 {
            if stream.read_exact(&mut message).is_err()
                || stream.write_all(&upper(&message)).is_err()
            {
                return;
            }
        }
        // Nothing connects here; the plan's duration ends the run.
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        assert!(!poll_one(
            &nobody,
            PollFlags::POLLIN,
            Duration::from_secs(2)
        ));
        while stream.read_exact(&mut message).is_ok() && stream.write_all(&upper(&message)).is_ok()
        {
        }
    });
    let target = bad.target();
    let plan = [
        "rate",
        target.as_str(),
        "-c2",
        "--rate=5000",
        "--duration=1s",
    ];
    let run = bench(
        &[
            &plan[..],
            &["--warmup=0s", "--no-progress", "--timeout=60s"],
        ]
        .concat(),
    );
    let outcome = run.outcome();
    assert_eq!(run.code, 1);
    let latency = outcome.latency.as_ref().expect("some answers");
    let schedule = outcome.schedule.as_ref().expect("an open loop");
    assert!(latency.count <= 10, "{}", latency.count);
    assert!(schedule.not_sent >= 4000, "{}", schedule.not_sent);
    assert!(
        outcome.problems[0].contains("were not sent"),
        "{:?}",
        outcome.problems
    );
    assert!(!outcome.client.is_bottleneck, "{:?}", outcome.client);
    assert!(run.stdout.contains("NOT DONE"), "{}", run.stdout);
}

#[test]
fn self_connected_socket_is_no_server() {
    // The port range belongs to the network namespace: with one port in it, every connection to
    // that port uses it.
    isolated(|| {
        let range = "/proc/sys/net/ipv4/ip_local_port_range";
        std::fs::write(range, "40000 40000").expect("root of its namespace");
        for command in ["bench", "client"] {
            let output = Command::new(env!("CARGO_BIN_EXE_uppercased"))
                .args([command, "127.0.0.1:40000"])
                .stdin(Stdio::null())
                .output()
                .expect("it runs");
            let stderr_text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{stderr_text}");
            assert!(
                stderr_text.contains("check that the server is running"),
                "{stderr_text}"
            );
            // Without SO_REUSEADDR, so that a socket in TIME_WAIT makes bind fail.
            let domain = socket2::Domain::IPV4;
            let server = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("one");
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000));
            server.bind(&address.into()).expect("the port is free");
        }
    });
}

#[test]
fn ipv6_zone_may_be_a_name() {
    isolated(|| {
        for words in [
            "link add d0 type veth peer name d1",
            "link set d1 up",
            "link set d0 up",
            "addr add fe80::77/64 dev d0 nodad",
        ] {
            let made = Command::new("ip").args(words.split(' ')).status();
            assert!(made.expect("ip").success(), "{words}");
        }
        let server = Server::start(&["--listen", "[fe80::77%d0]:9", "--workers", "1"]);
        let target = "[fe80::77%d0]:9";
        for sources in [&[][..], &["--sources=fe80::77%d0"]] {
            bench(&short(
                &[&["ping", target, "-c2", "--processes=2"], sources].concat(),
            ))
            .is_clean();
        }
        let run = bench(&["ping", "[fe80::77]:9"]);
        assert_eq!(run.code, 2);
        assert!(run.stderr.contains("%eth0"), "{}", run.stderr);
        drop(server);
    });
}

#[test]
fn ctrl_c_ends_run_with_results() {
    let (there, arrived) = std::sync::mpsc::channel();
    let there = std::sync::Mutex::new(there);
    let bad = Bad::serve(move |number, mut stream| {
        let mut piece = [0; 4096];
        let mut count = 0u32;
        while let Ok(read @ 1..) = stream.read(&mut piece) {
            match stream.write_all(&upper(&piece[..read])) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
                Ok(()) => count += 1,
            }
            if number > 0 && count == 100 {
                let _ = there.lock().unwrap().send(());
            }
        }
    });
    give_children_default_signals();
    let child = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args([
            "bench",
            "ping",
            &bad.target(),
            "-c1",
            "--duration=1h",
            "--warmup=0s",
            "--json=-",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    arrived.recv_timeout(DEADLINE).unwrap();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let outcome: Outcome = serde_json::from_slice(&output.stdout).unwrap();
    assert!(outcome.totals.messages >= 100);
    assert!(
        outcome.warnings[0].starts_with("Interrupted"),
        "{:?}",
        outcome.warnings
    );
}
