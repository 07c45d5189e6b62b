//! A load that detects every failure: many clients of all kinds use one server until they are
//! stopped; each checks every byte that it receives and ends gracefully.
//!
//! A load shows that clients do *not notice* an operation on the server. So nothing is retried or
//! forgiven: a connection that is refused, reset, ended early, late, or answered with a wrong byte
//! is a [`Failure`] that names the client and the position. The slow clients matter most: those
//! that leave output pending at the server, that have half-closed and still read, that are silent,
//! or in the middle of a message.
//!
//! A load must not saturate the machine: every client waits for its socket or its next turn, in its
//! own thread, at a bounded rate. Times are reported, never asserted.

mod clients;
mod conversation;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{PipeReader, PipeWriter, pipe};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::PollFlags;
use uppercased_ctl::clock::{Tick, now};

use self::clients::Party;
use super::netns::Namespace;
use super::process::{DEADLINE, in_background, poll_one};

pub use self::clients::Kind;
pub use self::conversation::{Failure, FailureKind};

/// Time limit of [`Load::start`] and [`Load::go_on_for`]: the deadlines of several clients.
const PATIENCE: Duration = Duration::from_secs(120);

/// Failures recorded per client; further ones are only counted.
const FAILURES_KEPT: usize = 50;

/// Failures shown by a failed assertion.
const FAILURES_SHOWN: usize = 20;

/// The number of clients of each kind, and their rates.
#[derive(Clone, Debug)]
pub struct LoadSize {
    /// Clients that connect, exchange, close, and repeat.
    pub churn: usize,
    /// Pause between two connections of one of them.
    pub churn_pause: Duration,
    /// Maximum bytes of one of their exchanges.
    pub churn_bytes: usize,
    /// Connections that send and receive continuously.
    pub streams: usize,
    /// Pause between two steps of a stream.
    pub stream_pause: Duration,
    /// Maximum bytes of a step.
    pub stream_step_bytes: usize,
    /// Maximum bytes that a stream has sent but not received back.
    pub stream_window_bytes: u64,
    /// Connections with one small message at a time, which measure stalls.
    pub pings: usize,
    /// Pause between an answer and the next message.
    pub ping_pause: Duration,
    /// Connections that send as fast as possible and read slowly.
    pub slow: usize,
    /// Pause between two reads.
    pub slow_pause: Duration,
    /// Bytes per read.
    pub slow_step_bytes: usize,
    /// Maximum bytes that a slow client has sent but not received back: the capacity of the socket
    /// buffers and the server. With more, its end would be slow.
    pub slow_window_bytes: u64,
    /// The receive buffer of a slow client.
    pub slow_receive_buffer_bytes: usize,
    /// Connections that half-close and read to the end; each is followed by another.
    pub half_closed: usize,
    /// Bytes sent first on each: at most this many, at least half.
    pub half_closed_bytes: u64,
    /// Connections that exchange once and then stay silent until the end.
    pub idle: usize,
    /// Connections that stay silent with part of an answer unread.
    pub mid_message: usize,
    /// Whether each connection begins with a PROXY header, in two pieces.
    pub is_proxied: bool,
    /// Time limit of a step without progress.
    pub deadline: Duration,
}

impl LoadSize {
    /// Returns a few clients of each kind, for a test that runs concurrently with others.
    pub fn small() -> Self {
        Self {
            churn: 4,
            churn_pause: Duration::from_millis(2),
            churn_bytes: 5000,
            streams: 2,
            stream_pause: Duration::from_millis(2),
            stream_step_bytes: 16 * 1024,
            stream_window_bytes: 256 * 1024,
            pings: 2,
            ping_pause: Duration::from_millis(2),
            slow: 2,
            slow_pause: Duration::from_millis(10),
            slow_step_bytes: 4096,
            slow_window_bytes: 16 << 20,
            slow_receive_buffer_bytes: 4096,
            half_closed: 2,
            half_closed_bytes: 512 * 1024,
            idle: 6,
            mid_message: 3,
            is_proxied: false,
            deadline: DEADLINE,
        }
    }

    /// Returns the size of a long proof that has the machine to itself.
    pub fn large() -> Self {
        Self {
            churn: 12,
            streams: 6,
            pings: 4,
            slow: 6,
            half_closed: 6,
            idle: 100,
            mid_message: 20,
            ..Self::small()
        }
    }

