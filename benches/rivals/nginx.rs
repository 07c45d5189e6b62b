//! nginx: its stream module forwards; it has no module that answers by itself. (A filter of njs can
//! send to the client, but needs a connection to another server all the same.) It runs as a daemon,
//! because it ignores the signal for an upgrade otherwise.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::group::{Group, await_some, free_port, installed, pid_in, send, version_of};
use super::prefork::Prefork;
use super::server::{Server, WORKERS};

const PROGRAM: &str = "nginx";

/// The stream module, where it is not a part of the program.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub(crate) struct Nginx {
    program: PathBuf,
    address: SocketAddr,
    folder: PathBuf,
    workers: usize,
    group: Group,
    backend: Prefork,
}

impl Nginx {
    pub(crate) fn version() -> String {
        version_of(Path::new(PROGRAM), "-v")
    }

    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        let mut nginx = Self {
            program: installed(PROGRAM)?,
            address: (Ipv4Addr::LOCALHOST, free_port()?).into(),
            folder: folder.to_owned(),
            workers: WORKERS,
            backend: Prefork::backend(folder)?,
            group: Group::default(),
        };
        nginx.configure()?;
        let mut command = nginx.command();
        nginx.group.start(&mut command)?;
        let master = await_some("its start", || nginx.main())?;
        nginx.group.follow(master)?;
        nginx.await_workers(&[])?;
        Ok(nginx)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["-e", "stderr", "-c"])
            .arg(self.folder.join("conf"));
        command
    }

    fn configure(&self) -> io::Result<()> {
        let module = if Path::new(MODULE).exists() {
            format!("load_module {MODULE};\n")
        } else {
            String::new()
        };
        let text = format!(
            "{module}worker_processes {};\npid {};\n\
             events {{ worker_connections 4096; }}\n\
             stream {{ server {{ listen {} reuseport; proxy_pass {}; }} }}\n",
            self.workers,
            self.folder.join("pid").display(),
            self.address,
            self.backend.address()
        );
        fs::write(self.folder.join("conf"), text)
    }

    fn master(&mut self) -> io::Result<u32> {
        self.main().ok_or_else(|| io::Error::other("no master"))
    }

    /// Waits until the master has as many workers as configured beside `old` ones.
    fn await_workers(&mut self, old: &[u32]) -> io::Result<()> {
        let master = self.master()?;
        await_some("the start of its workers", || {
            let workers = self.group.children_of(master);
            let new = workers.iter().filter(|pid| !old.contains(pid));
            (new.count() >= self.workers).then_some(())
        })
    }
}

impl Server for Nginx {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn group(&mut self) -> &mut Group {
        &mut self.group
    }

    fn main(&mut self) -> Option<u32> {
        pid_in(&self.folder.join("pid"))
    }

    fn reload(&mut self) -> io::Result<()> {
        let master = self.master()?;
        let old = self.group.children_of(master);
        let mut command = self.command();
        let status = command
            .args(["-s", "reload"])
            .stderr(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!("-s reload: {status}")));
        }
        self.await_workers(&old)
    }

    fn upgrade(&mut self) -> io::Result<()> {
        let old = self.master()?;
        send(old, Signal::SIGUSR2)?;
        let file = self.folder.join("pid");
        await_some("the new master", || pid_in(&file).filter(|pid| *pid != old))?;
        self.await_workers(&[])?;
        send(old, Signal::SIGQUIT)
    }

    fn scale(&mut self, workers: usize) -> io::Result<()> {
        self.workers = workers;
        self.configure()?;
        self.reload()
    }

    fn kill(&mut self) -> io::Result<()> {
        let master = self.master()?;
        let worker = self.group.children_of(master).first().copied();
        send(worker.ok_or(io::ErrorKind::NotFound)?, Signal::SIGKILL)
    }

    fn recover(&mut self) -> io::Result<()> {
        if self.workers != WORKERS {
            self.scale(WORKERS)?;
        }
        await_some("the exit of the old processes", || {
            (self.group.pids().len() == 1 + WORKERS).then_some(())
        })
    }
}
