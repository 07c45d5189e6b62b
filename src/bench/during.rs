//! Commands that are run while the load runs, such as a restart of the server.
//!
//! Each command has a thread of its own and runs in turn, never twice at once. What it prints is
//! read to the end and all but its last line thrown away, so it cannot hang on a full pipe.
//!
//! Invariants: no command outlives the measurement by more than its grace; one whose time came
//! while it still ran is left out.
#![expect(
    clippy::disallowed_methods,
    reason = "the load generator is a process of its own, and has threads; the server has none"
)]

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::options::Job;
use super::outcome::Mark;
use super::plan::millis;
use crate::clock::{self, Tick};

/// How long a command that still runs at the end of the measurement may go on.
const GRACE: Duration = Duration::from_secs(30);
/// How often it is looked whether the measurement is over, while a command runs.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of a command's output that are kept, from its end.
const OUTPUT_MAX: usize = 400;

/// The commands of a measurement.
#[derive(Debug)]
pub(super) struct Jobs {
    threads: Vec<JoinHandle<Vec<Mark>>>,
    /// Dropping it says that the measurement is over.
    over: Vec<Sender<()>>,
}

impl Jobs {
    /// Runs `jobs`, their times counted from `origin`, until `until` or [`Jobs::finish`].
    #[must_use]
    pub(super) fn start(jobs: &[Job], origin: Tick, until: Tick) -> Self {
        let mut started = Self {
            threads: Vec::new(),
            over: Vec::new(),
        };
        for job in jobs {
            let (over, is_over) = channel();
            let job = job.clone();
            let run = move || repeat(&job, origin, until, &is_over);
            started.threads.push(std::thread::spawn(run));
            started.over.push(over);
        }
        started
    }

    /// The measurement is over: waits for what still runs, and returns the marks, in order of time.
    #[must_use]
    pub(super) fn finish(self) -> Vec<Mark> {
        drop(self.over);
        let marks = self.threads.into_iter().filter_map(|job| job.join().ok());
        let mut marks: Vec<Mark> = marks.flatten().collect();
        marks.sort_by_key(|mark| mark.at_ms);
        marks
    }
}

fn repeat(job: &Job, origin: Tick, until: Tick, is_over: &Receiver<()>) -> Vec<Mark> {
    let mut marks = Vec::new();
    let mut due = origin + job.first;
    while due < until {
        match is_over.recv_timeout(due.since(clock::now())) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
        marks.push(run(&job.command, origin, is_over));
        let Some(every) = job.every else { break };
        let now = clock::now();
        while due <= now {
            due = due + every;
        }
    }
    marks
}

