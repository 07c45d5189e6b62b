//! This crate's server.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::group::{Group, await_some, free_port, send};
use super::server::{Server, WORKERS};

const PROGRAM: &str = env!("CARGO_BIN_EXE_uppercased");

pub(crate) struct Ours {
    address: SocketAddr,
    control: PathBuf,
    supervisor: u32,
    group: Group,
}

impl Ours {
    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let control = folder.join("control");
        let mut group = Group::default();
        let supervisor = group.start(
            Command::new(PROGRAM)
                .arg(format!("--workers={WORKERS}"))
                .arg(format!("--listen={address}"))
                .arg("--control")
                .arg(&control),
        )?;
        Ok(Self {
            address,
            control,
            supervisor,
            group,
        })
    }

    fn ask(&self, request: &[&str]) -> io::Result<()> {
        let mut command = Command::new(PROGRAM);
        command.args(request).arg("--control").arg(&self.control);
        let output = command.stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{request:?} failed: {output:?}")))
    }

    /// Returns the workers, without their keepers.
    fn workers(&mut self) -> Vec<u32> {
        let pids = self.group.children_of(self.supervisor);
        let is_worker = |pid: &u32| {
            let [name, line] = ["comm", "cmdline"]
                .map(|file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default());
            name == "uppercased\n" && line.starts_with("uppercased: worker ")
        };
        pids.into_iter().filter(is_worker).collect()
    }
}

impl Server for Ours {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn group(&mut self) -> &mut Group {
        &mut self.group
    }

    fn main(&mut self) -> Option<u32> {
        Some(self.supervisor)
    }

    fn reload(&mut self) -> io::Result<()> {
        self.ask(&["reload"])
    }

    fn upgrade(&mut self) -> io::Result<()> {
        self.ask(&["upgrade"])
    }

    fn scale(&mut self, workers: usize) -> io::Result<()> {
        self.ask(&["scale", &workers.to_string()])
    }

    fn kill(&mut self) -> io::Result<()> {
        let worker = self.workers().first().copied();
        send(worker.ok_or(io::ErrorKind::NotFound)?, Signal::SIGKILL)
    }

    fn recover(&mut self) -> io::Result<()> {
        if self.workers().len() > WORKERS {
            self.scale(WORKERS)?;
        }
        await_some("the number of workers", || {
            (self.workers().len() == WORKERS).then_some(())
        })
    }
}
