//! Adverse conditions for a server (stopped workers, full buffers), and reports of skipped tests.

use std::io::{self, Write};
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use uppercased_ctl::metrics::Counter;

use super::bytes::{pattern, upper};
use super::client::Client;
use super::netns::own_name;
use super::observe::{freeze, until};
use super::process::{Deadline, Watched, poll_one};
use super::server::Server;
use super::usage::Counters;

/// Bytes of one send or receive of a long transfer.
const STEP_BYTES: usize = 16 * 1024;

/// A client that can send nothing for this long has no room: the server has stopped reading from
/// it.
const NO_ROOM: Duration = Duration::from_millis(100);

/// The stopped workers of a server. Dropping it resumes them; they then receive all pending input
/// at once.
#[derive(Debug)]
pub struct Frozen(Vec<Watched>);

impl Frozen {
    /// Stops every worker of `server`.
    #[track_caller]
    pub fn workers(server: &Server) -> Self {
        let pids = server.worker_pids();
        let workers: Vec<Watched> = pids.into_iter().filter_map(Watched::open).collect();
        assert!(!workers.is_empty(), "there is no worker");
        // Created first, so that the workers resume even if this panics.
        let frozen = Self(workers);
        frozen.0.iter().for_each(freeze);
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for worker in &self.0 {
            worker.signal(Signal::SIGCONT);
        }
    }
}

/// Sends the [`pattern`] from its start, reading nothing, until the server stops reading; returns
/// the number of bytes sent.
///
/// It continues until there is no room *and* the server reports unsent bytes, so that backpressure
/// ends it and not a slow machine: a worker without CPU time leaves no room either.
#[track_caller]
pub fn fill(client: &Client, counters: &Counters) -> u64 {
    fill_all(std::slice::from_ref(client), counters)[0]
}

/// Like [`fill`], for many clients at once.
#[track_caller]
pub fn fill_all(clients: &[Client], counters: &Counters) -> Vec<u64> {
    let before = counters.count(Counter::Backpressure);
    let mut sent = vec![0; clients.len()];
    until(
        "no client has room, and the server holds output of each",
        || {
            for (client, sent) in clients.iter().zip(&mut sent) {
                fill_up(client, sent);
            }
            let holds = counters.count(Counter::Backpressure) - before;
            !any_has_room(clients) && holds >= clients.len() as u64
        },
    );
    sent
}

/// Sends as much as the socket accepts now.
fn fill_up(client: &Client, sent: &mut u64) {
    loop {
        match client.send_some(&pattern(*sent, STEP_BYTES)) {
            0 => return,
            more => *sent += more as u64,
        }
    }
}

/// Returns whether one of the clients can send again within [`NO_ROOM`].
fn any_has_room(clients: &[Client]) -> bool {
    let deadline = Deadline::after(NO_ROOM);
    let mut room = clients
        .iter()
        .map(|client| poll_one(client.socket(), PollFlags::POLLOUT, deadline.left()));
    room.any(|has_room| has_room)
}

/// Asserts that the answer to `range` of the [`pattern`] follows.
#[track_caller]
pub fn expect_pattern(client: &mut Client, range: std::ops::Range<u64>) {
    let mut at = range.start;
    while at < range.end {
        let step = (range.end - at).min(STEP_BYTES as u64) as usize;
        client.expect(&upper(&pattern(at, step)));
        at += step as u64;
    }
}

/// Reports that the calling test has tested nothing, and why. Bypasses the test runner, which hides
/// the output of a passing test.
pub fn skipped(why: &str) {
    drop(writeln!(io::stderr(), "SKIPPED: {}: {why}", own_name()));
}

/// Returns whether this machine has the IPv6 loopback address; reports a skip if not.
pub fn has_ipv6() -> bool {
    let has = std::net::TcpListener::bind("[::1]:0").is_ok();
    if !has {
        skipped("no IPv6 on the loopback interface");
    }
    has
}
