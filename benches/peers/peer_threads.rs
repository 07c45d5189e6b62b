//! The blocking peer: one thread per connection, standard library only.
//!
//! A message costs two system calls and no readiness handling, but also a context switch and a
//! stack per connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;

use super::listener;

/// Stack size of a connection's thread: enough for its few frames; the buffer is on the heap.
const STACK_BYTES: usize = 32 << 10;
/// Maximum bytes per read, as in the other servers.
const BUFFER_BYTES: usize = 64 << 10;

/// Serves `port` until the process is killed.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = listener::listen(port)?;
    listener::ready()?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || answer(stream))?;
    }
    Ok(())
}

/// Serves one client until its connection ends; errors are ignored.
fn answer(mut stream: TcpStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(received @ 1..) = stream.read(&mut buffer) {
        let message = &mut buffer[..received];
        message.make_ascii_uppercase();
        if stream.write_all(message).is_err() {
            return;
        }
    }
}
