//! State of `top` and the effect of keys: maps samples, keys and replies to actions.
//!
//! Invariants: no request is sent without confirmation; one operation runs at a time; texts are
//! bounded. The latest sample is shown, with its age once it is stale. Pure: it must not
//! read a clock, a terminal or a socket.

use std::collections::VecDeque;

use super::keys::Key;
use crate::config::WORKERS;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::control::{Options, Reply, Request, ScaleTo};
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::status::{Rate, Sample, SlotStatus};
use uppercased_ctl::words;

/// Output lines kept per operation.
const PROGRESS_LEN: usize = 64;

/// An action for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Exit.
    Quit,
    /// Suspend, with the terminal restored until the process continues.
    Suspend,
    /// Redraw everything.
    Redraw,
    /// Send this request to the server.
    Ask(Request),
}

/// The view below the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Page {
    /// Chart and table of the workers.
    #[default]
    Table,
    /// One worker.
    Worker(SlotId),
    /// The addresses with the most connections.
    Sources,
    /// The keys.
    Help,
}

words! {
    /// The order of the table's rows; except for slots, the largest number comes first.
    #[derive(Default)]
    pub(super) enum Sort {
        #[default]
        Slot = "slot",
        Open = "open",
        Queue = "queue",
        Messages = "msg/s",
        Busy = "busy",
        Memory = "mem",
        Crashes = "crash",
    }
}

impl Sort {
    fn next(self) -> Self {
        let next = Self::ALL
            .into_iter()
            .cycle()
            .skip_while(|it| *it != self)
            .nth(1);
        next.unwrap_or_default()
    }

    /// Returns the number by which a slot is sorted.
    fn key(self, slot: &SlotStatus, sample: &Sample) -> f64 {
        let rate = sample
            .rates
            .as_ref()
            .and_then(|it| it.slots.get(&slot.slot));
        let rate = |value: fn(&Rate) -> f64| rate.map_or(0.0, value);
        match self {
            Self::Slot => 0.0,
            Self::Open => slot.traffic.open as f64,
            Self::Queue => slot.waiting() as f64,
            Self::Messages => rate(|it| it.messages),
            Self::Busy => rate(|it| it.busy),
            Self::Memory => {
                let process = slot.pid.and_then(|pid| sample.status.process(pid));
                let usage = process.and_then(|process| process.usage);
                let resident = usage.and_then(|it| it.resident_bytes);
                resident.map_or(0.0, |bytes| bytes as f64)
            }
            Self::Crashes => slot.crashes as f64,
        }
    }
}

/// The state; see the module documentation.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// The latest sample.
    pub(super) sample: Option<Sample>,
    sampled_at: Option<Tick>,
    error: Option<String>,
    confirming: Option<Request>,
    operation: Option<Request>,
    /// Progress and result of the operation, oldest first.
    pub(super) progress: VecDeque<String>,
    /// Whether sampling is paused.
    pub(super) paused: bool,
    pub(super) page: Page,
    pub(super) sort: Sort,
    /// The selected row of the sorted table.
    pub(super) selected: usize,
    /// The first visible row of the table.
    pub(super) first_row: usize,
}

impl Model {
    /// Returns why there is no fresh sample, and the age of the latest one.
    pub(super) fn error(&self, now: Tick) -> Option<(&str, Option<u64>)> {
        let why = self.error.as_deref()?;
        let age = self.sampled_at.map(|at| now.since(at).as_secs());
        Some((why, age))
    }

    /// Returns the pending question; short, for narrow terminals.
    pub(super) fn question(&self) -> Option<String> {
        let request = self.confirming?;
        let workers = self.workers();
        Some(match request {
            Request::Reload(_) => "Reload and replace every worker? [y/N]".to_owned(),
            Request::Cancel => "Cancel the operation? [y/N]".to_owned(),
            Request::Upgrade(_) => "Upgrade to the binary on disk? [y/N]".to_owned(),
            Request::Scale { workers: to, .. } => {
                format!("Scale to {to} workers (now {workers})? [y/N]")
            }
            Request::Rotation { .. } | Request::Status | Request::Stop => return None,
        })
    }

