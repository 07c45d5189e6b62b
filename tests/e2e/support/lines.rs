//! What a child process prints, line by line, with waits for a line.
//!
//! Invariant: whoever asks is told of everything that was written before, also of what the thread that
//! reads has had no turn to read. So a mark that is set after something has happened is behind every
//! line about it, and a wait from there on finds no line of an earlier event.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::process::in_background;

/// A growing list of lines, fed by a thread of its own until the other end is closed.
#[derive(Clone, Debug)]
pub struct Lines {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Read under the lock only, and without waiting.
    source: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    /// Of a line whose end has not come.
    begun: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// Collects the lines of `source`; bytes that are not UTF-8 are replaced.
    pub fn follow(source: impl Into<OwnedFd>) -> Self {
        let source = File::from(source.into());
        fcntl(&source, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("any pipe can be");
        let lines = Self {
            shared: Arc::new(Shared {
                source,
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
        };
        let feed = lines.clone();
        in_background(move || {
            while !feed.lock().ended {
                let mut watched = [PollFd::new(
                    std::os::fd::AsFd::as_fd(&feed.shared.source),
                    PollFlags::POLLIN,
                )];
                // An interruption only makes it look sooner.
                let _ = poll(&mut watched, PollTimeout::NONE);
            }
        });
        lines
    }

    /// The first line from number `start` on that `wanted` accepts; waits for it until `within`
    /// has passed or no more can come, and then is `None`.
    pub fn find_from(
        &self,
        start: usize,
        within: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> Option<String> {
        let mut next = start;
        let mut found = None;
        self.wait(within, |state| {
            // Each line is asked about once, however often this wakes up.
            while found.is_none() && next < state.lines.len() {
                if wanted(&state.lines[next]) {
                    found = Some(state.lines[next].clone());
                }
                next += 1;
            }
            found.is_some() || state.ended
        });
        found
    }

    /// Waits until the other end is closed by everybody who holds it; whether it was.
    pub fn wait_end(&self, within: Duration) -> bool {
        self.wait(within, |state| state.ended)
    }

    /// The number of lines so far: a mark for [`Self::find_from`].
    pub fn len(&self) -> usize {
        self.lock().lines.len()
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// All lines so far as one text.
    pub fn text(&self) -> String {
        self.all().into_iter().map(|line| line + "\n").collect()
    }

    /// Waits until `done`, which is asked after every change; whether it came true in time.
    fn wait(&self, within: Duration, mut done: impl FnMut(&State) -> bool) -> bool {
        let (guard, result) = self
            .shared
            .changed
            .wait_timeout_while(self.lock(), within, |state| !done(state))
            .unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        !result.timed_out()
    }

    /// The state, with everything in it that is there to be read.
    ///
    /// A test that panicked in its predicate must not hide the lines from its own report.
    fn lock(&self) -> MutexGuard<'_, State> {
        let shared = &*self.shared;
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.catch_up(&shared.source) {
            shared.changed.notify_all();
        }
        state
    }
}

impl State {
    /// Reads what is there; whether that was anything.
    fn catch_up(&mut self, mut source: &File) -> bool {
        let mut chunk = [0; 8192];
        let mut changed = false;
        while !self.ended {
            match source.read(&mut chunk) {
                Ok(len @ 1..) => self.begun.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // An error ends it as the end does: what was read is kept.
                Ok(0) | Err(_) => {
                    self.ended = true;
                    if !self.begun.is_empty() {
                        self.begun.push(b'\n');
                    }
                }
            }
            changed = true;
            while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.begun.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line[..end]).into_owned();
                self.lines.push(line);
            }
        }
        changed
    }
}
