//! HAProxy in master-worker mode.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::group::{Group, await_some, free_port, installed, send, version_of};
use super::prefork::Prefork;
use super::server::{Server, WORKERS};

const PROGRAM: &str = "haproxy";

pub(crate) struct Haproxy {
    program: PathBuf,
    address: SocketAddr,
    folder: PathBuf,
    threads: usize,
    master: u32,
    group: Group,
    backend: Prefork,
}

impl Haproxy {
    pub(crate) fn version() -> String {
        version_of(Path::new(PROGRAM), "-v")
    }

    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        let mut haproxy = Self {
            program: installed(PROGRAM)?,
            address: (Ipv4Addr::LOCALHOST, free_port()?).into(),
            folder: folder.to_owned(),
            threads: WORKERS,
            master: 0,
            group: Group::default(),
            backend: Prefork::backend(folder)?,
        };
        haproxy.configure()?;
        haproxy.launch()?;
        Ok(haproxy)
    }

    fn launch(&mut self) -> io::Result<()> {
        self.group = Group::default();
        let mut command = Command::new(&self.program);
        command
            .args(["-W", "-db", "-f"])
            .arg(self.folder.join("conf"));
        self.master = self.group.start(&mut command)?;
        self.await_worker(&[])
    }

    fn configure(&self) -> io::Result<()> {
        let text = format!(
            "global\n nbthread {}\n maxconn 4096\n\
             defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n\
             listen all\n bind {}\n server floor {}\n",
            self.threads,
            self.address,
            self.backend.address()
        );
        fs::write(self.folder.join("conf"), text)
    }

    /// Waits for a worker beside the `old` ones.
    fn await_worker(&mut self, old: &[u32]) -> io::Result<()> {
        let master = self.master;
        await_some("the start of its worker", || {
            let workers = self.group.children_of(master);
            workers.into_iter().find(|pid| !old.contains(pid))
        })?;
        Ok(())
    }
}

impl Server for Haproxy {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn group(&mut self) -> &mut Group {
        &mut self.group
    }

    fn main(&mut self) -> Option<u32> {
        Some(self.master)
    }

    fn reload(&mut self) -> io::Result<()> {
        let old = self.group.children_of(self.master);
        send(self.master, Signal::SIGUSR2)?;
        self.await_worker(&old)
    }

    fn scale(&mut self, threads: usize) -> io::Result<()> {
        self.threads = threads;
        self.configure()?;
        self.reload()
    }

    fn kill(&mut self) -> io::Result<()> {
        let worker = self.group.children_of(self.master).first().copied();
        send(worker.ok_or(io::ErrorKind::NotFound)?, Signal::SIGKILL)
    }

    fn recover(&mut self) -> io::Result<()> {
        if self.group.pids().is_empty() {
            // The master has exited with its worker.
            return self.launch();
        }
        if self.threads != WORKERS {
            self.scale(WORKERS)?;
        }
        await_some("the exit of the old worker", || {
            (self.group.pids().len() == 2).then_some(())
        })
    }
}
