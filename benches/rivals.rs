//! What the clients of several servers see when one process of the server is killed.
//!
//! Every server has two worker processes (HAProxy: one, with two threads). In each round
//! [`CONNECTIONS`] clients send a message, one worker is killed with `SIGKILL`, and each client
//! reads its reply. A connection that ends, or whose reply does not come within [`PATIENCE`], is
//! lost. Lost connections are opened again before the next round.
//!
//! - `C epoll`: the floor of the other benches, twice, on one port; the bench starts a killed one
//!   again, as a supervisor would.
//! - `nginx`, `HAProxy`: in front of one more process of the floor, which is not killed, because
//!   they forward and do not answer. HAProxy ends when its worker dies, and is started again.
//!
//! A server that is not installed, or cannot be compiled, is named and skipped. A wrong byte, and
//! a connection that this crate's server loses, fail the bench.
//!
//! `cargo bench --bench rivals -- kill`; without `--bench` among its arguments, it runs a few
//! rounds of the servers that it can build, as a smoke test.

#![expect(
    clippy::disallowed_methods,
    reason = "a bench reads the clock, waits, and is several parties at once"
)]

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use self::server::{Rival, Running};

#[expect(dead_code, reason = "shared with the peers, which use more of it")]
#[path = "peers/child.rs"]
mod child;
#[path = "rivals/server.rs"]
mod server;

/// Connections in each round.
const CONNECTIONS: usize = 200;
/// Killed workers for each server.
const ROUNDS: usize = 20;
/// The same in a smoke test.
const FEW_ROUNDS: usize = 2;
/// Time for a reply, and for a server to accept again.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the clients saw in one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    lost: usize,
    /// From the kill to the last reply.
    took: Duration,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_bench = args.iter().any(|arg| arg == "--bench");
    if let Some(other) = args
        .iter()
        .find(|arg| !["--bench", "kill"].contains(&arg.as_str()))
    {
        eprintln!("error: unknown event {other}; there is `kill`");
        return ExitCode::from(2);
    }
    let (rivals, rounds) = if is_bench {
        (&Rival::ALL[..], ROUNDS)
    } else {
        (&[Rival::Ours, Rival::Floor][..], FEW_ROUNDS)
    };
    println!("SIGKILL of one worker, {CONNECTIONS} connections, {rounds} rounds");
    println!(
        "{:12} {:16} {:>24} {:>28}",
        "server", "version", "lost per kill", "last reply after, ms"
    );
    let mut failed = false;
    for &rival in rivals {
        match measure(rival, rounds) {
            Ok(seen) => {
                failed |= rival == Rival::Ours && seen.iter().any(|round| round.lost > 0);
                row(rival, &seen);
            }
            Err(cause) => println!("{:12} not measured: {cause}", rival.name()),
        }
    }
    if failed {
        eprintln!("error: uppercased lost a connection");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// # Errors
/// The reason why the server is unavailable here, or does not serve again.
fn measure(rival: Rival, rounds: usize) -> io::Result<Vec<Round>> {
    let mut running = Running::start(rival)?;
    let mut clients = Vec::new();
    let seen = (0..rounds)
        .map(|number| round(&mut running, &mut clients, number))
        .collect();
    // Otherwise a server that drains would wait for them.
    drop(clients);
    seen
}

fn round(running: &mut Running, clients: &mut Vec<TcpStream>, number: usize) -> io::Result<Round> {
    while clients.len() < CONNECTIONS {
        clients.push(open(running.addr)?);
    }
    let message = |index: usize| format!("message {number} of client {index}");
    for (index, client) in clients.iter_mut().enumerate() {
        client.write_all(message(index).as_bytes())?;
    }
    running.kill_worker()?;
    let killed = Instant::now();
    let mut kept = Vec::new();
    let mut took = Duration::ZERO;
    for (index, mut client) in clients.drain(..).enumerate() {
        let expected = message(index).to_ascii_uppercase();
        let mut reply = vec![0; expected.len()];
        if client.read_exact(&mut reply).is_ok() {
            assert_eq!(reply, expected.as_bytes(), "a wrong byte");
            took = killed.elapsed();
            kept.push(client);
        }
    }
    let lost = CONNECTIONS - kept.len();
    *clients = kept;
    running.recover()?;
    Ok(Round { lost, took })
}

/// Opens a connection that the server has accepted.
fn open(addr: SocketAddr) -> io::Result<TcpStream> {
    let until = Instant::now() + PATIENCE;
    loop {
        let attempt = try_open(addr);
        if attempt.is_ok() || Instant::now() > until {
            return attempt;
        }
        // Other servers do not tell when they accept again.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn try_open(addr: SocketAddr) -> io::Result<TcpStream> {
    let mut client = TcpStream::connect(addr)?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(b"a")?;
    let mut reply = [0];
    client.read_exact(&mut reply)?;
    assert_eq!(&reply, b"A", "a wrong byte");
    Ok(client)
}

fn row(rival: Rival, seen: &[Round]) {
    let lost = spread(seen.iter().map(|round| round.lost as f64), 0);
    let took = spread(seen.iter().map(|round| round.took.as_secs_f64() * 1e3), 1);
    println!(
        "{:12} {:16} {lost:>24} {took:>28}",
        rival.name(),
        rival.version()
    );
}

/// Shows median, minimum and maximum.
fn spread(figures: impl Iterator<Item = f64>, digits: usize) -> String {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
    let median = sorted[sorted.len() / 2];
    format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
}