    /// Stores a sample.
    pub(super) fn add_sample(&mut self, sample: Sample, now: Tick) {
        self.sample = Some(sample);
        self.select(self.selected);
        if let Page::Worker(slot) = self.page
            && !self.sorted().iter().any(|it| it.slot == slot)
        {
            self.page = Page::Table;
        }
        self.sampled_at = Some(now);
        self.error = None;
    }

    /// Records why there is no fresh sample.
    pub(super) fn set_error(&mut self, why: String) {
        self.error = Some(why);
    }

    /// Handles a reply to the current operation; returns true for the final one.
    pub(super) fn handle_reply(&mut self, reply: Reply) -> bool {
        let line = match &reply {
            Reply::Progress(text) => text.clone(),
            Reply::Done(done) => {
                let line = self.operation.and_then(|request| done.describe(&request));
                line.unwrap_or_else(|| "operation complete".to_owned())
            }
            Reply::Failed(cause) => format!("failed: {cause}"),
            Reply::Refused(cause) => format!("refused: {cause}"),
            Reply::Status(_) => "the server's answer does not match the request".to_owned(),
        };
        self.add_line(line);
        let last = reply.is_final();
        if last {
            self.operation = None;
        }
        last
    }

    /// Handles the end of the operation's connection without a final reply.
    pub(super) fn operation_lost(&mut self, why: &str) {
        self.operation = None;
        self.add_line(format!("{why}; its state is shown above"));
    }

    /// Handles a key.
    pub(super) fn press(&mut self, key: Key) -> Option<Action> {
        if let Some(request) = self.confirming.take() {
            return match key {
                Key::Char('y' | 'Y') => {
                    self.progress.clear();
                    self.operation = Some(request);
                    self.add_line(format!("{} …", request.name()));
                    Some(Action::Ask(request))
                }
                Key::Interrupt => Some(Action::Quit),
                _ => None,
            };
        }
        match key {
            Key::Char('q') | Key::Interrupt => return Some(Action::Quit),
            Key::Suspend => return Some(Action::Suspend),
            Key::Redraw => return Some(Action::Redraw),
            Key::Char('r') => self.confirm(Request::Reload(Options::default())),
            Key::Char('u') => self.confirm(Request::Upgrade(Options::default())),
            Key::Char('+' | '=') => self.confirm_scale(1),
            Key::Char('-') => self.confirm_scale(-1),
            Key::Char('p' | ' ') => self.paused = !self.paused,
            Key::Char('?' | 'h') => self.toggle(Page::Help),
            Key::Char('c') => self.toggle(Page::Sources),
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Enter => {
                if let Some(slot) = self.sorted().get(self.selected).map(|it| it.slot) {
                    self.toggle(Page::Worker(slot));
                }
            }
            Key::Escape => {
                self.page = Page::Table;
                if self.operation.is_none() {
                    self.progress.clear();
                }
            }
            Key::Up => self.select_by(-1),
            Key::Down => self.select_by(1),
            Key::PageUp => self.select_by(-10),
            Key::PageDown => self.select_by(10),
            Key::Char(_) => {}
        }
        None
    }

    fn confirm(&mut self, request: Request) {
        if let Some(current) = self.operation {
            let name = current.name();
            return self.add_line(format!("one operation at a time: {name} is in progress"));
        }
        self.page = match self.page {
            Page::Help => Page::Table,
            other => other,
        };
        self.confirming = Some(request);
    }

    fn confirm_scale(&mut self, by: i16) {
        let to = self.workers().saturating_add_signed(by);
        if self.sample.is_none() || !(WORKERS.least..=WORKERS.most).contains(&to) {
            return self.add_line(format!("cannot run {to} workers: {WORKERS}"));
        }
        self.confirm(Request::Scale {
            workers: ScaleTo::Exactly(to),
            options: Options::default(),
        });
    }

    fn workers(&self) -> u16 {
        let slots = self.sample.as_ref().map_or(0, |it| it.status.slots.len());
        u16::try_from(slots).unwrap_or(u16::MAX)
    }

