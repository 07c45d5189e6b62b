//! The admin endpoint: health, readiness, status and metrics of a server over HTTP, and a line for
//! load balancers that ask, in a process of its own beside the workers.
//!
//! The supervisor starts it, leaves it the bound listeners at fixed descriptors and starts it again
//! when it dies. What it shows it asks for at the supervisor's control socket, with a deadline; so
//! it sees what `uppercased status` sees and nothing else.
//!
//! Invariants: at most [`ADMIN_REQUESTS_MAX`] requests and [`AGENT_CLIENTS_MAX`] load balancers at once, each with a deadline for the whole
//! of it; it ends with its supervisor; nothing that it does or fails to do reaches a client.
//!
//! It must not decide anything about the server. It may have threads: it is no worker, and forks
//! nothing.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::Socket;

use crate::clock::{self, Tick};
use crate::config::{
    ADMIN_ANSWER_TIMEOUT, ADMIN_HEAD_MAX_BYTES, ADMIN_REQUEST_TIMEOUT, ADMIN_REQUESTS_MAX,
    AGENT_CLIENTS_MAX, AGENT_FRESH, AGENT_TIMEOUT,
};
use crate::control::client::ask;
use crate::control::{Reply, Request};
use crate::status::Status;
use crate::sys::child::end_with_parent;
use crate::sys::fd::inherited_listeners;

mod agent;
mod answer;
mod exposition;
mod http;

use agent::Agent;
use answer::Answered;
use http::{Asked, Response};

/// What the supervisor tells its admin process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The supervisor's control socket.
    pub control: PathBuf,
    /// The supervisor's process number.
    pub supervisor: i32,
    /// There is a listener for HTTP.
    pub http: bool,
    /// There is one for load balancers, behind that.
    pub agent: bool,
}

/// Bytes that are read at once of what nobody will look at.
const DISCARD_BYTES: usize = 4096;
/// How long a client whose request was refused may go on sending it. To close earlier would reset
/// the connection, and the answer might be lost with it.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(250);

/// Answers requests until the supervisor ends.
#[must_use]
pub fn run(options: Options) -> ExitCode {
    let count = u8::from(options.http) + u8::from(options.agent);
    let listeners = inherited_listeners(count).filter(|_| count > 0);
    let Some(listeners) = listeners else {
        eprintln!(
            "uppercased: the admin process is the supervisor's to start; run `uppercased --admin \
             127.0.0.1:9100`"
        );
        return ExitCode::from(2);
    };
    match serve(listeners, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("uppercased: the admin endpoint failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves with a few threads, of which each has one request in hand at most.
fn serve(listeners: Vec<OwnedFd>, options: Options) -> io::Result<()> {
    end_with_parent(options.supervisor)?;
    // For people who look at a list of processes.
    let _ = nix::sys::prctl::set_name(c"uppercased");
    let mut listeners = listeners.into_iter().map(|fd| Arc::new(Socket::from(fd)));
    let http = options.http.then(|| listeners.next()).flatten();
    let agent = options.agent.then(|| listeners.next()).flatten();
    let desk = Arc::new(Desk {
        control: options.control,
        answered: Answered::default(),
        told: Mutex::default(),
    });
    let (tell, told) = channel();
    let kinds: [(_, _, Answer); 2] = [
        (http, ADMIN_REQUESTS_MAX, Desk::answer_one),
        (agent, AGENT_CLIENTS_MAX, Desk::answer_balancer),
    ];
    for (listener, threads, answer) in kinds {
        for listener in listener.into_iter().cycle().take(threads) {
            let (desk, tell) = (Arc::clone(&desk), tell.clone());
            std::thread::Builder::new()
                .spawn(move || drop(tell.send(desk.answer_for_ever(&listener, answer))))
                .map(drop)?;
        }
    }
    drop(tell);
    // The first one that cannot go on ends the process; the supervisor starts another.
    Err(told
        .recv()
        .unwrap_or_else(|_| io::Error::other("no thread is left")))
}

/// Answers one client.
type Answer = fn(&Desk, &Socket) -> io::Result<()>;

/// What the threads share.
#[derive(Debug)]
struct Desk {
    control: PathBuf,
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
        let asked = ask(
            &self.control,
            &Request::Status,
            Some(ADMIN_ANSWER_TIMEOUT),
            |_| {},
        );
        match asked {
            Ok(Reply::Status(status)) => Ok(status),
            Ok(Reply::Refused(cause) | Reply::Failed(cause)) => Err(cause),
            Ok(Reply::Done(_) | Reply::Progress(_)) => Err("it answered something else".to_owned()),
            Err(error) => Err(error.to_string()),
        }
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
