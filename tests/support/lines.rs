//! What a child process prints, line by line, with waits for a line.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::process::in_background;

/// A growing list of lines, fed by a thread of its own until the other end is closed.
#[derive(Clone, Debug)]
pub struct Lines {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    /// Collects the lines of `source`; bytes that are not UTF-8 are replaced.
    pub fn follow(source: impl Read + Send + 'static) -> Self {
        let lines = Self {
            shared: Arc::default(),
        };
        let feed = lines.clone();
        in_background(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            // An error ends it as the end does: what was read is kept.
            while source.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
                let text = String::from_utf8_lossy(&line);
                let text = text.strip_suffix('\n').unwrap_or(&text).to_owned();
                feed.change(|state| state.lines.push(text));
                line.clear();
            }
            feed.change(|state| state.ended = true);
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
            .1
            .wait_timeout_while(self.lock(), within, |state| !done(state))
            .unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        !result.timed_out()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.shared.1.notify_all();
    }

    /// A test that panicked in its predicate must not hide the lines from its own report.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
