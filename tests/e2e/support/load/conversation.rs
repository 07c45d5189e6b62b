//! One connection of a load: it sends a piece of an endless tape and compares the reply with the
//! same piece in upper case, at its exact position.
//!
//! It blocks only in [`Conversation::wait`] and [`Conversation::connect`], both with a deadline;
//! and it never panics: every fault of the server is a [`Failure`].

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use uppercased_ctl::clock::{Tick, now};
use uppercased_ctl::proxy_header::{Version, encode};

use super::super::bytes::{pattern, upper};
use super::super::process::poll_one;

/// Length of the tape, which then repeats. It is prime, so no plausible loss or repetition is a
/// multiple of it.
const TAPE_BYTES: usize = 1_048_583;

/// Maximum bytes of one send or receive.
const STEP_BYTES_MAX: usize = 16 * 1024;

/// Pause between the two pieces of a PROXY header: the server waits for the second one.
const HEADER_PAUSE: Duration = Duration::from_millis(5);

/// POLLRDHUP of the kernel's poll.h, which the library does not name: the peer has ended its
/// stream, read or not. When only this is requested, every event is a failure.
pub(super) const PEER_ENDED: PollFlags = PollFlags::from_bits_retain(0x2000);

/// The kinds of failures of a server, or of the test itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// The stream ended before the whole reply.
    EarlyEnd,
    /// No progress within the deadline.
    Late,
    /// A byte is wrong.
    WrongByte,
    /// A reply to bytes that were never sent.
    Surplus,
    /// No free local port: the load exceeds its addresses.
    NoPort,
    /// Anything else.
    Other,
}

/// One failure of one client.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// The connection: kind, number, local address if connected.
    pub client: String,
    /// The step that failed.
    pub doing: &'static str,
    /// Bytes sent on this connection.
    pub sent: u64,
    /// Bytes received correctly.
    pub received: u64,
    /// Time since the start of the load.
    pub after: Duration,
    /// The error, or the first difference.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:?}: {} in {} ({} sent, {} received) after {:?}: {}",
            self.kind, self.client, self.doing, self.sent, self.received, self.after, self.detail,
        )
    }
}

/// Options of a connection.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) who: String,
    pub(super) target: SocketAddr,
    pub(super) source: Option<IpAddr>,
    pub(super) receive_buffer: Option<usize>,
    pub(super) is_proxied: bool,
    pub(super) deadline: Duration,
    /// Start of the load.
    pub(super) begun: Tick,
    /// Its position on the tape; others start elsewhere, so that bytes of another connection are
    /// detected.
    pub(super) start: u64,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Conversation {
    stream: TcpStream,
    plan: Plan,
    sent: u64,
    received: u64,
    half_closed: bool,
    ended: bool,
}

impl Conversation {
    /// Connects.
    pub(super) fn connect(plan: Plan) -> Result<Self, Box<Failure>> {
        match open(&plan) {
            Ok(stream) => {
                let mut plan = plan;
                if let Ok(own) = stream.local_addr() {
                    plan.who = format!("{} at {own}", plan.who);
                }
                let connected = Self {
                    stream,
                    plan,
                    sent: 0,
                    received: 0,
                    half_closed: false,
                    ended: false,
                };
                if connected.plan.is_proxied {
                    connected.send_header()?;
                }
                Ok(connected)
            }
            Err(error) => Err(Box::new(Failure {
                kind: kind_of(&error),
                client: plan.who,
                doing: "connecting",
                sent: 0,
                received: 0,
                after: now().since(plan.begun),
                detail: error.to_string(),
            })),
        }
    }