    /// Returns the size for a delayed link: a small window empties slowly there, and more clients
    /// are needed for the same number of handshakes in progress.
    pub fn far() -> Self {
        Self {
            churn: 24,
            slow_window_bytes: 256 * 1024,
            half_closed_bytes: 128 * 1024,
            ..Self::small()
        }
    }

    /// Returns an empty load, to be filled in.
    pub fn none() -> Self {
        Self {
            churn: 0,
            streams: 0,
            pings: 0,
            slow: 0,
            half_closed: 0,
            idle: 0,
            mid_message: 0,
            ..Self::small()
        }
    }
}

/// The origin of the clients' connections.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Their namespace, if not the test's.
    pub namespace: Option<Namespace>,
    /// Their local addresses, used in turn; if empty, the kernel chooses. Churn leaves a socket in
    /// TIME_WAIT for every connection, and one address has a limited number of ports.
    pub sources: Vec<Ipv4Addr>,
}

impl Origin {
    /// Returns the default for clients of `addr`: this namespace, and on loopback many addresses.
    pub fn of(addr: SocketAddr) -> Self {
        const SOURCES: u8 = 32;
        let has_sources = matches!(addr.ip(), IpAddr::V4(ip) if ip.is_loopback());
        let sources = (1..=SOURCES).map(|host| Ipv4Addr::new(127, 0, 1, host));
        Self {
            namespace: None,
            sources: sources.filter(|_| has_sources).collect(),
        }
    }
}

/// Running clients. Dropping it aborts them; [`Self::finish`] ends them gracefully.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    /// Closed to notify all clients.
    going_on: Option<PipeWriter>,
    parties: Vec<JoinHandle<Tally>>,
}

/// The combined results of all clients.
#[derive(Debug)]
pub struct Report {
    /// Complete and correct exchanges: conversations of churn and half-closed clients, messages of
    /// pings, exchanges of silent clients.
    pub exchanges: u64,
    /// Established connections.
    pub connections: u64,
    /// Established connections, by kind.
    pub by_kind: BTreeMap<Kind, u64>,
    /// Bytes received correctly.
    pub bytes: u64,
    /// The first failures, in order.
    pub failures: Vec<Failure>,
    /// Number of failures.
    pub failure_count: u64,
    /// The longest time between a ping and its complete answer.
    pub longest_stall: Duration,
    /// The longest time to establish a connection: a handshake that was dropped and repeated is not
    /// a failure, but takes a second.
    pub longest_connect: Duration,
}

/// The results of one client.
#[derive(Debug)]
struct Tally {
    kind: Kind,
    exchanges: u64,
    connections: u64,
    bytes: u64,
    failures: Vec<Failure>,
    failure_count: u64,
    longest_stall: Duration,
    longest_connect: Duration,
}

/// State shared by all clients.
#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    size: LoadSize,
    origin: Origin,
    begun: Tick,
    /// Reaches its end when the load is over.
    over: PipeReader,
    /// Whether the load was aborted.
    broken_off: AtomicBool,
    progress: Mutex<Progress>,
    progressed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    /// Threads whose clients have all received their first reply or failed.
    in_place: usize,
    exchanges: u64,
    failure: Option<String>,
}

impl Load {
    /// Starts clients of `target` from the default origin; see [`Self::start_from`].
    #[track_caller]
    pub fn start(target: SocketAddr, size: LoadSize) -> Self {
        Self::start_from(Origin::of(target), target, size)
    }

    /// Starts clients of `target` and waits until all of them are served or have failed, so that
    /// the next operation on the server affects all of them.
    #[track_caller]
    pub fn start_from(origin: Origin, target: SocketAddr, size: LoadSize) -> Self {
        let (over, going_on) = pipe().expect("a pipe");
        let parties = clients::parties(&size);
        let shared = Arc::new(Shared {
            target,
            size,
            origin,
            begun: now(),
            over,
            broken_off: AtomicBool::new(false),
            progress: Mutex::default(),
            progressed: Condvar::new(),
        });
        let threads = parties.into_iter().map(|(kind, index)| {
            let party = Party::new(Arc::clone(&shared), kind, index);
            in_background(move || party.run())
        });
        let load = Self {
            parties: threads.collect(),
            going_on: Some(going_on),
            shared,
        };
        let all = load.parties.len();
        load.shared.wait("every client is served", |progress| {
            progress.in_place == all
        });
        load
    }

