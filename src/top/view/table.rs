//! The table of the workers: columns that fit, rows in the chosen order, a history for each.
//!
//! Invariant: the selected row is always visible.

use ratatui_core::style::{Modifier, Style};
use ratatui_core::text::{Line, Span};

use super::{Palette, Screen};
use crate::top::model::Model;
use uppercased_ctl::status::{ProcessStatus, Rate, Sample, SlotStatus};
use uppercased_ctl::units::{age, cut, per_second, percent, short};

/// Minimum columns of a slot's history, including one as a gap after the table.
const HISTORY_COLUMNS_MIN: usize = 9;
/// Screen columns from which room for the history is reserved.
const HISTORY_FROM_COLUMNS: usize = 60;
/// Busy percentage above which a worker is marked.
const BUSY_SHARE: f64 = 0.9;
/// Marks the selected row.
const SELECTED: &str = ">";

impl Screen<'_> {
    /// Draws the table and, if there is room, the notes. Returns the index of the first visible row.
    pub(super) fn table(&mut self, sample: &Sample, model: &Model) -> usize {
        let columns = columns(usize::from(self.left.width));
        let heading: Vec<String> = columns.cells.iter().map(|it| it.heading()).collect();
        let mut heading = heading.join(" ");
        if columns.history > 0 {
            heading.push_str(" msg/s");
        }
        self.line(heading, Palette::strong());
        let slots = model.sorted();
        let room = usize::from(self.left.height);
        // A table that fits is not scrolled; otherwise one row indicates that there are more.
        let rows = match room {
            _ if slots.len() <= room => slots.len(),
            0 | 1 => room,
            _ => room - 1,
        };
        // The selected row stays in view.
        let least = (model.selected + 1).saturating_sub(rows);
        let first = model.first_row.min(slots.len() - rows);
        let first = first.clamp(least, model.selected.max(least));
        let last = first + rows;
        let most = highest(sample);
        for (index, slot) in slots.iter().enumerate().take(last).skip(first) {
            let is_selected = index == model.selected;
            self.row(slot, sample, &columns, (most, is_selected));
        }
        if rows < slots.len() {
            let bad = slots.iter().filter(|slot| slot.state != "serving").count();
            let from = first + 1;
            let all = slots.len();
            let text = format!("rows {from} to {last} of {all}, {bad} not serving; up, down");
            self.line(text, Palette::strong());
            return first;
        }
        let room = usize::from(self.left.height);
        for note in sample.notes().iter().take(room) {
            let style = self.palette.notable();
            self.line(note.clone(), style);
        }
        first
    }

    fn row(
        &mut self,
        slot: &SlotStatus,
        sample: &Sample,
        columns: &Columns,
        (most, is_selected): (u32, bool),
    ) {
        let rates = sample.rates.as_ref();
        let rate = rates.and_then(|rates| rates.slots.get(&slot.slot));
        let process = slot.pid.and_then(|pid| sample.status.process(pid));
        let mut spans = Vec::new();
        for cell in &columns.cells {
            let style = match cell.column {
                Column::Slot if is_selected => Palette::strong(),
                Column::State => self.palette.of_state(&slot.state),
                Column::Busy if rate.is_some_and(|rate| rate.busy >= BUSY_SHARE) => {
                    self.palette.notable()
                }
                _ => Style::new(),
            };
            let mut text = cell.text(slot, rate, process, sample);
            if is_selected && cell.column == Column::Slot && text.starts_with(' ') {
                text.replace_range(..1, SELECTED);
            }
            spans.push(Span::styled(text, style));
            spans.push(Span::raw(" "));
        }
        if columns.history > 0 {
            let bars = bars(&slot.history, most, columns.history);
            spans.push(Span::styled(bars, self.palette.bars()));
        }
        let area = self.take_top(1);
        self.put(area, Line::from(spans));
        if is_selected {
            let style = Style::new().add_modifier(Modifier::BOLD);
            self.buffer.set_style(area, style);
        }
    }
}

/// Returns the highest rate of a single slot in messages per second: the common scale of all bars.
fn highest(sample: &Sample) -> u32 {
    let rates = sample.status.slots.iter().flat_map(|slot| &slot.history);
    rates.copied().max().unwrap_or(0)
}

/// Returns one bar per column, scaled to `most`; a rate above zero is always visible.
fn bars(history: &[u32], most: u32, columns: usize) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let older = history.len().saturating_sub(columns);
    let step = |rate: &u32| match rate {
        0 => ' ',
        rate => {
            let step = u64::from(*rate) * STEPS.len() as u64;
            let step = step.div_ceil(most.into()) as usize;
            STEPS[step.clamp(1, STEPS.len()) - 1]
        }
    };
    history.iter().skip(older).map(step).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Slot,
    Pid,
    Keeper,
    Generation,
    State,
    Age,
    Open,
    Queue,
    Accepted,
    Messages,
    BytesIn,
    BytesOut,
    Busy,
    Crashes,
    Memory,
    Cpu,
    Descriptors,
    Restarts,
}

