//! The members of a load: threads of this process, or processes with their own threads if one
//! process lacks descriptors.
//!
//! Both have the same interface: they report their phase over one channel, publish their counts on
//! a `Board`, and receive start and stop commands. A process reads its shares as a line of JSON
//! from its standard input, then commands, one per line; it writes reports to its standard output
//! in the same way. It exits at the end of its input, so it never outlives its parent.
//!
//! Invariants: every member finally sends `Report::Done` or `Report::Failed`, even if it
//! crashes; no member waits for another.
#![expect(
    clippy::disallowed_methods,
    reason = "the load generator is a process of its own, and has threads; the server has none"
)]

use std::io::{self, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use mio::{Poll, Waker};
use serde::{Deserialize, Serialize};

use super::engine::{self, Board, REQUESTS, Reached, Share};
use super::plan::Plan;
use super::record::Record;
use super::truth::Truth;
use super::wait::has_ended;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::output;

/// The hidden command that runs a process of the load.
pub const PART: &str = "bench-part";

/// Time limit for a process to exit after the end of its input.
const END_MAX: Duration = Duration::from_secs(2);

/// Interval at which a process reports its counts.
const SHOW: Duration = Duration::from_millis(100);

/// The members of the load. Dropping it stops them.
#[derive(Debug)]
pub struct Team {
    members: Vec<Member>,
    reports: Receiver<Report>,
    /// Number of members not yet ready.
    not_ready: usize,
    not_over: usize,
    not_done: usize,
    records: Vec<Record>,
}

/// A message from a member.
#[derive(Debug)]
enum Report {
    /// A member reached a phase.
    Reached(Reached),
    /// A member is done; contains the records of its threads.
    Done(Vec<Record>),
    /// A member failed; contains the cause.
    Failed(String),
}

/// Counts of the whole team.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages answered, including the warm-up's.
    pub answered: u64,
    /// Failures.
    pub failed: u64,
    /// Open connections.
    pub open: u64,
}

/// The phase of the whole team.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All members are ready.
    Ready,
    /// The measurement has ended for all members.
    Over,
    /// All members are done.
    Done,
    /// None of these yet.
    Waiting,
}

#[derive(Debug)]
struct Member {
    board: Arc<Board>,
    means: Means,
}

/// The handle of a member.
#[derive(Debug)]
enum Means {
    Thread(Waker),
    /// A process; closing its input ends it.
    Process(Child, Option<ChildStdin>),
}

/// A line to a process, after the first one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    Start(Tick),
    Stop,
    Hurry,
}

/// A line from a process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Reached(Reached),
    Counts(Counts),
    Done(Vec<Record>),
    Failed(String),
}

impl Team {
    /// Starts the threads of `plan`, or its processes, which connect to `target` at once. They run
    /// on the CPUs of the calling thread. The calling program must run [`run_part`] if its first
    /// argument is [`PART`].
    ///
    /// # Errors
    /// The system rejected an event loop or a process.
    pub fn launch(plan: &Plan, target: SocketAddr) -> io::Result<Self> {
        let threads = u32::from(plan.threads) * u32::from(plan.processes);
        let share = |index| Share {
            plan: plan.clone(),
            target,
            index,
            threads,
        };
        if plan.processes == 1 {
            return Self::threads((0..threads).map(share).collect());
        }
        let each = u32::from(plan.threads);
        let bundle = |process| (process * each..(process + 1) * each).map(share).collect();
        Self::processes((0..plan.processes.into()).map(bundle).collect())
    }

