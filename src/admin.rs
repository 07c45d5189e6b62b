//! The admin endpoint: health, readiness, status and metrics of a server over HTTP, and a line for
//! load balancers that ask, in a process of its own beside the workers.
//!
//! The supervisor starts it, leaves it a channel at a fixed descriptor and starts it again when it
//! dies. Over the channel come the bound listeners and, each time that somebody asks here, the status.
//! There it can ask for nothing else: it has no way to the control socket.
//!
//! Invariants: at most [`ADMIN_REQUESTS_MAX`] requests and [`AGENT_CLIENTS_MAX`] load balancers at
//! once, each with a deadline for the whole of it, and one that is slow to ask, to read or to close
//! gives way to the next one that waits; it locks itself in (`sandbox`) before it answers
//! any; it ends with its supervisor; nothing that it does or fails to do reaches a client.
//!
//! It must not decide anything about the server. It may have threads: it is no worker, and forks
//! nothing.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use socket2::Socket;

use crate::channel::{self, Channel};
use crate::config::{
    ADMIN_ANSWER_TIMEOUT, ADMIN_HEAD_MAX_BYTES, ADMIN_PATIENCE, ADMIN_REQUEST_TIMEOUT,
    ADMIN_REQUESTS_MAX, AGENT_CLIENTS_MAX, AGENT_FRESH, AGENT_TIMEOUT, Config, OOM_SCORE_STEP,
};
use crate::fault;
use crate::log::{self, event};
use crate::sandbox::{self, calls::Role};
use crate::sys::child::end_with_parent;
use crate::sys::fd::inherited_channel;
use crate::sys::heap::share_one_heap;
use crate::sys::limits::be_killed_before_parent;
use crate::wire::{FromAdmin, ToAdmin};
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::status::Status;
use uppercased_ctl::status::{AgentAnswers, Sandboxed};
use uppercased_ctl::stderr;

mod agent;
mod answer;
mod exposition;
mod http;
mod questions;

use agent::{Agent, Line};
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
        stderr::complain(
            "cannot run the admin process: only the supervisor starts it; run `uppercased --admin \
             127.0.0.1:9900`",
        );
        return ExitCode::from(2);
    };
    let mut channel = Channel::over(channel);
    let (config, doors) = match await_start(&mut channel) {
        Ok(told) => told,
        Err(error) => {
            stderr::complain(&format!(
                "cannot read the admin process's start message: {error}"
            ));
            return ExitCode::FAILURE;
        }
    };
    let questions = Questions::over(channel);
    let served = log::init(config.log_level, config.log_format)
        .map_err(|error| error.to_string())
        .inspect(|()| {
            if let Err(error) = be_killed_before_parent(OOM_SCORE_STEP) {
                event!(oom_score_not_raised, %error);
            }
        })
        .and_then(|()| serve(doors, &config, options, &questions));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            // The supervisor logs it. If it is gone, so is whoever would want to know.
            let _ = questions.say(FromAdmin::Failed { cause });
            ExitCode::FAILURE
        }
    }
}

/// A listener, how many answer there at once, and how.
type Offer = (Socket, usize, Answer);
/// Answers one client of a door.
type Answer = fn(&Desk, &Door, &Socket) -> io::Result<()>;

/// Where clients come in.
#[derive(Debug)]
struct Door {
    listener: Socket,
    /// Threads that have no client.
    free: AtomicUsize,
}

impl Door {
    /// Whether somebody waits whom no thread is about to take, the listener being readable.
    fn is_crowded(&self) -> bool {
        self.free.load(Ordering::Relaxed) == 0
    }
}

