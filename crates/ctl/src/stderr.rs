//! Writes lines to standard error for the parent process or user, outside the log.
//!
//! Invariant: a line waits for room at most `WRITE_TIMEOUT`; after that only the exit code reports
//! the failure.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;

use crate::clock::{self, Tick};
use crate::escape::visible;
use crate::writer::Sink;

/// How long to wait while standard error is full.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reports an error in one line, for the journal with its priority.
pub fn write_error(what: &str) {
    let priority = if is_journal() { "<3>" } else { "" };
    write_line(&format!("{priority}uppercased: {what}"));
}

/// Returns whether standard error is connected to systemd's journal, which reads the priority of a
/// line at its beginning.
#[must_use]
pub fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM");
    let about = fstat(io::stderr());
    matches!((named, about), (Ok(named), Ok(about))
        if named == format!("{}:{}", about.st_dev, about.st_ino))
}

/// Writes one line to standard error, escaped. If standard error is full or has no reader, gives up
/// after `WRITE_TIMEOUT`; then only the exit code reports the failure.
pub fn write_line(line: &str) {
    let line = visible(line) + "\n";
    let mut rest = line.as_bytes();
    let Ok(sink) = Sink::open(io::stderr().as_fd()) else {
        return;
    };
    let until = clock::now() + WRITE_TIMEOUT;
    while !rest.is_empty() {
        match sink.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !await_room_until(until) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// Waits until standard error has room for a line, at most `WRITE_TIMEOUT`. Call it before a last
/// line that must not be dropped.
pub fn await_room() {
    await_room_until(clock::now() + WRITE_TIMEOUT);
}

/// Waits until there is room; returns whether there is. A signal ends the wait, so that the process
/// continues.
fn await_room_until(until: Tick) -> bool {
    let left = until.since(clock::now());
    let stderr = io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    !left.is_zero() && matches!(poll(&mut room, timeout), Ok(1..))
}
