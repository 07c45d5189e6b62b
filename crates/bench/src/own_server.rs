//! A server of the measurement's own: this very program, on a free port of the loopback network.
//!
//! Invariants: it is gone when the value is, in order if it can be and killed if not; should this
//! process die without a word, the kernel tells the server to stop. It keeps out of the terminal's
//! process group, so that Ctrl-C reaches the measurement first and the server last. It takes no
//! settings from the caller's environment: those are of another server.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::folder::{self, Folder};
use super::interrupt::{Haste, Interrupt, STEP};
use super::wait::is_readable;
use crate::sys::die_with_parent;
use uppercased_ctl::clock;
use uppercased_ctl::control::client;
use uppercased_ctl::control::{Reply, Request};
use uppercased_ctl::process::ENV_PREFIX;
use uppercased_ctl::process::{LISTEN_VARIABLES, NOTIFY_VARIABLES, STATE_VARIABLE};
use uppercased_ctl::status::Status;

/// How long it may take to serve, and to stop.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to stop when the measurement was interrupted.
const INTERRUPTED_PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// The name of its control socket.
const SOCKET: &str = "control.sock";
/// What it prints when it serves.
const READY: &str = "listening on ";
/// It prints no more than this before.
const OUTPUT_MAX_BYTES: usize = 64 << 10;

/// A running server.
#[derive(Debug)]
pub(super) struct OwnServer {
    child: Child,
    /// That very process, whatever its number is given to.
    process: OwnedFd,
    interrupt: Interrupt,
    folder: Folder,
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
    /// There is no place for its files.
    #[error(transparent)]
    Folder(#[from] folder::Error),
    /// A file of its own cannot be made.
    #[error("cannot write {}: {source}; check that the disk is not full", path.display())]
    Log {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It ended instead of serving.
    #[error("cannot start the server to measure: {0}")]
    Refused(String),
    /// It neither serves nor ends.
    #[error("cannot measure the server: it did not serve within {} s", PATIENCE.as_secs())]
    Late,
    /// A signal came first.
    #[error("interrupted before the measurement began")]
    Interrupted,
}

impl OwnServer {
    /// Starts one with `workers` workers, or as many as it likes, and `arguments` of its own.
    ///
    /// # Errors
    /// It does not start; its own words say why.
    pub(super) fn start(
        workers: Option<u16>,
        arguments: &[String],
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        let program = std::env::current_exe()?;
        let folder = Folder::create()?;
        let log = folder.path().join("log");
        let errors = fs::File::create(&log).map_err(|source| Error::Log {
            path: log.clone(),
            source,
        })?;
        let mut command = Command::new(&program);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--lame-duck", "0s"])
            .arg("--control")
            .arg(folder.path().join(SOCKET))
            .args(workers.map(|workers| format!("--workers={workers}")))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_another(name)) {
            command.env_remove(name);
        }
        die_with_parent(&mut command, Signal::TERM);
        let mut child = command.spawn()?;
        let watched = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let process = match watched {
            Ok(process) => process,
            Err(errno) => {
                kill_group(&child);
                let _ = child.wait();
                return Err(io::Error::from(errno).into());
            }
        };
        let output = child.stdout.take();
        let mut server = Self {
            child,
            process,
            interrupt: interrupt.clone(),
            folder,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            program,
        };
        server.address = match output {
            Some(output) => server.first_address(output)?,
            None => None,
        }
        .ok_or_else(|| Error::Refused(last_line(&log)))?;
        Ok(server)
    }

    /// Waits until it says where it serves; `None` if it ends instead.
    fn first_address(&self, mut output: ChildStdout) -> Result<Option<SocketAddr>, Error> {
        let deadline = clock::now() + PATIENCE;
        let (mut text, mut piece) = (Vec::new(), [0; 1024]);
        while text.len() < OUTPUT_MAX_BYTES {
            if self.interrupt.haste() > Haste::None {
                return Err(Error::Interrupted);
            }
            if clock::now() >= deadline {
                return Err(Error::Late);
            }
            if !is_readable(output.as_fd(), STEP) {
                continue;
            }
            // Its end is the end of its output, so this waits for one of the two.
            match output.read(&mut piece)? {
                0 => return Ok(None),
                count => text.extend_from_slice(&piece[..count]),
            }
            let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
            let lines = String::from_utf8_lossy(&text[..whole]);
            let address = lines.lines().find_map(|line| line.strip_prefix(READY));
            if let Some(address) = address.and_then(|text| text.parse().ok()) {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }

    /// Its process number, for as long as it lives.
    #[must_use]
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it takes orders.
    #[must_use]
    pub(super) fn control(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// Stops it in order; what has not ended in time is killed.
    fn stop(&mut self) {
        let begun = clock::now();
        // Refused only when it has ended.
        let _ = pidfd_send_signal(&self.process, Signal::TERM);
        while !is_readable(self.process.as_fd(), STEP) {
            let patience = match self.interrupt.haste() {
                Haste::None => PATIENCE,
                Haste::Soon => INTERRUPTED_PATIENCE,
                Haste::Now => Duration::ZERO,
            };
            if clock::now().since(begun) >= patience {
                break;
            }
        }
        // Its workers are of its group. Nobody else can have its number yet: it is not reaped.
        kill_group(&self.child);
        let _ = self.child.wait();
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn kill_group(leader: &Child) {
    let _ = kill_process_group(Pid::from_child(leader), Signal::KILL);
}

/// Whether a variable of the caller's environment is for a server that somebody else runs.
fn is_of_another(name: &OsStr) -> bool {
    let known = [&LISTEN_VARIABLES[..], &NOTIFY_VARIABLES, &[STATE_VARIABLE]].concat();
    name.as_encoded_bytes().starts_with(ENV_PREFIX.as_bytes())
        || known.iter().any(|known| name == *known)
}

/// How the server at `control` is doing; `None` if it does not say.
#[must_use]
pub(super) fn status(control: &Path) -> Option<Status> {
    match client::ask(control, &Request::Status, Some(STATUS_TIMEOUT), |_| {}) {
        Ok(Reply::Status(status)) => Some(*status),
        _ => None,
    }
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_another_server_are_omitted() {
        for name in ["UPPERCASED_ADMIN", "NOTIFY_SOCKET", "LISTEN_FDS"] {
            assert!(is_of_another(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "TMPDIR", "XDG_RUNTIME_DIR", "FAULT_POINTS"] {
            assert!(!is_of_another(OsStr::new(name)), "{name}");
        }
    }
}
