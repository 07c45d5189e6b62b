//! A client that checks every byte it receives. Every read and write has a deadline; every failed
//! expectation panics and names the connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::bytes::{assert_same, pattern, upper};
use super::process::DEADLINE;

/// Bytes per step of a long transfer: less than any socket buffer, so that a client that sends
/// before it receives cannot block itself.
const STEP_BYTES: usize = 16 * 1024;

/// One connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// For error messages: a socket has no peer address after its peer has disconnected.
    name: String,
}

impl Client {
    /// Connects to `addr`.
    #[track_caller]
    pub fn connect(addr: SocketAddr) -> Self {
        Self::try_connect(addr).unwrap_or_else(|error| panic!("connect to {addr}: {error}"))
    }

    /// Tries to connect to `addr`.
    ///
    /// # Errors
    ///
    /// See [`TcpStream::connect_timeout`].
    pub fn try_connect(addr: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect_timeout(&addr, DEADLINE)?, addr)
    }

    /// Tries to connect from the address `source`, with a port chosen by the kernel.
    ///
    /// # Errors
    ///
    /// See [`TcpStream::connect_timeout`]; also if this machine lacks the address.
    pub fn try_connect_from(source: IpAddr, addr: SocketAddr) -> io::Result<Self> {
        let kind = Type::STREAM.cloexec();
        let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&addr.into(), DEADLINE)?;
        Self::over(socket.into(), addr)
    }

    /// Wraps a socket that is connected to `addr`.
    ///
    /// # Errors
    ///
    /// The options of the socket cannot be set.
    pub fn over(stream: TcpStream, addr: SocketAddr) -> io::Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        let name = format!("client {} of {addr}", stream.local_addr()?);
        Ok(Self { stream, name })
    }

    /// Sends `bytes`, of any length, and asserts that the reply is their upper case.
    #[track_caller]
    pub fn roundtrip(&mut self, bytes: &[u8]) {
        for step in bytes.chunks(STEP_BYTES) {
            self.send_all(step);
            self.expect(&upper(step));
        }
    }

    /// Returns whether the server answers `bytes`, a short message; false if the connection has
    /// ended in any way. A wrong reply fails the test.
    #[track_caller]
    pub fn is_served(&mut self, bytes: &[u8]) -> bool {
        let mut answer = vec![0; bytes.len()];
        if self.stream.write_all(bytes).is_err() || self.stream.read_exact(&mut answer).is_err() {
            return false;
        }
        assert_same(&answer, &upper(bytes), &self.name);
        true
    }

    /// Sends `len` bytes of the [`pattern`] from `offset` on without waiting for replies, and
    /// asserts meanwhile that the replies are correct.
    #[track_caller]
    pub fn stream(&mut self, offset: u64, len: usize) {
        let mut sending = self.try_clone();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for (at, step) in steps(offset, len) {
                    sending.send_all(&pattern(at, step));
                }
            });
            for (at, step) in steps(offset, len) {
                self.expect(&upper(&pattern(at, step)));
            }
        });
    }

    /// Sends all of `bytes`; blocks while the server does not read.
    #[track_caller]
    pub fn send_all(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            panic!("{}: sending {} bytes: {error}", self.name, bytes.len());
        }
    }

    /// Sends what the socket accepts now; returns the number of bytes, possibly 0.
    #[track_caller]
    pub fn send_some(&self, bytes: &[u8]) -> usize {
        match self.without_waiting(|mut stream| stream.write(bytes)) {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{}: sending: {error}", self.name),
        }
    }

    /// Receives exactly `len` bytes.
    #[track_caller]
    pub fn recv_exact(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match self.stream.read(&mut bytes[filled..]) {
                Ok(0) => panic!("{}: closed after {filled} of {len} bytes", self.name),
                Ok(more) => filled += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{}: {filled} of {len} bytes, then: {error}", self.name),
            }
        }
        bytes
    }

    /// Asserts that exactly `expected` follows.
    #[track_caller]
    pub fn expect(&mut self, expected: &[u8]) {
        let actual = self.recv_exact(expected.len());
        assert_same(&actual, expected, &self.name);
    }

    /// Receives everything up to the server's half-close.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Err(error) = self.stream.read_to_end(&mut bytes) {
            panic!("{}: {} bytes, then: {error}", self.name, bytes.len());
        }
        bytes
    }

    /// Half-closes the connection.
    #[track_caller]
    pub fn half_close(&self) {
        if let Err(error) = self.stream.shutdown(Shutdown::Write) {
            panic!("{}: half-close: {error}", self.name);
        }
    }

    /// Asserts that the server closes gracefully and sends nothing more.
    #[track_caller]
    pub fn expect_eof(&mut self) {
        let rest = self.read_to_end();
        assert_same(&rest, b"", &format!("{}: before the end", self.name));
    }

    /// Asserts that the connection ends by a reset, after any number of bytes.
    #[track_caller]
    pub fn expect_reset(&mut self) {
        match self.stream.read_to_end(&mut Vec::new()) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{}: expected a reset, got {other:?}", self.name),
        }
    }

    /// Asserts that the connection is neither closed nor reset, and that no input is available.
    #[track_caller]
    pub fn expect_open(&self) {
        let mut byte = [0];
        match self.without_waiting(|stream| stream.peek(&mut byte)) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) => panic!("{}: the server has closed", self.name),
            Ok(_) => panic!("{}: unexpected byte 0x{:02x}", self.name, byte[0]),
            Err(error) => panic!("{}: expected it open: {error}", self.name),
        }
    }

    /// Asserts that nothing arrives for `span`.
    #[track_caller]
    pub fn expect_silence(&self, span: Duration) {
        let readable = super::poll_one(&self.stream, nix::poll::PollFlags::POLLIN, span);
        if readable {
            self.expect_open();
        }
    }

    /// Ends the connection by a reset.
    #[track_caller]
    pub fn abort(self) {
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("set SO_LINGER");
    }

    /// Returns a second handle to the connection, for another thread.
    #[track_caller]
    pub fn try_clone(&self) -> Self {
        Self {
            stream: self.stream.try_clone().expect("duplicate a socket"),
            name: self.name.clone(),
        }
    }

    /// Returns the socket, for operations without a method here.
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Returns the local address.
    #[track_caller]
    pub fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket's name")
    }

    /// Runs one operation with the socket in non-blocking mode.
    fn without_waiting<T>(
        &self,
        operation: impl FnOnce(&TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        self.stream.set_nonblocking(true)?;
        let result = operation(&self.stream);
        self.stream.set_nonblocking(false)?;
        result
    }
}

/// Returns the steps of a transfer: offset in the stream, and length.
fn steps(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    (0..len)
        .step_by(STEP_BYTES)
        .map(move |at| (offset + at as u64, STEP_BYTES.min(len - at)))
}
