//! The admin endpoint: serves health, readiness, status and metrics over HTTP, and agent-check
//! lines to load balancers, in a separate process.
//!
//! The supervisor starts it with a channel at a fixed descriptor, and restarts it when it exits.
//! The channel carries the bound listeners and, for each request, the status. It can request
//! nothing else: it has no access to the control socket.
//!
//! Invariants: HTTP is for clients on this machine and in `admin_allow`; at most
//! [`ADMIN_REQUESTS_MAX`] requests and [`AGENT_CLIENTS_MAX`] load balancers at
//! once, each with an overall deadline; a client that is slow to send, read or close yields to the
//! next waiting client; the process is sandboxed (`sandbox`) before it serves; it exits with its
//! supervisor; its failures never reach the server's clients.
//!
//! It must not decide anything about the server. It may use threads: unlike a worker it never
//! forks.

use std::io::{self, Read as _};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use socket2::{SockAddr, Socket};

use crate::channel::{self, Channel};
use crate::config::{
    ADMIN_ANSWER_TIMEOUT, ADMIN_EXCLUSIVE_TIME, ADMIN_HEAD_MAX_BYTES, ADMIN_REQUEST_TIMEOUT,
    ADMIN_REQUESTS_MAX, AGENT_CLIENTS_MAX, AGENT_FRESH, AGENT_TIMEOUT, Config, OOM_SCORE_STEP,
};
use crate::fault;
use crate::log::{self, Tally, event};
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
mod status_requests;

use agent::{Agent, Line};
use answer::Answered;
use http::{Request, Response};
use status_requests::StatusRequests;

/// The command-line arguments from the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The supervisor's process ID.
    pub supervisor: i32,
}

/// Bytes read at once of input that is discarded.
const DISCARD_BYTES: usize = 4096;
/// How long a client whose request was refused may continue to send. Closing earlier would reset
/// the connection, which could lose the response.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(250);

/// Serves requests until the supervisor ends.
#[must_use]
pub fn run(options: Options) -> ExitCode {
    let Some(channel) = inherited_channel() else {
        stderr::write_error(
            "cannot run the admin process: only the supervisor starts it; run `uppercased --admin \
             127.0.0.1:9900`",
        );
        return ExitCode::from(2);
    };
    let mut channel = Channel::over(channel);
    let (config, endpoints) = match await_start(&mut channel) {
        Ok(start) => start,
        Err(error) => {
            stderr::write_error(&format!(
                "cannot read the admin process's start message: {error}"
            ));
            return ExitCode::FAILURE;
        }
    };
    let status_requests = StatusRequests::over(channel);
    let served = log::init(config.log_level, config.log_format)
        .map_err(|error| error.to_string())
        .inspect(|()| {
            if let Err(error) = be_killed_before_parent(OOM_SCORE_STEP) {
                event!(oom_score_not_raised, %error);
            }
        })
        .and_then(|()| serve(endpoints, &config, options, &status_requests));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            // The supervisor logs it, unless it has exited.
            let _ = status_requests.send(FromAdmin::Failed { cause });
            ExitCode::FAILURE
        }
    }
}

/// A listener, the maximum number of clients served at once, and the handler.
type Binding = (Socket, usize, Answer);
/// Serves one client of an endpoint.
type Answer = fn(&Server, &Endpoint, &Socket, &SockAddr) -> io::Result<()>;

/// A listener and its threads.
#[derive(Debug)]
struct Endpoint {
    listener: Socket,
    /// The number of threads without a client.
    free: AtomicUsize,
}

impl Endpoint {
    /// Returns whether a client waits that no free thread will accept, given a readable listener.
    fn has_waiting_client(&self) -> bool {
        self.free.load(Ordering::Relaxed) == 0
    }
}

/// Receives the first message: the configuration and the listeners.
fn await_start(channel: &mut Channel<FromAdmin, ToAdmin>) -> io::Result<(Config, Vec<Binding>)> {
    let received = channel.receive_first().map_err(io::Error::other)?;
    let ToAdmin::Start(start) = received.envelope.message else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let kinds: [(bool, usize, Answer); 2] = [
        (start.http, ADMIN_REQUESTS_MAX, Server::answer_request),
        (start.agent, AGENT_CLIENTS_MAX, Server::send_agent_line),
    ];
    let named = kinds.into_iter().filter(|(is_there, ..)| *is_there);
    let endpoints: Vec<Binding> = named
        .zip(received.descriptors)
        .map(|((_, threads, answer), listener)| (listener.into(), threads, answer))
        .collect();
    if endpoints.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((start.config, endpoints))
}

