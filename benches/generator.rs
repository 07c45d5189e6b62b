//! What the load generator costs beyond the least that one could do: `uppercased bench` beside a
//! hundred lines of C that check nothing, time nothing and record nothing, against the same server,
//! in turn. Both have one thread and a closed loop.
//!
//! `cargo bench --bench generator -- [PAIRS]`: prints the medians, with the least and the most, of
//! the client's CPU time per message and of the rate, and the ratio of each pair. Without a C
//! compiler it says so and does nothing.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uppercased::bench::outcome::Outcome;

/// Pairs of runs, unless the command line says otherwise.
const PAIRS: usize = 8;
const SECONDS: &str = "1";
/// Connections and bytes of a message.
const LOADS: [(u32, u32); 4] = [(1, 64), (50, 64), (1000, 64), (50, 16 * 1024)];

/// What a client did.
#[derive(Clone, Copy)]
struct Run {
    cpu_per_message_ns: f64,
    messages_per_s: f64,
}

/// A server with one worker; ends with the value.
struct Server {
    child: Child,
    port: String,
}

fn main() {
    // Cargo adds flags of its own, `--bench` among them.
    let mut args = std::env::args().skip(1);
    let pairs = args.find_map(|arg| arg.parse().ok()).unwrap_or(PAIRS);
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
    let server = Server::start();
    println!("{pairs} pairs of {SECONDS} s, in turn; median (least..most)\n");
    println!(
        "{:<18} {:>26} {:>26} {:>20}",
        "", "minimal C", "uppercased bench", "paired ratio"
    );
    for (connections, bytes) in LOADS {
        let mut runs = Vec::new();
        for _ in 0..pairs {
            let floor = minimal_run(&minimal, &server.port, connections, bytes);
            runs.push((floor, bench_run(&server.port, connections, bytes)));
        }
        println!("{bytes} B x {connections}");
        row("  CPU us a message", &runs, |run| {
            run.cpu_per_message_ns / 1e3
        });
        row("  1000 messages/s", &runs, |run| run.messages_per_s / 1e3);
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
        let output = child.stdout.take().expect("a pipe was asked for");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it says where it listens");
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
        // In order; it has no clients any more.
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
        panic!("the C client says {text:?}");
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

fn row(name: &str, runs: &[(Run, Run)], of: impl Fn(&Run) -> f64) {
    let spread = |values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        let (least, most) = (values[0], values[values.len() - 1]);
        format!("{:.2} ({least:.2}..{most:.2})", values[values.len() / 2])
    };
    let floor = spread(runs.iter().map(|(floor, _)| of(floor)).collect());
    let ours = spread(runs.iter().map(|(_, ours)| of(ours)).collect());
    let ratio = spread(
        runs.iter()
            .map(|(floor, ours)| of(ours) / of(floor))
            .collect(),
    );
    println!("{name:<18} {floor:>26} {ours:>26} {ratio:>20}");
}