    /// Sends a PROXY header, which differs from one connection to the next.
    fn send_header(&self) -> Result<(), Box<Failure>> {
        let number = self.plan.start;
        let version = [Version::V1, Version::V2][(number % 2) as usize];
        let client = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), number as u16 | 1));
        let header = encode(version, client, self.plan.target);
        // At the start of a connection the socket has room for all of it.
        let (first, second) = header.split_at(1 + number as usize % (header.len() - 1));
        let send = |piece: &[u8]| {
            let sent = (&self.stream).write_all(piece);
            sent.map_err(|error| self.broken("sending a header", &error))
        };
        send(first)?;
        if self.wait(PEER_ENDED, HEADER_PAUSE) {
            self.must_go_on("sending a header")?;
        }
        send(second)
    }

    /// Returns the number of bytes sent and not answered yet.
    pub(super) fn in_flight(&self) -> u64 {
        self.sent - self.received
    }

    /// Returns the number of bytes received.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Returns whether the server has ended the stream gracefully.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends at most `len` bytes; returns how many the socket accepted.
    pub(super) fn send_some(&mut self, len: usize) -> Result<usize, Box<Failure>> {
        let piece = piece(&tape().text, self.plan.start + self.sent, len);
        match (&self.stream).write(piece) {
            Ok(len) => {
                self.sent += len as u64;
                Ok(len)
            }
            Err(error) if is_nothing(&error) => Ok(0),
            Err(error) => Err(self.broken("sending", &error)),
        }
    }

    /// Receives at most `len` bytes and compares them; returns their number, which is also 0 at the
    /// end. An end is correct only after the half-close and the whole reply.
    pub(super) fn recv_some(&mut self, len: usize) -> Result<usize, Box<Failure>> {
        let mut buffer = [0; STEP_BYTES_MAX];
        let buffer = &mut buffer[..len.min(STEP_BYTES_MAX)];
        let len = match (&self.stream).read(buffer) {
            Ok(0) if self.half_closed && self.in_flight() == 0 => {
                self.ended = true;
                return Ok(0);
            }
            Ok(0) => return Err(self.failure(FailureKind::EarlyEnd, "receiving", "end of stream")),
            Ok(len) => len,
            Err(error) if is_nothing(&error) => return Ok(0),
            Err(error) => return Err(self.broken("receiving", &error)),
        };
        let due = usize::try_from(self.in_flight()).unwrap_or(usize::MAX);
        let expected = piece(
            &tape().answer,
            self.plan.start + self.received,
            len.min(due),
        );
        let actual = &buffer[..expected.len()];
        if actual != expected {
            let right = actual.iter().zip(expected).take_while(|(a, e)| a == e);
            let right = right.count();
            self.received += right as u64;
            let detail = format!(
                "0x{:02x} instead of 0x{:02x}",
                actual[right], expected[right]
            );
            return Err(self.failure(FailureKind::WrongByte, "receiving", &detail));
        }
        self.received += expected.len() as u64;
        if len > due {
            let detail = format!("{} bytes too many", len - due);
            return Err(self.failure(FailureKind::Surplus, "receiving", &detail));
        }
        Ok(len)
    }

    /// Waits up to `span` for one of `events`; returns whether it occurred.
    pub(super) fn wait(&self, events: PollFlags, span: Duration) -> bool {
        poll_one(&self.stream, events, span)
    }

    /// Sends until `total` bytes are sent; receives `spoon` bytes at a time, only when nothing can
    /// be sent, and never if `spoon` is 0.
    pub(super) fn send_up_to(&mut self, total: u64, spoon: usize) -> Result<(), Box<Failure>> {
        let mut events = PollFlags::POLLOUT;
        events.set(PollFlags::POLLIN, spoon > 0);
        while self.sent < total {
            let left = usize::try_from(total - self.sent).unwrap_or(usize::MAX);
            if self.send_some(left)? > 0 || (spoon > 0 && self.recv_some(spoon)? > 0) {
                continue;
            }
            self.must_wait(events, "sending")?;
        }
        Ok(())
    }

    /// Receives until `total` bytes are received.
    pub(super) fn recv_up_to(&mut self, total: u64) -> Result<(), Box<Failure>> {
        while self.received < total {
            let left = usize::try_from(total - self.received).unwrap_or(usize::MAX);
            if self.recv_some(left)? == 0 {
                self.must_wait(PollFlags::POLLIN, "receiving")?;
            }
        }
        Ok(())
    }

    /// Sends `len` more bytes and receives all replies due.
    pub(super) fn exchange(&mut self, len: usize) -> Result<(), Box<Failure>> {
        self.send_up_to(self.sent + len as u64, STEP_BYTES_MAX)?;
        self.recv_up_to(self.sent)
    }

    /// Fails if the server has ended its stream without a request, whatever is still unread before
    /// that end.
    pub(super) fn must_go_on(&self, doing: &'static str) -> Result<(), Box<Failure>> {
        if !self.wait(PEER_ENDED, Duration::ZERO) {
            return Ok(());
        }
        match self.stream.take_error() {
            Ok(Some(error)) | Err(error) => Err(self.broken(doing, &error)),
            Ok(None) => Err(self.failure(FailureKind::EarlyEnd, doing, "end of stream")),
        }
    }

    /// Half-closes the connection.
    ///
    /// First checks whether the server has ended its stream: afterwards a premature end is
    /// indistinguishable from a graceful one, if the reply is complete.
    pub(super) fn half_close(&mut self) -> Result<(), Box<Failure>> {
        self.must_go_on("half-closing")?;
        self.half_closed = true;
        let closed = self.stream.shutdown(Shutdown::Write);
        closed.map_err(|error| self.broken("half-closing", &error))
    }

    /// Ends gracefully after one more exchange: a crashed server cannot reply, even if its end of
    /// the stream has not arrived yet. The half-close follows a piece without a reply.
    pub(super) fn take_leave(&mut self) -> Result<(), Box<Failure>> {
        self.exchange(1)?;
        self.send_some(STEP_BYTES_MAX)?;
        self.finish()
    }

    /// Ends gracefully: half-close, the exact rest, the end of the stream.
    pub(super) fn finish(&mut self) -> Result<(), Box<Failure>> {
        if !self.half_closed {
            self.half_close()?;
        }
        while !self.ended {
            if self.recv_some(STEP_BYTES_MAX)? == 0 && !self.ended {
                self.must_wait(PollFlags::POLLIN, "ending")?;
            }
        }
        Ok(())
    }

    /// Returns the failure of a step without progress.
    pub(super) fn late(&self, doing: &'static str) -> Box<Failure> {
        let detail = format!("nothing within {:?}", self.plan.deadline);
        self.failure(FailureKind::Late, doing, &detail)
    }

    fn must_wait(&self, events: PollFlags, doing: &'static str) -> Result<(), Box<Failure>> {
        if self.wait(events, self.plan.deadline) {
            Ok(())
        } else {
            Err(self.late(doing))
        }
    }

    fn broken(&self, doing: &'static str, error: &io::Error) -> Box<Failure> {
        self.failure(kind_of(error), doing, &error.to_string())
    }

    fn failure(&self, kind: FailureKind, doing: &'static str, detail: &str) -> Box<Failure> {
        Box::new(Failure {
            kind,
            client: self.plan.who.clone(),
            doing,
            sent: self.sent,
            received: self.received,
            after: now().since(self.plan.begun),
            detail: detail.to_owned(),
        })
    }
}

