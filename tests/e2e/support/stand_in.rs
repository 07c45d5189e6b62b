//! A server in a thread of the test, for one connection and for behaviour that the real server
//! never shows.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use nix::poll::PollFlags;

use super::bytes::upper;
use super::process::{DEADLINE, in_background, poll_one};

/// A server for one connection.
#[derive(Debug)]
pub struct StandIn<T> {
    /// Its address.
    pub addr: SocketAddr,
    answering: JoinHandle<T>,
}

/// Listens on 127.0.0.1 and calls `answer` with the first connection, whose reads and writes have a
/// deadline.
#[track_caller]
pub fn serve_one<T: Send + 'static>(
    answer: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> StandIn<T> {
    serve_one_at((Ipv4Addr::LOCALHOST, 0).into(), answer)
}

/// Like [`serve_one`], on the address `at`; with port 0 the kernel chooses.
#[track_caller]
pub fn serve_one_at<T: Send + 'static>(
    at: SocketAddr,
    answer: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> StandIn<T> {
    let listener = TcpListener::bind(at).expect("listen on loopback");
    let addr = listener.local_addr().expect("a bound socket's name");
    let answering = in_background(move || {
        let came = poll_one(&listener, PollFlags::POLLIN, DEADLINE);
        assert!(came, "no client connected to {addr}");
        let (stream, _) = listener.accept().expect("accept");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("set a timeout");
        stream
            .set_write_timeout(Some(DEADLINE))
            .expect("set a timeout");
        answer(stream)
    });
    StandIn { addr, answering }
}

impl<T> StandIn<T> {
    /// Returns the result of `answer`; fails if it panicked.
    #[track_caller]
    pub fn join(self) -> T {
        self.answering
            .join()
            .expect("the stand-in failed, see above")
    }
}

/// Replies correctly up to the client's half-close; returns the number of bytes.
pub fn answer_all(mut stream: TcpStream) -> u64 {
    let mut piece = vec![0; 64 * 1024];
    let mut count = 0;
    loop {
        match stream.read(&mut piece).expect("the client's bytes") {
            0 => return count,
            len => {
                stream
                    .write_all(&upper(&piece[..len]))
                    .expect("take the answer");
                count += len as u64;
            }
        }
    }
}