    /// Starts one member for each share: threads of this process.
    fn threads(shares: Vec<Share>) -> io::Result<Self> {
        let (sender, reports) = channel();
        let mut members = Vec::new();
        let truth = shares.first().map(|share| {
            let plan = &share.plan;
            Arc::new(Truth::new(plan.expect, plan.sizes.most()))
        });
        for share in shares {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), REQUESTS)?;
            let board = Arc::new(Board::default());
            let (its_board, sender) = (Arc::clone(&board), sender.clone());
            let Some(truth) = truth.clone() else {
                continue;
            };
            std::thread::spawn(move || {
                let reached = |reached| drop(sender.send(Report::Reached(reached)));
                let last = match engine::run(&share, &truth, &its_board, poll, reached) {
                    Ok(record) => Report::Done(vec![record]),
                    Err(error) => Report::Failed(format!("the event loop failed: {error}")),
                };
                // The receiver no longer exists if the team was dropped.
                drop(sender.send(last));
            });
            let means = Means::Thread(waker);
            members.push(Member { board, means });
        }
        Ok(Self::of(members, reports))
    }

    /// Starts one process for each bundle of shares.
    fn processes(bundles: Vec<Vec<Share>>) -> io::Result<Self> {
        let (sender, reports) = channel();
        // If a process fails to start, dropping the team ends the others.
        let mut team = Self::of(Vec::new(), reports);
        for shares in bundles {
            let mut child = Command::new(std::env::current_exe()?)
                .arg(PART)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                // Ctrl-C must reach only this process, which stops the others gracefully.
                .process_group(0)
                .spawn()?;
            let board = Arc::new(Board::default());
            let (input, output) = (child.stdin.take(), child.stdout.take());
            let its_board = Arc::clone(&board);
            let means = Means::Process(child, input);
            team.members.push(Member { board, means });
            let input = team.members.last_mut().and_then(Member::input);
            if let (Some(input), Some(output)) = (input, output) {
                write_line(input, &shares)?;
                let sender = sender.clone();
                std::thread::spawn(move || {
                    drop(sender.send(forward(BufReader::new(output), &its_board, &sender)));
                });
            }
        }
        let count = team.members.len();
        (team.not_ready, team.not_over, team.not_done) = (count, count, count);
        Ok(team)
    }

    const fn of(members: Vec<Member>, reports: Receiver<Report>) -> Self {
        let count = members.len();
        Self {
            members,
            reports,
            not_ready: count,
            not_over: count,
            not_done: count,
            records: Vec::new(),
        }
    }

    /// Starts the load at `at`.
    pub fn start(&mut self, at: Tick) {
        for member in &mut self.members {
            member.board.start.store(at.as_nanos(), Ordering::Release);
            member.send(&Request::Start(at));
        }
    }

    /// Ends the load early.
    pub fn stop(&mut self) {
        for member in &mut self.members {
            member.board.stop.store(true, Ordering::Release);
            member.send(&Request::Stop);
        }
    }

    /// Ends the load without waiting for the last answers.
    pub fn hurry(&mut self) {
        for member in &mut self.members {
            member.board.hurry.store(true, Ordering::Release);
            member.send(&Request::Hurry);
        }
    }

    /// Waits until the team has reached `phase`.
    ///
    /// # Errors
    /// A member failed, or the phase was not reached `within` this time.
    pub fn reach(&mut self, phase: Progress, within: Duration) -> Result<(), String> {
        let deadline = clock::now() + within;
        loop {
            let reached = self.wait(deadline.since(clock::now()))?;
            if reached == phase {
                return Ok(());
            }
            if reached == Progress::Done || clock::now() >= deadline {
                return Err(format!(
                    "the load has not reached the phase {phase:?} in time"
                ));
            }
        }
    }

    /// Waits for progress, at most `within`.
    ///
    /// # Errors
    /// A member failed.
    pub fn wait(&mut self, within: Duration) -> Result<Progress, String> {
        match self.reports.recv_timeout(within) {
            Err(RecvTimeoutError::Timeout) => Ok(Progress::Waiting),
            Err(RecvTimeoutError::Disconnected) if self.not_done == 0 => Ok(Progress::Done),
            Err(RecvTimeoutError::Disconnected) => Err("a part of the load exited".to_owned()),
            Ok(Report::Failed(why)) => Err(why),
            Ok(Report::Reached(Reached::Ready)) => {
                self.not_ready = self.not_ready.saturating_sub(1);
                Ok(reached(self.not_ready, Progress::Ready))
            }
            Ok(Report::Reached(Reached::Over)) => {
                self.not_over = self.not_over.saturating_sub(1);
                Ok(reached(self.not_over, Progress::Over))
            }
            Ok(Report::Done(records)) => {
                self.records.extend(records);
                self.not_done = self.not_done.saturating_sub(1);
                Ok(reached(self.not_done, Progress::Done))
            }
        }
    }

    /// Returns the counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for Member { board, .. } in &self.members {
            sum.answered += board.answered.load(Ordering::Relaxed);
            sum.failed += board.failed.load(Ordering::Relaxed);
            sum.open += board.open.load(Ordering::Relaxed);
        }
        sum
    }

    /// Returns the records of the members that are done.
    #[must_use]
    pub fn into_records(mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.stop();
        for member in &mut self.members {
            if let Means::Process(child, input) = &mut member.means {
                // This closes its input, so it exits if it is still running.
                drop(input.take());
                if !has_ended(child, END_MAX) {
                    let _ = child.kill();
                }
                let _ = child.wait();
            }
        }
    }
}

