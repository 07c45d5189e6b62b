//! The servers to compare, and how each is started and stopped.

#![expect(
    clippy::disallowed_methods,
    reason = "the servers under test do not report when they have closed what they started with"
)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};
use uppercased_ctl::clock;

use super::child::Child;
use super::proc;
use super::role;

/// Time without a change after which the number of descriptors counts as a server's own; also the
/// interval of the checks.
const QUIET: Duration = Duration::from_millis(50);
const CHECK_EVERY: Duration = Duration::from_millis(5);

/// A server to be measured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    /// `c_epoll.c`, compiled with -O2: the floor.
    Floor,
    /// The same, compiled for this CPU model (`-march=native`).
    FloorNative,
    /// This crate's program, with its defaults.
    Ours,
    /// Another build or the same with other settings: name, file and arguments.
    Build(String, Vec<String>),
    /// `c_libuv.c`.
    Libuv,
    Threads,
    Tokio,
    Uring,
}

impl Server {
    /// All except builds given by name, in the order of the report.
    pub(crate) const PEERS: [Self; 7] = [
        Self::Floor,
        Self::FloorNative,
        Self::Ours,
        Self::Uring,
        Self::Tokio,
        Self::Libuv,
        Self::Threads,
    ];

    /// Parses `NAME=FILE [ARGUMENT...]`.
    pub(crate) fn build_of(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("use NAME=FILE")?;
        let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if name.is_empty() || command.is_empty() {
            return Err("use NAME=FILE".to_owned());
        }
        if Self::PEERS.iter().any(|peer| peer.name() == name) {
            return Err(format!(
                "the name `{name}` is that of a peer; use another one"
            ));
        }
        Ok(Self::Build(name.to_owned(), command))
    }

