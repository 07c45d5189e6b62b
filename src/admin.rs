//! The admin endpoint: health, readiness, status and metrics of a server over HTTP, and a line for
//! load balancers that ask, in a process of its own beside the workers.
//!
//! The supervisor starts it, leaves it a channel at a fixed descriptor and starts it again when it
//! dies. Over the channel come the bound listeners and, each time that somebody asks here, the status.
//! There it can ask for nothing else: it has no way to the control socket.
//!
//! Invariants: at most [`ADMIN_REQUESTS_MAX`] requests and [`AGENT_CLIENTS_MAX`] load balancers at
//! once, each with a deadline for the whole of it; it locks itself in (`sandbox`) before it answers
//! any; it ends with its supervisor; nothing that it does or fails to do reaches a client.
//!
//! It must not decide anything about the server. It may have threads: it is no worker, and forks
//! nothing.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::channel::{self, Channel};
use crate::clock::{self, Tick};
use crate::config::{
    ADMIN_ANSWER_TIMEOUT, ADMIN_HEAD_MAX_BYTES, ADMIN_REQUEST_TIMEOUT, ADMIN_REQUESTS_MAX,
    AGENT_CLIENTS_MAX, AGENT_FRESH, AGENT_TIMEOUT, Config,
};
use crate::fault;
use crate::log;
use crate::sandbox::{self, calls::Role};
use crate::status::Status;
use crate::sys::child::end_with_parent;
use crate::sys::fd::inherited_channel;
use crate::wire::{Failed, Message, Ready, Sandboxed};

mod agent;
mod answer;
mod exposition;
mod http;
mod questions;

use agent::Agent;
use answer::Answered;
use http::{Asked, Response};
use questions::Questions;

/// What the supervisor tells its admin process on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The supervisor's process number.
    pub supervisor: i32,
}

/// How long it waits to be told what to be. Its supervisor says so before it even forks.
const START_MESSAGE_TIMEOUT_MS: u16 = 10_000;
/// Bytes that are read at once of what nobody will look at.
const DISCARD_BYTES: usize = 4096;
/// How long a client whose request was refused may go on sending it. To close earlier would reset
/// the connection, and the answer might be lost with it.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(250);

/// Answers requests until the supervisor ends.
#[must_use]
pub fn run(options: Options) -> ExitCode {
    let Some(channel) = inherited_channel() else {
        eprintln!(
            "uppercased: the admin process is the supervisor's to start; run `uppercased --admin \
             127.0.0.1:9100`"
        );
        return ExitCode::from(2);
    };
    let mut channel = Channel::over(channel);
    let (config, doors) = match await_start(&mut channel) {
        Ok(told) => told,
        Err(error) => {
            eprintln!("uppercased: the admin process was not told what to be: {error}");
            return ExitCode::FAILURE;
        }
    };
    let questions = Questions::over(channel);
    let served = log::init(config.log_level, config.log_format)
        .map_err(|error| error.to_string())
        .and_then(|()| serve(doors, &config, options, &questions));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            // The supervisor logs it. If it is gone, so is whoever would want to know.
            let _ = questions.say(Message::Failed(Failed { cause }));
            ExitCode::FAILURE
        }
    }
}

/// A listener, how many answer there at once, and how.
type Door = (Socket, usize, Answer);
/// Answers one client.
type Answer = fn(&Desk, &Socket) -> io::Result<()>;

/// The first message: the configuration, and the listeners.
fn await_start(channel: &mut Channel) -> io::Result<(Config, Vec<Door>)> {
    let mut readable = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    poll(&mut readable, PollTimeout::from(START_MESSAGE_TIMEOUT_MS))?;
    let received = channel.receive().map_err(io::Error::other)?;
    let received = received.ok_or(io::ErrorKind::TimedOut)?;
    let Message::StartAdmin(start) = received.envelope.message else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let kinds: [(bool, usize, Answer); 2] = [
        (start.http, ADMIN_REQUESTS_MAX, Desk::answer_one),
        (start.agent, AGENT_CLIENTS_MAX, Desk::answer_balancer),
    ];
    let named = kinds.into_iter().filter(|(is_there, ..)| *is_there);
    let doors: Vec<Door> = named
        .zip(received.descriptors)
        .map(|((_, threads, answer), listener)| (listener.into(), threads, answer))
        .collect();
    if doors.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((start.config, doors))
}

