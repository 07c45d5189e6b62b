//! The progress of the measurement, shown on a terminal only.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::options::Word as _;
use super::plan::{Plan, millis};
use super::team::Counts;
use uppercased_ctl::clock::Tick;

/// A progress bar on standard error.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    last: Option<(Tick, u64)>,
    rate: f64,
}

/// Minimum time over which the rate is computed.
const RATE_OVER: Duration = Duration::from_millis(400);

impl Progress {
    /// Creates a bar for `plan`, unless it is unwanted or would not be visible.
    #[must_use]
    pub(super) fn of(plan: &Plan, wanted: bool) -> Self {
        let bar = if wanted && std::io::stderr().is_terminal() {
            let whole = plan
                .count
                .unwrap_or_else(|| millis(plan.warmup + plan.duration));
            ProgressBar::new(whole)
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{prefix:>10} [{wide_bar}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bar,
            last: None,
            rate: 0.0,
        }
    }

    /// Shows the connecting phase.
    pub(super) fn connecting(&self, counts: Counts, plan: &Plan) {
        self.bar.set_prefix("connecting");
        let Counts { open, failed, .. } = counts;
        self.bar.set_message(format!(
            "{open} of {} connections, {failed} failures",
            plan.connections
        ));
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
        let prefix = if since < plan.warmup {
            "warming up"
        } else {
            plan.pattern.word()
        };
        self.bar.set_prefix(prefix);
        self.bar.set_position(match plan.count {
            Some(_) => counts.answered,
            None => millis(since),
        });
        let Counts { open, failed, .. } = counts;
        self.bar.set_message(format!(
            "{:.0} messages/s, {open} connections, {failed} failures",
            self.rate
        ));
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
