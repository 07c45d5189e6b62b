//! Shows the progress of the measurement as a line on standard error, on a terminal only.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use rustix::termios::tcgetwinsize;

use super::options::Word as _;
use super::plan::{Plan, millis};
use super::team::Counts;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::units::{cut, per_second};

/// Minimum time over which the rate is computed.
const RATE_OVER: Duration = Duration::from_millis(400);
/// Characters of the bar.
const BAR: usize = 20;
/// Moves to the beginning of the line and clears it.
const CLEAR: &str = "\r\x1b[K";

/// The line.
#[derive(Debug)]
pub(super) struct Progress {
    is_shown: bool,
    last: Option<(Tick, u64)>,
    rate: f64,
}

impl Progress {
    /// Creates the line, unless it is unwanted or would be invisible.
    #[must_use]
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            is_shown: wanted && io::stderr().is_terminal(),
            last: None,
            rate: 0.0,
        }
    }

    /// Shows the connecting phase.
    pub(super) fn connecting(&self, counts: Counts, plan: &Plan) {
        let Counts { open, failed, .. } = counts;
        let (open, all) = (open, u64::from(plan.connections));
        let text = format!("{open} of {all} connections, {failed} failures");
        self.show("connecting", open, all, &text);
    }

    /// Shows the load, `since` its start.
    pub(super) fn loading(&mut self, counts: Counts, plan: &Plan, since: Duration, now: Tick) {
        match self.last {
            Some((then, answered)) if now.since(then) >= RATE_OVER => {
                let more = counts.answered.saturating_sub(answered);
                self.rate = more as f64 / now.since(then).as_secs_f64();
                self.last = Some((now, counts.answered));
            }
            Some(_) => {}
            None => self.last = Some((now, counts.answered)),
        }
        let phase = if since < plan.warmup {
            "warming up"
        } else {
            plan.pattern.word()
        };
        let (done, all) = match plan.count {
            Some(count) => (counts.answered, count),
            None => (millis(since), millis(plan.warmup + plan.duration)),
        };
        let Counts { open, failed, .. } = counts;
        let rate = per_second(self.rate);
        let text = format!("{rate} messages/s, {open} connections, {failed} failures");
        self.show(phase, done, all, &text);
    }

    /// Removes the line.
    pub(super) fn finish(&self) {
        self.write(CLEAR);
    }

    fn show(&self, phase: &str, done: u64, all: u64, text: &str) {
        let columns = tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        let line = format!("{phase:>10} [{}] {text}", bar(done, all));
        // A full line would move the cursor to the next line.
        self.write(&(CLEAR.to_owned() + &cut(&line, columns.saturating_sub(1))));
    }

    fn write(&self, text: &str) {
        if self.is_shown {
            // Best effort: the measurement does not depend on it.
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }
}

/// Returns the bar for `done` of `all`.
fn bar(done: u64, all: u64) -> String {
    let share = done as f64 / all.max(1) as f64;
    let filled = (share * BAR as f64) as usize;
    format!("{:<BAR$}", "=".repeat(filled.min(BAR)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_stays_within_its_width() {
        let bars = [(0, 0), (5, 10), (10, 10), (u64::MAX, 1)].map(|(done, all)| bar(done, all));
        let expected = [0, 10, 20, 20].map(|filled| format!("{:<20}", "=".repeat(filled)));
        assert_eq!(bars, expected);
    }
}
