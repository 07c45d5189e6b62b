//! Commands that are run while the load runs, such as a restart of the server.
//!
//! Each command has a thread of its own and runs in turn, never twice at once. What it prints is
//! read to the end and all but its last line thrown away, so it cannot hang on a full pipe.
//!
//! Invariants: no command outlives the measurement by more than its grace, or by a moment if it was
//! interrupted; one whose time came while it still ran is left out, and counted.
#![expect(
    clippy::disallowed_methods,
    reason = "the load generator is a process of its own, and has threads; the server has none"
)]

use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::ioctl_fionread;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::interrupt::{Haste, Interrupt};
use super::judge::Ran;
use super::options::{Action, Job};
use super::outcome::Mark;
use super::plan::millis;
use uppercased_ctl::clock::{self, Tick};

/// How long a command that still runs at the end of the measurement may go on.
const GRACE: Duration = Duration::from_secs(30);
/// How long it may go on after SIGTERM, when the measurement was interrupted.
const INTERRUPTED_GRACE: Duration = Duration::from_secs(1);
/// How often it is looked whether the measurement is over, while a command runs.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of a command's output that are kept, from its end.
const OUTPUT_MAX: usize = 400;

/// The commands of a measurement.
#[derive(Debug)]
pub(super) struct Jobs {
    threads: Vec<JoinHandle<Ran>>,
    /// Dropping it says that the measurement is over.
    over: Vec<Sender<()>>,
}

/// When the commands' time is over.
struct End<'a> {
    over: &'a Receiver<()>,
    interrupt: &'a Interrupt,
}

impl Jobs {
    /// Runs `jobs`, their times counted from `origin`, until `until` or [`Jobs::finish`].
    #[must_use]
    pub(super) fn start(jobs: &[Job], origin: Tick, until: Tick, interrupt: &Interrupt) -> Self {
        let mut started = Self {
            threads: Vec::new(),
            over: Vec::new(),
        };
        for job in jobs {
            let (over, is_over) = channel();
            let (job, interrupt) = (job.clone(), interrupt.clone());
            let run = move || {
                let end = End {
                    over: &is_over,
                    interrupt: &interrupt,
                };
                repeat(job, origin, until, &end)
            };
            started.threads.push(std::thread::spawn(run));
            started.over.push(over);
        }
        started
    }

    /// The measurement is over: waits for what still runs, and returns what came of each command.
    #[must_use]
    pub(super) fn finish(mut self) -> Vec<Ran> {
        self.over.clear();
        let threads = std::mem::take(&mut self.threads);
        threads
            .into_iter()
            .filter_map(|job| job.join().ok())
            .collect()
    }
}