fn run(command: &str, origin: Tick, is_over: &Receiver<()>) -> Mark {
    let begun = clock::now();
    let mut mark = Mark {
        at_ms: millis(begun.since(origin)),
        command: command.to_owned(),
        ..Mark::default()
    };
    let started = Command::new("sh")
        .args(["-c", &format!("exec 2>&1\n{command}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            mark.output = format!("cannot run a shell: {error}");
            return mark;
        }
    };
    let group = Pid::from_child(&child);
    let output = child.stdout.take();
    let tail = Arc::new(Mutex::new(Vec::new()));
    let (tell, told) = channel();
    let tell_exit = tell.clone();
    std::thread::spawn(move || {
        let status = child.wait().ok();
        let _ = tell_exit.send(End::Command(status.and_then(|status| status.code())));
    });
    let its_tail = Arc::clone(&tail);
    std::thread::spawn(move || {
        read_tail(output, &its_tail);
        let _ = tell.send(End::Output);
    });
    let mut limit = None;
    let mut is_read = false;
    loop {
        match told.recv_timeout(LOOK) {
            Ok(End::Command(code)) => {
                mark.exit_code = code;
                break;
            }
            Ok(End::Output) => is_read = true,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if limit.is_none() && is_over.try_recv() == Err(TryRecvError::Disconnected) {
            limit = Some(clock::now() + GRACE);
        }
        if limit.is_some_and(|limit| clock::now() >= limit) {
            // Nothing of it may go on.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
    mark.took_ms = millis(clock::now().since(begun));
    if !is_read {
        // A command may leave somebody behind who still holds its output, such as a server that it
        // started: that one is neither waited for nor harmed.
        let _ = told.recv_timeout(LOOK);
    }
    mark.output = last_line(&tail.lock().unwrap_or_else(PoisonError::into_inner));
    mark
}

/// What is waited for.
enum End {
    /// The command has ended, with this code.
    Command(Option<i32>),
    /// Its output has.
    Output,
}

/// Reads everything and keeps the end of it in `tail`.
fn read_tail(from: Option<impl Read>, tail: &Mutex<Vec<u8>>) {
    let Some(mut from) = from else { return };
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(&chunk[..count]);
        let surplus = tail.len().saturating_sub(2 * OUTPUT_MAX);
        tail.drain(..surplus);
    }
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
mod tests {
    use super::*;

    fn job(text: &str) -> Job {
        text.parse().unwrap()
    }

    #[test]
    fn a_command_leaves_a_mark_with_its_last_line() {
        let now = clock::now();
        let jobs = [
            job("at 1ms: echo one; echo two >&2; exit 3"),
            job("at 2ms: kill -9 $$"),
            job("at 1h: echo never"),
        ];
        let jobs = Jobs::start(&jobs, now, now + Duration::from_secs(2));
        // They are awaited by their ends, not by the clock: the third sees that it is over.
        let marks: Vec<Mark> = {
            let Jobs { mut threads, over } = jobs;
            let third = threads.pop();
            let mut marks: Vec<Mark> = threads
                .into_iter()
                .flat_map(|t| t.join().unwrap())
                .collect();
            drop(over);
            marks.extend(third.unwrap().join().unwrap());
            marks
        };
        assert_eq!(marks.len(), 2);
        assert_eq!(
            (marks[0].exit_code, marks[0].output.as_str()),
            (Some(3), "two")
        );
        assert_eq!(marks[1].exit_code, None);
    }

    #[test]
    fn a_command_may_come_again_but_not_beside_itself() {
        let now = clock::now();
        let jobs = [job("every 10ms: true")];
        let jobs = Jobs::start(&jobs, now, now + Duration::from_millis(300));
        let marks: Vec<Mark> = jobs
            .threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect();
        assert!(marks.len() > 1, "{}", marks.len());
        for pair in marks.windows(2) {
            assert!(
                pair[0].at_ms + pair[0].took_ms <= pair[1].at_ms + 1,
                "{pair:?}"
            );
        }
    }

    #[test]
    fn output_is_bounded() {
        let long = "x".repeat(100_000);
        let tail = Mutex::new(Vec::new());
        read_tail(Some(long.as_bytes()), &tail);
        let tail = tail.into_inner().unwrap();
        assert_eq!(
            (tail.len(), last_line(&tail).len()),
            (2 * OUTPUT_MAX, OUTPUT_MAX)
        );
        assert_eq!(last_line(b"a\nb\n\n"), "b");
        assert_eq!(last_line(b""), "");
    }

    #[test]
    fn who_is_left_behind_lives_and_is_not_waited_for() {
        let now = clock::now();
        // It holds the output until its own input, a pipe that nobody closes, ends.
        let command = "at 1ms: mkfifo \"$PIPE\"; cat \"$PIPE\" & echo $!";
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let command = command.replace("$PIPE", pipe.to_str().unwrap());
        let jobs = Jobs::start(&[job(&command)], now, now + Duration::from_secs(9));
        let Jobs { threads, over } = jobs;
        let marks: Vec<Mark> = threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect();
        drop(over);
        assert_eq!(marks[0].exit_code, Some(0));
        let pid: i32 = marks[0].output.parse().unwrap();
        let alive = rustix::process::test_kill_process(Pid::from_raw(pid).unwrap());
        assert!(alive.is_ok(), "{alive:?}");
        // A writer that comes and goes ends it.
        drop(std::fs::OpenOptions::new().write(true).open(&pipe).unwrap());
    }
}
