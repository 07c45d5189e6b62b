//! Two servers of one process each on libraries for graceful restarts. Their programs are a package
//! of their own, `benches/rivals/echo`, which is built when they are measured.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::group::{Group, await_some, catches, free_port, pid_in, send};
use super::server::{Server, WORKERS};

const PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/rivals/echo");

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    Pingora,
    Ecdysis,
}

pub(crate) struct Running {
    echo: Echo,
    address: SocketAddr,
    folder: PathBuf,
    program: PathBuf,
    main: u32,
    group: Group,
}

impl Echo {
    const fn program(self) -> &'static str {
        match self {
            Self::Pingora => "pingora",
            Self::Ecdysis => "ecdysis",
        }
    }

    const fn library(self) -> &'static str {
        match self {
            Self::Pingora => "pingora-core",
            Self::Ecdysis => "ecdysis",
        }
    }

    /// Returns the version of the library.
    pub(crate) fn version(self) -> String {
        let lock = fs::read_to_string(Path::new(PACKAGE).join("Cargo.lock"));
        let lock = lock.unwrap_or_default();
        let name = format!("name = \"{}\"\nversion = \"", self.library());
        let version = lock
            .split_once(&name)
            .and_then(|(_, rest)| rest.split('"').next());
        version.unwrap_or("unknown").to_owned()
    }

    pub(crate) fn start(self, folder: &Path) -> io::Result<Running> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut running = Running {
            echo: self,
            address,
            folder: folder.to_owned(),
            program: build(self)?,
            main: 0,
            group: Group::default(),
        };
        running.set_threads(WORKERS)?;
        running.launch(&[])?;
        Ok(running)
    }
}

impl Running {
    fn set_threads(&self, threads: usize) -> io::Result<()> {
        fs::write(self.folder.join("threads"), threads.to_string())
    }

    fn launch(&mut self, arguments: &[&str]) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command.arg(self.address.to_string()).arg(&self.folder);
        self.main = self.group.start(command.args(arguments))?;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        let old = self.main;
        match self.echo {
            Echo::Pingora => {
                let socket = self.folder.join("upgrade");
                if socket.exists() {
                    // That of the last upgrade would be mistaken for the new one.
                    fs::remove_file(&socket)?;
                }
                self.launch(&["--upgrade"])?;
                await_some("the socket of the new process", || {
                    socket.exists().then_some(())
                })?;
                send(old, Signal::SIGQUIT)?;
                let main = self.main;
                await_some("readiness for the next upgrade", || {
                    catches(main, Signal::SIGQUIT).then_some(())
                })
            }
            Echo::Ecdysis => {
                send(old, Signal::SIGHUP)?;
                let file = self.folder.join("pid");
                self.main = await_some("the new process", || {
                    pid_in(&file).filter(|pid| *pid != old)
                })?;
                Ok(())
            }
        }
    }
}

impl Server for Running {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn group(&mut self) -> &mut Group {
        &mut self.group
    }

    fn main(&mut self) -> Option<u32> {
        Some(self.main)
    }

    fn reload(&mut self) -> io::Result<()> {
        self.restart()
    }

    fn scale(&mut self, threads: usize) -> io::Result<()> {
        self.set_threads(threads)?;
        self.restart()
    }

    fn kill(&mut self) -> io::Result<()> {
        send(self.main, Signal::SIGKILL)
    }

    fn recover(&mut self) -> io::Result<()> {
        let threads = self.folder.join("threads");
        let is_scaled = fs::read_to_string(threads)? != WORKERS.to_string();
        self.set_threads(WORKERS)?;
        if self.group.pids().is_empty() {
            self.group = Group::default();
            return self.launch(&[]);
        }
        if is_scaled {
            self.restart()?;
        }
        let main = self.main;
        if self.echo == Echo::Pingora {
            // It stays for five minutes, with clients or without.
            let old = self.group.pids().into_iter().filter(|pid| *pid != main);
            old.for_each(|pid| drop(send(pid, Signal::SIGKILL)));
        }
        await_some("the exit of the old process", || {
            (self.group.pids() == [main]).then_some(())
        })
    }
}

/// Builds the package, and returns the program.
fn build(echo: Echo) -> io::Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rivals");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(Path::new(PACKAGE).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .args(["--bin", echo.program(), "--features", echo.program()])
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(target.join("release").join(echo.program()));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rfind(|line| line.starts_with("error"));
    Err(io::Error::other(format!(
        "cannot build {PACKAGE}: {}",
        last.unwrap_or("unknown error")
    )))
}