/// Enters the sandbox and serves with a few threads, each with at most one request at a time.
fn serve(
    endpoints: Vec<Binding>,
    config: &Config,
    options: Options,
    status_requests: &Arc<StatusRequests>,
) -> Result<(), String> {
    // The name in process lists.
    let _ = nix::sys::prctl::set_name(c"uppercased");
    let wake_ups = status_requests
        .wake_ups()
        .map_err(|error| error.to_string())?;
    let sandbox = sandbox::begin(config)?;
    // Changing the user has cleared this setting.
    end_with_parent(options.supervisor).map_err(|error| error.to_string())?;
    let server = Arc::new(Server {
        status_requests: Arc::clone(status_requests),
        answered: Answered::default(),
        agent_line: Mutex::default(),
        agent_answers: Mutex::default(),
        allow: config.admin_allow.clone(),
        refusals: Mutex::default(),
    });
    let threads: usize = endpoints.iter().map(|(_, threads, _)| threads).sum();
    let opening = Arc::new(Barrier::new(threads + 1));
    share_one_heap();
    start_threads(&server, endpoints, &opening)
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    let sandboxed = sandbox.finish(Role::Admin)?;
    fault::point("admin.sandboxed");
    ready(status_requests, sandboxed)?;
    opening.wait();
    dispatch_replies(status_requests, &wake_ups)
}