    /// Sets the first visible row of the table, from which scrolling continues.
    pub(super) fn scrolled_to(&mut self, first_row: Option<usize>) {
        self.first_row = first_row.unwrap_or(self.first_row);
    }

    /// Shows a page, or the table if that page is shown already.
    fn toggle(&mut self, page: Page) {
        self.page = if self.page == page { Page::Table } else { page };
    }

    /// Returns the slots in the chosen order.
    pub(super) fn sorted(&self) -> Vec<&SlotStatus> {
        let Some(sample) = &self.sample else {
            return Vec::new();
        };
        let mut slots: Vec<&SlotStatus> = sample.status.slots.iter().collect();
        let key = |slot: &SlotStatus| self.sort.key(slot, sample);
        slots.sort_by(|a, b| key(b).total_cmp(&key(a)));
        slots
    }

    /// Selects another row; in the view of one worker, shows the worker there.
    fn select_by(&mut self, rows: isize) {
        if let Page::Worker(shown) = self.page {
            let at = self.sorted().iter().position(|it| it.slot == shown);
            self.selected = at.unwrap_or(self.selected);
        }
        self.select(self.selected.saturating_add_signed(rows));
        if let Page::Worker(_) = self.page
            && let Some(slot) = self.sorted().get(self.selected)
        {
            self.page = Page::Worker(slot.slot);
        }
    }

    fn select(&mut self, row: usize) {
        self.selected = row.min(usize::from(self.workers()).saturating_sub(1));
    }

