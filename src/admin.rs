//! The admin endpoint: health, readiness, status and metrics of a server over HTTP, and agent-check
//! lines for load balancers, in a process of its own beside the workers.
//!
//! The supervisor starts it with a channel at a fixed descriptor, and restarts it when it exits.
//! The channel carries the bound listeners and, for each request, the status. It can request
//! nothing else: it has no access to the control socket.
//!
//! Invariants: at most [`ADMIN_REQUESTS_MAX`] requests and [`AGENT_CLIENTS_MAX`] load balancers at
//! once, each with an overall deadline, and one that is slow to send, to read or to close yields to
//! the next one waiting; it is sandboxed (`sandbox`) before it serves any; it exits with its
//! supervisor; no failure of it reaches a client of the server.
//!
//! It must not decide anything about the server. It may use threads: unlike a worker it never
//! forks.

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

/// The command-line arguments from the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The supervisor's process number.
    pub supervisor: i32,
}

/// Timeout for the first message, which the supervisor sends before it forks.
const START_MESSAGE_TIMEOUT_MS: u16 = 10_000;
/// Bytes read at once of input that is discarded.
const DISCARD_BYTES: usize = 4096;
/// How long a client whose request was refused may go on sending. Closing earlier would reset the
/// connection, which could lose the response.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(250);

/// Serves requests until the supervisor ends.
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
            // The supervisor logs it, unless it is gone.
            let _ = questions.say(FromAdmin::Failed { cause });
            ExitCode::FAILURE
        }
    }
}

/// A listener, the maximum number of clients served at once, and the handler.
type Offer = (Socket, usize, Answer);
/// Serves one client of a door.
type Answer = fn(&Desk, &Door, &Socket) -> io::Result<()>;

/// A listener and its threads.
#[derive(Debug)]
struct Door {
    listener: Socket,
    /// Threads without a client.
    free: AtomicUsize,
}

impl Door {
    /// Returns whether a client waits that no free thread will accept, given a readable listener.
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

/// Enters the sandbox and serves with a few threads, each with at most one request at a time.
fn serve(
    doors: Vec<Offer>,
    config: &Config,
    options: Options,
    questions: &Arc<Questions>,
) -> Result<(), String> {
    // The name shown in process lists.
    let _ = nix::sys::prctl::set_name(c"uppercased");
    let ends = questions.ends().map_err(|error| error.to_string())?;
    let locked = sandbox::begin(config)?;
    // Changing the user clears it.
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

/// Starts the threads and waits until each waits at its listener: starting a thread, and its
/// set-up, need system calls that are forbidden afterwards.
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
                // By now the allocator has chosen this thread's arena.
                let _ = begun.send(Vec::<u8>::with_capacity(DISCARD_BYTES));
                opening.wait();
                let error = desk.answer_for_ever(&door, answer);
                // The first thread that fails ends the process; the supervisor starts another.
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

/// Distributes the supervisor's replies until the supervisor or a thread ends.
fn hear_until_the_end(questions: &Questions, ends: &[OwnedFd; 2]) -> Result<(), String> {
    loop {
        let mut readable = ends
            .each_ref()
            .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        // An interruption only causes an earlier check.
        let _ = poll(&mut readable, PollTimeout::NONE);
        match questions.hear() {
            Ok(()) => {}
            Err(channel::Error::Closed) => return questions.failure().map_or(Ok(()), Err),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// State shared by the threads.
#[derive(Debug)]
struct Desk {
    questions: Arc<Questions>,
    answered: Answered,
    told: Mutex<Told>,
    /// Separate from the rest: no thread waits while holding it.
    agent_answers: Mutex<AgentAnswers>,
}

/// The latest agent-check line, and its time.
#[derive(Debug, Default)]
struct Told {
    agent: Agent,
    latest: Option<(Tick, Line)>,
}

impl Desk {
    /// Accepts one connection after another; returns why it cannot go on.
    fn answer_for_ever(&self, door: &Door, answer: Answer) -> io::Error {
        loop {
            match door.listener.accept() {
                Ok((connection, _)) => {
                    door.free.fetch_sub(1, Ordering::Relaxed);
                    // A client that disconnects early is not an error.
                    drop(answer(self, door, &connection));
                    door.free.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if is_the_clients(&error) => {}
                Err(error) => return error,
            }
        }
    }

    /// Sends a load balancer its line, whatever it has sent: some send a string of their own first.
    fn answer_balancer(&self, door: &Door, connection: &Socket) -> io::Result<()> {
        let line = self.line();
        // From here on: the supervisor's time is not charged to the balancer. The line fits the
        // kernel's buffer without any action by the client, so there is no waiting.
        let visit = Visit::new(door, connection, Duration::ZERO, AGENT_TIMEOUT);
        visit.write_all(line.to_string().as_bytes())?;
        line.count(&mut self.agent_answers());
        connection.shutdown(Shutdown::Write)?;
        visit.discard()
    }

    fn line(&self) -> Line {
        // One request serves all. After a panic the value is complete: the new line or the previous
        // one.
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

    /// Returns the server's current status from the supervisor, or why there is none.
    fn status(&self) -> Result<Box<Status>, String> {
        let agent = *self.agent_answers();
        self.questions.status(ADMIN_ANSWER_TIMEOUT, agent)
    }

    fn agent_answers(&self) -> MutexGuard<'_, AgentAnswers> {
        let answers = self.agent_answers.lock();
        answers.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether an accept failed because of that one connection.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// One client that is waited for: to send its request, to read its response, to close.
///
/// Invariant: a thread waits for a client in [`Visit::wait`] only, and a slow client yields there:
/// after its patience interval it is waited for only while no other client waits; otherwise a few
/// slow clients would block all others.
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

    /// Waits until the client is ready for `event`; returns false when its time is over.
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

    /// Reads a request, or why it is invalid; `None` if the client closed before beginning one.
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

    /// Discards the rest of the input, to its end.
    fn discard(&self) -> io::Result<()> {
        let mut connection = self.connection;
        let mut bytes = [0; DISCARD_BYTES];
        while self.wait(PollFlags::POLLIN)? && connection.read(&mut bytes)? > 0 {}
        Ok(())
    }
}

/// Returns the time left until `by`; the kernel rejects a timeout of zero.
fn left(by: Tick) -> Option<Duration> {
    Some(by.since(clock::now())).filter(|left| *left >= Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A door with this many free threads, and a client that it has accepted.
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
        // A load balancer that has received its line and does not close.
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
        // Another thread is about to accept the waiting one.
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