/// Locks itself in and serves with a few threads, of which each has one request in hand at most.
fn serve(
    doors: Vec<Door>,
    config: &Config,
    options: Options,
    questions: &Arc<Questions>,
) -> Result<(), String> {
    // For people who look at a list of processes.
    let _ = nix::sys::prctl::set_name(c"uppercased");
    let ends = questions.ends().map_err(|error| error.to_string())?;
    let locked = sandbox::begin(config)?;
    // Becoming another user forgets it.
    end_with_parent(options.supervisor).map_err(|error| error.to_string())?;
    let desk = Arc::new(Desk {
        questions: Arc::clone(questions),
        answered: Answered::default(),
        told: Mutex::default(),
    });
    let threads: usize = doors.iter().map(|(_, threads, _)| threads).sum();
    let opening = Arc::new(Barrier::new(threads + 1));
    start_threads(&desk, doors, &opening)
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    let sandboxed = locked.finish(Role::Admin)?;
    fault::point("admin.sandboxed");
    ready(questions, sandboxed)?;
    opening.wait();
    hear_until_the_end(questions, &ends)
}

/// Starts the threads, and waits until each has begun and stands before the doors: none starts, and
/// none sets itself up, when calls have been taken away.
fn start_threads(desk: &Arc<Desk>, doors: Vec<Door>, opening: &Arc<Barrier>) -> io::Result<()> {
    let (begun, all_begun) = channel();
    let mut started = 0;
    for (listener, threads, answer) in doors {
        let listener = Arc::new(listener);
        for _ in 0..threads {
            let (desk, listener) = (Arc::clone(desk), Arc::clone(&listener));
            let (opening, begun) = (Arc::clone(opening), begun.clone());
            let serve = move || {
                // By this the allocator has settled where this thread's memory comes from.
                let _ = begun.send(Vec::<u8>::with_capacity(DISCARD_BYTES));
                opening.wait();
                let error = desk.answer_for_ever(&listener, answer);
                // The first one that cannot go on ends the process; the supervisor starts another.
                desk.questions.give_up(&error);
            };
            std::thread::Builder::new().spawn(serve).map(drop)?;
            started += 1;
        }
    }
    for _ in 0..started {
        all_begun.recv().map_err(io::Error::other)?;
    }
    Ok(())
}

fn ready(questions: &Questions, sandboxed: Sandboxed) -> Result<(), String> {
    questions.say(Message::Ready(Ready {
        listen: Vec::new(),
        sandbox: Some(sandboxed),
    }))
}

