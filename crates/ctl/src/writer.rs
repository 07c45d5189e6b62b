//! Writing a line without ever waiting for whoever reads it.
//!
//! A full pipe, a stopped terminal or a slow log collector must not stop the server, and
//! `O_NONBLOCK` must not be set on standard error itself: it belongs to the open file, which the
//! shell and our parent share, and would break *their* writes. So each kind of file has its way:
//!
//! - a pipe, terminal or device is opened once more through `/proc`, which gives an open file of
//!   our own that may be non-blocking;
//! - a regular file is written as it is: it never refuses, and a second open file would have a
//!   position of its own and overwrite what others write;
//! - a socket cannot be opened again, but `send` takes "do not wait" for a single call;
//! - where opening is forbidden (a pipe that another user made, as in a container that does not
//!   run as root), the kernel is asked not to wait for this one write, and where it cannot, the
//!   file is asked first whether it has room. Only that last way can wait, if another process
//!   takes the room in between.
//!
//! Invariant: a line is written by one call, or it is counted.
//! Must not: retry, buffer, or report its own errors (there is nowhere left to report them).

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IsTerminal as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::socket::{MsgFlags, send};
use rustix::io::{Errno, ReadWriteFlags};

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Log lines that this process could not write since it started.
#[must_use]
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Writes whole lines to one file.
#[derive(Debug)]
pub struct LineWriter {
    sink: Sink,
    /// Whether it is a terminal.
    terminal: bool,
    /// Lines lost since the last report of losses.
    unreported: AtomicU64,
    /// The last line was taken in part: the next one must begin with a newline.
    torn: AtomicBool,
}

/// The ways of not waiting; see the head of this file.
#[derive(Debug)]
pub enum Sink {
    /// An open file on which a plain write does not wait.
    Plain(File),
    /// A socket.
    Socket(OwnedFd),
    /// An open file that is shared and cannot be opened again.
    Shared(OwnedFd),
}

impl LineWriter {
    /// Prepares for writing to what `fd` refers to.
    ///
    /// # Errors
    ///
    /// `fd` cannot be duplicated or is not open.
    pub fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let terminal = fd.is_terminal();
        Sink::open(fd).map(|sink| Self::to(sink, terminal))
    }

    fn to(sink: Sink, terminal: bool) -> Self {
        Self {
            sink,
            terminal,
            unreported: AtomicU64::new(0),
            torn: AtomicBool::new(false),
        }
    }

    /// Writes `line`, or counts it as lost. If lines were lost before it, `loss_line` is asked for
    /// the line that says how many, which goes first.
    pub fn write_line(&self, line: &[u8], loss_line: impl FnOnce(u64) -> String) {
        let lost = self.unreported.swap(0, Ordering::Relaxed);
        if lost > 0 && !self.put(loss_line(lost).as_bytes()) {
            self.unreported.fetch_add(lost + 1, Ordering::Relaxed);
            DROPPED.fetch_add(1, Ordering::Relaxed);
        } else if !self.put(line) {
            self.unreported.fetch_add(1, Ordering::Relaxed);
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the file took the whole line.
    fn put(&self, line: &[u8]) -> bool {
        let torn = self.torn.load(Ordering::Relaxed);
        let mended;
        let line = if torn {
            mended = [b"\n", line].concat();
            &mended
        } else {
            line
        };
        let taken = if self.terminal {
            without_ttou(|| self.sink.write(line)).unwrap_or(0)
        } else {
            self.sink.write(line).unwrap_or(0)
        };
        if taken > 0 {
            // A terminal or a socket may take a part; of a torn line's end only the newline.
            self.torn.store(taken < line.len(), Ordering::Relaxed);
        }
        taken == line.len()
    }
}

/// A process in the background that writes to a terminal with `tostop` is sent SIGTTOU by the
/// kernel, unless that is blocked; and to a supervisor the signal means something else.
pub fn without_ttou<T>(write: impl FnOnce() -> T) -> T {
    let ttou = SigSet::from(Signal::SIGTTOU);
    let before = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let result = write();
    if let Ok(before) = before {
        // The same mask was in force a moment ago.
        let _ = before.thread_set_mask();
    }
    result
}

impl Sink {
    /// Prepares for writing to what `fd` refers to.
    ///
    /// # Errors
    /// `fd` cannot be duplicated, or asked what it is.
    pub fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let copy = File::from(fd.try_clone_to_owned()?);
        let kind = copy.metadata()?.file_type();
        if kind.is_file() {
            return Ok(Self::Plain(copy));
        }
        if kind.is_socket() {
            return Ok(Self::Socket(copy.into()));
        }
        // Appending is for the rare device that has a position; the standard library adds
        // O_CLOEXEC. O_NOCTTY: a server must not get a controlling terminal by logging.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let again = OpenOptions::new()
            .append(true)
            .custom_flags(flags.bits())
            .open(format!("/proc/self/fd/{}", copy.as_raw_fd()));
        Ok(again.map_or_else(|_| Self::Shared(copy.into()), Self::Plain))
    }

    /// Writes what the file takes now.
    ///
    /// # Errors
    /// `WouldBlock` if it takes nothing.
    pub fn write(&self, line: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => {
                let mut file: &File = file;
                file.write(line)
            }
            Self::Socket(fd) => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(send(fd.as_raw_fd(), line, flags)?)
            }
            Self::Shared(fd) => write_shared(fd, line),
        }
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(file) => file.as_fd(),
            Self::Socket(fd) | Self::Shared(fd) => fd.as_fd(),
        }
    }
}

