//! The clients, in a separate process because the server needs its descriptor limit for itself.
//!
//! There are three kinds of connection: idle; pinging, with one outstanding message whose reply is
//! timed; and stalled, which send without reading until no bytes move, so that the worker has
//! pending output. One thread runs one event loop, so the clients use one CPU.
//!
//! Invariants: every received byte is compared with the expected one; a connection that ends, or
//! receives unexpected data, ends the process with an error, which the bench detects.
//!
//! The bench sends line commands over the process's standard input, a socket: [`MARK`] ends the
//! current measurement window and begins the next, [`FINISH`] requests the final check of every
//! connection.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

/// First argument of the client process.
pub(crate) const ROLE: &str = "handover-clients";
/// Ends a window; answered with its figures.
const MARK: &str = "mark";
/// Requests the final check; answered with [`DONE`].
const FINISH: &str = "finish";
const READY: &str = "ready";
const DONE: &str = "done";

/// Bytes of a ping.
const PING_BYTES: usize = 64;
/// Bytes that a stalled client sends per call.
const CHUNK_BYTES: usize = 64 * 1024;
/// Receive buffer of a stalled client: small, so that output stays pending at the server.
const STALLED_RECEIVE_BYTES: usize = 4096;
/// Send buffer of a stalled client: large, so that the worker receives, and then owes, much at
/// once.
const STALLED_SEND_BYTES: usize = 128 * 1024;
/// A client counts as stalled once it could send nothing for this long.
const STUCK_AFTER: Duration = Duration::from_millis(200);
/// Connections opened between two round trips: fewer than an accept queue can hold.
const OPENED_AT_ONCE: usize = 64;
/// Connections per source address: fewer than it has ports.
const PER_SOURCE: usize = 4000;
/// Upper bound of every wait in a successful run.
const DEADLINE: Duration = Duration::from_secs(30);
/// Token of the bench's socket, beside the connections' indices.
const BENCH: Token = Token(usize::MAX - 1);

/// Number of connections of each kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) idle: usize,
    pub(crate) pinging: usize,
    pub(crate) stalled: usize,
}

/// What the pinging clients measured between two marks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Time from a message to its reply, or to the mark if the reply is outstanding.
    pub(crate) longest: Duration,
    pub(crate) answers: u64,
}

/// Handle of the client process. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Clients {
    process: Child,
    line: Option<BufReader<UnixStream>>,
}

impl Load {
    pub(crate) const fn total(&self) -> usize {
        self.idle + self.pinging + self.stalled
    }
}

impl Clients {
    /// Starts the process and waits until every connection is open.
    pub(crate) fn start(server: SocketAddr, load: Load) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let Load {
            idle,
            pinging,
            stalled,
        } = load;
        let process = Command::new(std::env::current_exe().expect("the bench's own program"))
            .args([ROLE, &server.to_string()])
            .args([idle, pinging, stalled].map(|count| count.to_string()))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .expect("start the clients");
        let mut clients = Self {
            process,
            line: Some(BufReader::new(ours)),
        };
        assert_eq!(clients.hear(), READY);
        clients
    }

    /// Ends a window and begins the next.
    pub(crate) fn mark(&mut self) -> Window {
        self.say(MARK);
        let line = self.hear();
        let mut numbers = line.split(' ').map(|number| number.parse().ok());
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(nanos), Some(answers)) => Window {
                longest: Duration::from_nanos(nanos),
                answers,
            },
            _ => panic!("the clients say {line:?}"),
        }
    }

    /// Checks every connection to its last byte; fails if one was lost.
    pub(crate) fn finish(mut self) {
        self.say(FINISH);
        assert_eq!(self.hear(), DONE);
        let status = self.process.wait().expect("it is our child");
        assert!(status.success(), "the clients ended with {status}");
    }

    fn say(&mut self, word: &str) {
        let line = self.line.as_mut().expect("taken in the drop only");
        // A single write, so that the other end receives it with a single read.
        let word = format!("{word}\n");
        let said = line.get_mut().write_all(word.as_bytes());
        said.expect("the clients listen");
    }

    fn hear(&mut self) -> String {
        let mut text = String::new();
        let line = self.line.as_mut().expect("taken in the drop only");
        let heard = line.read_line(&mut text);
        assert!(
            matches!(heard, Ok(length) if length > 0),
            "the clients failed, see above: {heard:?}"
        );
        text.trim_end().to_owned()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // The process exits at the end of its input.
        self.line = None;
        let _ = self.process.wait();
    }
}

