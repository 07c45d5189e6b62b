//! The peer on tokio's multi-threaded runtime: one task per connection.
//!
//! Optimised for speed and little memory: bytes are received into a buffer shared by all tasks of a
//! thread, and a task keeps only the bytes that the kernel did not accept at once. `poll_read`
//! rather than `try_read`, because it avoids the second receive after a short one.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use super::listener;

/// Maximum bytes per receive, as in the other servers.
const BUFFER_BYTES: usize = 64 << 10;

thread_local! {
    /// Receive buffer of all tasks on this thread; no task holds it across an await.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_BYTES]);
}

/// Serves `port` on `threads` threads until the process is killed.
pub(crate) fn serve(port: u16, threads: usize) -> io::Result<()> {
    let listener = listener::listen(port)?;
    listener.set_nonblocking(true)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_io()
        .build()?;
    // In a separate task, so that the workers accept and this thread only waits.
    let accepting = runtime.spawn(accept(listener));
    runtime.block_on(accepting).map_err(io::Error::other)?
}

async fn accept(listener: std::net::TcpListener) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    listener::ready()?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A failed client affects only its own task.
            let _ = answer(stream).await;
        });
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    while let Some(rest) = poll_fn(|context| exchange(&mut stream, context)).await? {
        let mut unsent = &rest[..];
        while !unsent.is_empty() {
            stream.writable().await?;
            match stream.try_write(unsent) {
                Ok(sent) => unsent = &unsent[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Receives once and replies; returns the bytes that the kernel did not accept, and `None` at the
/// end of the stream.
fn exchange(
    stream: &mut TcpStream,
    context: &mut Context<'_>,
) -> Poll<io::Result<Option<Vec<u8>>>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
        let message = buffer.filled_mut();
        if message.is_empty() {
            return Poll::Ready(Ok(None));
        }
        message.make_ascii_uppercase();
        let sent = match stream.try_write(message) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Poll::Ready(Err(error)),
        };
        Poll::Ready(Ok(Some(message[sent..].to_vec())))
    })
}