/// Hands out what the supervisor answers, until it or a thread has ended.
fn hear_until_the_end(questions: &Questions, ends: &[OwnedFd; 2]) -> Result<(), String> {
    loop {
        let mut readable = ends
            .each_ref()
            .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        // An interruption only makes it look sooner.
        let _ = poll(&mut readable, PollTimeout::NONE);
        match questions.hear() {
            Ok(()) => {}
            Err(channel::Error::Closed) => return questions.failure().map_or(Ok(()), Err),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// What the threads share.
#[derive(Debug)]
struct Desk {
    questions: Arc<Questions>,
    answered: Answered,
    told: Mutex<Told>,
}

/// What load balancers were told last, and when.
#[derive(Debug, Default)]
struct Told {
    agent: Agent,
    latest: Option<(Tick, String)>,
}

impl Desk {
    /// Takes one connection after the other; returns why that is impossible.
    fn answer_for_ever(&self, listener: &Socket, answer: Answer) -> io::Error {
        loop {
            match listener.accept() {
                // A client that goes away in the middle is nobody's trouble.
                Ok((connection, _)) => drop(answer(self, &connection)),
                Err(error) if is_the_clients(&error) => {}
                Err(error) => return error,
            }
        }
    }

    /// Tells a load balancer its line, whatever it has sent: some send a word of their own first.
    fn answer_balancer(&self, connection: &Socket) -> io::Result<()> {
        let by = clock::now() + AGENT_TIMEOUT;
        write_all(connection, self.line().as_bytes(), by)?;
        connection.shutdown(Shutdown::Write)?;
        discard(connection, by)
    }

    fn line(&self) -> String {
        // One asks for all. A thread that panicked left something whole, or the line from before.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let asked_at = clock::now();
        if let Some((at, line)) = &told.latest
            && asked_at.since(*at) < AGENT_FRESH
        {
            return line.clone();
        }
        let status = self.status();
        let line = told.agent.answer(status.as_deref().ok(), clock::now());
        told.latest = Some((clock::now(), line.clone()));
        line
    }

    fn answer_one(&self, connection: &Socket) -> io::Result<()> {
        let by = clock::now() + ADMIN_REQUEST_TIMEOUT;
        let (response, refused, without_body) = match read_head(connection, by)? {
            None => return Ok(()),
            Some(Ok(asked)) => (self.answer(asked), false, asked.head_only),
            Some(Err(refusal)) => (refusal.response(), true, false),
        };
        self.answered.count(response.status);
        let bytes = response.encode(without_body);
        write_all(connection, &bytes, clock::now() + ADMIN_REQUEST_TIMEOUT)?;
        connection.shutdown(Shutdown::Write)?;
        if refused {
            discard(connection, clock::now() + DISCARD_TIMEOUT)?;
        }
        Ok(())
    }

    fn answer(&self, asked: Asked) -> Response {
        answer::answer(asked.page, &self.status(), &self.answered)
    }

    /// The server's status as the supervisor tells it now, or why it does not.
    fn status(&self) -> Result<Box<Status>, String> {
        self.questions.status(ADMIN_ANSWER_TIMEOUT)
    }
}

/// Whether an accept failed because of the one connection that it was about.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// Reads a request, or why it is none; `None` if the client closed without having begun one.
fn read_head(
    mut connection: &Socket,
    by: Tick,
) -> io::Result<Option<Result<Asked, http::Refusal>>> {
    let mut bytes = vec![0; ADMIN_HEAD_MAX_BYTES];
    let mut len = 0;
    loop {
        let Some(left) = left(by) else {
            return Ok(Some(Err(http::Refusal::TooSlow)));
        };
        connection.set_read_timeout(Some(left))?;
        match connection.read(&mut bytes[len..]) {
            Ok(0) if len == 0 => return Ok(None),
            Ok(0) => return Ok(Some(Err(http::Refusal::Malformed))),
            Ok(count) => len += count,
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
        match http::read(&bytes[..len]) {
            Ok(Some(asked)) => return Ok(Some(Ok(asked))),
            Ok(None) if len == bytes.len() => return Ok(Some(Err(http::Refusal::TooLong))),
            Ok(None) => {}
            Err(refusal) => return Ok(Some(Err(refusal))),
        }
    }
}

fn write_all(mut connection: &Socket, mut bytes: &[u8], by: Tick) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = left(by).ok_or(io::ErrorKind::TimedOut)?;
        connection.set_write_timeout(Some(left))?;
        match connection.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Throws away what is still coming.
fn discard(mut connection: &Socket, by: Tick) -> io::Result<()> {
    let mut bytes = [0; DISCARD_BYTES];
    while let Some(left) = left(by) {
        connection.set_read_timeout(Some(left))?;
        if connection.read(&mut bytes)? == 0 {
            break;
        }
    }
    Ok(())
}

/// What is left until `by`; the kernel takes no timeout of zero.
fn left(by: Tick) -> Option<Duration> {
    Some(by.since(clock::now())).filter(|left| *left >= Duration::from_millis(1))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
