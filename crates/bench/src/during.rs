//! Runs commands during the load, such as a reload of the server.
//!
//! Each command has its own thread and never runs concurrently with itself. All its output is read,
//! so it cannot block on a full pipe; only the last line is kept.
//!
//! Invariants: a command runs at most `GRACE` beyond the measurement, or `INTERRUPTED_GRACE` if it
//! was interrupted; a run due while the previous one is still running is skipped and counted.
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

/// Grace period of a command that still runs at the end of the measurement.
const GRACE: Duration = Duration::from_secs(30);
/// Grace period after SIGTERM, if the measurement was interrupted.
const INTERRUPTED_GRACE: Duration = Duration::from_secs(1);
/// Interval at which the end of the measurement is polled while a command runs.
const CHECK_EVERY: Duration = Duration::from_millis(50);
/// Bytes kept of a command's output, from its end.
const OUTPUT_MAX: usize = 400;

/// The commands of a measurement.
#[derive(Debug)]
pub(super) struct Jobs {
    threads: Vec<JoinHandle<Ran>>,
    /// Dropped to signal the end of the measurement.
    over: Vec<Sender<()>>,
}

/// The end of the commands' time.
struct End<'a> {
    over: &'a Receiver<()>,
    interrupt: &'a Interrupt,
}

impl Jobs {
    /// Runs `jobs`, with times relative to `origin`, until `until` or [`Jobs::finish`].
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

    /// Ends the measurement: waits for running commands and returns the results of each command.
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
    /// Ends the commands, even if the measurement fails.
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

/// Returns how many of the times after `due`, `every` apart, have passed by `now`.
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
            mark.output = format!("cannot run the command: {error}");
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

/// Prepares one run, in its own process group, with all of its output in one pipe.
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
            // The shell merges the two outputs and execs the program.
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

/// Reads the command's output until it exits, and returns its exit code and the last line.
fn attend(mut child: Child, end: &End<'_>) -> io::Result<(Option<i32>, Vec<u8>)> {
    let group = Pid::from_child(&child);
    let signal = |signal| {
        // Fails only if the whole group has exited.
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
    // All of its output is in the pipe by now, even if it is read late.
    read_what_is_there(&mut output, &mut tail);
    if let Some(mut output) = output {
        // The command may leave a descendant that still holds its output, such as a server; it is
        // neither waited for nor killed.
        std::thread::spawn(move || io::copy(&mut output, &mut io::sink()));
    }
    let status = child.wait()?;
    Ok((status.code(), tail))
}

/// Waits until the process has exited, there is output, or [`CHECK_EVERY`] has passed; returns
/// whether it has exited.
fn ready(process: &OwnedFd, output: Option<&PipeReader>) -> bool {
    let descriptors = [Some(process.as_fd()), output.map(AsFd::as_fd)];
    let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut watched: Vec<PollFd<'_>> = descriptors.into_iter().flatten().map(watch).collect();
    let timeout = PollTimeout::try_from(CHECK_EVERY).unwrap_or(PollTimeout::ZERO);
    let woken = poll(&mut watched, timeout).is_ok_and(|count| count > 0);
    woken && watched[0].any().unwrap_or(true)
}

/// Reads the bytes now in the pipe, without waiting for more, and keeps their end in `tail`. At the
/// end of the output, sets `output` to `None`.
fn read_what_is_there(output: &mut Option<PipeReader>, tail: &mut Vec<u8>) {
    let mut chunk = [0; 4096];
    // Reads only the bytes in the pipe at this moment: the writer may never stop.
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

/// Returns whether the pipe has no writer left and everything was read.
fn has_ended(output: &PipeReader) -> bool {
    let mut watched = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut watched, PollTimeout::ZERO);
    let events = watched[0].revents().unwrap_or(PollFlags::empty());
    events.contains(PollFlags::POLLHUP) && !events.contains(PollFlags::POLLIN)
}

/// Returns the last line that is not blank, cut to its bound.
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
