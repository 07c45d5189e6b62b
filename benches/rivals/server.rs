//! The servers whose workers are killed: how each is started, found and started again.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use tempfile::TempDir;

use super::PATIENCE;
use super::child::Child;

/// Text that the program prints before its address once it serves.
const READY: &str = "listening on ";

/// A server to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rival {
    /// This crate's program, with its defaults.
    Ours,
    /// `peers/c_epoll.c`.
    Floor,
    Nginx,
    Haproxy,
}

impl Rival {
    pub(crate) const ALL: [Self; 4] = [Self::Ours, Self::Floor, Self::Nginx, Self::Haproxy];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "uppercased",
            Self::Floor => "C epoll",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
        }
    }

    /// Returns the version; empty for the floor, which has none.
    pub(crate) fn version(self) -> String {
        let (program, flag, from) = match self {
            Self::Ours => return env!("CARGO_PKG_VERSION").to_owned(),
            Self::Floor => return String::new(),
            Self::Nginx => ("nginx", "-v", '/'),
            Self::Haproxy => ("haproxy", "-v", ' '),
        };
        let output = Command::new(program).arg(flag).output();
        let printed = output.map(|it| [it.stdout, it.stderr].concat());
        let printed = String::from_utf8(printed.unwrap_or_default()).unwrap_or_default();
        let mut words = printed.split([from, ' ', '\n']);
        let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        version.unwrap_or("unknown").to_owned()
    }
}

/// A running server. Dropping it ends its processes.
#[derive(Debug)]
pub(crate) struct Running {
    rival: Rival,
    pub(crate) addr: SocketAddr,
    folder: TempDir,
    /// The processes that the bench has started, but the backend.
    started: Vec<Child>,
    /// The server behind those that forward.
    _backend: Option<Child>,
}

impl Running {
    /// # Errors
    /// The reason why the server is unavailable here.
    pub(crate) fn start(rival: Rival) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (front, behind) = (free_port()?, free_port()?);
        if rival != Rival::Ours {
            compile_floor(folder.path())?;
        }
        let forwards = matches!(rival, Rival::Nginx | Rival::Haproxy);
        let backend = forwards.then(|| start_floor(folder.path(), behind));
        let mut running = Self {
            rival,
            addr: (Ipv4Addr::LOCALHOST, front).into(),
            _backend: backend.transpose()?,
            started: Vec::new(),
            folder,
        };
        if let Some(text) = configuration(rival, front, behind, running.folder.path()) {
            fs::write(running.configuration(), text)?;
        }
        let processes = if rival == Rival::Floor { 2 } else { 1 };
        for _ in 0..processes {
            let process = running.start_process()?;
            running.started.push(process);
        }
        Ok(running)
    }

    /// Kills one worker.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn kill_worker(&self) -> io::Result<()> {
        let first = self.started.first().ok_or(io::ErrorKind::NotFound)?;
        let worker = match self.rival {
            Rival::Floor => Some(first.pid()),
            Rival::Ours => children(first.pid())?.into_iter().find(|&pid| {
                let [name, arguments] = ["comm", "cmdline"].map(|file| text_of(pid, file));
                name == "uppercased\n" && arguments.starts_with("uppercased: worker ")
            }),
            Rival::Nginx | Rival::Haproxy => children(first.pid())?.first().copied(),
        };
        let worker = worker.ok_or_else(|| io::Error::other("it has no worker"))?;
        kill(Pid::from_raw(worker.cast_signed()), Signal::SIGKILL)?;
        Ok(())
    }

    /// Starts again what has ended, and what nobody else starts again.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn recover(&mut self) -> io::Result<()> {
        let ends_with_worker = matches!(self.rival, Rival::Floor | Rival::Haproxy);
        if ends_with_worker && !self.started.is_empty() {
            // Dropped, and so reaped, before the next one takes its address.
            drop(self.started.remove(0));
            let process = self.start_process()?;
            self.started.push(process);
        }
        Ok(())
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("configuration")
    }

    fn start_process(&mut self) -> io::Result<Child> {
        let mut command = match self.rival {
            Rival::Floor => return start_floor(self.folder.path(), self.addr.port()),
            Rival::Ours => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
                command.args(["--workers=2", "--listen=127.0.0.1:0", "--control"]);
                command.arg(self.folder.path().join("control"));
                command
            }
            Rival::Nginx => {
                let mut command = Command::new("nginx");
                command
                    .args(["-e", "stderr", "-c"])
                    .arg(self.configuration());
                command
            }
            Rival::Haproxy => {
                let mut command = Command::new("haproxy");
                command.args(["-W", "-db", "-f"]).arg(self.configuration());
                command
            }
        };
        let name = self.rival.name();
        let mut process = Child::start(command.stderr(Stdio::null()))
            .map_err(|error| io::Error::other(format!("cannot start {name}: {error}")))?;
        if self.rival == Rival::Ours {
            let line = process.line()?;
            let addr = line.strip_prefix(READY).and_then(|addr| addr.parse().ok());
            self.addr = addr.ok_or_else(|| io::Error::other(line))?;
        }
        Ok(process)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A killed supervisor or master would leave its workers behind.
        for process in &mut self.started {
            let _ = kill(Pid::from_raw(process.pid().cast_signed()), Signal::SIGTERM);
            await_exit(process.pid());
        }
    }
}

/// Waits until a child has exited, at most for [`PATIENCE`].
fn await_exit(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed());
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(pidfd) = pidfd else {
        return;
    };
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::ZERO);
    // Afterwards it is killed.
    let _ = poll(
        &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
        timeout,
    );
}

/// Returns the configuration of a server that forwards.
fn configuration(rival: Rival, front: u16, behind: u16, folder: &Path) -> Option<String> {
    let mut text = String::new();
    match rival {
        Rival::Ours | Rival::Floor => return None,
        Rival::Nginx => {
            let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
            if Path::new(module).exists() {
                let _ = writeln!(text, "load_module {module};");
            }
            let _ = writeln!(
                text,
                "daemon off; worker_processes 2; pid {}/pid; events {{ worker_connections 4096; }}",
                folder.display()
            );
            let _ = writeln!(
                text,
                "stream {{ server {{ listen 127.0.0.1:{front} reuseport; proxy_pass 127.0.0.1:{behind}; }} }}"
            );
        }
        Rival::Haproxy => {
            let _ = writeln!(text, "global\n nbthread 2\n maxconn 4096");
            let _ = writeln!(
                text,
                "defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h"
            );
            let _ = writeln!(
                text,
                "listen all\n bind 127.0.0.1:{front}\n server floor 127.0.0.1:{behind}"
            );
        }
    }
    Some(text)
}

/// Compiles `peers/c_epoll.c` into `folder`.
fn compile_floor(folder: &Path) -> io::Result<()> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/c_epoll.c");
    let output = Command::new("cc")
        .args(["-O2", "-o"])
        .arg(folder.join("floor"))
        .arg(source)
        .output()
        .map_err(|error| io::Error::other(format!("no C compiler `cc`: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(errors))
}

fn start_floor(folder: &Path, port: u16) -> io::Result<Child> {
    let mut floor = Child::start(Command::new(folder.join("floor")).arg(port.to_string()))?;
    floor.line()?;
    Ok(floor)
}

/// Returns a port that no socket has at the moment.
fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

fn children(pid: u32) -> io::Result<Vec<u32>> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(listed.split_whitespace().flat_map(str::parse).collect())
}

/// Returns a file of a process; empty if the process is gone.
fn text_of(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}