/// The position that means "where the file is", as a pipe has no other.
const CURRENT_POSITION: u64 = u64::MAX;

fn write_shared(fd: &OwnedFd, line: &[u8]) -> io::Result<usize> {
    let whole = [IoSlice::new(line)];
    match rustix::io::pwritev2(fd, &whole, CURRENT_POSITION, ReadWriteFlags::NOWAIT) {
        // Pipes know the flag since Linux 6.4, terminals do not.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => write_if_room(fd, line),
        taken => Ok(taken?),
    }
}

fn write_if_room(fd: &OwnedFd, line: &[u8]) -> io::Result<usize> {
    let mut asked = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    poll(&mut asked, PollTimeout::ZERO)?;
    let has_room = asked[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLOUT));
    if !has_room {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(nix::unistd::write(fd, line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, Read as _, Seek as _};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    /// Far longer than any write takes that does not wait.
    const DEADLINE: Duration = Duration::from_secs(10);

    fn pipe() -> (PipeReader, OwnedFd) {
        let (reader, end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        (reader.into(), end)
    }

    fn loss_line(lost: u64) -> String {
        format!("lost {lost}\n")
    }

    /// Runs `work` on a thread of its own and fails, rather than hangs, if it waits.
    fn without_waiting<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        std::thread::Builder::new()
            .spawn(move || done.send(work()))
            .unwrap();
        result.recv_timeout(DEADLINE).expect("the writer waits")
    }

    /// Writes lines until one is lost, then two more; returns how many got through.
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

    /// What must hold for every sink that can be full: nothing waits, everything is counted, and
    /// when there is room again the loss is told before the next line.
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

        // Drain all that got through, perhaps with a piece of the line that did not.
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
    fn a_full_pipe_never_blocks() {
        let (reader, end) = pipe();
        let sink = Sink::open(end.as_fd()).unwrap();
        assert!(matches!(sink, Sink::Plain(_)));
        drop(end);
        check_full_sink(sink, reader);
    }

    #[test]
    fn the_shared_open_file_stays_blocking() {
        let (_reader, end) = pipe();
        let writer = LineWriter::open(end.as_fd()).unwrap();
        writer.write_line(b"line\n", loss_line);
        let flags = nix::fcntl::fcntl(&end, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert!(!OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn a_full_pipe_that_cannot_be_opened_again_never_blocks() {
        let (reader, end) = pipe();
        check_full_sink(Sink::Shared(end), reader);
    }

    #[test]
    fn asking_for_room_first_never_blocks_a_lonely_writer() {
        let (_reader, end) = pipe();
        without_waiting(move || {
            let line = [b'x'; 4096];
            while write_if_room(&end, &line).is_ok() {}
            let full = write_if_room(&end, &line).unwrap_err();
            assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        });
    }

    #[test]
    fn a_full_socket_never_blocks() {
        let (reader, end) = UnixStream::pair().unwrap();
        let sink = Sink::open(end.as_fd()).unwrap();
        assert!(matches!(sink, Sink::Socket(_)));
        drop(end);
        check_full_sink(sink, reader);
    }

    #[test]
    fn a_reader_that_went_away_is_a_loss_and_no_signal() {
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
    fn a_file_is_shared_with_other_writers() {
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
    fn a_torn_line_is_ended_before_the_next() {
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
}
