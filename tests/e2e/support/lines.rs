//! The output of a child process, line by line, with waits for a line.
//!
//! Invariant: every query first reads everything written before it, even if the reading thread has
//! had no CPU time. So a mark set after an event is behind every line about it, and a wait from
//! that mark finds no line of an earlier event.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::process::in_background;

/// A growing list of lines, fed by a thread until the writing end is closed.
#[derive(Clone, Debug)]
pub struct Lines {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Read only under the lock, without waiting.
    source: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    /// The bytes of an incomplete line.
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
                // An interruption only makes it read sooner.
                let _ = poll(&mut watched, PollTimeout::NONE);
            }
        });
        lines
    }

    /// Returns the first line from number `start` on that `wanted` accepts; `None` if there is none
    /// within `within` or before the end.
    pub fn find_from(
        &self,
        start: usize,
        within: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> Option<String> {
        let mut next = start;
        let mut found = None;
        self.wait(within, |state| {
            // Each line is tested once, however often this wakes up.
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

    /// Waits until every holder of the writing end has closed it; returns whether that happened in
    /// time.
    pub fn wait_end(&self, within: Duration) -> bool {
        self.wait(within, |state| state.ended)
    }

    /// Returns the number of lines so far: a mark for [`Self::find_from`].
    pub fn len(&self) -> usize {
        self.lock().lines.len()
    }

    /// Returns all lines so far.
    pub fn all(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// Returns all lines so far as one text.
    pub fn text(&self) -> String {
        self.all().into_iter().map(|line| line + "\n").collect()
    }

    /// Waits until `done` holds, testing it after every change; returns whether it held in time.
    fn wait(&self, within: Duration, mut done: impl FnMut(&State) -> bool) -> bool {
        let (guard, result) = self
            .shared
            .changed
            .wait_timeout_while(self.lock(), within, |state| !done(state))
            .unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        !result.timed_out()
    }

    /// Returns the state after reading everything available.
    ///
    /// A test that panics in its predicate must not hide the lines from its own report.
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
    /// Reads everything available; returns whether there was any.
    fn catch_up(&mut self, mut source: &File) -> bool {
        let mut chunk = [0; 8192];
        let mut changed = false;
        while !self.ended {
            match source.read(&mut chunk) {
                Ok(len @ 1..) => self.begun.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // An error is the end: everything read so far is kept.
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
