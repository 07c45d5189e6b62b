//! Unit tests of `writer.rs`.

use super::*;
use std::io::{PipeReader, Read as _, Seek as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

/// Far longer than any non-blocking write takes.
const DEADLINE: Duration = Duration::from_secs(10);

fn pipe() -> (PipeReader, OwnedFd) {
    let (reader, end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    (reader.into(), end)
}

fn loss_line(lost: u64) -> String {
    format!("lost {lost}\n")
}

/// Runs `work` on a separate thread, and fails instead of hanging if it waits.
fn without_waiting<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    std::thread::Builder::new()
        .spawn(move || done.send(work()))
        .unwrap();
    result.recv_timeout(DEADLINE).expect("the writer waits")
}

/// Writes lines until one is lost, then two more; returns how many were written.
fn write_until_full(writer: &LineWriter) -> u64 {
    let line = [b'x'; 1023].as_slice();
    let line = [line, b"\n"].concat();
    let mut written = 0;
    loop {
        writer.write_line(&line, loss_line);
        if writer.unreported.load(Ordering::Relaxed) > 0 {
            break;
        }
        written += 1;
    }
    writer.write_line(&line, loss_line);
    writer.write_line(&line, loss_line);
    written
}

/// Checks a sink that can be full: no write waits, every lost line is counted, and once there is
/// room the loss is reported before the next line.
fn check_full_sink(sink: Sink, mut reader: impl io::Read) {
    let before = dropped_lines();
    let writer = LineWriter::to(sink, false);
    let (writer, written) = without_waiting(move || {
        let written = write_until_full(&writer);
        (writer, written)
    });
    assert!(written > 0);
    assert_eq!(writer.unreported.load(Ordering::Relaxed), 3);
    assert!(dropped_lines() >= before + 3, "the process counts, too");

    // Drain all lines written, and perhaps a part of the lost one.
    let mut text = vec![0; usize::try_from(written).unwrap() * 1024];
    reader.read_exact(&mut text).unwrap();
    assert!(text.chunks(1024).all(|line| line.ends_with(b"x\n")));

    writer.write_line(b"after\n", loss_line);
    assert_eq!(writer.unreported.load(Ordering::Relaxed), 0);
    drop(writer);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    let rest = rest.trim_start_matches('x').trim_start_matches('\n');
    assert_eq!(rest, "lost 3\nafter\n");
}

#[test]
fn full_pipe_never_blocks() {
    let (reader, end) = pipe();
    let sink = Sink::open(end.as_fd()).unwrap();
    assert!(matches!(sink, Sink::Plain(_)));
    drop(end);
    check_full_sink(sink, reader);
}

#[test]
fn shared_open_file_stays_blocking() {
    let (_reader, end) = pipe();
    let writer = LineWriter::open(end.as_fd()).unwrap();
    writer.write_line(b"line\n", loss_line);
    let flags = nix::fcntl::fcntl(&end, nix::fcntl::FcntlArg::F_GETFL).unwrap();
    assert!(!OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK));
}

#[test]
fn unreopenable_full_pipe_never_blocks() {
    let (reader, end) = pipe();
    check_full_sink(Sink::Shared(end), reader);
}

#[test]
fn polling_first_never_blocks_single_writer() {
    let (_reader, end) = pipe();
    without_waiting(move || {
        let line = [b'x'; 4096];
        while write_if_room(&end, &line).is_ok() {}
        let full = write_if_room(&end, &line).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn full_socket_never_blocks() {
    let (reader, end) = UnixStream::pair().unwrap();
    let sink = Sink::open(end.as_fd()).unwrap();
    assert!(matches!(sink, Sink::Socket(_)));
    drop(end);
    check_full_sink(sink, reader);
}

#[test]
fn closed_reader_counts_loss_without_signal() {
    for socket in [false, true] {
        let sink = if socket {
            Sink::open(UnixStream::pair().unwrap().1.as_fd())
        } else {
            Sink::open(pipe().1.as_fd())
        };
        let writer = LineWriter::to(sink.unwrap(), false);
        writer.write_line(b"line\n", loss_line);
        assert_eq!(writer.unreported.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn file_is_shared_with_other_writers() {
    let mut file = tempfile::tempfile().unwrap();
    let writer = LineWriter::open(file.as_fd()).unwrap();
    writer.write_line(b"one\n", loss_line);
    file.write_all(b"two\n").unwrap();
    writer.write_line(b"three\n", loss_line);
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\nthree\n");
}

#[test]
fn torn_line_is_ended_before_next() {
    let (mut reader, end) = pipe();
    let writer = LineWriter::open(end.as_fd()).unwrap();
    drop(end);
    writer.write_line(b"half a li", loss_line);
    writer.torn.store(true, Ordering::Relaxed);
    writer.write_line(b"whole\n", loss_line);
    writer.write_line(b"next\n", loss_line);
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "half a li\nwhole\nnext\n");
}