/// Runs the client process; `args` are the arguments after [`ROLE`].
pub(crate) fn run(args: &[String]) {
    let number = |at: usize| args[at].parse().expect("a number");
    let server = args[0].parse().expect("an address");
    let load = Load {
        idle: number(1),
        pinging: number(2),
        stalled: number(3),
    };
    raise_descriptor_limit();
    let (idle, pinging, stalled) = open_all(server, load);
    let mut held = Held {
        poll: Poll::new().expect("an event loop"),
        idle,
        stalled: stalled.into_iter().map(Stalled::new).collect(),
        pingers: pinging.into_iter().map(Pinger::new).collect(),
    };
    held.fill();
    held.watch();
    let stdin = io::stdin().as_fd().try_clone_to_owned().expect("a socket");
    let bench = UnixStream::from(stdin);
    if held.serve(&bench) {
        held.check_all();
        writeln!(&bench, "{DONE}").expect("the bench listens");
    }
}

/// Raises the descriptor limit to its maximum and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    hard
}

/// Opens every connection, kind by kind.
fn open_all(server: SocketAddr, load: Load) -> (Vec<TcpStream>, Vec<TcpStream>, Vec<TcpStream>) {
    let mut count = 0;
    let mut open = |stalls: bool| {
        let mut stream = connect(server, count, stalls);
        count += 1;
        // Connections are accepted in order: a reply means that earlier ones have left the queue.
        if count % OPENED_AT_ONCE == 0 {
            round_trip(&mut stream, 0);
        }
        stream
    };
    let idle = (0..load.idle).map(|_| open(false)).collect();
    let pinging: Vec<_> = (0..load.pinging).map(|_| open(false)).collect();
    let stalled = (0..load.stalled).map(|_| open(true));
    let stalled: Vec<_> = stalled.collect();
    (idle, pinging, stalled)
}

fn connect(server: SocketAddr, number: usize, stalls: bool) -> TcpStream {
    let open = || -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if stalls {
            socket.set_recv_buffer_size(STALLED_RECEIVE_BYTES)?;
            socket.set_send_buffer_size(STALLED_SEND_BYTES)?;
        }
        // Otherwise the kernel would search for a port unused towards every destination.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        let source = Ipv4Addr::new(127, 0, 1, 1 + (number / PER_SOURCE) as u8);
        socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into())?;
        socket.connect_timeout(&server.into(), DEADLINE)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        Ok(socket.into())
    };
    open().unwrap_or_else(|error| panic!("connection {number}: {error}"))
}

/// Exchanges one message on a blocking stream.
fn round_trip(stream: &mut TcpStream, from: u64) {
    let message = pattern(from, PING_BYTES);
    let mut answer = [0; PING_BYTES];
    stream.write_all(&message).expect("the server reads");
    stream.read_exact(&mut answer).expect("the server answers");
    assert_eq!(answer[..], message.to_ascii_uppercase(), "wrong bytes");
}

/// Returns the bytes of every stream from offset `from`: letters without a period that could hide a
/// lost or duplicated piece.
fn pattern(from: u64, length: usize) -> Vec<u8> {
    let letter = |at: u64| b'a' + ((at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) % 26) as u8;
    (from..from + length as u64).map(letter).collect()
}

/// All connections.
struct Held {
    poll: Poll,
    idle: Vec<TcpStream>,
    stalled: Vec<Stalled>,
    pingers: Vec<Pinger>,
}

/// A stalled client: it sends and does not read.
struct Stalled {
    stream: TcpStream,
    sent: u64,
}

/// A client with one outstanding message.
struct Pinger {
    stream: TcpStream,
    /// Bytes sent; the last [`PING_BYTES`] of them are the outstanding message.
    sent: u64,
    expected: Vec<u8>,
    /// Bytes of it received.
    received: usize,
    since: Instant,
}

impl Held {
    /// Lets the stalled clients send until no bytes move.
    fn fill(&mut self) {
        for (index, stalled) in self.stalled.iter_mut().enumerate() {
            stalled.stream.set_nonblocking(true).expect("a socket");
            watch(&self.poll, &stalled.stream, index, Interest::WRITABLE);
            stalled.send();
        }
        let mut events = Events::with_capacity(1024);
        while !self.stalled.is_empty() {
            let waited = self.poll.poll(&mut events, Some(STUCK_AFTER));
            waited.expect("the event loop");
            if events.is_empty() {
                break;
            }
            for event in &events {
                self.stalled[event.token().0].send();
            }
        }
        for stalled in &self.stalled {
            let number = stalled.stream.as_raw_fd();
            let registry = self.poll.registry();
            registry
                .deregister(&mut SourceFd(&number))
                .expect("watched");
        }
    }

    /// Registers the pinging clients by index, and the idle ones after them.
    fn watch(&self) {
        let pinging = self.pingers.iter().map(|pinger| &pinger.stream);
        for (index, stream) in pinging.chain(&self.idle).enumerate() {
            stream.set_nonblocking(true).expect("a socket");
            watch(&self.poll, stream, index, Interest::READABLE);
        }
    }