    fn add_line(&mut self, line: String) {
        if self.progress.len() == PROGRESS_LEN {
            self.progress.pop_front();
        }
        self.progress.push_back(line);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use uppercased_ctl::status::{Rate, Rates, SlotStatus, Status};

    pub(in super::super) fn sample(slots: u16, messages: f64) -> Sample {
        let rate = Rate {
            messages,
            busy: 0.5,
            ..Rate::default()
        };
        let mut status = Status {
            version: "0.1.0".to_owned(),
            pid: 4711,
            uptime_ms: 3 * 86_400_000,
            phase: "serving".to_owned(),
            addresses: vec!["0.0.0.0:9999".to_owned()],
            slots: (0..slots)
                .map(|slot| SlotStatus {
                    slot: SlotId(slot),
                    pid: Some(4712 + u32::from(slot)),
                    state: "serving".to_owned(),
                    queue: "served".to_owned(),
                    ..SlotStatus::default()
                })
                .collect(),
            ..Status::default()
        };
        status.sum_up();
        let rates = Rates {
            span_ms: 1000,
            totals: rate,
            slots: (0..slots).map(|slot| (SlotId(slot), rate)).collect(),
            cpu: BTreeMap::new(),
        };
        Sample {
            status,
            sockets: None,
            rates: Some(rates),
        }
    }

    fn model(slots: u16) -> Model {
        let mut model = Model::default();
        model.add_sample(sample(slots, 5.0), Tick::from_millis(1000));
        model
    }

    #[test]
    fn command_requires_confirmation() {
        let scale = |to| Request::Scale {
            workers: ScaleTo::Exactly(to),
            options: Options::default(),
        };
        for (key, request) in [
            ('r', Request::Reload(Options::default())),
            ('u', Request::Upgrade(Options::default())),
            ('+', scale(3)),
            ('-', scale(1)),
        ] {
            for no in [
                Key::Char('n'),
                Key::Enter,
                Key::Escape,
                Key::Char('r'),
                Key::Char('q'),
            ] {
                let mut model = model(2);
                assert_eq!(model.press(Key::Char(key)), None);
                assert!(model.question().unwrap().ends_with("? [y/N]"));
                assert_eq!(model.press(no), None);
                assert_eq!(model.question(), None);
            }
            let mut model = model(2);
            model.press(Key::Char(key));
            assert_eq!(model.press(Key::Char('y')), Some(Action::Ask(request)));
        }
    }

    #[test]
    fn one_operation_runs_and_result_awaits_dismissal() {
        let mut model = model(2);
        model.press(Key::Char('r'));
        model.press(Key::Char('y'));
        model.press(Key::Char('u'));
        assert_eq!(model.question(), None);
        assert!(
            model
                .progress
                .back()
                .unwrap()
                .contains("reload is in progress")
        );
        assert!(!model.handle_reply(Reply::Progress("slot 0".to_owned())));
        model.press(Key::Escape);
        assert_eq!(model.progress.back().unwrap(), "slot 0");
        assert!(model.handle_reply(Reply::Done(uppercased_ctl::control::Done::default())));
        assert!(
            model
                .progress
                .back()
                .unwrap()
                .starts_with("reloaded 0 workers in 0 ms")
        );
        model.press(Key::Escape);
        assert!(model.progress.is_empty());
        model.press(Key::Char('u'));
        assert!(model.question().is_some());
    }

    #[test]
    fn scaling_stays_within_bounds() {
        let mut model = model(1);
        model.press(Key::Char('-'));
        assert_eq!(model.question(), None);
        assert!(model.progress.back().unwrap().contains("0 workers"));
        for second in 0..1000 {
            model.handle_reply(Reply::Progress(second.to_string()));
        }
        assert_eq!(model.progress.len(), PROGRESS_LEN);
        // Only existing rows are selected.
        model.add_sample(sample(3, 0.0), Tick::ZERO);
        model.press(Key::PageDown);
        assert_eq!(model.selected, 2);
        model.add_sample(sample(1, 0.0), Tick::ZERO);
        assert_eq!(model.selected, 0);
    }

    #[test]
    fn rows_follow_chosen_order() {
        let mut one = sample(3, 5.0);
        let slots = &mut one.status.slots;
        for (slot, (open, crashes)) in slots.iter_mut().zip([(5, 0), (9, 1), (5, 2)]) {
            slot.traffic.open = open;
            slot.crashes = crashes;
        }
        let mut model = Model::default();
        model.add_sample(one, Tick::ZERO);
        let order = |model: &Model| {
            let slots = model.sorted().into_iter();
            slots.map(|it| it.slot.0).collect::<Vec<u16>>()
        };
        for _ in Sort::ALL {
            let expected = match model.sort {
                Sort::Open => [1, 0, 2],
                Sort::Crashes => [2, 1, 0],
                _ => [0, 1, 2],
            };
            assert_eq!(order(&model), expected, "{:?}", model.sort);
            model.press(Key::Char('s'));
        }
        assert_eq!(model.sort, Sort::Slot);
    }

    #[test]
    fn detail_follows_worker_not_row() {
        let mut model = model(3);
        model.press(Key::Down);
        model.press(Key::Enter);
        assert_eq!(model.page, Page::Worker(SlotId(1)));
        let mut busier = sample(3, 5.0);
        busier.status.slots[2].traffic.open = 7;
        model.add_sample(busier, Tick::ZERO);
        model.press(Key::Char('s'));
        assert_eq!(model.page, Page::Worker(SlotId(1)));
        // By open connections: 2, 0, 1.
        model.press(Key::Up);
        assert_eq!(model.page, Page::Worker(SlotId(0)));
        model.press(Key::Char('c'));
        assert_eq!(model.page, Page::Sources);
        model.press(Key::Escape);
        assert_eq!(model.page, Page::Table);
        model.press(Key::Down);
        model.press(Key::Enter);
        // The worker has left.
        model.add_sample(sample(1, 5.0), Tick::ZERO);
        assert_eq!(model.page, Page::Table);
    }

    #[test]
    fn stale_data_is_marked() {
        let mut model = model(1);
        assert_eq!(model.error(Tick::from_millis(9000)), None);
        model.set_error("no answer".to_owned());
        let error = model.error(Tick::from_millis(9000));
        assert_eq!(error, Some(("no answer", Some(8))));
        model.add_sample(sample(1, 0.0), Tick::from_millis(9000));
        assert_eq!(model.error(Tick::from_millis(9000)), None);
    }
}
