//! What a load balancer that asks is told: one line in the words of HAProxy's `agent-check`.
//!
//! Invariants: a server that is ready, as [`Status::unready`] defines it, says `ready up` with a weight from 1 % to 100 %; one
//! that was taken out of rotation, or stops, says so however it is otherwise; `down` is said only of
//! one that nobody should send anybody to. HAProxy keeps what it was told until it is told
//! otherwise, so `ready up` takes back all that the other lines have said.
//!
//! Pure: the time is handed in. It must not ask anybody.

use std::fmt;

use crate::config::AGENT_SMOOTHING;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::Counter;
use uppercased_ctl::status::AgentAnswers;
use uppercased_ctl::status::Rotation;
use uppercased_ctl::status::Status;

/// What is remembered from one answer to the next.
#[derive(Debug, Default)]
pub(super) struct Agent {
    load: Load,
    last: Option<Line>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Clients are welcome, with this weight in percent.
    Ready(u8),
    /// None are; a remark for whoever reads HAProxy's statistics.
    Drain(&'static str),
    /// The same, and no health checks either.
    Maint(&'static str),
    /// Nobody serves.
    Down(&'static str),
}

impl Line {
    /// Takes note that it was said.
    pub(super) const fn count(&self, answers: &mut AgentAnswers) {
        *match self {
            Self::Ready(_) => &mut answers.ready,
            Self::Drain(_) => &mut answers.drain,
            Self::Maint(_) => &mut answers.maint,
            Self::Down(_) => &mut answers.down,
        } += 1;
    }
}

impl fmt::Display for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(weight) => writeln!(out, "ready up {weight}%"),
            Self::Drain(remark) => writeln!(out, "drain # {remark}"),
            Self::Maint(remark) => writeln!(out, "maint # {remark}"),
            Self::Down(remark) => writeln!(out, "down # {remark}"),
        }
    }
}

impl Agent {
    /// The answer, made of what the supervisor said, or of its silence.
    pub(super) fn answer(&mut self, told: Option<&Status>, now: Tick) -> Line {
        let Some(status) = told else {
            // Workers do not need the supervisor to serve, and that they can be reached is for a
            // health check to find out. So nothing changes because it is slow.
            let silence = Line::Down("the server does not answer");
            return self.last.clone().unwrap_or(silence);
        };
        let line = self.judge(status, now);
        self.last = Some(line.clone());
        line
    }

    fn judge(&mut self, status: &Status, now: Tick) -> Line {
        // Whatever is said now, both go on.
        let load = self.load.note(status, now);
        match status.phase.as_str() {
            "serving" => {}
            "idle" | "booting" | "boot failed" => return Line::Down("server starting"),
            _ => return Line::Drain("server stopping"),
        }
        if let Some(word) = status.out_of_rotation() {
            let is_maint = word == Rotation::Maint.name();
            let line = if is_maint { Line::Maint } else { Line::Drain };
            return line("out of rotation");
        }
        if status.unready().is_some() {
            return Line::Down("an accept queue is not served");
        }
        Line::Ready(weight(load))
    }
}

/// The weight of a server that is loaded so far, from 0 to 1: what is free of it, in percent, and
/// never 0, which would mean a drain.
fn weight(load: f64) -> u8 {
    (100.0 * (1.0 - load)).round().clamp(1.0, 100.0) as u8
}

/// How loaded a server is, smoothed.
#[derive(Debug, Default)]
struct Load {
    latest: Option<Sample>,
    smooth: f64,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Tick,
    busy_ns: u64,
}

impl Load {
    /// Takes the load of now in: the larger of the share of connections that are open, of those
    /// there may be, and the share of time that the workers were busy since the last answer.
    fn note(&mut self, status: &Status, now: Tick) -> f64 {
        let traffic = &status.totals.traffic;
        let busy_ns = traffic.counters.get(&Counter::BusyNs.key());
        let sample = Sample {
            at: now,
            busy_ns: busy_ns.copied().unwrap_or(0),
        };
        let open = share(traffic.open, status.capacity);
        let Some(before) = self.latest.replace(sample) else {
            self.smooth = open;
            return open;
        };
        let passed = now.since(before.at);
        let workers = status.slots.len() as u64;
        let passed_ns = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        let busy = share(
            sample.busy_ns.saturating_sub(before.busy_ns),
            passed_ns.saturating_mul(workers),
        );
        let weight_of_now = 1.0 - (-passed.as_secs_f64() / AGENT_SMOOTHING.as_secs_f64()).exp();
        self.smooth += (open.max(busy) - self.smooth) * weight_of_now;
        self.smooth
    }
}

/// `part` of `whole`, from 0 to 1; 0 of nothing.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    (part as f64 / whole as f64).min(1.0)
}

#[cfg(test)]
mod tests;