    /// Waits for `exchanges` more exchanges.
    ///
    /// # Panics
    ///
    /// A client has failed, so the test need not run to its end.
    #[track_caller]
    pub fn go_on_for(&self, exchanges: u64) {
        self.assert_unharmed();
        let goal = self.exchanges() + exchanges;
        let done = |progress: &Progress| progress.failure.is_some() || progress.exchanges >= goal;
        self.shared.wait("the load goes on", done);
        self.assert_unharmed();
    }

    /// Returns the number of exchanges so far.
    pub fn exchanges(&self) -> u64 {
        self.shared.lock().exchanges
    }

    /// Asserts that no client has failed so far.
    #[track_caller]
    pub fn assert_unharmed(&self) {
        let failure = self.shared.lock().failure.clone();
        assert!(failure.is_none(), "{}", failure.unwrap_or_default());
    }

    /// Ends every client gracefully (half-close, the exact rest, the end of the stream) and returns
    /// the report.
    #[track_caller]
    pub fn finish(mut self) -> Report {
        self.going_on = None;
        let mut report = Report::empty();
        for party in self.parties.drain(..) {
            report.add(party.join().expect("a client panics over nothing"));
        }
        report.failures.sort_by_key(|failure| failure.after);
        report
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.broken_off.store(true, Ordering::Relaxed);
        self.going_on = None;
        for party in self.parties.drain(..) {
            // Its report is not needed.
            let _ = party.join();
        }
    }
}

impl Report {
    fn empty() -> Self {
        Self {
            exchanges: 0,
            connections: 0,
            by_kind: BTreeMap::new(),
            bytes: 0,
            failures: Vec::new(),
            failure_count: 0,
            longest_stall: Duration::ZERO,
            longest_connect: Duration::ZERO,
        }
    }

    fn add(&mut self, tally: Tally) {
        self.exchanges += tally.exchanges;
        self.connections += tally.connections;
        *self.by_kind.entry(tally.kind).or_default() += tally.connections;
        self.bytes += tally.bytes;
        self.failures.extend(tally.failures);
        self.failure_count += tally.failure_count;
        self.longest_stall = self.longest_stall.max(tally.longest_stall);
        self.longest_connect = self.longest_connect.max(tally.longest_connect);
    }

    /// Returns whether there was no failure.
    pub fn is_clean(&self) -> bool {
        self.failure_count == 0
    }

    /// Returns the number of recorded failures of `kind`.
    pub fn count(&self, kind: FailureKind) -> usize {
        let of_kind = self.failures.iter().filter(|one| one.kind == kind);
        of_kind.count()
    }

    /// Asserts that every client was served as promised.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
        assert!(
            self.connections > 0 && self.bytes > 0,
            "nothing was tried: {self}"
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} failures in {} exchanges over {} connections ({} bytes; longest stall {:?}, \
             longest connect {:?})",
            self.failure_count,
            self.exchanges,
            self.connections,
            self.bytes,
            self.longest_stall,
            self.longest_connect,
        )?;
        for failure in self.failures.iter().take(FAILURES_SHOWN) {
            write!(out, "\n  {failure}")?;
        }
        Ok(())
    }
}

impl Tally {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            exchanges: 0,
            connections: 0,
            bytes: 0,
            failures: Vec::new(),
            failure_count: 0,
            longest_stall: Duration::ZERO,
            longest_connect: Duration::ZERO,
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.failure_count += 1;
        if self.failures.len() < FAILURES_KEPT {
            self.failures.push(failure);
        }
    }
}

impl Shared {
    /// Waits for `span` or until the load is over; returns whether it is over.
    fn over_within(&self, span: Duration) -> bool {
        // Nothing is ever written, so only the end can arrive.
        poll_one(&self.over, PollFlags::POLLIN, span)
    }

    /// Returns whether the load was aborted.
    fn is_broken_off(&self) -> bool {
        self.broken_off.load(Ordering::Relaxed)
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.progressed.notify_all();
    }

    #[track_caller]
    fn wait(&self, what: &str, done: impl Fn(&Progress) -> bool) {
        let (progress, _) = self
            .progressed
            .wait_timeout_while(self.lock(), PATIENCE, |progress| !done(progress))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(
            done(&progress),
            "not within {PATIENCE:?}: {what}; {progress:?}"
        );
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
