//! The clients: the load generator's engine, one team for established connections and one for new
//! ones, during one event.
//!
//! Invariant: every received byte is compared with the expected one; a wrong byte ends the bench
//! with an error.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use uppercased_bench::findings::Findings;
use uppercased_bench::options::{Options, Pattern};
use uppercased_bench::plan::{Facts, settle};
use uppercased_bench::team::{Progress, Team};
use uppercased_ctl::clock;
use uppercased_ctl::process::raise_descriptor_limit;

/// Connections established before the event.
pub(crate) const ESTABLISHED: u32 = 200;
/// Messages per second on all of them.
pub(crate) const RATE: f64 = 2000.0;
/// Connections that are opened, used and closed at the same time, again and again.
pub(crate) const NEW: u32 = 32;
/// Messages on each of these.
pub(crate) const MESSAGES_EACH: u32 = 1;
/// Time for a reply, and for a connection.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Upper bound of the load, which is stopped earlier.
const LOAD_MAX: Duration = Duration::from_secs(600);
/// Upper bound of the time to open every connection, and of that to receive the last replies.
const DEADLINE: Duration = Duration::from_secs(30);

/// Both teams.
#[derive(Debug)]
pub(crate) struct Clients {
    established: Team,
    new: Team,
}

/// Clients' observations during one event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Established connections that the server closed or reset, or that got no reply in time.
    pub(crate) lost: u64,
    /// The same of connections opened during the event.
    pub(crate) reset: u64,
    /// Attempts to connect that were refused or timed out.
    pub(crate) refused: u64,
    /// Longest time without a reply that was due, on any connection.
    pub(crate) longest_wait: Duration,
}

impl Clients {
    /// Opens every connection, and begins.
    ///
    /// # Errors
    /// The server does not serve all of them.
    pub(crate) fn start(server: SocketAddr) -> io::Result<Self> {
        let established = open(server, Pattern::Rate, ESTABLISHED)?;
        let mut both = Self {
            established,
            new: open(server, Pattern::Churn, NEW)?,
        };
        let now = clock::now();
        both.established.start(now);
        both.new.start(now);
        Ok(both)
    }

    /// Ends the load.
    ///
    /// # Errors
    /// A byte was wrong, or this machine refused something.
    pub(crate) fn finish(self) -> io::Result<Seen> {
        let (established, new) = (end(self.established)?, end(self.new)?);
        let count = |findings: &Findings, kinds: &[&str]| {
            let failures = findings.failures();
            let counts = kinds.iter().map(|kind| failures.get(*kind).unwrap_or(&0));
            counts.sum::<u64>()
        };
        let broken = ["reset", "early_eof", "timeout"];
        let refused = ["refused", "connect_timeout"];
        let longest_ns = [&established, &new].map(|findings| findings.sums().longest_stall_ns);
        Ok(Seen {
            lost: count(&established, &broken),
            reset: count(&new, &broken),
            refused: count(&established, &refused) + count(&new, &refused),
            longest_wait: Duration::from_nanos(longest_ns[0].max(longest_ns[1])),
        })
    }
}

/// Returns whether the server answers.
pub(crate) fn is_served(server: SocketAddr) -> bool {
    let exchange = || -> io::Result<[u8; 1]> {
        let mut client = TcpStream::connect(server)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.write_all(b"a")?;
        let mut reply = [0];
        client.read_exact(&mut reply)?;
        Ok(reply)
    };
    exchange().is_ok_and(|reply| reply == *b"A")
}

fn open(server: SocketAddr, pattern: Pattern, connections: u32) -> io::Result<Team> {
    let is_new = pattern == Pattern::Churn;
    let options = Options {
        pattern: Some(pattern),
        connections: Some(connections),
        threads: Some(1),
        rate: (!is_new).then_some(RATE),
        messages_each: is_new.then_some(MESSAGES_EACH),
        duration: Some(LOAD_MAX),
        warmup: Some(Duration::ZERO),
        timeout: Some(PATIENCE),
        connect_timeout: Some(PATIENCE),
        ..Options::default()
    };
    let facts = Facts {
        cpus: 1,
        descriptors: raise_descriptor_limit()?,
        loopback: true,
    };
    let plan = settle(&options, &facts).map_err(io::Error::other)?;
    let mut team = Team::launch(&plan, server)?;
    team.reach(Progress::Ready, DEADLINE)
        .map_err(io::Error::other)?;
    match team.counts().failed {
        0 => Ok(team),
        failed => Err(io::Error::other(format!("{failed} connections failed"))),
    }
}

/// Waits for the last replies.
fn end(mut team: Team) -> io::Result<Findings> {
    team.stop();
    team.reach(Progress::Done, DEADLINE)
        .map_err(io::Error::other)?;
    let findings = Findings::of(&team.into_records(), LOAD_MAX);
    for kind in ["wrong_byte", "no_source_port", "system"] {
        if findings.failures().contains_key(kind) {
            let first = &findings.sums().first;
            return Err(io::Error::other(format!("{kind}: {first:?}")));
        }
    }
    Ok(findings)
}
