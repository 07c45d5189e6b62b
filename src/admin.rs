//! The admin endpoint: health, readiness, status and metrics of a server over HTTP, in a process of
//! its own beside the workers.
//!
//! The supervisor starts it, leaves it the bound listener at a fixed descriptor and starts it again
//! when it dies. What it shows it asks for at the supervisor's control socket, with a deadline; so
//! it sees what `uppercased status` sees and nothing else.
//!
//! Invariants: at most [`ADMIN_REQUESTS_MAX`] requests at once, each with a deadline for the whole
//! of it; it ends with its supervisor; nothing that it does or fails to do reaches a client.
//!
//! It must not decide anything about the server. It may have threads: it is no worker, and forks
//! nothing.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use socket2::Socket;

use crate::clock::{self, Tick};
use crate::config::{
    ADMIN_ANSWER_TIMEOUT, ADMIN_HEAD_MAX_BYTES, ADMIN_REQUEST_TIMEOUT, ADMIN_REQUESTS_MAX,
};
use crate::control::client::ask;
use crate::control::{Reply, Request};
use crate::status::Status;
use crate::sys::child::end_with_parent;
use crate::sys::fd::inherited_listener;

mod answer;
mod exposition;
mod http;

pub use answer::unready;

use answer::Answered;
use http::{Asked, Response};

/// What the supervisor tells its admin process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The supervisor's control socket.
    pub control: PathBuf,
    /// The supervisor's process number.
    pub supervisor: i32,
}

/// Bytes that are read at once of what nobody will look at.
const DISCARD_BYTES: usize = 4096;
/// How long a client whose request was refused may go on sending it. To close earlier would reset
/// the connection, and the answer might be lost with it.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(250);

/// Answers requests until the supervisor ends.
#[must_use]
pub fn run(options: Options) -> ExitCode {
    let Some(listener) = inherited_listener() else {
        eprintln!(
            "uppercased: the admin process is the supervisor's to start; run `uppercased --admin \
             127.0.0.1:9100`"
        );
        return ExitCode::from(2);
    };
    match serve(Socket::from(listener), options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("uppercased: the admin endpoint failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves with a few threads, of which each has one request in hand at most.
fn serve(listener: Socket, options: Options) -> io::Result<()> {
    end_with_parent(options.supervisor)?;
    // For people who look at a list of processes.
    let _ = nix::sys::prctl::set_name(c"uppercased");
    let desk = Arc::new(Desk {
        listener,
        control: options.control,
        answered: Answered::default(),
    });
    let (tell, told) = channel();
    for _ in 0..ADMIN_REQUESTS_MAX {
        let (desk, tell) = (Arc::clone(&desk), tell.clone());
        std::thread::Builder::new()
            .spawn(move || drop(tell.send(desk.answer_for_ever())))
            .map(drop)?;
    }
    drop(tell);
    // The first one that cannot go on ends the process; the supervisor starts another.
    Err(told
        .recv()
        .unwrap_or_else(|_| io::Error::other("no thread is left")))
}

/// What the threads share.
#[derive(Debug)]
struct Desk {
    listener: Socket,
    control: PathBuf,
    answered: Answered,
}

impl Desk {
    /// Takes one connection after the other; returns why that is impossible.
    fn answer_for_ever(&self) -> io::Error {
        loop {
            match self.listener.accept() {
                // A client that goes away in the middle is nobody's trouble.
                Ok((connection, _)) => drop(self.answer_one(&connection)),
                Err(error) if is_the_clients(&error) => {}
                Err(error) => return error,
            }
        }
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