/// The columns in display order: heading, width, and order of removal.
const COLUMNS: [(Column, &str, usize, u8); 18] = [
    (Column::Slot, "slot", 4, 0),
    (Column::Pid, "pid", 7, 5),
    (Column::Keeper, "keeper", 7, 13),
    (Column::Generation, "gen", 5, 9),
    (Column::State, "state", 12, 1),
    (Column::Age, "age", 5, 11),
    (Column::Open, "open", 5, 2),
    (Column::Queue, "queue", 5, 6),
    (Column::Accepted, "acc/s", 5, 7),
    (Column::Messages, "msg/s", 5, 3),
    (Column::BytesIn, "in/s", 5, 8),
    (Column::BytesOut, "out/s", 5, 12),
    (Column::Busy, "busy", 4, 4),
    (Column::Crashes, "crash", 5, 10),
    (Column::Memory, "mem", 5, 14),
    (Column::Cpu, "cpu", 4, 15),
    (Column::Descriptors, "fds", 5, 16),
    (Column::Restarts, "start", 5, 17),
];

/// A column that fits.
struct Cell {
    column: Column,
    heading: &'static str,
    width: usize,
}

/// All columns that fit, and the width left for the history.
struct Columns {
    cells: Vec<Cell>,
    history: usize,
}

fn columns(width: usize) -> Columns {
    let reserve = if width >= HISTORY_FROM_COLUMNS {
        HISTORY_COLUMNS_MIN
    } else {
        0
    };
    let mut by_need: Vec<usize> = (0..COLUMNS.len()).collect();
    by_need.sort_by_key(|at| COLUMNS[*at].3);
    let mut taken = 0;
    let mut kept = Vec::new();
    for at in by_need {
        // One more as a gap after the previous column.
        let needed = COLUMNS[at].2 + usize::from(taken > 0);
        if taken + needed + reserve <= width {
            taken += needed;
            kept.push(at);
        }
    }
    kept.sort_unstable();
    let cells = kept.into_iter().map(|at| {
        let (column, heading, width, _) = COLUMNS[at];
        Cell {
            column,
            heading,
            width,
        }
    });
    let left = width.saturating_sub(taken + 1);
    Columns {
        cells: cells.collect(),
        history: if left + 1 < HISTORY_COLUMNS_MIN {
            0
        } else {
            left
        },
    }
}

impl Cell {
    fn heading(&self) -> String {
        self.aligned(self.heading)
    }

    fn text(
        &self,
        slot: &SlotStatus,
        rate: Option<&Rate>,
        process: Option<&ProcessStatus>,
        sample: &Sample,
    ) -> String {
        let traffic = &slot.traffic;
        let number = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |it| it.to_string());
        let of = |value: fn(&Rate) -> String| rate.map_or_else(|| "-".to_owned(), value);
        let usage = process.map(|process| sample.usage(process));
        let used = |at: usize| {
            usage
                .clone()
                .map_or_else(|| "-".to_owned(), |all| all[at].clone())
        };
        let text = match self.column {
            Column::Slot => slot.slot.to_string(),
            Column::Pid => number(slot.pid),
            Column::Keeper => number(slot.keeper_pid),
            Column::Generation => short(slot.generation.0.into()),
            Column::State => slot.state.clone(),
            Column::Age => age(slot.age_ms),
            Column::Open => short(traffic.open),
            Column::Queue => short(slot.waiting()),
            Column::Accepted => of(|rate| per_second(rate.accepted)),
            Column::Messages => of(|rate| per_second(rate.messages)),
            Column::BytesIn => of(|rate| per_second(rate.received_bytes)),
            Column::BytesOut => of(|rate| per_second(rate.sent_bytes)),
            Column::Busy => of(|rate| percent(rate.busy)),
            Column::Crashes => short(slot.crashes),
            Column::Memory => used(0),
            Column::Cpu => used(1),
            Column::Descriptors => used(2),
            Column::Restarts => short(slot.worker_restarts_10m.into()),
        };
        self.aligned(&text)
    }

    fn aligned(&self, text: &str) -> String {
        let width = self.width;
        let text = cut(text, width);
        match self.column {
            Column::State => format!("{text:<width$}"),
            _ => format!("{text:>width$}"),
        }
    }
}
