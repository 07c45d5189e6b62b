//! Reads the kernel's counters of a TCP connection (`TCP_INFO`, `SIOCINQ`, `SIOCOUTQ`).
//!
//! It must not interpret them: [`Counters`] is what the kernel counted, and the caller compares it
//! with what it recorded.
#![expect(
    unsafe_code,
    reason = "socket options and a request without a safe wrapper"
)]

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use rustix::io::ioctl_fionread;
use rustix::ioctl::{Getter, ioctl};
use rustix::net::sockopt::{socket_acceptconn, socket_protocol, socket_type};
use rustix::net::{SocketType, ipproto};

/// Words of `struct tcp_info` up to `tcpi_bytes_received`.
const WORDS: usize = 34;
/// `tcpi_bytes_acked`, in two words.
const BYTES_ACKED: usize = 30;
/// `tcpi_bytes_received`, in two words.
const BYTES_RECEIVED: usize = 32;

/// Samples until two agree. Each one takes a few microseconds, in which a packet may arrive.
const SAMPLES_MAX: u32 = 1000;

/// The states of a connection (`net/tcp_states.h`).
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// The bytes of a connection since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that arrived from the peer.
    pub received: u64,
    /// Bytes of them that this side has read.
    pub read: u64,
    /// Bytes that this side has written.
    pub written: u64,
    /// Whether the connection is over: nothing can be read or written any more.
    pub is_over: bool,
}

/// Returns the counters of the connection `fd` at one instant.
///
/// # Errors
/// Why they are unknown, or do not describe the stream.
pub fn counters(fd: BorrowedFd<'_>) -> Result<Counters, &'static str> {
    // MPTCP is a protocol of its own, and counts otherwise.
    if !is_connection(fd) {
        return Err("it is not a TCP connection");
    }
    match has_upper_layer(fd) {
        Ok(false) => {}
        // TLS in the kernel, for example.
        Ok(true) => return Err("an upper-layer protocol changes its stream"),
        Err(_) => return Err(NO_COUNTERS),
    }
    let mut before = Info::of(fd).map_err(|_| NO_COUNTERS)?;
    for _ in 0..SAMPLES_MAX {
        let unread = ioctl_fionread(fd).map_err(|_| NO_COUNTERS)?;
        let unsent = bytes_queued(fd).map_err(|_| NO_COUNTERS)?;
        let after = Info::of(fd).map_err(|_| NO_COUNTERS)?;
        if before == after {
            let counters = after.count(unread, unsent);
            return counters.ok_or("its counters contradict each other");
        }
        before = after;
    }
    Err("its counters do not settle")
}

const NO_COUNTERS: &str = "the kernel returns no counters for it";

/// What a descriptor is, as far as a worker receives any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP socket that does not listen.
    Connection,
    /// A TCP socket that listens.
    Listener,
    /// A sequenced-packet socket that does not listen.
    Link,
    /// Anything else, or nothing.
    Other,
}

/// Returns what `fd` is.
#[must_use]
pub fn kind_of(fd: BorrowedFd<'_>) -> Kind {
    match (socket_protocol(fd), socket_acceptconn(fd)) {
        (Ok(Some(ipproto::TCP)), Ok(false)) => Kind::Connection,
        (Ok(Some(ipproto::TCP)), Ok(true)) => Kind::Listener,
        (Ok(_), Ok(false)) if socket_type(fd) == Ok(SocketType::SEQPACKET) => Kind::Link,
        _ => Kind::Other,
    }
}

/// Returns whether `fd` is a TCP socket that does not listen.
#[must_use]
pub fn is_connection(fd: BorrowedFd<'_>) -> bool {
    kind_of(fd) == Kind::Connection
}

/// The numbers of `struct tcp_info` that must not change during a sample.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Info {
    state: u8,
    acked: u64,
    received: u64,
}

impl Info {
    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let words: [u32; WORDS] = info(fd)?;
        let long = |at: usize| {
            let (first, second) = (words[at].to_ne_bytes(), words[at + 1].to_ne_bytes());
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&first);
            bytes[4..].copy_from_slice(&second);
            u64::from_ne_bytes(bytes)
        };
        Ok(Self {
            state: words[0].to_ne_bytes()[0],
            acked: long(BYTES_ACKED),
            received: long(BYTES_RECEIVED),
        })
    }

    /// Returns the counters; an end of stream counts as one byte in the kernel, and is left out.
    fn count(self, unread: u64, unsent: u64) -> Option<Counters> {
        let peer_ended = matches!(self.state, CLOSE_WAIT | LAST_ACK | CLOSING | TIME_WAIT);
        let ended_here = matches!(
            self.state,
            FIN_WAIT1 | FIN_WAIT2 | CLOSING | LAST_ACK | TIME_WAIT
        );
        let received = self.received.checked_sub(peer_ended.into())?;
        let queued = self.acked.checked_add(unsent)?;
        Some(Counters {
            received,
            read: received.checked_sub(unread)?,
            written: queued.checked_sub(ended_here.into())?,
            is_over: self.state == CLOSE,
        })
    }
}