    /// Returns the name for `--peers`.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Build(name, _) => name,
            peer => peer.static_name(),
        }
    }

    /// Returns the name of a peer.
    pub(crate) const fn static_name(&self) -> &'static str {
        match self {
            Self::Floor => "c",
            Self::FloorNative => "c-native",
            Self::Ours | Self::Build(..) => "uppercased",
            Self::Libuv => "libuv",
            Self::Threads => role::THREADS,
            Self::Tokio => role::TOKIO,
            Self::Uring => role::URING,
        }
    }

    /// Returns the name in the tables.
    pub(crate) fn title(&self) -> &str {
        match self {
            Self::Floor => "C epoll (the floor)",
            Self::FloorNative => "C epoll, -march=native",
            Self::Ours => "**uppercased**",
            Self::Build(name, _) => name,
            Self::Libuv => "libuv",
            Self::Threads => "std, thread per connection",
            Self::Tokio => "tokio, multi-thread",
            Self::Uring => "io_uring, provided buffers",
        }
    }

    /// Returns whether it is measured only if it is named.
    pub(crate) const fn is_extra(&self) -> bool {
        matches!(self, Self::FloorNative)
    }

    /// Returns whether it is a build of this crate's program.
    pub(crate) const fn is_ours(&self) -> bool {
        matches!(self, Self::Ours | Self::Build(..))
    }

    /// Returns whether each of its processes has one thread, so that other processes cause any wait
    /// for the CPU.
    pub(crate) const fn is_single_threaded(&self) -> bool {
        !matches!(self, Self::Threads)
    }

    /// Returns the C source, with the flags before and after it.
    const fn source(
        &self,
    ) -> Option<(
        &'static str,
        &'static [&'static str],
        &'static [&'static str],
    )> {
        match self {
            Self::Floor => Some(("c_epoll.c", &["-O2"], &[])),
            Self::FloorNative => Some(("c_epoll.c", &["-O2", "-march=native"], &[])),
            Self::Libuv => Some(("c_libuv.c", &["-O2"], &["-luv"])),
            Self::Ours | Self::Build(..) | Self::Threads | Self::Tokio | Self::Uring => None,
        }
    }

    fn binary(&self, folder: &Path) -> PathBuf {
        folder.join(self.name())
    }

    /// Compiles the server into `folder`, if needed.
    ///
    /// # Errors
    /// The reason why the server is unavailable here.
    pub(crate) fn build(&self, folder: &Path) -> io::Result<()> {
        let Some((source, before, after)) = self.source() else {
            return Ok(());
        };
        let sources = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers"));
        let output = Command::new("cc")
            .args(before)
            .arg("-o")
            .arg(self.binary(folder))
            .arg(sources.join(source))
            .args(after)
            .output()
            .map_err(|error| io::Error::other(format!("no C compiler `cc`: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        let error = errors.lines().find(|line| line.contains("error"));
        let error = error.unwrap_or("no error message");
        let hint = match self {
            Self::Libuv => "; install libuv with its header (libuv1-dev)",
            _ => "",
        };
        Err(io::Error::other(format!(
            "cannot compile {source}: {error}{hint}"
        )))
    }
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Running {
    port: u16,
    /// The started process and its children.
    pub(crate) pids: Vec<u32>,
    /// Descriptors that these have open without connections.
    pub(crate) own_descriptors: usize,
    children: Vec<Child>,
}

impl Running {
    /// Starts `server` with one process, or one thread, per CPU in `cpus`.
    pub(crate) fn start(server: &Server, cpus: &[usize], folder: &Path) -> io::Result<Self> {
        match server {
            Server::Ours => {
                let program = env!("CARGO_BIN_EXE_uppercased").to_owned();
                Self::start_ours(cpus, &[program])
            }
            Server::Build(_, command) => Self::start_ours(cpus, command),
            Server::Threads | Server::Tokio => {
                Self::start_group(1, |_, port| Self::peer(server, cpus, port))
            }
            Server::Uring => {
                Self::start_group(cpus.len(), |i, port| Self::peer(server, &cpus[i..=i], port))
            }
            Server::Floor | Server::FloorNative | Server::Libuv => {
                Self::start_group(cpus.len(), |i, port| {
                    let mut command = role::command(&cpus[i..=i], role::PROGRAM)?;
                    command.arg(server.binary(folder)).arg(port.to_string());
                    Ok(command)
                })
            }
        }
    }

    /// Returns the address of its listener.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Returns whether every started process is still running.
    pub(crate) fn runs(&mut self) -> io::Result<bool> {
        for child in &mut self.children {
            if !child.runs()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn peer(server: &Server, cpus: &[usize], port: u16) -> io::Result<Command> {
        let mut command = role::command(cpus, server.name())?;
        command.arg(port.to_string());
        Ok(command)
    }

    /// Starts this program: `program` is its file and further arguments.
    fn start_ours(cpus: &[usize], program: &[String]) -> io::Result<Self> {
        let mut command = role::command(cpus, role::PROGRAM)?;
        let workers = cpus.len().to_string();
        command
            .args(program)
            .args(["--listen", "127.0.0.1:0", "--control", "off"])
            .args(["--workers", &workers])
            // The server's log: a failure shows in the server's behaviour.
            .stderr(Stdio::null());
        let mut child = Child::start(&mut command)?;
        let line = child.line()?;
        let port = line.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| io::Error::other(format!("no address: {line}")))?;
        let mut pids = vec![child.pid()];
        pids.extend(proc::children_of(child.pid())?);
        Ok(Self {
            port,
            own_descriptors: settled_descriptors(&pids)?,
            pids,
            children: vec![child],
        })
    }

    /// Starts `count` processes that share a port, and waits until each serves.
    fn start_group(
        count: usize,
        command: impl Fn(usize, u16) -> io::Result<Command>,
    ) -> io::Result<Self> {
        // Bound but not listening: reserves the port for the group but receives no connections.
        let holder = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        holder.set_reuse_address(true)?;
        holder.set_reuse_port(true)?;
        holder.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let address = holder.local_addr()?.as_socket();
        let port = address.ok_or(io::ErrorKind::AddrNotAvailable)?.port();
        let mut children = Vec::new();
        for index in 0..count {
            children.push(Child::start(&mut command(index, port)?)?);
        }
        for child in &mut children {
            child.line()?;
        }
        let pids: Vec<u32> = children.iter().map(Child::pid).collect();
        Ok(Self {
            port,
            own_descriptors: proc::descriptors(&pids)?,
            pids,
            children,
        })
    }
}

/// Returns the number of descriptors of `pids` once it is constant: a supervisor closes some after
/// it has printed its address.
fn settled_descriptors(pids: &[u32]) -> io::Result<usize> {
    let mut count = proc::descriptors(pids)?;
    let mut since = clock::now();
    while clock::now().since(since) < QUIET {
        thread::sleep(CHECK_EVERY);
        let present = proc::descriptors(pids)?;
        if present != count {
            (count, since) = (present, clock::now());
        }
    }
    Ok(count)
}

impl Drop for Running {
    fn drop(&mut self) {
        // Stops the started processes first: a supervisor must not restart its workers.
        let started: Vec<u32> = self.children.iter().map(Child::pid).collect();
        self.children.clear();
        for pid in self.pids.iter().filter(|pid| !started.contains(pid)) {
            // Fails only if it has already exited with its parent.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
}
