//! The floor of the other benches, `peers/c_epoll.c`, several times on one port: a server with
//! SO_REUSEPORT and nothing else. Others forward to one more of these, because they do not answer
//! themselves.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::group::{Group, await_some, free_port, send};
use super::server::{Server, WORKERS};

pub(crate) struct Prefork {
    address: SocketAddr,
    program: PathBuf,
    /// The processes that serve new connections.
    workers: Vec<u32>,
    group: Group,
}

impl Prefork {
    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        Self::with_workers(folder, WORKERS)
    }

    /// Starts the single process behind a server that forwards.
    pub(crate) fn backend(folder: &Path) -> io::Result<Self> {
        Self::with_workers(folder, 1)
    }

    fn with_workers(folder: &Path, workers: usize) -> io::Result<Self> {
        let mut started = Self {
            address: (Ipv4Addr::LOCALHOST, free_port()?).into(),
            program: compile(folder)?,
            workers: Vec::new(),
            group: Group::default(),
        };
        started.add(workers)?;
        Ok(started)
    }

    fn add(&mut self, workers: usize) -> io::Result<()> {
        let port = self.address.port().to_string();
        for _ in 0..workers {
            let worker = self.group.start(Command::new(&self.program).arg(&port))?;
            self.workers.push(worker);
        }
        let workers = self.workers.len();
        await_some("the listener of the new process", || {
            (listeners(self.address.port()) >= workers).then_some(())
        })
    }
}

impl Server for Prefork {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn group(&mut self) -> &mut Group {
        &mut self.group
    }

    fn main(&mut self) -> Option<u32> {
        None
    }

    fn reload(&mut self) -> io::Result<()> {
        let old = self.workers.clone();
        self.add(WORKERS)?;
        self.workers.drain(..old.len());
        old.into_iter()
            .try_for_each(|pid| send(pid, Signal::SIGTERM))
    }

    fn scale(&mut self, workers: usize) -> io::Result<()> {
        if let Some(more) = workers.checked_sub(self.workers.len()) {
            return self.add(more);
        }
        let mut leaving = self.workers.drain(workers..);
        leaving.try_for_each(|pid| send(pid, Signal::SIGTERM))
    }

    fn kill(&mut self) -> io::Result<()> {
        send(self.workers.remove(0), Signal::SIGKILL)
    }

    fn recover(&mut self) -> io::Result<()> {
        let workers = &self.workers;
        await_some("the exit of the old processes", || {
            let pids = self.group.pids();
            pids.iter().all(|pid| workers.contains(pid)).then_some(())
        })?;
        self.scale(WORKERS)
    }
}

/// Returns the number of listening sockets on a port.
pub(crate) fn listeners(port: u16) -> usize {
    const LISTEN: &str = "0A";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let ending = format!(":{port:04X}");
    let rows = table.lines().map(|row| row.split_whitespace().collect());
    let is_one = |row: &Vec<&str>| {
        row.get(1).is_some_and(|local| local.ends_with(&ending)) && row.get(3) == Some(&LISTEN)
    };
    rows.filter(is_one).count()
}

/// Compiles the server into `folder`.
fn compile(folder: &Path) -> io::Result<PathBuf> {
    let program = folder.join("floor");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/c_epoll.c");
    let output = Command::new("cc")
        .args(["-O2", "-o"])
        .arg(&program)
        .arg(source)
        .output()
        .map_err(|error| io::Error::other(format!("no C compiler `cc`: {error}")))?;
    if output.status.success() {
        return Ok(program);
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(errors))
}
