//! The clients, as a process of their own: the server needs its descriptor limit for itself.
//!
//! Three kinds of connection: idle ones; ones that ping, each with one message on its way at any
//! time, and time every answer; and ones that send and do not read, until nothing moves any more,
//! so that the worker owes them output. One thread, one event loop: the clients cost one core.
//!
//! Invariants: every byte that comes is compared with what is due; a connection that ends, or says
//! anything it was not asked for, ends the process with a failure, which the bench sees.
//!
//! The bench talks to it by lines over its standard input, a socket: [`MARK`] ends the window that
//! is being measured and begins the next, [`FINISH`] asks for the final check of every connection.

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

/// The first argument of the client process.
pub(crate) const ROLE: &str = "handover-clients";
/// Ends a window; answered with its figures.
const MARK: &str = "mark";
/// Asks for the final check; answered with [`DONE`].
const FINISH: &str = "finish";
const READY: &str = "ready";
const DONE: &str = "done";

/// Bytes of a ping.
const PING_BYTES: usize = 64;
/// Bytes that a client who does not read sends at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Receive buffer of a client who does not read: small, so that the output waits at the server.
const STALLED_RECEIVE_BYTES: usize = 4096;
/// Its send buffer: large enough that the worker finds much to take at once, and so to owe.
const STALLED_SEND_BYTES: usize = 128 * 1024;
/// A client who does not read is stuck if it could send nothing for so long.
const STUCK_AFTER: Duration = Duration::from_millis(200);
/// Connections opened between two round trips: fewer than an accept queue holds.
const OPENED_AT_ONCE: usize = 64;
/// Connections of one source address: fewer than it has ports.
const PER_SOURCE: usize = 4000;
/// No wait takes longer in a run that succeeds.
const DEADLINE: Duration = Duration::from_secs(30);
/// The bench's socket, beside the connections' indices.
const BENCH: Token = Token(usize::MAX - 1);

/// How many connections of which kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) idle: usize,
    pub(crate) pinging: usize,
    pub(crate) stalled: usize,
}

/// What the pinging clients saw between two marks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// From a message to its answer, or to the mark for those that had none yet.
    pub(crate) longest: Duration,
    pub(crate) answers: u64,
}

/// The client process, as the bench sees it. Dropping it ends the process.
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
    /// Starts the process and waits until every connection is there.
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

    /// Lets every connection be checked to its last byte; fails if one was lost.
    pub(crate) fn finish(mut self) {
        self.say(FINISH);
        assert_eq!(self.hear(), DONE);
        let status = self.process.wait().expect("it is our child");
        assert!(status.success(), "the clients ended with {status}");
    }

    fn say(&mut self, word: &str) {
        let line = self.line.as_mut().expect("taken in the drop only");
        // One write, which is one read at the other end.
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
        // At the end of its input it ends.
        self.line = None;
        let _ = self.process.wait();
    }
}

/// The client process; `args` are what follows [`ROLE`].
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

/// As many descriptors as this process may have; how many that is.
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
        // Accepted in order: when one is answered, those before it have left the queue.
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
        // Without it the kernel would look for a port that nobody else has to anywhere.
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

/// One message and its answer, on a stream that blocks.
fn round_trip(stream: &mut TcpStream, from: u64) {
    let message = pattern(from, PING_BYTES);
    let mut answer = [0; PING_BYTES];
    stream.write_all(&message).expect("the server reads");
    stream.read_exact(&mut answer).expect("the server answers");
    assert_eq!(answer[..], message.to_ascii_uppercase(), "wrong bytes");
}

/// Bytes `from` and the following of every stream: letters without a period that a lost or
/// doubled piece could hide behind.
fn pattern(from: u64, length: usize) -> Vec<u8> {
    let letter = |at: u64| b'a' + ((at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) % 26) as u8;
    (from..from + length as u64).map(letter).collect()
}

/// Every connection there is.
struct Held {
    poll: Poll,
    idle: Vec<TcpStream>,
    stalled: Vec<Stalled>,
    pingers: Vec<Pinger>,
}

/// A client that sends and does not read.
struct Stalled {
    stream: TcpStream,
    sent: u64,
}

/// A client with one message on its way.
struct Pinger {
    stream: TcpStream,
    /// Bytes sent; the last [`PING_BYTES`] of them are the message on its way.
    sent: u64,
    expected: Vec<u8>,
    /// How much of it has come.
    received: usize,
    since: Instant,
}

impl Held {
    /// Lets the clients that do not read send until nothing moves.
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

    /// Watches the pinging clients, by their indices, and the idle ones, after those.
    fn watch(&self) {
        let pinging = self.pingers.iter().map(|pinger| &pinger.stream);
        for (index, stream) in pinging.chain(&self.idle).enumerate() {
            stream.set_nonblocking(true).expect("a socket");
            watch(&self.poll, stream, index, Interest::READABLE);
        }
    }

    /// Pings until the bench asks for the final check, or has gone (then false).
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

    /// Every connection is there, and has every byte that is due.
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

    /// Sends what the socket takes.
    fn send(&mut self) {
        loop {
            match self.stream.write(&pattern(self.sent, CHUNK_BYTES)) {
                Ok(sent) => self.sent += sent as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a client that does not read was cut: {error}"),
            }
        }
    }

    /// Reads at last: exactly the answer to what was sent, then the end.
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

    /// Reads until there is nothing more, and sends the next message after a whole answer.
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

/// The bench's next word; `None` if it has gone. It sends the next one after the answer only.
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
