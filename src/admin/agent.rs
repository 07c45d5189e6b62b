//! The line sent to load balancers, in the format of HAProxy's `agent-check`.
//!
//! Invariants: a server that is ready, as [`Status::unready`] defines it, reports `ready up` with a
//! weight from 1 % to 100 %; one that is out of rotation or stopping reports that in any state;
//! `down` is reported only for a server that should get no clients. HAProxy keeps a state until it
//! receives another, so `ready up` reverts all the other lines.
//!
//! Pure: the time is a parameter. It must not send requests.

use std::fmt;

use crate::config::AGENT_SMOOTHING;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::Counter;
use uppercased_ctl::status::AgentAnswers;
use uppercased_ctl::status::Rotation;
use uppercased_ctl::status::Status;

/// State kept between replies.
#[derive(Debug, Default)]
pub(super) struct Agent {
    load: Load,
    last: Option<Line>,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Accepting new clients, with this weight in percent.
    Ready(u8),
    /// No new clients, with a remark for HAProxy's statistics page.
    Drain(&'static str),
    /// No new clients, and no health checks.
    Maint(&'static str),
    /// No worker serves.
    Down(&'static str),
}

impl Line {
    /// Counts the reply in `answers`.
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
    /// Returns the reply for the supervisor's status, or for a missing status.
    pub(super) fn answer(&mut self, status: Option<&Status>, now: Tick) -> Line {
        let Some(status) = status else {
            // Workers serve without the supervisor, and health checks test whether they are
            // reachable, so a slow supervisor does not take the server down.
            let silence = Line::Down("the server does not answer");
            return self.last.clone().unwrap_or(silence);
        };
        let line = self.assess(status, now);
        self.last = Some(line.clone());
        line
    }

    fn assess(&mut self, status: &Status, now: Tick) -> Line {
        // Both are updated, whichever line is reported.
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

/// Returns the weight for a load from 0 to 1: the free share in percent, but never 0, which would
/// mean a drain.
fn weight(load: f64) -> u8 {
    (100.0 * (1.0 - load)).round().clamp(1.0, 100.0) as u8
}

/// The smoothed load of a server.
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
    /// Adds the current load: the larger of the share of allowed connections that are open and the
    /// share of time that the workers were busy since the last reply.
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

/// Returns `part` of `whole`, from 0 to 1; 0 if `whole` is 0.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    (part as f64 / whole as f64).min(1.0)
}

#[cfg(test)]
mod tests;
