//! The load client: generates one pattern of load and checks every byte of the replies.
//!
//! It runs in a separate process, the same for every server. Lines on its standard input command it
//! to start, to begin counting and to end; it answers each with a line, and receives the next
//! command only after that.
//!
//! It sends a cycle of [`PERIOD`] random bytes. Each connection starts at a different place in it,
//! so that a lost, duplicated, swapped or misdelivered byte is detected. While it counts, the
//! client must not allocate, nor make more calls than the server does.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use uppercased_ctl::clock::{self, Tick};

use super::pattern::Load;
use super::proc;
use super::stats::{Histogram, Sparse};

/// Length of the cycle of bytes: a prime, so that the loss of a power of two of bytes is detected.
const PERIOD: usize = 65_521;
/// Maximum bytes per send or receive.
const CALL_BYTES: usize = 64 << 10;
/// Receives on one connection before the next is visited.
const CALLS_PER_VISIT: usize = 16;
/// Maximum readiness reports per wait.
const EVENTS: usize = 1024;
/// Source addresses of short connections, used in turn: one address would run out of ports in a
/// second, since a closed connection keeps its port for a minute.
const SOURCES: u32 = 64;
/// Token of the command input; links have the tokens below.
const ORDERS: Token = Token(usize::MAX);

/// The load, as specified to a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) port: u16,
    pub(crate) load: Load,
    pub(crate) connections: u32,
    /// Bytes in a message.
    pub(crate) size: u32,
    /// Distinguishes the clients of one run.
    pub(crate) seed: u32,
    /// The server's processes: their CPU time is read here, at the bounds of the counting interval.
    pub(crate) server_pids: Vec<u32>,
}

/// Measurements between `begin` and `end`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Messages answered in full; in the churn pattern, connections.
    pub(crate) messages: u64,
    /// Bytes received and verified.
    pub(crate) bytes: u64,
    pub(crate) wall_ns: u64,
    /// Resources that the server used in that interval.
    pub(crate) server_cpu_ns: u64,
    pub(crate) latencies: Sparse,
}

/// Runs the client; on failure, the error is the last line of its output.
pub(crate) fn run(order: Order) -> io::Result<()> {
    let outcome = Client::connect(order).and_then(|mut client| client.run());
    if let Err(error) = &outcome {
        say(&format!("failed: {error}"))?;
    }
    outcome
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark is no command of the program"
)]
fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

/// The cycle as sent and as expected, each long enough for a call from any place in it.
struct Cycle {
    sent: Vec<u8>,
    answered: Vec<u8>,
}

impl Cycle {
    fn new() -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let once: Vec<u8> = (0..PERIOD).map(|_| random.u8(..)).collect();
        let sent: Vec<u8> = once
            .iter()
            .copied()
            .cycle()
            .take(PERIOD + CALL_BYTES)
            .collect();
        let answered = sent.to_ascii_uppercase();
        Self { sent, answered }
    }
}

/// One connection.
struct Link {
    stream: TcpStream,
    /// Its stream's starting place in the cycle.
    base: u64,
    /// Bytes to be sent, sent and received.
    wanted: u64,
    sent: u64,
    received: u64,
    /// Time at which each outstanding message was sent, or was due.
    started: VecDeque<Tick>,
    /// Whether it is queued for another visit.
    queued: bool,
}

/// Counted since `begin`.
struct Tally {
    since: Tick,
    server_cpu_ns: u64,
    messages: u64,
    bytes: u64,
    latencies: Histogram,
}

struct Client {
    order: Order,
    poll: Poll,
    links: Vec<Link>,
    cycle: Cycle,
    scratch: Vec<u8>,
    /// Links that used up their visit and may have more input.
    again: VecDeque<usize>,
    tally: Option<Tally>,
    now: Tick,
    /// Whether the client is generating load.
    started: bool,
    /// Open loop: due time of the next message, and its link.
    due: Tick,
    next: usize,
    /// Connections opened so far.
    opened: u32,
    /// Messages answered, counted or not.
    answered: u64,
}

