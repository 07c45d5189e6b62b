//! The clients: the load generator's engine, one team per kind of connection.
//!
//! Idle connections send nothing until the final check, in which each exchanges a message. Pinging
//! ones have one outstanding message. Stalled ones send without reading until no bytes move, so
//! that the worker has pending output; they read it in the final check.
//!
//! Invariants: every received byte is compared with the expected one; a connection that ends, or
//! receives unexpected data, fails the bench.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use uppercased_bench::findings::Findings;
use uppercased_bench::options::{Options, Pattern};
use uppercased_bench::plan::{Facts, Plan, settle};
use uppercased_bench::team::{Progress, Team};
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::process::raise_descriptor_limit;

use super::server::Server;

/// Receive buffer of a stalled client: small, so that output stays pending at the server.
const STALLED_RECEIVE_BYTES: u32 = 4096;
/// Clients count as stalled once the server has received nothing for this long.
const STUCK_AFTER: Duration = Duration::from_millis(200);
/// Minimum average output pending per stalled client.
const OWED_BYTES_MIN: u64 = 16 * 1024;
/// Time over which the messages of the final check are spread.
const CHECK: Duration = Duration::from_secs(1);
/// Resolution of the windows.
pub(crate) const INTERVAL: Duration = Duration::from_millis(5);
/// Upper bound of the load, which is stopped earlier, and of every wait in a successful run.
const LOAD_MAX: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_secs(30);

/// Number of connections of each kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) idle: usize,
    pub(crate) pinging: usize,
    pub(crate) stalled: usize,
}

impl Load {
    pub(crate) const fn total(&self) -> usize {
        self.idle + self.pinging + self.stalled
    }
}

/// All connections. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct Clients {
    idle: Option<Team>,
    pinging: Team,
    stalled: Option<Team>,
    /// When the first ping was sent.
    since: Tick,
}

/// The measurements of the pinging clients.
#[derive(Debug)]
pub(crate) struct Stalls {
    findings: Findings,
    since: Tick,
}

impl Clients {
    /// Opens every connection, fills the stalled ones and starts pinging.
    pub(crate) fn start(server: &Server, load: Load) -> Self {
        let some = |pattern, count| (count > 0).then(|| open(server.addr, pattern, count));
        let idle = some(Pattern::Hold, load.idle);
        let mut pinging = open(server.addr, Pattern::Ping, load.pinging);
        let mut stalled = some(Pattern::Stall, load.stalled);
        if let Some(stalled) = &mut stalled {
            stalled.start(clock::now());
            let owed = server.await_quiet(STUCK_AFTER);
            let least = load.stalled as u64 * OWED_BYTES_MIN;
            assert!(
                owed >= least,
                "clients that do not read are owed {owed} bytes"
            );
        }
        let since = clock::now();
        pinging.start(since);
        Self {
            idle,
            pinging,
            stalled,
            since,
        }
    }

    /// Checks every connection to its last byte; fails if one was lost.
    pub(crate) fn finish(self) -> Stalls {
        if let Some(mut idle) = self.idle {
            // Its number of messages ends it.
            idle.start(clock::now());
            check(idle);
        }
        if let Some(mut stalled) = self.stalled {
            stalled.stop();
            check(stalled);
        }
        let mut pinging = self.pinging;
        pinging.stop();
        Stalls {
            findings: check(pinging),
            since: self.since,
        }
    }
}

impl Stalls {
    /// Returns the longest time from a ping to its reply in `window`.
    pub(crate) fn longest(&self, window: &Range<Tick>) -> Duration {
        let at = |tick: Tick| tick.since(self.since);
        let seen = self.findings.seen(at(window.start), at(window.end));
        assert!(seen.p99_ns > 0, "no ping was answered");
        Duration::from_secs_f64(seen.longest_stall_ms / 1e3)
    }
}

fn open(server: SocketAddr, pattern: Pattern, connections: usize) -> Team {
    let mut team = Team::launch(&plan(pattern, connections), server).expect("start the clients");
    let ready = team.reach(Progress::Ready, DEADLINE);
    ready.expect("the server accepts connections");
    assert_eq!(team.counts().failed, 0, "failed {pattern:?} connections");
    team
}

fn plan(pattern: Pattern, connections: usize) -> Plan {
    let idle = pattern == Pattern::Hold;
    let options = Options {
        pattern: Some(pattern),
        connections: u32::try_from(connections).ok(),
        threads: Some(1),
        every: idle.then_some(CHECK),
        count: idle.then_some(connections as u64),
        duration: (!idle).then_some(LOAD_MAX),
        warmup: Some(Duration::ZERO),
        receive_buffer: (pattern == Pattern::Stall).then_some(STALLED_RECEIVE_BYTES),
        timeout: Some(DEADLINE),
        ..Options::default()
    };
    let facts = Facts {
        cpus: 1,
        descriptors: raise_descriptor_limit().expect("the limit"),
        loopback: true,
    };
    let plan = settle(&options, &facts).expect("the options agree");
    Plan {
        interval: INTERVAL,
        ..plan
    }
}

/// Waits for the last replies, and fails if a connection has failed.
fn check(mut team: Team) -> Findings {
    let done = team.reach(Progress::Done, DEADLINE);
    done.expect("every reply arrives");
    let findings = Findings::of(&team.into_records(), INTERVAL);
    assert_eq!(
        findings.failures(),
        [].into(),
        "{:?}",
        findings.sums().first
    );
    findings
}
