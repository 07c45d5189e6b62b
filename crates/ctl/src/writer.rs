//! Writes lines without ever waiting for the reader.
//!
//! A full pipe, a stopped terminal or a slow log collector must not stop the server. `O_NONBLOCK`
//! must not be set on standard error itself: the flag belongs to the open file, which the shell and
//! the parent share, and would break *their* writes. So each kind of file has its method:
//!
//! - a pipe, terminal or device is reopened through `/proc`, which gives a separate open file that
//!   may be non-blocking;
//! - a regular file is written as is: it never blocks, and a second open file would have its own
//!   position and overwrite other writers' data;
//! - a socket cannot be reopened, but `send` accepts `MSG_DONTWAIT` for a single call;
//! - where opening is forbidden (a pipe of another user, as in a container that does not run as
//!   root), the write itself is flagged not to wait; where the kernel does not support that, the
//!   file is first polled for room. Only this last method can wait, if another process uses up the
//!   room in between.
//!
//! Invariant: a line is either written by one call or counted. It must not retry, buffer, or report
//! its own errors (no output is left for them).

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

/// Returns the number of log lines lost since this process started.
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
    /// Lines lost since losses were last reported.
    unreported: AtomicU64,
    /// Whether the last line was written in part, so that the next one must begin with a newline.
    torn: AtomicBool,
}

/// The non-blocking methods; see the module documentation.
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
    /// Prepares for writing to the file of `fd`.
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

    /// Writes `line`, or counts it as lost. If earlier lines were lost, first writes the line from
    /// `loss_line`, which reports their number.
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

    /// Writes the line and returns whether the file accepted all of it.
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
            // A terminal or a socket may accept only part of a line, perhaps all but its newline.
            self.torn.store(taken < line.len(), Ordering::Relaxed);
        }
        taken == line.len()
    }
}

/// Runs `write` with SIGTTOU blocked. The kernel sends it to a background process that writes to a
/// terminal with `tostop`; for a supervisor the signal has another meaning.
pub fn without_ttou<T>(write: impl FnOnce() -> T) -> T {
    let ttou = SigSet::from(Signal::SIGTTOU);
    let before = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let result = write();
    if let Ok(before) = before {
        // It restores the previous mask.
        let _ = before.thread_set_mask();
    }
    result
}

impl Sink {
    /// Prepares for writing to the file of `fd`.
    ///
    /// # Errors
    /// `fd` cannot be duplicated, or its type cannot be read.
    pub fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let copy = File::from(fd.try_clone_to_owned()?);
        let kind = copy.metadata()?.file_type();
        if kind.is_file() {
            return Ok(Self::Plain(copy));
        }
        if kind.is_socket() {
            return Ok(Self::Socket(copy.into()));
        }
        // Appending matters only to the rare device with a position; the standard library adds
        // O_CLOEXEC. O_NOCTTY: a server must not acquire a controlling terminal by logging.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let again = OpenOptions::new()
            .append(true)
            .custom_flags(flags.bits())
            .open(format!("/proc/self/fd/{}", copy.as_raw_fd()));
        Ok(again.map_or_else(|_| Self::Shared(copy.into()), Self::Plain))
    }

    /// Writes as much as the file accepts now.
    ///
    /// # Errors
    /// `WouldBlock` if it accepts nothing.
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

/// The value for "the current position", the only one that a pipe has.
const CURRENT_POSITION: u64 = u64::MAX;

fn write_shared(fd: &OwnedFd, line: &[u8]) -> io::Result<usize> {
    let whole = [IoSlice::new(line)];
    match rustix::io::pwritev2(fd, &whole, CURRENT_POSITION, ReadWriteFlags::NOWAIT) {
        // Pipes support the flag since Linux 6.4, terminals do not.
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
mod tests;
