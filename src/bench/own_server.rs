//! A server of the measurement's own: this very program, on a free port of the loopback network.
//!
//! Invariants: it is gone when the value is, in order if it can be and killed if not; should this
//! process die without a word, the kernel tells the server to stop. It keeps out of the terminal's
//! process group, so that Ctrl-C reaches the measurement first and the server last.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::control::client::{self, Conversation};
use crate::control::{Reply, Request};
use crate::status::Status;
use crate::sys::child::die_with_parent;

/// How long it may take to serve, and to stop.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// What it prints when it serves.
const READY: &str = "listening on ";

/// A running server.
#[derive(Debug)]
pub(super) struct OwnServer {
    child: Child,
    folder: PathBuf,
    /// Where it serves.
    pub address: SocketAddr,
    /// The program that it runs.
    pub program: PathBuf,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The system refuses.
    #[error("cannot start a server to measure: {0}")]
    System(#[from] io::Error),
    /// It ended instead of serving.
    #[error("the server to be measured does not start: {0}")]
    Refused(String),
}

impl OwnServer {
    /// Starts one with `workers` workers, or as many as it likes, and `arguments` of its own.
    ///
    /// # Errors
    /// It does not start; its own words say why.
    pub(super) fn start(workers: Option<u16>, arguments: &[String]) -> Result<Self, Error> {
        let program = std::env::current_exe()?;
        let folder = std::env::temp_dir().join(format!("uppercased-bench-{}", std::process::id()));
        // Made anew: what lies there is of a process that had this number and was killed.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder)?;
        let log = folder.join("log");
        let mut command = Command::new(&program);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--lame-duck", "0s"])
            .arg("--control")
            .arg(folder.join("control.sock"))
            .args(workers.map(|workers| format!("--workers={workers}")))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?)
            .process_group(0);
        die_with_parent(&mut command, Signal::TERM);
        let started = command.spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                let _ = fs::remove_dir_all(&folder);
                return Err(error.into());
            }
        };
        let output = child.stdout.take();
        let mut server = Self {
            child,
            folder,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            program,
        };
        // Its end is the end of the output, so this waits for one of the two.
        let lines = output
            .into_iter()
            .flat_map(|output| BufReader::new(output).lines());
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix(READY)?.parse().ok());
        match address {
            Some(address) => server.address = address,
            None => return Err(Error::Refused(last_line(&log))),
        }
        Ok(server)
    }

    /// Its process number, for as long as it lives.
    #[must_use]
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it takes orders.
    #[must_use]
    pub(super) fn control(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    fn stop(&mut self) {
        let stopping =
            Conversation::open(&self.control(), Some(PATIENCE)).and_then(|mut server| {
                server.ask(&Request::Stop)?;
                while server.next_reply()?.is_some() {}
                Ok(())
            });
        if stopping.is_err() || !ended_within(self.pid(), PATIENCE) {
            // Its workers end with it, when they have finished what they owe.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// How the server at `control` is doing; `None` if it does not say.
#[must_use]
pub(super) fn status(control: &Path) -> Option<Status> {
    match client::ask(control, &Request::Status, Some(STATUS_TIMEOUT), |_| {}) {
        Ok(Reply::Status(status)) => Some(*status),
        _ => None,
    }
}

fn ended_within(pid: u32, within: Duration) -> bool {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else {
        return true;
    };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    let mut ended = [PollFd::new(
        std::os::fd::AsFd::as_fd(&process),
        PollFlags::POLLIN,
    )];
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    poll(&mut ended, timeout).is_ok_and(|ready| ready > 0)
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing").to_owned()
}
