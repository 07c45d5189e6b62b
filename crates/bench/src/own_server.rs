//! The built-in server: this program, on a free loopback port.
//!
//! Invariants: it stops when the value is dropped, gracefully if possible, else killed; if this
//! process dies, the kernel signals the server to stop. It is outside the terminal's process group,
//! so that Ctrl-C reaches the measurement first and the server last. It ignores settings in the
//! caller's environment, which are for another server.

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

/// Time limit for its start and its stop.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time limit for its stop if the measurement was interrupted.
const INTERRUPTED_PATIENCE: Duration = Duration::from_secs(2);
/// Time limit for a status request.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// The name of its control socket.
const SOCKET: &str = "control.sock";
/// The prefix of its output once it serves.
const READY: &str = "listening on ";
/// Maximum length of its output before it serves.
const OUTPUT_MAX_BYTES: usize = 64 << 10;

/// A running server.
#[derive(Debug)]
pub(super) struct OwnServer {
    child: Child,
    /// A pidfd, which stays valid if its process ID is reused.
    process: OwnedFd,
    interrupt: Interrupt,
    folder: Folder,
    /// The address it serves.
    pub address: SocketAddr,
    /// The program it runs.
    pub program: PathBuf,
}

/// The reason why it did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The system's error.
    #[error("cannot start a server to measure: {0}")]
    System(#[from] io::Error),
    /// The directory for its files cannot be created.
    #[error(transparent)]
    Folder(#[from] folder::Error),
    /// A file for it cannot be written.
    #[error("cannot write {}: {source}; check that the disk is not full", path.display())]
    Log {
        /// The path of the file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It exited before it served.
    #[error("cannot start the server to measure: {0}")]
    Refused(String),
    /// It neither serves nor exits.
    #[error("cannot measure the server: it did not serve within {} s", PATIENCE.as_secs())]
    Late,
    /// A signal arrived first.
    #[error("interrupted before the measurement began")]
    Interrupted,
}

impl OwnServer {
    /// Starts a server with `workers` workers, or its default number, and further `arguments`.
    ///
    /// # Errors
    /// It did not start; the cause is its own error message.
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

    /// Waits until it reports its address; `None` if it exits instead.
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
            // Its exit ends its output, so this waits for both.
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

    /// Returns its process ID, valid while it runs.
    #[must_use]
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the path of its control socket.
    #[must_use]
    pub(super) fn control(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// Stops it gracefully; kills it after the time limit.
    fn stop(&mut self) {
        let begun = clock::now();
        // Fails only if it has exited.
        let _ = pidfd_send_signal(&self.process, Signal::TERM);
        while !is_readable(self.process.as_fd(), STEP) {
            let limit = match self.interrupt.haste() {
                Haste::None => PATIENCE,
                Haste::Soon => INTERRUPTED_PATIENCE,
                Haste::Now => Duration::ZERO,
            };
            if clock::now().since(begun) >= limit {
                break;
            }
        }
        // Its workers are in its group. It has not been reaped, so its ID cannot have been reused.
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

/// Returns whether a variable in the caller's environment is meant for another server.
fn is_of_another(name: &OsStr) -> bool {
    let known = [&LISTEN_VARIABLES[..], &NOTIFY_VARIABLES, &[STATE_VARIABLE]].concat();
    name.as_encoded_bytes().starts_with(ENV_PREFIX.as_bytes())
        || known.iter().any(|known| name == *known)
}

/// Returns the status of the server at `control`; `None` if it does not reply.
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
    line.unwrap_or("it logged no error").to_owned()
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