/// The first message: the configuration, and the listeners.
fn await_start(channel: &mut Channel<FromAdmin, ToAdmin>) -> io::Result<(Config, Vec<Offer>)> {
    let mut readable = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    poll(&mut readable, PollTimeout::from(START_MESSAGE_TIMEOUT_MS))?;
    let received = channel.receive().map_err(io::Error::other)?;
    let received = received.ok_or(io::ErrorKind::TimedOut)?;
    let ToAdmin::Start(start) = received.envelope.message else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let kinds: [(bool, usize, Answer); 2] = [
        (start.http, ADMIN_REQUESTS_MAX, Desk::answer_one),
        (start.agent, AGENT_CLIENTS_MAX, Desk::answer_balancer),
    ];
    let named = kinds.into_iter().filter(|(is_there, ..)| *is_there);
    let doors: Vec<Offer> = named
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
    doors: Vec<Offer>,
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
        agent_answers: Mutex::default(),
    });
    let threads: usize = doors.iter().map(|(_, threads, _)| threads).sum();
    let opening = Arc::new(Barrier::new(threads + 1));
    share_one_heap();
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
fn start_threads(desk: &Arc<Desk>, doors: Vec<Offer>, opening: &Arc<Barrier>) -> io::Result<()> {
    let (begun, all_begun) = channel();
    let mut started = 0;
    for (listener, threads, answer) in doors {
        let door = Arc::new(Door {
            listener,
            free: AtomicUsize::new(threads),
        });
        for _ in 0..threads {
            let (desk, door) = (Arc::clone(desk), Arc::clone(&door));
            let (opening, begun) = (Arc::clone(opening), begun.clone());
            let serve = move || {
                // By this the allocator has settled where this thread's memory comes from.
                let _ = begun.send(Vec::<u8>::with_capacity(DISCARD_BYTES));
                opening.wait();
                let error = desk.answer_for_ever(&door, answer);
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
    questions.say(FromAdmin::Ready { sandbox: sandboxed })
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
    /// Apart from that: nobody waits while holding it.
    agent_answers: Mutex<AgentAnswers>,
}

/// What load balancers were told last, and when.
#[derive(Debug, Default)]
struct Told {
    agent: Agent,
    latest: Option<(Tick, Line)>,
}

impl Desk {
    /// Takes one connection after the other; returns why that is impossible.
    fn answer_for_ever(&self, door: &Door, answer: Answer) -> io::Error {
        loop {
            match door.listener.accept() {
                Ok((connection, _)) => {
                    door.free.fetch_sub(1, Ordering::Relaxed);
                    // A client that goes away in the middle is nobody's trouble.
                    drop(answer(self, door, &connection));
                    door.free.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if is_the_clients(&error) => {}
                Err(error) => return error,
            }
        }
    }

    /// Tells a load balancer its line, whatever it has sent: some send a word of their own first.
    fn answer_balancer(&self, door: &Door, connection: &Socket) -> io::Result<()> {
        let line = self.line();
        // From here on: what the supervisor has taken is not the balancer's fault. Nobody has to
        // read or send anything for the line to be in the kernel, so there is no patience.
        let visit = Visit::new(door, connection, Duration::ZERO, AGENT_TIMEOUT);
        visit.write_all(line.to_string().as_bytes())?;
        line.count(&mut self.agent_answers());
        connection.shutdown(Shutdown::Write)?;
        visit.discard()
    }

    fn line(&self) -> Line {
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

    fn answer_one(&self, door: &Door, connection: &Socket) -> io::Result<()> {
        let visit = || Visit::new(door, connection, ADMIN_PATIENCE, ADMIN_REQUEST_TIMEOUT);
        let (response, refused, without_body) = match visit().read_head()? {
            None => return Ok(()),
            Some(Ok(asked)) => (self.answer(asked), false, asked.head_only),
            Some(Err(refusal)) => (refusal.response(), true, false),
        };
        self.answered.count(response.status);
        visit().write_all(&response.encode(without_body))?;
        connection.shutdown(Shutdown::Write)?;
        if refused {
            Visit::new(door, connection, Duration::ZERO, DISCARD_TIMEOUT).discard()?;
        }
        Ok(())
    }

    fn answer(&self, asked: Asked) -> Response {
        let agent = *self.agent_answers();
        asked.page.map_or_else(Response::no_such_page, |page| {
            answer::answer(page, &self.status(), &self.answered, agent)
        })
    }

    /// The server's status as the supervisor tells it now, or why it does not.
    fn status(&self) -> Result<Box<Status>, String> {
        let agent = *self.agent_answers();
        self.questions.status(ADMIN_ANSWER_TIMEOUT, agent)
    }

    fn agent_answers(&self) -> MutexGuard<'_, AgentAnswers> {
        let answers = self.agent_answers.lock();
        answers.unwrap_or_else(PoisonError::into_inner)
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

/// One client while it is waited for: to send its request, to read its answer, to close.
///
/// Invariant: a thread waits for a client in [`Visit::wait`] only, and there a client that is slow
/// gives way: once patience is at its end it is waited for only as long as nobody else waits, or a
/// handful of slow ones would keep all others from learning how the server is.
struct Visit<'a> {
    door: &'a Door,
    connection: &'a Socket,
    patient_until: Tick,
    by: Tick,
}

impl<'a> Visit<'a> {
    fn new(door: &'a Door, connection: &'a Socket, patience: Duration, timeout: Duration) -> Self {
        let now = clock::now();
        Self {
            door,
            connection,
            patient_until: now + patience,
            by: now + timeout,
        }
    }

    /// Waits until the client is ready for `event`; false: no longer.
    fn wait(&self, event: PollFlags) -> io::Result<bool> {
        loop {
            let Some(most) = left(self.by) else {
                return Ok(false);
            };
            let patience = left(self.patient_until);
            let wait = PollTimeout::try_from(patience.unwrap_or(most).min(most));
            let mut fds = [
                PollFd::new(self.connection.as_fd(), event),
                PollFd::new(self.door.listener.as_fd(), PollFlags::POLLIN),
            ];
            let watched = if patience.is_some() { 1 } else { 2 };
            match poll(&mut fds[..watched], wait.unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let happened = |at: usize| fds[at].any().unwrap_or(false);
            if happened(0) {
                return Ok(true);
            }
            if watched == 2 && happened(1) && self.door.is_crowded() {
                return Ok(false);
            }
        }
    }

    /// Reads a request, or why it is none; `None` if the client closed without having begun one.
    fn read_head(&self) -> io::Result<Option<Result<Asked, http::Refusal>>> {
        let mut connection = self.connection;
        let mut bytes = vec![0; ADMIN_HEAD_MAX_BYTES];
        let mut len = 0;
        loop {
            if !self.wait(PollFlags::POLLIN)? {
                return Ok(Some(Err(http::Refusal::TooSlow)));
            }
            match connection.read(&mut bytes[len..]) {
                Ok(0) if len == 0 => return Ok(None),
                Ok(0) => return Ok(Some(Err(http::Refusal::Malformed))),
                Ok(count) => len += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
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

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if the client is too slow to read them.
    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT.bits();
            match self.connection.send_with_flags(bytes, flags) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.wait(PollFlags::POLLOUT)? {
                        let unsent = bytes.len();
                        event!(admin_answer_cut, unsent_bytes = unsent);
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Throws away what is still coming, to the end of it.
    fn discard(&self) -> io::Result<()> {
        let mut connection = self.connection;
        let mut bytes = [0; DISCARD_BYTES];
        while self.wait(PollFlags::POLLIN)? && connection.read(&mut bytes)? > 0 {}
        Ok(())
    }
}

/// What is left until `by`; the kernel takes no timeout of zero.
fn left(by: Tick) -> Option<Duration> {
    Some(by.since(clock::now())).filter(|left| *left >= Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A door with so many free threads, and a client that it has let in.
    fn door(free: usize) -> (Door, Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (let_in, _) = listener.accept().unwrap();
        let door = Door {
            listener: listener.into(),
            free: AtomicUsize::new(free),
        };
        (door, let_in.into(), client)
    }

    fn another_waits_at(door: &Door) -> TcpStream {
        let address = door.listener.local_addr().unwrap();
        TcpStream::connect(address.as_socket().unwrap()).unwrap()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn silent_client_yields_to_waiting_client() {
        let (door, let_in, _silent) = door(0);
        let _next = another_waits_at(&door);
        let visit = Visit::new(&door, &let_in, ADMIN_PATIENCE, HOUR);
        assert_eq!(
            visit.read_head().unwrap(),
            Some(Err(http::Refusal::TooSlow))
        );
        // A load balancer that has its line, and does not close.
        Visit::new(&door, &let_in, Duration::ZERO, HOUR)
            .discard()
            .unwrap();
    }

    #[test]
    fn slow_reader_yields_to_waiting_client() {
        let (door, let_in, _deaf) = door(0);
        let _next = another_waits_at(&door);
        let visit = Visit::new(&door, &let_in, ADMIN_PATIENCE, HOUR);
        let refused = visit.write_all(&vec![0; 64 << 20]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn prompt_client_is_answered_although_others_wait() {
        let (door, let_in, mut client) = door(0);
        let _next = another_waits_at(&door);
        client.write_all(b"GET /status HTTP/1.1\r\n\r\n").unwrap();
        let read = Visit::new(&door, &let_in, ADMIN_PATIENCE, HOUR).read_head();
        assert!(matches!(read, Ok(Some(Ok(_)))), "{read:?}");
        let reader = std::thread::Builder::new().spawn(move || {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).map(|_| bytes.len())
        });
        let visit = Visit::new(&door, &let_in, HOUR, HOUR);
        visit.write_all(&vec![0; 8 << 20]).unwrap();
        let_in.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reader.unwrap().join().unwrap().unwrap(), 8 << 20);
    }

    #[test]
    fn slow_client_keeps_full_timeout_alone() {
        // Another thread is about to accept the one that waits.
        let (door, let_in, _silent) = door(1);
        let _next = another_waits_at(&door);
        let visit = Visit::new(&door, &let_in, ADMIN_PATIENCE, 3 * ADMIN_PATIENCE);
        assert_eq!(
            visit.read_head().unwrap(),
            Some(Err(http::Refusal::TooSlow))
        );
        assert!(visit.by.since(clock::now()) < ADMIN_PATIENCE);
    }
}
