//! nginx, twice: its stream module forwards; a filter in JavaScript (njs) answers by itself, although
//! nginx still demands a connection to another server, which receives nothing. It runs as a daemon,
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

/// The folder of the modules that are not a part of the program.
const MODULES: &str = "/usr/lib/nginx/modules";
const STREAM: &str = "ngx_stream_module.so";
const NJS: &str = "ngx_stream_js_module.so";

/// Answers every byte in upper case, and passes the end of the stream on.
const SCRIPT: &str = "\
function echo(session) {
  session.on('upstream', (bytes, flags) => {
    const answer = Buffer.from(bytes);
    for (let at = 0; at < answer.length; at++)
      if (answer[at] >= 97 && answer[at] <= 122) answer[at] -= 32;
    session.sendDownstream(answer);
    if (flags.last) session.send('', flags);
  });
}
export default { echo };
";

pub(crate) struct Nginx {
    program: PathBuf,
    address: SocketAddr,
    folder: PathBuf,
    workers: usize,
    /// Whether its script answers.
    answers: bool,
    group: Group,
    backend: Prefork,
}

impl Nginx {
    pub(crate) fn version() -> String {
        version_of(Path::new(PROGRAM), "-v")
    }

    /// Starts it; its script `answers`, or it forwards.
    pub(crate) fn start(folder: &Path, answers: bool) -> io::Result<Self> {
        let mut nginx = Self {
            program: installed(PROGRAM)?,
            address: (Ipv4Addr::LOCALHOST, free_port()?).into(),
            folder: folder.to_owned(),
            workers: WORKERS,
            answers,
            backend: Prefork::backend(folder)?,
            group: Group::default(),
        };
        if answers && !Path::new(MODULES).join(NJS).exists() {
            return Err(io::Error::other("its njs module is not installed"));
        }
        fs::write(folder.join("echo.js"), SCRIPT)?;
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
        let (modules, script, filter) = match self.answers {
            true => (
                [STREAM, NJS].as_slice(),
                "js_import echo.js;",
                "js_filter echo.echo;",
            ),
            false => ([STREAM].as_slice(), "", ""),
        };
        let modules = modules.iter().map(|module| Path::new(MODULES).join(module));
        let modules = modules.filter(|module| module.exists());
        let load = |module: PathBuf| format!("load_module {};\n", module.display());
        let text = format!(
            "{}worker_processes {};\npid {};\n\
             events {{ worker_connections 4096; }}\n\
             stream {{\n{script}\n\
             server {{ listen {} reuseport; {filter} proxy_pass {}; }}\n}}\n",
            modules.map(load).collect::<String>(),
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
