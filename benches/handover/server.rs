//! The server under measurement: the built program, watched through its log.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use uppercased_ctl::control::{Done, Reply, Request, client};
use uppercased_ctl::status::Status;

/// Upper bound of an operation, or of the wait for a log line, in a successful run.
const DEADLINE: Duration = Duration::from_secs(40);
/// Text that the server prints before its address once it serves.
const READY: &str = "listening on ";
/// Time that a worker being removed waits for handshakes; loopback needs almost none.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(100);

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    pub(crate) addr: SocketAddr,
    log: Receiver<String>,
    folder: TempDir,
}

/// A successful operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    /// From the request to the result, measured by the caller.
    pub(crate) total: Duration,
    /// The handover's share of it, from the server's log (whole milliseconds).
    pub(crate) handover: Duration,
    /// Connections that migrated.
    pub(crate) migrated: u64,
}

/// Scheduler times of a worker since its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessorTime {
    worker: u32,
    /// Time running.
    pub(crate) ran: Duration,
    /// Time runnable but not running.
    pub(crate) waited: Duration,
}

impl ProcessorTime {
    /// Returns the difference from `earlier`, or the total if `earlier` is of another worker.
    pub(crate) fn since(self, earlier: Self) -> Self {
        if self.worker != earlier.worker {
            return self;
        }
        Self {
            worker: self.worker,
            ran: self.ran.saturating_sub(earlier.ran),
            waited: self.waited.saturating_sub(earlier.waited),
        }
    }
}

impl Server {
    /// Starts a server with one worker and waits until it serves.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let handshake = format!("--handshake-timeout={}ms", HANDSHAKE_TIMEOUT.as_millis());
        let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UPPERCASED_") {
                command.env_remove(name);
            }
        }
        let mut process = command
            .args(["--listen=127.0.0.1:0", "--workers=1", "--bake-time=0s"])
            .args([&handshake, "--log-format=json", "--control"])
            .arg(folder.path().join("control"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the server");
        let (sender, log) = channel();
        let lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        // The channel ends when the last process that writes the log exits.
        std::thread::spawn(move || {
            let _ = lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line));
        });
        let mut first = String::new();
        let stdout = process.stdout.take().expect("a pipe");
        let read = BufReader::new(stdout).read_line(&mut first);
        let addr = first.trim_end().strip_prefix(READY);
        let addr = addr.and_then(|addr| addr.parse().ok());
        Self {
            addr: addr.unwrap_or_else(|| panic!("no server: {read:?} {first:?}")),
            process,
            log,
            folder,
        }
    }

    /// Sends a command and waits for the result, which must be a success.
    pub(crate) fn run(&self, request: Request) -> Operation {
        let begun = Instant::now();
        let reply = self.ask(request);
        let total = begun.elapsed();
        let Reply::Done(Done {
            migrated,
            draining: 0,
            ..
        }) = reply
        else {
            panic!("{request:?}: {reply:?}\n{}", self.log_so_far());
        };
        Operation {
            total,
            handover: self.handover(),
            migrated,
        }
    }

    /// Waits until the server has received nothing for `quiet`; returns the number of bytes
    /// received but not yet sent back.
    pub(crate) fn await_quiet(&self, quiet: Duration) -> u64 {
        let mut received = None;
        loop {
            let traffic = self.status().totals.traffic;
            if received == Some(traffic.received_bytes) {
                return traffic.received_bytes - traffic.sent_bytes;
            }
            received = Some(traffic.received_bytes);
            std::thread::sleep(quiet);
        }
    }

    /// Returns the scheduler times of the first slot's worker since its start.
    pub(crate) fn processor_time(&self) -> ProcessorTime {
        let worker = self.status().slots[0].pid.expect("a worker");
        let path = format!("/proc/{worker}/schedstat");
        let text = std::fs::read_to_string(&path).expect("the worker lives");
        let mut nanos = text.split(' ').filter_map(|number| number.parse().ok());
        let mut next = || Duration::from_nanos(nanos.next().expect("a number"));
        ProcessorTime {
            worker,
            ran: next(),
            waited: next(),
        }
    }

    fn status(&self) -> Status {
        match self.ask(Request::Status) {
            Reply::Status(status) => *status,
            reply => panic!("no status: {reply:?}"),
        }
    }

    /// Stops the server, and asserts that no error was logged.
    pub(crate) fn stop(mut self) {
        self.end();
        let status = self.process.wait().expect("it is our child");
        assert!(status.success(), "the server ended with {status}");
    }

    fn ask(&self, request: Request) -> Reply {
        let path = self.folder.path().join("control");
        match client::ask(&path, &request, Some(DEADLINE), |_| {}) {
            Ok(reply) => reply,
            Err(error) => panic!("{request:?}: {error}\n{}", self.log_so_far()),
        }
    }

    /// Reads the log up to the end of the operation; returns the duration of its handovers.
    fn handover(&self) -> Duration {
        let mut took = Duration::ZERO;
        loop {
            let line = self.log.recv_timeout(DEADLINE).expect("a line of the log");
            let line: Value = serde_json::from_str(&line).expect("JSON");
            assert_ne!(line["level"], "ERROR", "{line}");
            match line["event"].as_str() {
                Some("handover_finished") => {
                    let millis = line["duration_ms"].as_u64().expect("a number");
                    took += Duration::from_millis(millis);
                }
                Some("operation_done") => return took,
                _ => {}
            }
        }
    }

    fn log_so_far(&self) -> String {
        self.log.try_iter().collect::<Vec<_>>().join("\n")
    }

    /// Sends the stop signal and waits until the last process has exited.
    fn end(&self) {
        let pid = Pid::from_raw(self.process.id().cast_signed());
        // The process is reaped only when `self` is dropped, so the PID cannot be reused.
        let _ = kill(pid, Signal::SIGTERM);
        loop {
            match self.log.recv_timeout(DEADLINE) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        let _ = kill(pid, Signal::SIGKILL);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already reaped if it was stopped.
        if matches!(self.process.try_wait(), Ok(None)) {
            self.end();
            let _ = self.process.wait();
        }
    }
}
