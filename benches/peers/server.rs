//! The servers to compare, and how each is started and stopped.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use super::child::Child;
use super::proc;
use super::role;

/// A server to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    /// `c_epoll.c`, compiled with -O2: the floor.
    Floor,
    /// The same, compiled for this CPU model (`-march=native`).
    FloorNative,
    /// This crate's program, with its defaults.
    Ours,
    Threads,
    Tokio,
    Uring,
}

impl Server {
    pub(crate) const ALL: [Self; 6] = [
        Self::Floor,
        Self::Ours,
        Self::FloorNative,
        Self::Tokio,
        Self::Uring,
        Self::Threads,
    ];

    /// Returns the name for `--peers`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Floor => "c",
            Self::FloorNative => "c-native",
            Self::Ours => "uppercased",
            Self::Threads => role::THREADS,
            Self::Tokio => role::TOKIO,
            Self::Uring => role::URING,
        }
    }

    /// Returns the name in the tables.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Floor => "C epoll (the floor)",
            Self::FloorNative => "C epoll, -march=native",
            Self::Ours => "**uppercased**",
            Self::Threads => "std, thread per connection",
            Self::Tokio => "tokio, multi-thread",
            Self::Uring => "io_uring, provided buffers",
        }
    }

    /// Whether each of its processes has one thread, so that waiting for the CPU is due to other
    /// processes.
    pub(crate) const fn is_single_threaded(self) -> bool {
        !matches!(self, Self::Threads)
    }

    const fn compiler_flags(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Floor => Some(&["-O2"]),
            Self::FloorNative => Some(&["-O2", "-march=native"]),
            Self::Ours | Self::Threads | Self::Tokio | Self::Uring => None,
        }
    }

    fn binary(self, folder: &Path) -> std::path::PathBuf {
        folder.join(self.name())
    }

    /// Compiles the server into `folder`, if it has to be compiled.
    ///
    /// # Errors
    /// The reason why the server is unavailable here.
    pub(crate) fn build(self, folder: &Path) -> io::Result<()> {
        let Some(flags) = self.compiler_flags() else {
            return Ok(());
        };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/c_epoll.c");
        let output = Command::new("cc")
            .args(flags)
            .args(["-o".as_ref(), self.binary(folder).as_os_str()])
            .arg(source)
            .output()
            .map_err(|error| io::Error::other(format!("no C compiler `cc`: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let first = words.lines().next().unwrap_or("no word");
        Err(io::Error::other(format!("cc failed: {first}")))
    }
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) port: u16,
    /// The started process and its children.
    pub(crate) pids: Vec<u32>,
    /// Descriptors that these have open without any connection.
    pub(crate) own_descriptors: usize,
    children: Vec<Child>,
}

impl Running {
    /// Starts `server` (ours from the file `program`) with one process, or one thread, per CPU in
    /// `cpus`.
    pub(crate) fn start(
        server: Server,
        cpus: &[usize],
        folder: &Path,
        program: &Path,
    ) -> io::Result<Self> {
        match server {
            Server::Ours => Self::start_ours(cpus, program),
            Server::Threads | Server::Tokio => {
                Self::start_group(1, |_, port| Self::peer(server, cpus, port))
            }
            Server::Uring => {
                Self::start_group(cpus.len(), |i, port| Self::peer(server, &cpus[i..=i], port))
            }
            Server::Floor | Server::FloorNative => Self::start_group(cpus.len(), |i, port| {
                let mut command = role::command(&cpus[i..=i], role::PROGRAM)?;
                command.arg(server.binary(folder)).arg(port.to_string());
                Ok(command)
            }),
        }
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

    fn peer(server: Server, cpus: &[usize], port: u16) -> io::Result<Command> {
        let mut command = role::command(cpus, server.name())?;
        command.arg(port.to_string());
        Ok(command)
    }

    fn start_ours(cpus: &[usize], program: &Path) -> io::Result<Self> {
        let mut command = role::command(cpus, role::PROGRAM)?;
        let workers = cpus.len().to_string();
        command
            .arg(program)
            .args(["--listen", "127.0.0.1:0", "--control", "off"])
            .args(["--workers", &workers])
            // The server's log; failures show in the server's behaviour.
            .stderr(Stdio::null());
        let mut child = Child::start(&mut command)?;
        let line = child.line()?;
        let port = line.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| io::Error::other(format!("no address: {line}")))?;
        let mut pids = vec![child.pid()];
        pids.extend(proc::children_of(child.pid())?);
        Ok(Self {
            port,
            own_descriptors: proc::descriptors(&pids)?,
            pids,
            children: vec![child],
        })
    }

    /// Starts `count` processes that share a port, and waits until each serves.
    fn start_group(
        count: usize,
        command: impl Fn(usize, u16) -> io::Result<Command>,
    ) -> io::Result<Self> {
        // Bound but not listening: reserves the port for the group and receives no connections.
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
