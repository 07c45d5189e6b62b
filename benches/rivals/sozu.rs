//! Sōzu, if the program is installed (`cargo install --locked sozu`).

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::group::{Group, await_some, free_port, installed, pid_in, send, version_of};
use super::prefork::Prefork;
use super::server::{Server, WORKERS};

const PROGRAM: &str = "sozu";

pub(crate) struct Sozu {
    program: PathBuf,
    address: SocketAddr,
    folder: PathBuf,
    group: Group,
    _backend: Prefork,
}

impl Sozu {
    pub(crate) fn version() -> String {
        version_of(Path::new(PROGRAM), "--version")
    }

    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        let backend = Prefork::backend(folder)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let text = format!(
            "command_socket = \"{0}/socket\"\npid_file_path = \"{0}/pid\"\n\
             worker_count = {WORKERS}\nactivate_listeners = true\nmax_connections = 4096\n\
             front_timeout = 3600\nback_timeout = 3600\n\
             [[listeners]]\nprotocol = \"tcp\"\naddress = \"{address}\"\n\
             [clusters.floor]\nprotocol = \"tcp\"\nfrontends = [{{ address = \"{address}\" }}]\n\
             backends = [{{ address = \"{1}\" }}]\n",
            folder.display(),
            backend.address()
        );
        fs::write(folder.join("conf.toml"), text)?;
        let mut sozu = Self {
            program: installed(PROGRAM)?,
            address,
            folder: folder.to_owned(),
            group: Group::default(),
            _backend: backend,
        };
        let mut command = sozu.command();
        sozu.group.start(command.arg("start"))?;
        await_some("the start of its workers", || {
            (sozu.main().is_some() && sozu.group.pids().len() > WORKERS).then_some(())
        })?;
        Ok(sozu)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.folder.join("conf.toml"));
        command
    }

    fn ask(&self, request: &str) -> io::Result<()> {
        let mut command = self.command();
        let output = command.arg(request).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{request} failed: {output:?}")))
    }
}

impl Server for Sozu {
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
        self.ask("reload")
    }

    fn upgrade(&mut self) -> io::Result<()> {
        self.ask("upgrade")
    }

    fn scale(&mut self, _workers: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn kill(&mut self) -> io::Result<()> {
        let main = self.main().ok_or(io::ErrorKind::NotFound)?;
        let worker = self.group.children_of(main).first().copied();
        send(worker.ok_or(io::ErrorKind::NotFound)?, Signal::SIGKILL)
    }

    fn recover(&mut self) -> io::Result<()> {
        await_some("the number of workers", || {
            (self.group.pids().len() == 1 + WORKERS).then_some(())
        })
    }
}