fn open(plan: &Plan) -> io::Result<TcpStream> {
    let domain = Domain::for_address(plan.target);
    let socket = Socket::new(domain, Type::STREAM, None)?;
    // Set before connecting, because the window is negotiated then.
    if let Some(bytes) = plan.receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(source) = plan.source {
        // The port is chosen at connect, and may be shared with a connection to another address.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&plan.target.into(), plan.deadline)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn kind_of(error: &io::Error) -> FailureKind {
    match error.kind() {
        ErrorKind::ConnectionRefused => FailureKind::Refused,
        // A connection whose reset was reported is no longer connected.
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::NotConnected => FailureKind::Reset,
        ErrorKind::TimedOut => FailureKind::Late,
        ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse => FailureKind::NoPort,
        _ => FailureKind::Other,
    }
}

/// The bytes sent and the expected reply.
struct Tape {
    text: Vec<u8>,
    answer: Vec<u8>,
}

/// Returns the tape, computed once: without optimisation, computing and comparing single bytes
/// would use more CPU time than the server.
fn tape() -> &'static Tape {
    static TAPE: OnceLock<Tape> = OnceLock::new();
    TAPE.get_or_init(|| {
        let mut text = pattern(0, TAPE_BYTES);
        // The start repeated, so that every piece is one slice.
        text.extend_from_within(..STEP_BYTES_MAX);
        let answer = upper(&text);
        Tape { text, answer }
    })
}

fn piece(tape: &[u8], at: u64, len: usize) -> &[u8] {
    let at = (at % TAPE_BYTES as u64) as usize;
    &tape[at..at + len.min(STEP_BYTES_MAX)]
}
