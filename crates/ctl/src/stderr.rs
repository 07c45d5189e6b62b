//! Lines on standard error for whoever started this process, outside of the log.
//!
//! Invariant: a line waits for room for `SAY_PATIENCE` at most, then the exit code has to say it.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock::{self, Tick};
use crate::escape::visible;
use crate::writer::Sink;

/// How long a standard error that is full is waited for.
const SAY_PATIENCE: Duration = Duration::from_secs(5);

/// Says to whoever started this process what went wrong, in one line.
pub fn complain(what: &str) {
    say(&format!("uppercased: {what}"));
}

/// Writes one line to standard error, whatever `line` contains. Standard error may be full, or have
/// nobody who reads it: after `SAY_PATIENCE` the exit code has to say it.
pub fn say(line: &str) {
    let line = visible(line) + "\n";
    let mut rest = line.as_bytes();
    let Ok(sink) = Sink::open(io::stderr().as_fd()) else {
        return;
    };
    let until = clock::now() + SAY_PATIENCE;
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

/// Waits until standard error has room for a line, for `SAY_PATIENCE` at most; before a last line
/// that must not be dropped.
pub fn await_room() {
    await_room_until(clock::now() + SAY_PATIENCE);
}

/// Says whether there is room. A signal ends the wait: whoever sent it wants the process to go on.
fn await_room_until(until: Tick) -> bool {
    let left = until.since(clock::now());
    let stderr = io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    !left.is_zero() && matches!(poll(&mut room, timeout), Ok(1..))
}