/// Starts the threads and waits until each waits at its listener: starting a thread, and its
/// set-up, need system calls that are forbidden afterwards.
fn start_threads(
    server: &Arc<Server>,
    endpoints: Vec<Binding>,
    opening: &Arc<Barrier>,
) -> io::Result<()> {
    let (begun, all_begun) = channel();
    let mut started = 0;
    for (listener, threads, answer) in endpoints {
        let endpoint = Arc::new(Endpoint {
            listener,
            free: AtomicUsize::new(threads),
        });
        for _ in 0..threads {
            let (server, endpoint) = (Arc::clone(server), Arc::clone(&endpoint));
            let (opening, begun) = (Arc::clone(opening), begun.clone());
            let serve = move || {
                // By now the allocator has chosen this thread's arena.
                let _ = begun.send(Vec::<u8>::with_capacity(DISCARD_BYTES));
                opening.wait();
                let error = server.serve_clients(&endpoint, answer);
                // The first failing thread ends the process; the supervisor restarts it.
                server.status_requests.fail(&error);
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

fn ready(status_requests: &StatusRequests, sandboxed: Sandboxed) -> Result<(), String> {
    status_requests.send(FromAdmin::Ready { sandbox: sandboxed })
}

/// Distributes the supervisor's replies until the supervisor or a thread ends.
fn dispatch_replies(
    status_requests: &StatusRequests,
    wake_ups: &[OwnedFd; 2],
) -> Result<(), String> {
    loop {
        let mut readable = wake_ups
            .each_ref()
            .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        // An interruption only causes an early check.
        let _ = poll(&mut readable, PollTimeout::NONE);
        match status_requests.dispatch() {
            Ok(()) => {}
            Err(channel::Error::Closed) => return status_requests.failure().map_or(Ok(()), Err),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// State shared by the threads.
#[derive(Debug)]
struct Server {
    status_requests: Arc<StatusRequests>,
    answered: Answered,
    agent_line: Mutex<AgentLine>,
    /// A separate lock: no thread waits while it holds this one.
    agent_answers: Mutex<AgentAnswers>,
    /// The networks whose clients may read over HTTP, beside this machine.
    allow: Vec<IpNet>,
    /// Refused clients that are not logged yet.
    refusals: Mutex<Tally<1>>,
}

/// The latest agent-check line and its time.
#[derive(Debug, Default)]
struct AgentLine {
    agent: Agent,
    latest: Option<(Tick, Line)>,
}

impl Server {
    /// Accepts connections one after another; returns the error that stopped it.
    fn serve_clients(&self, endpoint: &Endpoint, answer: Answer) -> io::Error {
        loop {
            match endpoint.listener.accept() {
                Ok((connection, peer)) => {
                    endpoint.free.fetch_sub(1, Ordering::Relaxed);
                    // A client that disconnects early is not an error.
                    drop(answer(self, endpoint, &connection, &peer));
                    endpoint.free.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if is_connection_error(&error) => {}
                Err(error) => return error,
            }
        }
    }

    /// Sends a load balancer its line, whatever it has sent: some first send a configured string.
    fn send_agent_line(
        &self,
        endpoint: &Endpoint,
        connection: &Socket,
        _: &SockAddr,
    ) -> io::Result<()> {
        let line = self.line();
        // The clock starts here, so the supervisor's time is not charged to the balancer. The line
        // fits the socket buffer, so the send does not wait.
        let exchange = Exchange::new(endpoint, connection, Duration::ZERO, AGENT_TIMEOUT);
        exchange.write_all(line.to_string().as_bytes())?;
        line.count(&mut self.agent_answers());
        connection.shutdown(Shutdown::Write)?;
        exchange.discard()
    }

    fn line(&self) -> Line {
        // One request serves all. After a panic the value is complete: either the new line or the
        // previous one.
        let mut agent_line = self
            .agent_line
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let requested_at = clock::now();
        if let Some((at, line)) = &agent_line.latest
            && requested_at.since(*at) < AGENT_FRESH
        {
            return line.clone();
        }
        let status = self.status();
        let line = agent_line
            .agent
            .answer(status.as_deref().ok(), clock::now());
        agent_line.latest = Some((clock::now(), line.clone()));
        line
    }

    fn answer_request(
        &self,
        endpoint: &Endpoint,
        connection: &Socket,
        peer: &SockAddr,
    ) -> io::Result<()> {
        let exchange = || {
            Exchange::new(
                endpoint,
                connection,
                ADMIN_EXCLUSIVE_TIME,
                ADMIN_REQUEST_TIMEOUT,
            )
        };
        let request = match peer.as_socket().map(|peer| peer.ip().to_canonical()) {
            Some(stranger) if !may_read(&self.allow, stranger) => {
                self.log_refusal(stranger);
                Some(Err(http::Refusal::Address))
            }
            Some(_) | None => exchange().read_head()?,
        };
        let (response, refused, without_body) = match request {
            None => return Ok(()),
            Some(Ok(request)) => (self.answer(request), false, request.head_only),
            Some(Err(refusal)) => (refusal.response(), true, false),
        };
        self.answered.count(response.status);
        exchange().write_all(&response.encode(without_body))?;
        connection.shutdown(Shutdown::Write)?;
        if refused {
            Exchange::new(endpoint, connection, Duration::ZERO, DISCARD_TIMEOUT).discard()?;
        }
        Ok(())
    }

    /// Logs a refused client, at most one per second.
    fn log_refusal(&self, peer: IpAddr) {
        let refusals = self.refusals.lock();
        let mut refusals = refusals.unwrap_or_else(PoisonError::into_inner);
        if let Some(refused) = refusals.note(0, clock::now()) {
            event!(admin_client_refused, %peer, refused);
        }
    }

    fn answer(&self, request: Request) -> Response {
        let agent = *self.agent_answers();
        request.page.map_or_else(Response::not_found, |page| {
            answer::answer(page, &self.status(), &self.answered, agent)
        })
    }

    /// Returns the server's current status from the supervisor, or why there is none.
    fn status(&self) -> Result<Box<Status>, String> {
        let agent = *self.agent_answers();
        self.status_requests.status(ADMIN_ANSWER_TIMEOUT, agent)
    }

    fn agent_answers(&self) -> MutexGuard<'_, AgentAnswers> {
        let answers = self.agent_answers.lock();
        answers.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether a client with this address, which is canonical, may read over HTTP.
fn may_read(allow: &[IpNet], peer: IpAddr) -> bool {
    peer.is_loopback() || allow.iter().any(|network| network.contains(&peer))
}

/// Returns whether an accept failed because of that one connection.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// One client, with the waits for its request, its reading and its close.
///
/// Invariant: a thread waits for a client only in [`Exchange::wait`], where a slow client yields:
/// after its exclusive interval the wait continues only while no other client waits. Otherwise a
/// few slow clients would block all others.
struct Exchange<'a> {
    endpoint: &'a Endpoint,
    connection: &'a Socket,
    exclusive_until: Tick,
    by: Tick,
}

impl<'a> Exchange<'a> {
    fn new(
        endpoint: &'a Endpoint,
        connection: &'a Socket,
        exclusive: Duration,
        timeout: Duration,
    ) -> Self {
        let now = clock::now();
        Self {
            endpoint,
            connection,
            exclusive_until: now + exclusive,
            by: now + timeout,
        }
    }

    /// Waits until the client is ready for `event`; returns false after the deadline.
    fn wait(&self, event: PollFlags) -> io::Result<bool> {
        loop {
            let Some(most) = left(self.by) else {
                return Ok(false);
            };
            let exclusive = left(self.exclusive_until);
            let wait = PollTimeout::try_from(exclusive.unwrap_or(most).min(most));
            let mut fds = [
                PollFd::new(self.connection.as_fd(), event),
                PollFd::new(self.endpoint.listener.as_fd(), PollFlags::POLLIN),
            ];
            let watched = if exclusive.is_some() { 1 } else { 2 };
            match poll(&mut fds[..watched], wait.unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let happened = |at: usize| fds[at].any().unwrap_or(false);
            if happened(0) {
                return Ok(true);
            }
            if watched == 2 && happened(1) && self.endpoint.has_waiting_client() {
                return Ok(false);
            }
        }
    }

    /// Reads a request, or the reason why it is invalid; `None` if the client closed before sending
    /// any of it.
    fn read_head(&self) -> io::Result<Option<Result<Request, http::Refusal>>> {
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
                Ok(Some(request)) => return Ok(Some(Ok(request))),
                Ok(None) if len == bytes.len() => return Ok(Some(Err(http::Refusal::TooLong))),
                Ok(None) => {}
                Err(refusal) => return Ok(Some(Err(refusal))),
            }
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if the client reads them too slowly.
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

    /// Discards the rest of the input, up to its end.
    fn discard(&self) -> io::Result<()> {
        let mut connection = self.connection;
        let mut bytes = [0; DISCARD_BYTES];
        while self.wait(PollFlags::POLLIN)? && connection.read(&mut bytes)? > 0 {}
        Ok(())
    }
}

/// Returns the time until `by`; `None` for zero, which the kernel rejects as a timeout.
fn left(by: Tick) -> Option<Duration> {
    Some(by.since(clock::now())).filter(|left| *left >= Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Returns an endpoint with this many free threads, and a client that it has accepted.
    fn endpoint(free: usize) -> (Endpoint, Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let endpoint = Endpoint {
            listener: listener.into(),
            free: AtomicUsize::new(free),
        };
        (endpoint, accepted.into(), client)
    }

    fn connect_to(endpoint: &Endpoint) -> TcpStream {
        let address = endpoint.listener.local_addr().unwrap();
        TcpStream::connect(address.as_socket().unwrap()).unwrap()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn only_local_and_listed_clients_may_read() {
        let allow = ["10.0.0.0/8", "2001:db8::/32"].map(|text| text.parse().unwrap());
        for (peer, listed, unlisted) in [
            ("127.0.0.9", true, true),
            ("::1", true, true),
            ("10.9.8.7", true, false),
            ("2001:db8::1", true, false),
            ("11.0.0.1", false, false),
            ("2001:db9::1", false, false),
        ] {
            let peer = peer.parse().unwrap();
            assert_eq!(may_read(&allow, peer), listed, "{peer}");
            assert_eq!(may_read(&[], peer), unlisted, "{peer}");
        }
    }

    #[test]
    fn silent_client_yields_to_waiting_client() {
        let (endpoint, accepted, _silent) = endpoint(0);
        let _next = connect_to(&endpoint);
        let exchange = Exchange::new(&endpoint, &accepted, ADMIN_EXCLUSIVE_TIME, HOUR);
        assert_eq!(
            exchange.read_head().unwrap(),
            Some(Err(http::Refusal::TooSlow))
        );
        // A load balancer that has received its line and keeps the connection open.
        Exchange::new(&endpoint, &accepted, Duration::ZERO, HOUR)
            .discard()
            .unwrap();
    }

    #[test]
    fn slow_reader_yields_to_waiting_client() {
        let (endpoint, accepted, _stalled) = endpoint(0);
        let _next = connect_to(&endpoint);
        let exchange = Exchange::new(&endpoint, &accepted, ADMIN_EXCLUSIVE_TIME, HOUR);
        let refused = exchange.write_all(&vec![0; 64 << 20]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn prompt_client_is_answered_although_others_wait() {
        let (endpoint, accepted, mut client) = endpoint(0);
        let _next = connect_to(&endpoint);
        client.write_all(b"GET /status HTTP/1.1\r\n\r\n").unwrap();
        let read = Exchange::new(&endpoint, &accepted, ADMIN_EXCLUSIVE_TIME, HOUR).read_head();
        assert!(matches!(read, Ok(Some(Ok(_)))), "{read:?}");
        let reader = std::thread::Builder::new().spawn(move || {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).map(|_| bytes.len())
        });
        let exchange = Exchange::new(&endpoint, &accepted, HOUR, HOUR);
        exchange.write_all(&vec![0; 8 << 20]).unwrap();
        accepted.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reader.unwrap().join().unwrap().unwrap(), 8 << 20);
    }

    #[test]
    fn slow_client_keeps_full_timeout_alone() {
        // Another thread is about to accept the waiting client.
        let (endpoint, accepted, _silent) = endpoint(1);
        let _next = connect_to(&endpoint);
        let exchange = Exchange::new(
            &endpoint,
            &accepted,
            ADMIN_EXCLUSIVE_TIME,
            3 * ADMIN_EXCLUSIVE_TIME,
        );
        assert_eq!(
            exchange.read_head().unwrap(),
            Some(Err(http::Refusal::TooSlow))
        );
        assert!(exchange.by.since(clock::now()) < ADMIN_EXCLUSIVE_TIME);
    }
}
