//! Reads the length of a listener's accept queue from the kernel (`TCP_INFO`).

use std::io;
use std::os::fd::BorrowedFd;

use super::tcp;

/// A snapshot of an accept queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptQueue {
    /// Connections waiting to be accepted.
    pub length: u32,
    /// Maximum number of them; the kernel admits one more.
    pub limit: u32,
}

impl AcceptQueue {
    /// Returns whether the kernel admits no more connections.
    #[must_use]
    pub const fn is_full(self) -> bool {
        self.length > self.limit
    }
}

/// Words of `struct tcp_info`, up to the last one read.
const WORDS: usize = 8;
/// `tcpi_unacked`: the queue length of a listener.
const UNACKED: usize = 6;
/// `tcpi_sacked`: the queue limit of a listener.
const SACKED: usize = 7;

/// Returns the accept queue of `listener`.
///
/// # Errors
/// The error of `getsockopt`: it is not a TCP socket.
pub fn accept_queue(listener: BorrowedFd<'_>) -> io::Result<AcceptQueue> {
    let info: [u32; WORDS] = tcp::info(listener)?;
    Ok(AcceptQueue {
        length: info[UNACKED],
        limit: info[SACKED],
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn queue_length_counts_pending_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(9).unwrap()).unwrap();
        let queue = || accept_queue(listener.as_fd()).unwrap();
        assert_eq!(
            queue(),
            AcceptQueue {
                length: 0,
                limit: 9
            }
        );
        let address = listener.local_addr().unwrap();
        let waiting = [(); 3].map(|()| TcpStream::connect(address).unwrap());
        assert_eq!(queue().length, 3);
        listener.accept().unwrap();
        assert_eq!(queue().length, 2);
        drop(waiting);
        let (stream, _) = std::os::unix::net::UnixStream::pair().unwrap();
        accept_queue(stream.as_fd()).unwrap_err();
    }
}