/// Returns the first words of `struct tcp_info` of `fd`.
///
/// # Errors
/// The error of `getsockopt`; `Unsupported` if the kernel's structure is shorter.
pub(super) fn info<const COUNT: usize>(fd: BorrowedFd<'_>) -> io::Result<[u32; COUNT]> {
    let mut words = [0_u32; COUNT];
    let whole = size_of_val(&words);
    if option(fd, libc::TCP_INFO, &mut words)? == whole {
        Ok(words)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn has_upper_layer(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // `TCP_ULP_NAME_MAX` bytes, of which the kernel writes none if there is no such protocol.
    let mut name = [0_u32; 4];
    Ok(option(fd, libc::TCP_ULP, &mut name)? > 0)
}

/// Reads a TCP option of `fd` into `words`; returns its number of bytes.
fn option(fd: BorrowedFd<'_>, option: libc::c_int, words: &mut [u32]) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(size_of_val(words)).map_err(io::Error::other)?;
    let into = words.as_mut_ptr().cast();
    let (number, level) = (fd.as_raw_fd(), libc::IPPROTO_TCP);
    // SAFETY: the descriptor is open; `into` points to `len` bytes that may be written, and the
    // kernel writes at most that many of them, whatever its own structure's size is.
    let done = unsafe { libc::getsockopt(number, level, option, into, &raw mut len) };
    match done {
        0 => Ok(len as usize),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the number of bytes written and not acknowledged (`SIOCOUTQ`).
fn bytes_queued(fd: BorrowedFd<'_>) -> Result<u64, rustix::io::Errno> {
    // SAFETY: the request writes one `int`.
    let request = unsafe { Getter::<{ libc::TIOCOUTQ as _ }, libc::c_int>::new() };
    // SAFETY: a getter has no other effect on the process than that write, into its own result.
    let bytes = unsafe { ioctl(fd, request) }?;
    // Never negative.
    Ok(u64::from(bytes.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (server, client)
    }

    /// Returns bytes read and written, once the peer's `received` bytes have arrived.
    #[track_caller]
    fn moved(server: &TcpStream, received: u64) -> (u64, u64) {
        let arrived = || counters(server.as_fd()).unwrap();
        let counters = std::iter::repeat_with(arrived)
            .find(|now| now.received == received)
            .unwrap();
        assert!(!counters.is_over);
        (counters.read, counters.written)
    }

    #[track_caller]
    fn until_over(server: &TcpStream) {
        let is_over = || counters(server.as_fd()).unwrap().is_over;
        assert!(std::iter::repeat_with(is_over).any(|over| over));
    }

    #[test]
    fn counters_agree_in_every_state() {
        let (mut server, mut client) = pair();
        assert_eq!(moved(&server, 0), (0, 0));
        client.write_all(b"hello").unwrap();
        assert_eq!(moved(&server, 5), (0, 0));
        server.read_exact(&mut [0; 3]).unwrap();
        server.write_all(b"HELL").unwrap();
        assert_eq!(moved(&server, 5), (3, 4));
        client.read_exact(&mut [0; 4]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        server.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(moved(&server, 5), (5, 4), "the end is no byte");
        server.write_all(b"O").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
        until_over(&server);
    }

    #[test]
    fn own_end_of_stream_is_no_byte() {
        let (mut server, client) = pair();
        server.write_all(b"bye").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(moved(&server, 0), (0, 3));
        drop(client);
    }

    #[test]
    fn reset_connection_is_over() {
        let (server, client) = pair();
        socket2::SockRef::from(&client)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
        drop(client);
        until_over(&server);
    }

    #[test]
    fn other_sockets_are_uncountable() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (unix, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for fd in [listener.as_fd(), unix.as_fd(), udp.as_fd()] {
            assert_eq!(counters(fd), Err("it is not a TCP connection"));
        }
        let (server, _client) = pair();
        // Not every kernel has TLS.
        if setsockopt(&server, sockopt::TcpUlp::default(), b"tls").is_ok() {
            counters(server.as_fd()).unwrap_err();
        }
    }
}
