//! A server's processes: all in one process group, so that those of earlier generations are found
//! and ended as well.
//!
//! Invariant: no process outlives its group's value, or the bench, however that ends.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Upper bound of every wait for a server.
const PATIENCE: Duration = Duration::from_secs(30);
/// Polling interval for a server that does not report its state.
const POLL_EVERY: Duration = Duration::from_millis(2);

/// Reads numbers of a group, of which the last one counts, and kills the group at the end of the
/// input: when the bench has exited.
const KEEPER: &str = "while read -r number; do group=$number; done; kill -s KILL -- \"-$group\"";

/// The processes of a server.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Those that the bench has started and not reaped; the first one gave the group its number.
    children: Vec<Child>,
    number: i32,
    /// A shell that executes [`KEEPER`].
    keeper: Option<Child>,
}

impl Group {
    /// Starts a process in the group, without input and output.
    pub(crate) fn start(&mut self, command: &mut Command) -> io::Result<u32> {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UPPERCASED_") {
                command.env_remove(name);
            }
        }
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(self.number)
            .spawn()
            .map_err(|error| io::Error::other(format!("cannot start {name}: {error}")))?;
        let pid = child.id();
        self.children.push(child);
        if self.number == 0 {
            self.follow(pid)?;
        }
        Ok(pid)
    }

    /// Makes this the group of `leader`, which a process of this group may have started in a session
    /// of its own.
    pub(crate) fn follow(&mut self, leader: u32) -> io::Result<()> {
        self.number = leader.cast_signed();
        if self.keeper.is_none() {
            // In a group of its own, so that Ctrl-C ends the bench and not the keeper.
            let mut shell = Command::new("sh");
            shell.args(["-c", KEEPER]).process_group(0);
            self.keeper = Some(shell.stdin(Stdio::piped()).spawn()?);
        }
        let keeper = self.keeper.as_mut().and_then(|shell| shell.stdin.as_mut());
        keeper.map_or(Ok(()), |input| writeln!(input, "{leader}"))
    }

    /// Returns the processes of the group that have not exited.
    pub(crate) fn pids(&mut self) -> Vec<u32> {
        // A child that has exited stays in the list of processes until it is reaped.
        self.children
            .retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| group_of(*pid) == Some(self.number))
            .collect()
    }

    /// Returns the processes of the group whose parent is `parent`, in order of their start.
    pub(crate) fn children_of(&mut self, parent: u32) -> Vec<u32> {
        let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        let listed = text.unwrap_or_default();
        let all: Vec<u32> = listed.split_whitespace().flat_map(str::parse).collect();
        let pids = self.pids();
        all.into_iter().filter(|pid| pids.contains(pid)).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        if self.number != 0 {
            // Fails only if all have exited. The first child is reaped last, below, so that the
            // number cannot belong to others.
            let _ = killpg(Pid::from_raw(self.number), Signal::SIGKILL);
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

/// Returns the process group of a process that has not exited.
fn group_of(pid: u32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(1)?.parse().ok())?
}

/// Sends a signal to a process.
pub(crate) fn send(pid: u32, signal: Signal) -> io::Result<()> {
    kill(Pid::from_raw(pid.cast_signed()), signal)?;
    Ok(())
}

/// Returns whether a process has a handler for a signal.
pub(crate) fn catches(pid: u32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut lines = status.lines();
    let caught =
        lines.find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
    caught.is_some_and(|caught| caught & (1 << (signal as i32 - 1)) != 0)
}

/// Waits until `done` returns a value.
///
/// # Errors
/// It does not in [`PATIENCE`].
pub(crate) fn await_some<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> io::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        if Instant::now() >= until {
            return Err(io::Error::other(format!("{what} does not happen in time")));
        }
        std::thread::sleep(POLL_EVERY);
    }
}

/// Returns the path of an installed program: some execute themselves again by the name with which
/// they were started.
pub(crate) fn installed(program: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(program));
    let found = found.find(|file| file.is_file());
    found.ok_or_else(|| io::Error::other(format!("{program} is not installed")))
}

/// Returns the process ID in a file; `None` if there is none, or no such process.
pub(crate) fn pid_in(file: &Path) -> Option<u32> {
    let pid = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
}

/// Returns a port that no socket has at the moment.
pub(crate) fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// Returns the version that the program prints: the first word that begins with a digit and has a
/// point.
pub(crate) fn version_of(program: &Path, flag: &str) -> String {
    let output = Command::new(program).arg(flag).output();
    let printed = output.map(|it| [it.stdout, it.stderr].concat());
    let printed = String::from_utf8(printed.unwrap_or_default()).unwrap_or_default();
    let mut words = printed.split(['/', ' ', '\n']);
    let is_version =
        |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    let version = words.find(is_version);
    version.unwrap_or("unknown").to_owned()
}