impl Client {
    fn connect(order: Order) -> io::Result<Self> {
        uppercased_ctl::process::raise_descriptor_limit()?;
        let mut client = Self {
            poll: Poll::new()?,
            links: Vec::with_capacity(order.connections as usize),
            cycle: Cycle::new(),
            scratch: vec![0; CALL_BYTES],
            again: VecDeque::new(),
            tally: None,
            now: clock::now(),
            started: false,
            due: Tick::ZERO,
            next: 0,
            opened: 0,
            answered: 0,
            order,
        };
        let stdin = io::stdin().as_raw_fd();
        let registry = client.poll.registry();
        registry.register(&mut SourceFd(&stdin), ORDERS, Interest::READABLE)?;
        if client.order.load != Load::Churn {
            for index in 0..client.order.connections {
                let link = client.open(index as usize)?;
                client.links.push(link);
            }
        }
        say("connected")?;
        Ok(client)
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let spin = self.started && matches!(self.order.load, Load::Open { .. });
            let timeout = (spin || !self.again.is_empty()).then_some(Duration::ZERO);
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for _ in 0..self.again.len() {
                if let Some(index) = self.again.pop_front() {
                    self.links[index].queued = false;
                    self.visit(index)?;
                }
            }
            for event in &events {
                match event.token() {
                    ORDERS if !self.obey()? => return Ok(()),
                    ORDERS => {}
                    Token(index) => self.visit(index)?,
                }
            }
            self.send_due()?;
        }
    }

    /// Carries out a command; returns false after the last one.
    fn obey(&mut self) -> io::Result<bool> {
        let mut line = [0; 16];
        let length = io::stdin().lock().read(&mut line)?;
        self.now = clock::now();
        match &line[..length] {
            b"" => return Ok(false),
            b"go\n" => {
                self.go()?;
                // Silent clients answer once every connection has exchanged its message.
                if self.order.load != Load::Silent {
                    say("going")?;
                }
            }
            b"begin\n" => {
                self.tally = Some(Tally {
                    since: self.now,
                    server_cpu_ns: self.server_cpu_ns()?,
                    messages: 0,
                    bytes: 0,
                    latencies: Histogram::new(),
                });
                say("begun")?;
            }
            b"end\n" => {
                let tally = self.tally.take().ok_or(ErrorKind::InvalidInput)?;
                let seen = Seen {
                    messages: tally.messages,
                    bytes: tally.bytes,
                    wall_ns: self.now.as_nanos() - tally.since.as_nanos(),
                    server_cpu_ns: self.server_cpu_ns()? - tally.server_cpu_ns,
                    latencies: tally.latencies.to_sparse(),
                };
                say(&serde_json::to_string(&seen)?)?;
            }
            other => return Err(io::Error::other(other.escape_ascii().to_string())),
        }
        Ok(true)
    }

    fn server_cpu_ns(&self) -> io::Result<u64> {
        self.order
            .server_pids
            .iter()
            .map(|&pid| proc::cpu_ns(pid))
            .sum()
    }

    /// Sends the first messages.
    fn go(&mut self) -> io::Result<()> {
        self.started = true;
        self.due = self.now;
        let size = u64::from(self.order.size);
        let (outstanding, wanted) = match self.order.load {
            Load::Closed { outstanding } => (outstanding, u64::from(outstanding) * size),
            Load::Silent => (1, size),
            Load::Stream => (0, u64::MAX),
            Load::Open { .. } => (0, 0),
            Load::Churn => {
                for index in 0..self.order.connections as usize {
                    let link = self.open(index)?;
                    self.links.push(link);
                }
                (0, 0)
            }
        };
        for index in 0..self.links.len() {
            let link = &mut self.links[index];
            link.wanted += wanted;
            link.started.extend((0..outstanding).map(|_| self.now));
            self.send(index)?;
        }
        Ok(())
    }

    /// Opens the connection for place `index`.
    fn open(&mut self, index: usize) -> io::Result<Link> {
        let number = self.opened;
        self.opened = self.opened.wrapping_add(1);
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, self.order.port));
        let churns = self.order.load == Load::Churn;
        let mut stream = if churns {
            let socket = Socket::new(
                Domain::IPV4,
                Type::STREAM.nonblocking(),
                Some(Protocol::TCP),
            )?;
            // From 127.1.0.1, in a separate range for each client of a run.
            let source = Ipv4Addr::new(127, 1, self.order.seed as u8, (1 + number % SOURCES) as u8);
            // The port is chosen at connect, when the whole address pair is known.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
            match socket.connect(&server.into()) {
                Err(error)
                    if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) =>
                {
                    return Err(error);
                }
                _ => TcpStream::from_std(socket.into()),
            }
        } else {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.connect(&server.into())?;
            // Reset at the end of the run, so that no TIME_WAIT sockets remain for the next one.
            socket.set_linger(Some(Duration::ZERO))?;
            socket.set_nonblocking(true)?;
            TcpStream::from_std(socket.into())
        };
        stream.set_nodelay(true)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(index), both)?;
        let mut started = VecDeque::new();
        if churns {
            started.push_back(self.now);
        }
        Ok(Link {
            stream,
            base: (u64::from(self.order.seed) << 32 | u64::from(number)) * 7919,
            wanted: if churns {
                u64::from(self.order.size)
            } else {
                0
            },
            sent: 0,
            received: 0,
            started,
            queued: false,
        })
    }

    /// Receives a link's input, and sends the messages that follow from it.
    fn visit(&mut self, index: usize) -> io::Result<()> {
        if self.links.len() <= index {
            return Ok(());
        }
        self.now = clock::now();
        let size = u64::from(self.order.size);
        let before = self.links[index].received;
        let more = self.receive(index)?;
        let link = &mut self.links[index];
        let bytes = link.received - before;
        let messages = link.received / size - before / size;
        self.answered += messages;
        for _ in 0..messages {
            let Some(started) = link.started.pop_front() else {
                break; // A stream has no messages to time.
            };
            if let Some(tally) = &mut self.tally {
                tally
                    .latencies
                    .record(self.now.as_nanos() - started.as_nanos());
            }
        }
        if let Some(tally) = &mut self.tally {
            tally.bytes += bytes;
            tally.messages += messages;
        }
        match self.order.load {
            Load::Closed { .. } => {
                link.wanted += messages * size;
                link.started.extend((0..messages).map(|_| self.now));
            }
            Load::Churn if messages > 0 => {
                // Assignment closes the old link.
                self.links[index] = self.open(index)?;
                return Ok(());
            }
            Load::Silent if messages > 0 && self.answered == u64::from(self.order.connections) => {
                say("exchanged")?;
            }
            Load::Open { .. } | Load::Stream | Load::Churn | Load::Silent => {}
        }
        let full = self.send(index)?;
        let link = &mut self.links[index];
        if (more || !full) && !link.queued {
            link.queued = true;
            self.again.push_back(index);
        }
        Ok(())
    }

    /// Receives and checks; returns true if there may be more.
    fn receive(&mut self, index: usize) -> io::Result<bool> {
        let link = &mut self.links[index];
        for _ in 0..CALLS_PER_VISIT {
            let received = match link.stream.read(&mut self.scratch) {
                Ok(0) => return Err(io::Error::other("the server ended a stream early")),
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                // Not connected yet.
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(false),
                Err(error) => return Err(error),
            };
            let from = ((link.base + link.received) % PERIOD as u64) as usize;
            let expected = &self.cycle.answered[from..from + received];
            let got = &self.scratch[..received];
            if link.received + received as u64 > link.sent || got != expected {
                let wrong = got.iter().zip(expected).position(|(got, want)| got != want);
                let at = link.received + wrong.unwrap_or(received) as u64;
                return Err(io::Error::other(format!("wrong byte at {at} of a stream")));
            }
            link.received += received as u64;
            if received < self.scratch.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends the bytes that are due; returns true unless it stopped before the kernel did.
    fn send(&mut self, index: usize) -> io::Result<bool> {
        let link = &mut self.links[index];
        for _ in 0..CALLS_PER_VISIT {
            let length = (link.wanted - link.sent).min(CALL_BYTES as u64) as usize;
            if length == 0 {
                return Ok(true);
            }
            let from = ((link.base + link.sent) % PERIOD as u64) as usize;
            match link.stream.write(&self.cycle.sent[from..from + length]) {
                Ok(sent) => link.sent += sent as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Open loop: sends the messages that are due, each on the next link.
    fn send_due(&mut self) -> io::Result<()> {
        let Load::Open { per_second } = self.order.load else {
            return Ok(());
        };
        if !self.started || self.links.is_empty() {
            return Ok(());
        }
        let interval = Duration::from_secs_f64(1.0 / per_second);
        self.now = clock::now();
        while self.due <= self.now {
            let index = self.next;
            self.next = (index + 1) % self.links.len();
            let link = &mut self.links[index];
            link.wanted += u64::from(self.order.size);
            link.started.push_back(self.due);
            self.send(index)?;
            self.due = self.due + interval;
        }
        Ok(())
    }
}