    /// Pings until the bench requests the final check (true) or closes its socket (false).
    fn serve(&mut self, bench: &UnixStream) -> bool {
        bench.set_nonblocking(true).expect("a socket");
        let number = bench.as_raw_fd();
        let interest = Interest::READABLE;
        let registry = self.poll.registry();
        let watched = registry.register(&mut SourceFd(&number), BENCH, interest);
        watched.expect("watch the bench");
        writeln!(&*bench, "{READY}").expect("the bench listens");

        let mut window = Window {
            longest: Duration::ZERO,
            answers: 0,
        };
        for pinger in &mut self.pingers {
            pinger.ping();
        }
        let mut events = Events::with_capacity(1024);
        loop {
            self.poll.poll(&mut events, None).expect("the event loop");
            for event in &events {
                if event.token() == BENCH {
                    match read_word(bench).as_deref() {
                        None => return false,
                        Some(MARK) => self.tell(&mut window, bench),
                        Some(word) => {
                            assert_eq!(word, FINISH);
                            return true;
                        }
                    }
                } else if let Some(pinger) = self.pingers.get_mut(event.token().0) {
                    pinger.answered(&mut window);
                } else {
                    let index = event.token().0 - self.pingers.len();
                    let seen = self.idle[index].peek(&mut [0]);
                    panic!("idle connection {index} was spoken to, or lost: {seen:?}");
                }
            }
        }
    }

    fn tell(&self, window: &mut Window, mut bench: &UnixStream) {
        let unanswered = self.pingers.iter().map(|pinger| pinger.since.elapsed());
        let longest = unanswered.fold(window.longest, Duration::max);
        let (nanos, answers) = (longest.as_nanos(), window.answers);
        writeln!(bench, "{nanos} {answers}").expect("the bench listens");
        *window = Window {
            longest: Duration::ZERO,
            answers: 0,
        };
    }

    /// Checks that every connection is open and has received all its bytes.
    fn check_all(&mut self) {
        for stream in &mut self.idle {
            stream.set_nonblocking(false).expect("a socket");
            round_trip(stream, 1);
        }
        for pinger in &mut self.pingers {
            pinger.stream.set_nonblocking(false).expect("a socket");
            let mut rest = vec![0; PING_BYTES - pinger.received];
            pinger.stream.read_exact(&mut rest).expect("an answer");
            assert_eq!(rest, pinger.expected[pinger.received..], "wrong bytes");
        }
        for stalled in &mut self.stalled {
            stalled.check();
        }
    }
}

impl Stalled {
    const fn new(stream: TcpStream) -> Self {
        Self { stream, sent: 0 }
    }

    /// Sends as much as the socket accepts.
    fn send(&mut self) {
        loop {
            match self.stream.write(&pattern(self.sent, CHUNK_BYTES)) {
                Ok(sent) => self.sent += sent as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a client that does not read was cut: {error}"),
            }
        }
    }

    /// Reads the exact reply to the bytes sent, then the end of the stream.
    fn check(&mut self) {
        let stream = &mut self.stream;
        stream.set_nonblocking(false).expect("a socket");
        stream.shutdown(std::net::Shutdown::Write).expect("an end");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let expected = pattern(0, self.sent as usize).to_ascii_uppercase();
        assert!(answer == expected, "wrong bytes at a slow reader");
    }
}

impl Pinger {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            sent: 0,
            expected: Vec::new(),
            received: 0,
            since: Instant::now(),
        }
    }

    fn ping(&mut self) {
        let message = pattern(self.sent, PING_BYTES);
        self.since = Instant::now();
        let sent = self.stream.write(&message);
        assert!(
            matches!(sent, Ok(PING_BYTES)),
            "a ping was not sent: {sent:?}"
        );
        self.sent += PING_BYTES as u64;
        self.expected = message.to_ascii_uppercase();
        self.received = 0;
    }

    /// Reads until the socket is empty, and sends the next message after a complete reply.
    fn answered(&mut self, window: &mut Window) {
        let mut answer = [0; 2 * PING_BYTES];
        loop {
            match self.stream.read(&mut answer) {
                Ok(0) => panic!("a pinging connection was closed"),
                Ok(length) => {
                    let due = &self.expected[self.received..];
                    assert_eq!(due.get(..length), Some(&answer[..length]), "wrong bytes");
                    self.received += length;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a pinging connection was lost: {error}"),
            }
            if self.received == PING_BYTES {
                window.longest = window.longest.max(self.since.elapsed());
                window.answers += 1;
                self.ping();
            }
        }
    }
}

fn watch(poll: &Poll, stream: &TcpStream, index: usize, interest: Interest) {
    let number = stream.as_raw_fd();
    let registry = poll.registry();
    let watched = registry.register(&mut SourceFd(&number), Token(index), interest);
    watched.expect("watch a connection");
}

/// Returns the bench's next command, `None` if it has exited. The bench sends one at a time.
fn read_word(mut bench: &UnixStream) -> Option<String> {
    let mut text = [0; 32];
    match bench.read(&mut text) {
        Ok(0) | Err(_) => None,
        Ok(length) => Some(
            String::from_utf8_lossy(&text[..length])
                .trim_end()
                .to_owned(),
        ),
    }
}