impl Drop for Jobs {
    /// Also when the measurement fails, no command outlives it.
    fn drop(&mut self) {
        self.over.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn repeat(job: Job, origin: Tick, until: Tick, end: &End<'_>) -> Ran {
    let (mut marks, mut left_out) = (Vec::new(), 0);
    let mut due = origin + job.first;
    while due < until {
        match end.over.recv_timeout(due.since(clock::now())) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
        marks.push(run(&job.action, origin, end));
        let Some(every) = job.every else { break };
        let missed = missed(due, every, clock::now().min(until));
        left_out += missed;
        let steps = u128::from(missed) + 1;
        let ahead = every.as_nanos().saturating_mul(steps);
        due = due + Duration::from_nanos(u64::try_from(ahead).unwrap_or(u64::MAX));
    }
    Ran {
        job,
        marks,
        left_out,
    }
}

/// How many of the times after `due`, `every` so long, have come by `now`.
fn missed(due: Tick, every: Duration, now: Tick) -> u64 {
    let times = now.since(due).as_nanos() / every.as_nanos().max(1);
    u64::try_from(times).unwrap_or(u64::MAX)
}

fn run(action: &Action, origin: Tick, end: &End<'_>) -> Mark {
    let begun = clock::now();
    let mut mark = Mark {
        at_ms: millis(begun.since(origin)),
        command: action.to_string(),
        ..Mark::default()
    };
    let child = match command(action).and_then(|mut command| command.spawn()) {
        Ok(child) => child,
        Err(error) => {
            mark.output = format!("cannot run it: {error}");
            return mark;
        }
    };
    let (exit_code, tail) = match attend(child, end) {
        Ok(attended) => attended,
        Err(error) => {
            mark.output = format!("cannot watch the command: {error}");
            return mark;
        }
    };
    mark.took_ms = millis(clock::now().since(begun));
    mark.exit_code = exit_code;
    mark.output = last_line(&tail);
    mark
}

/// One run of it, in a process group of its own, all of its output in one pipe.
fn command(action: &Action) -> io::Result<Command> {
    let mut command = match action {
        Action::Shell(line) => {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("exec 2>&1\n{line}")]);
            command
        }
        Action::Program(words) => {
            let (program, arguments) = words.split_first().ok_or(io::ErrorKind::NotFound)?;
            let mut command = Command::new("sh");
            // The shell joins the two outputs and is replaced by the program.
            command
                .args(["-c", "exec \"$@\" 2>&1", "sh"])
                .arg(program)
                .args(arguments);
            command
        }
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    Ok(command)
}

/// Reads what the command says until it ends: its exit code, and the end of its output.
fn attend(mut child: Child, end: &End<'_>) -> io::Result<(Option<i32>, Vec<u8>)> {
    let group = Pid::from_child(&child);
    let signal = |signal| {
        // Refused only when all of it has ended.
        let _ = kill_process_group(group, signal);
    };
    let mut tail = Vec::new();
    let mut output = child
        .stdout
        .take()
        .map(|it| PipeReader::from(OwnedFd::from(it)));
    let watched = pidfd_open(group, PidfdFlags::empty());
    let process = match watched {
        Ok(process) => process,
        Err(errno) => {
            signal(Signal::KILL);
            child.wait()?;
            return Err(errno.into());
        }
    };
    let (mut limit, mut asked) = (None, false);
    while !ready(&process, output.as_ref()) {
        read_what_is_there(&mut output, &mut tail);
        let now = clock::now();
        if limit.is_none() && end.over.try_recv() == Err(TryRecvError::Disconnected) {
            limit = Some(now + GRACE);
        }
        if end.interrupt.haste() > Haste::None && !asked {
            asked = true;
            signal(Signal::TERM);
            limit = Some(now + INTERRUPTED_GRACE);
        }
        if limit.is_some_and(|limit| now >= limit) || end.interrupt.haste() == Haste::Now {
            signal(Signal::KILL);
        }
    }
    // Whatever it has said is in the pipe by now, however late this machine lets it be read.
    read_what_is_there(&mut output, &mut tail);
    if let Some(mut output) = output {
        // A command may leave somebody behind who still holds its output, such as a server that it
        // started: that one is neither waited for nor harmed.
        std::thread::spawn(move || io::copy(&mut output, &mut io::sink()));
    }
    let status = child.wait()?;
    Ok((status.code(), tail))
}

/// Waits until the process has ended, there is output, or [`LOOK`] has passed; whether it has ended.
fn ready(process: &OwnedFd, output: Option<&PipeReader>) -> bool {
    let descriptors = [Some(process.as_fd()), output.map(AsFd::as_fd)];
    let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut watched: Vec<PollFd<'_>> = descriptors.into_iter().flatten().map(watch).collect();
    let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
    let woken = poll(&mut watched, timeout).is_ok_and(|count| count > 0);
    woken && watched[0].any().unwrap_or(true)
}

/// Reads what is in the pipe now, without waiting for more, and keeps the end of it in `tail`. At the
/// end of the output nothing is left to read from.
fn read_what_is_there(output: &mut Option<PipeReader>, tail: &mut Vec<u8>) {
    let mut chunk = [0; 4096];
    // As much as there is at this moment: whoever goes on writing is not listened to for ever.
    let mut left = output.as_ref().map_or(0, unread);
    while let Some(from) = output {
        if left == 0 && !has_ended(from) {
            return;
        }
        match from.read(&mut chunk) {
            Ok(0) | Err(_) => *output = None,
            Ok(count) => {
                left = left.saturating_sub(count as u64);
                tail.extend_from_slice(&chunk[..count]);
                let surplus = tail.len().saturating_sub(2 * OUTPUT_MAX);
                tail.drain(..surplus);
            }
        }
    }
}

fn unread(output: &PipeReader) -> u64 {
    ioctl_fionread(output).unwrap_or(0)
}

/// Whether nobody can write any more, and everything was read.
fn has_ended(output: &PipeReader) -> bool {
    let mut watched = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut watched, PollTimeout::ZERO);
    let said = watched[0].revents().unwrap_or(PollFlags::empty());
    said.contains(PollFlags::POLLHUP) && !said.contains(PollFlags::POLLIN)
}

/// The last line that says anything, cut at its bound.
fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    line.unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(OUTPUT_MAX)
        .collect()
}

#[cfg(test)]
mod tests;