impl Member {
    const fn input(&mut self) -> Option<&mut ChildStdin> {
        match &mut self.means {
            Means::Process(_, input) => input.as_mut(),
            Means::Thread(_) => None,
        }
    }

    fn send(&mut self, request: &Request) {
        match &mut self.means {
            // Fails only if the event loop no longer exists; then there is nothing to wake.
            Means::Thread(waker) => drop(waker.wake()),
            Means::Process(_, Some(input)) => drop(write_line(input, request)),
            Means::Process(_, None) => {}
        }
    }
}

fn reached(missing: usize, progress: Progress) -> Progress {
    if missing == 0 {
        progress
    } else {
        Progress::Waiting
    }
}

/// Forwards the messages of a process; returns the last one.
fn forward(output: impl io::BufRead, board: &Board, sender: &Sender<Report>) -> Report {
    for line in output.lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line) {
            Ok(Line::Reached(reached)) => drop(sender.send(Report::Reached(reached))),
            Ok(Line::Counts(counts)) => show(board, counts),
            Ok(Line::Done(records)) => return Report::Done(records),
            Ok(Line::Failed(why)) => return Report::Failed(why),
            Err(error) => {
                return Report::Failed(format!("cannot read a report of the load: {error}"));
            }
        }
    }
    Report::Failed("a process of the load exited early".to_owned())
}

fn show(board: &Board, counts: Counts) {
    board.answered.store(counts.answered, Ordering::Relaxed);
    board.failed.store(counts.failed, Ordering::Relaxed);
    board.open.store(counts.open, Ordering::Relaxed);
}

fn write_stdout(value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    output::write(&line)
}

fn write_line(mut to: impl io::Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Runs one process of the load; see the module documentation.
#[must_use]
pub fn run_part() -> ExitCode {
    match run_shares() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Without a reader, the error is not needed.
            let _ = write_stdout(&Line::Failed(why));
            ExitCode::FAILURE
        }
    }
}

fn run_shares() -> Result<(), String> {
    let mut first = String::new();
    io::stdin()
        .read_line(&mut first)
        .map_err(|error| error.to_string())?;
    let shares: Vec<Share> = serde_json::from_str(&first)
        .map_err(|_| "only `uppercased bench` starts this command".to_owned())?;
    uppercased_ctl::process::raise_descriptor_limit().map_err(|error| error.to_string())?;
    let mut team = Team::threads(shares).map_err(|error| error.to_string())?;
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for line in io::stdin().lines() {
            match line.map(|line| serde_json::from_str(&line)) {
                Ok(Ok(request)) => drop(sender.send(request)),
                Ok(Err(_)) | Err(_) => break,
            }
        }
        // The parent has exited or needs no more results.
        drop(sender.send(Request::Hurry));
    });
    let send = |line: &Line| write_stdout(line).map_err(|error| error.to_string());
    loop {
        let progress = team.wait(SHOW)?;
        send(&Line::Counts(team.counts()))?;
        match progress {
            Progress::Waiting => {}
            Progress::Ready => {
                send(&Line::Reached(Reached::Ready))?;
                match requests.recv() {
                    Ok(Request::Start(at)) => team.start(at),
                    Ok(Request::Stop | Request::Hurry) | Err(_) => team.stop(),
                }
            }
            Progress::Over => send(&Line::Reached(Reached::Over))?,
            Progress::Done => return send(&Line::Done(team.into_records())),
        }
        match requests.try_recv() {
            Ok(Request::Stop) => team.stop(),
            Ok(Request::Hurry) => {
                team.stop();
                team.hurry();
            }
            Ok(Request::Start(_)) | Err(_) => {}
        }
    }
}
