//! A server with one worker under abuse, and a well-behaved client: the client is always served,
//! memory stays within its bound, and afterwards the server returns to its baseline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use procfs::net::TcpState;
use uppercased_ctl::process::raise_descriptor_limit;

use super::baseline::Baseline;
use super::diagnosis::queued;
use super::observe::{count_sockets, until};
use super::usage::{Counters, resident_bytes};
use super::{Client, Server, in_background};

/// Worker memory of one connection (docs/reference.md): its pending output, its record and its
/// deadline.
pub const WORKER_BYTES_MAX: u64 = (64 + 1) << 10;
/// Worker memory independent of the number of connections: spare buffers and rounding of the
/// allocator.
pub const WORKER_SLACK_BYTES: u64 = 2 << 20;
/// A server, one well-behaved client, and the baseline before the abuse.
#[derive(Debug)]
pub struct Scene {
    pub server: Server,
    pub counters: Counters,
    /// Its PID.
    pub worker: u32,
    before: Baseline,
    resident: u64,
    over: Arc<AtomicBool>,
    pinging: JoinHandle<u64>,
}

impl Scene {
    /// Starts a server, and a client that pings it continuously and fails the test if a reply is
    /// absent.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        raise_descriptor_limit().expect("as many descriptors as there may be");
        let server = Server::builder()
            .args(["--listen", "127.0.0.1:0", "--workers", "1"])
            .args(args)
            .start();
        let counters = Counters::of(&server);
        // Touch as much memory as any client can, once.
        Client::connect(server.addr()).stream(0, 1 << 20);
        counters.wait_open(0);
        let mut client = Client::connect(server.addr());
        client.roundtrip(b"before");
        let worker = server.worker_pids()[0];
        let over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&over);
        let pinging = in_background(move || {
            let mut pings = 0;
            while !flag.load(Ordering::Relaxed) {
                client.roundtrip(b"ping");
                client.expect_silence(Duration::from_millis(2));
                pings += 1;
            }
            pings
        });
        // After the slow baseline, so that the client is not idle during it.
        let before = Baseline::of(&server);
        Self {
            resident: resident_bytes(worker),
            server,
            counters,
            worker,
            before,
            over,
            pinging,
        }
    }

    /// Returns its address.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Connects `count` clients.
    #[track_caller]
    pub fn connect(&self, count: usize) -> Vec<Client> {
        (0..count).map(|_| Client::connect(self.addr())).collect()
    }

    /// Asserts that the worker's memory stays within the bound for `connections`.
    #[track_caller]
    pub fn assert_bounded(&self, connections: usize) {
        let grown = resident_bytes(self.worker).saturating_sub(self.resident);
        let bound = connections as u64 * WORKER_BYTES_MAX + WORKER_SLACK_BYTES;
        assert!(grown <= bound, "grown by {grown} bytes of {bound}");
    }

    /// Asserts that no trace of the abuse remains, that new clients are served, that the
    /// well-behaved client always was, and that the counters add up.
    #[track_caller]
    pub fn assert_as_before(self) {
        self.counters.wait_open(1);
        self.before.assert_back(&self.server);
        // None in the kernel, either: the queues are empty, and one connection is open. Sockets
        // that wait out TIME_WAIT, or for the FIN of a vanished peer, no longer belong to the
        // server.
        let port = self.server.addr().port();
        let living = || {
            let states = [
                TcpState::Established,
                TcpState::CloseWait,
                TcpState::SynRecv,
            ];
            states.map(|state| count_sockets(port, state))
        };
        until("one connection is left", || living() == [1, 0, 0]);
        assert_eq!(queued(port), 0, "no client waits");
        assert_eq!(self.server.worker_pids(), [self.worker], "it never died");
        Client::connect(self.addr()).roundtrip(b"new ones, too");
        self.over.store(true, Ordering::Relaxed);
        let pings = self.pinging.join();
        assert!(pings.expect("it was always answered") > 0);
        self.counters.wait_open(0);
        let totals = &self.server.status_json()["totals"];
        let ended = totals["closed"].as_object().expect("some have ended");
        let ended: u64 = ended.values().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(totals["accepted"].as_u64(), Some(ended), "{totals}");
        assert_eq!(totals["open"], 0, "{totals}");
        assert_eq!(totals["untracked"], 0, "{totals}");
    }
}
