//! The load generator's cost, compared with a minimal client and with the most common tool:
//! `uppercased bench`, a hundred lines of C (no checks, timing or records) and, if installed, `wrk`
//! run in turn against the same server. Each has one thread, a closed loop and a CPU separate from
//! the server's.
//!
//! `cargo bench --bench generator -- [ROUNDS]` prints medians, with minimum and maximum, of the
//! client's CPU time per message and of the rate, and the ratio of `uppercased bench` to each of
//! the others in the same round. Without a C compiler it prints a note and exits.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike as _;
use nix::unistd::Pid;
use uppercased_bench::outcome::Outcome;

/// Default number of rounds.
const ROUNDS: usize = 8;
const SECONDS: &str = "1";
/// Number of connections, and bytes per message.
const LOADS: [(u32, u32); 4] = [(1, 64), (50, 64), (1000, 64), (50, 16 * 1024)];
/// CPUs of the two sides.
const CLIENT_CPU: usize = 0;
const SERVER_CPU: usize = 1;

/// Result of a client.
#[derive(Clone, Copy)]
struct Run {
    cpu_per_message_ns: f64,
    messages_per_s: f64,
}

/// Runs each client once.
struct Round {
    minimal: Run,
    ours: Run,
    wrk: Option<Run>,
}

/// A server with one worker; dropping it stops it.
struct Server {
    child: Child,
    port: String,
}

fn main() {
    // Cargo adds its own flags, `--bench` among them.
    let mut args = std::env::args().skip(1);
    let rounds = args.find_map(|arg| arg.parse().ok()).unwrap_or(ROUNDS);
    let folder = tempfile::tempdir().expect("a folder for the C client");
    let minimal = folder.path().join("minimal");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/generator/minimal.c");
    let compiled = Command::new("cc")
        .args(["-O2", "-o"])
        .arg(&minimal)
        .arg(source)
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        println!("skipped: no C compiler `cc` that compiles {source}");
        return;
    }
    let wrk = Command::new("wrk").arg("-v").output().is_ok();
    if !wrk {
        println!("skipped wrk: it is not installed");
    }
    // Children of a bound thread inherit its CPUs.
    bind(SERVER_CPU);
    let server = Server::start();
    bind(CLIENT_CPU);
    println!("{rounds} rounds of {SECONDS} s, in turn; median (least..most)");
    for (connections, bytes) in LOADS {
        let rounds: Vec<Round> = (0..rounds)
            .map(|_| Round {
                minimal: minimal_run(&minimal, &server.port, connections, bytes),
                ours: bench_run(&server.port, connections, bytes),
                wrk: wrk.then(|| wrk_run(&server.port, connections, bytes)),
            })
            .collect();
        println!("\n{bytes} B x {connections}");
        println!(
            "  {:<18} {:>24} {:>26} {:>24} {:>24}",
            "", "CPU us per message", "1000 messages/s", "CPU: ours / this", "rate: ours / this"
        );
        row("uppercased bench", &rounds, |round| Some(round.ours));
        row("minimal C", &rounds, |round| Some(round.minimal));
        row("wrk", &rounds, |round| round.wrk);
    }
}

/// Binds this thread and its future children, if there is more than one CPU.
fn bind(cpu: usize) {
    let mut cpus = CpuSet::new();
    if cpus.set(cpu).is_err() || sched_setaffinity(Pid::from_raw(0), &cpus).is_err() {
        println!("cannot bind to CPU {cpu}: the machine has no such CPU");
    }
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_uppercased"))
            .args([
                "serve",
                "--listen=127.0.0.1:0",
                "--workers=1",
                "--control=off",
            ])
            .args(["--log-level=warn", "--lame-duck=0s"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it prints its address");
        let port = line
            .trim()
            .rsplit(':')
            .next()
            .unwrap_or_default()
            .to_owned();
        Self { child, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Stops gracefully; it has no clients left.
        let _ = kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        );
        let _ = self.child.wait();
    }
}

fn minimal_run(program: &Path, port: &str, connections: u32, bytes: u32) -> Run {
    let output = Command::new(program)
        .args([port, &connections.to_string(), &bytes.to_string(), SECONDS])
        .output()
        .expect("the C client runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let &[messages, cpu_ns, wall_ns] = numbers.as_slice() else {
        panic!("the C client prints {text:?}");
    };
    Run {
        cpu_per_message_ns: cpu_ns / messages,
        messages_per_s: messages / (wall_ns / 1e9),
    }
}

fn bench_run(port: &str, connections: u32, bytes: u32) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args(["bench", "ping", &format!("127.0.0.1:{port}"), "--json=-"])
        .args(["--threads=1", "--warmup=100ms", "--no-progress"])
        .arg(format!("--duration={SECONDS}s"))
        .arg(format!("--connections={connections}"))
        .arg(format!("--size={bytes}"))
        .output()
        .expect("the load generator runs");
    let outcome: Outcome = serde_json::from_slice(&output.stdout).expect("it writes JSON");
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    Run {
        cpu_per_message_ns: outcome.client.cpu_per_message_ns,
        messages_per_s: outcome.totals.messages as f64 / (outcome.measured_ms as f64 / 1e3),
    }
}

/// Runs `wrk`. Its CPU time is that of the whole process, including its start: a few per mille of
/// the run.
fn wrk_run(port: &str, connections: u32, bytes: u32) -> Run {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/generator/wrk.lua");
    let before = children_cpu_ns();
    let output = Command::new("wrk")
        .args(["--threads=1", "--script", script])
        .arg(format!("--connections={connections}"))
        .arg(format!("--duration={SECONDS}s"))
        .arg(format!("http://127.0.0.1:{port}/"))
        .args(["--", &bytes.to_string()])
        .output()
        .expect("wrk runs");
    let cpu_ns = children_cpu_ns() - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let halves = |of: &str| {
        let line = text.lines().find_map(|line| line.split_once(of));
        line.unwrap_or_else(|| panic!("wrk prints {text:?}"))
    };
    let number = |word: &str| -> f64 { word.trim().parse().expect("a number") };
    Run {
        cpu_per_message_ns: cpu_ns / number(halves(" requests in ").0),
        messages_per_s: number(halves("Requests/sec:").1),
    }
}

fn children_cpu_ns() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("it cannot fail");
    let all = usage.user_time() + usage.system_time();
    all.num_microseconds() as f64 * 1e3
}

/// Prints a line about the clients that `of` selects, if they ran.
fn row(name: &str, rounds: &[Round], of: impl Fn(&Round) -> Option<Run>) {
    let pairs: Vec<(Run, Run)> = rounds
        .iter()
        .filter_map(|round| Some((round.ours, of(round)?)))
        .collect();
    if pairs.is_empty() {
        return;
    }
    let spread = |value: fn(Run, Run) -> f64| {
        let mut values: Vec<f64> = pairs
            .iter()
            .map(|&(ours, this)| value(ours, this))
            .collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (values[0], values[values.len() - 1]);
        format!("{:.2} ({least:.2}..{most:.2})", values[values.len() / 2])
    };
    println!(
        "  {name:<18} {:>24} {:>26} {:>24} {:>24}",
        spread(|_, this| this.cpu_per_message_ns / 1e3),
        spread(|_, this| this.messages_per_s / 1e3),
        spread(|ours, this| ours.cpu_per_message_ns / this.cpu_per_message_ns),
        spread(|ours, this| ours.messages_per_s / this.messages_per_s),
    );
}
