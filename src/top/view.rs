//! Draws `top`'s model at any terminal size.
//!
//! Invariants: no information depends on colour; if there is too little room, parts are omitted in
//! a fixed order (columns from the right of [`COLUMNS`], the chart, the notes), rows of the table
//! last. Pure: it must not access a terminal.

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};
use ratatui_core::text::{Line, Span};
use ratatui_core::widgets::Widget;
use ratatui_widgets::paragraph::Paragraph;
use ratatui_widgets::sparkline::Sparkline;

use super::model::{History, Model};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::status::{Rate, Sample, SlotStatus};
use uppercased_ctl::units::{age, busy, cut, per_second, percent, short};

/// Minimum screen rows for a chart of all workers, and the chart's height.
const CHART_FROM_ROWS: u16 = 22;
const CHART_ROWS: u16 = 3;
/// Maximum lines of an operation on the screen.
const PROGRESS_ROWS: usize = 4;
/// Minimum columns of a slot's history, including one as a gap after the table.
const HISTORY_COLUMNS_MIN: usize = 9;
/// Screen columns from which room for the history is reserved.
const HISTORY_FROM_COLUMNS: usize = 60;
/// Busy percentage above which a worker is marked.
const BUSY_SHARE: f64 = 0.9;

const HELP: [&str; 12] = [
    "r        reload the configuration, replace every worker",
    "u        upgrade to the binary on disk",
    "+ -      add or remove a worker",
    "         (each asks for confirmation; y confirms)",
    "p        pause or resume",
    "up down  scroll the table (also page up, page down)",
    "Esc      dismiss the result",
    "Ctrl-L   redraw",
    "q        quit; an operation in progress continues",
    "",
    "acc/s: connections accepted. msg/s: reads. busy: time not waiting.",
    "Bars: msg/s of the latest samples, all slots on one scale.",
];

/// How states are marked, in addition to words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    /// Whether colours may be used.
    pub(super) colour: bool,
}

impl Palette {
    const fn of(self, colour: Color, modifier: Modifier) -> Style {
        let style = Style::new().add_modifier(modifier);
        if self.colour { style.fg(colour) } else { style }
    }

    const fn bad(self) -> Style {
        self.of(Color::Red, Modifier::BOLD)
    }

    const fn notable(self) -> Style {
        self.of(Color::Yellow, Modifier::BOLD)
    }

    const fn bars(self) -> Style {
        self.of(Color::Cyan, Modifier::empty())
    }

    const fn strong() -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    const fn bar() -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}

/// Draws the whole screen; returns the index of the table's first visible row, if it is shown.
pub(super) fn draw(
    model: &Model,
    palette: Palette,
    now: Tick,
    area: Rect,
    buffer: &mut Buffer,
) -> Option<usize> {
    let mut screen = Screen {
        left: area,
        buffer,
        palette,
    };
    screen.footer(model);
    let Some(sample) = &model.sample else {
        let why = model.error(now).map_or("connecting …", |(why, _)| why);
        screen.line(why.to_owned(), Style::new());
        return None;
    };
    screen.head(sample, model, now);
    if model.help {
        for line in HELP {
            screen.line(line.to_owned(), Style::new());
        }
        return None;
    }
    if area.height >= CHART_FROM_ROWS {
        screen.chart(&model.totals);
    }
    Some(screen.table(sample, model))
}

/// The unused part of the screen, and the buffer to draw on.
struct Screen<'a> {
    left: Rect,
    buffer: &'a mut Buffer,
    palette: Palette,
}

impl Screen<'_> {
    /// Removes the upper `rows` from the unused part and returns them.
    fn take_top(&mut self, rows: u16) -> Rect {
        let rows = rows.min(self.left.height);
        let taken = Rect {
            height: rows,
            ..self.left
        };
        self.left.y += rows;
        self.left.height -= rows;
        taken
    }

    /// Removes the lower `rows` from the unused part and returns them.
    fn take_bottom(&mut self, rows: u16) -> Rect {
        let rows = rows.min(self.left.height);
        self.left.height -= rows;
        Rect {
            y: self.left.y + self.left.height,
            height: rows,
            ..self.left
        }
    }

    fn put(&mut self, area: Rect, line: Line<'_>) {
        Paragraph::new(line).render(area, self.buffer);
    }

    fn line(&mut self, text: String, style: Style) {
        let area = self.take_top(1);
        let text = cut(&text, usize::from(area.width));
        self.put(area, Line::styled(text, style));
    }

    /// Draws the keys, or a question, below the operation's output.
    fn footer(&mut self, model: &Model) {
        let area = self.take_bottom(1);
        let width = usize::from(area.width);
        let (text, style) = match model.question() {
            Some(question) => (question, self.palette.notable()),
            None => (keys(width).to_owned(), Style::new()),
        };
        let text = format!("{:<width$}", cut(&text, width));
        self.put(area, Line::styled(text, style.patch(Palette::bar())));

        let lines = &model.progress;
        let shown = lines.len().min(PROGRESS_ROWS);
        let mut area = self.take_bottom(u16::try_from(shown).unwrap_or(0));
        for text in lines.iter().skip(lines.len() - usize::from(area.height)) {
            let row = Rect { height: 1, ..area };
            self.put(row, Line::styled(cut(text, width), Palette::strong()));
            area.y += 1;
        }
    }

    fn head(&mut self, sample: &Sample, model: &Model, now: Tick) {
        let status = &sample.status;
        let paused = if model.paused { " [paused]" } else { "" };
        let title = format!(
            "uppercased {}, pid {}: {} for {}, release {}, crashes {}{paused}",
            status.version,
            status.pid,
            status.phase,
            age(status.uptime_ms),
            status.release,
            short(status.totals.crashes),
        );
        self.line(title, Palette::strong());
        if let Some((why, seconds)) = model.error(now) {
            let ago = seconds.map_or_else(String::new, |seconds| format!(" for {seconds}s"));
            let style = self.palette.bad();
            self.line(format!("no answer{ago}, retrying: {why}"), style);
        }
        if let Some(why) = sample.not_ready() {
            let style = self.palette.bad();
            self.line(why, style);
        }
        self.line(status.addresses.join(" "), Style::new());
        self.line(totals(sample), Style::new());
        if let Some(operation) = &status.operation {
            let style = self.palette.notable();
            self.line(operation.clone(), style);
        }
        for line in sample.context() {
            self.line(line, Style::new());
        }
    }

    /// Draws messages per second of all workers, the latest at the right.
    fn chart(&mut self, totals: &History) {
        let most = totals.iter().copied().fold(0.0, f64::max);
        let title = format!("messages/s, all workers (peak {})", per_second(most));
        self.line(title, Style::new());
        let area = self.take_top(CHART_ROWS);
        let older = totals.len().saturating_sub(usize::from(area.width));
        let data: Vec<u64> = totals.iter().skip(older).map(|rate| *rate as u64).collect();
        let bars = Sparkline::default().data(data).style(self.palette.bars());
        bars.render(area, self.buffer);
    }

    fn table(&mut self, sample: &Sample, model: &Model) -> usize {
        let columns = columns(usize::from(self.left.width));
        let heading: Vec<String> = columns.cells.iter().map(|it| it.heading()).collect();
        let mut heading = heading.join(" ");
        if columns.history > 0 {
            heading.push_str(" msg/s");
        }
        self.line(heading, Palette::strong());
        let slots = &sample.status.slots;
        let notes = sample.notes();
        let room = usize::from(self.left.height);
        // A table that fits is not scrolled; otherwise one row indicates that there are more.
        let rows = match room {
            _ if slots.len() <= room => slots.len(),
            0 | 1 => room,
            _ => room - 1,
        };
        let first = model.first_row.min(slots.len() - rows);
        let last = first + rows;
        let most = highest(model, sample);
        for slot in &slots[first..last] {
            self.row(slot, sample, model, &columns, most);
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
        for note in notes.iter().take(room) {
            let style = self.palette.notable();
            self.line(note.clone(), style);
        }
        first
    }

    fn row(
        &mut self,
        slot: &SlotStatus,
        sample: &Sample,
        model: &Model,
        columns: &Columns,
        most: f64,
    ) {
        let rates = sample.rates.as_ref();
        let rate = rates.and_then(|rates| rates.slots.get(&slot.slot));
        let mut spans = Vec::new();
        for cell in &columns.cells {
            let style = match cell.column {
                Column::State if slot.state != "serving" => self.palette.bad(),
                Column::Busy if rate.is_some_and(|rate| rate.busy >= BUSY_SHARE) => {
                    self.palette.notable()
                }
                _ => Style::new(),
            };
            spans.push(Span::styled(cell.text(slot, rate), style));
            spans.push(Span::raw(" "));
        }
        if columns.history > 0
            && let Some(history) = model.history(slot.slot)
        {
            let bars = bars(history, most, columns.history);
            spans.push(Span::styled(bars, self.palette.bars()));
        }
        let area = self.take_top(1);
        self.put(area, Line::from(spans));
    }
}

/// Returns the highest rate of a single slot in messages per second: the common scale of all bars.
fn highest(model: &Model, sample: &Sample) -> f64 {
    let histories = sample.status.slots.iter();
    let histories = histories.filter_map(|slot| model.history(slot.slot));
    histories.flatten().copied().fold(0.0, f64::max)
}

fn totals(sample: &Sample) -> String {
    let open = sample.open();
    let Some(rates) = &sample.rates else {
        return open;
    };
    let Rate {
        accepted,
        messages,
        received_bytes,
        sent_bytes,
        busy: used,
    } = rates.totals;
    format!(
        "{open}, {} acc/s, {} msg/s, {}, {}B/s in, {}B/s out",
        per_second(accepted),
        per_second(messages),
        busy(used, sample.status.slots.len()),
        per_second(received_bytes),
        per_second(sent_bytes),
    )
}

const fn keys(width: usize) -> &'static str {
    if width >= 70 {
        "q quit  r reload  u upgrade  + - scale  p pause  ? help"
    } else {
        "q quit r reload u + - p ? help"
    }
}

/// Returns one bar per column, scaled to `most`; a rate above zero is always visible.
fn bars(history: &History, most: f64, columns: usize) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let older = history.len().saturating_sub(columns);
    let step = |rate: &f64| match rate {
        rate if *rate <= 0.0 => ' ',
        rate => {
            let step = (rate / most * STEPS.len() as f64).ceil() as usize;
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
}

/// The columns in display order: heading, width, and order of removal.
const COLUMNS: [(Column, &str, usize, u8); 14] = [
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

    fn text(&self, slot: &SlotStatus, rate: Option<&Rate>) -> String {
        let traffic = &slot.traffic;
        let number = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |it| it.to_string());
        let of = |value: fn(&Rate) -> String| rate.map_or_else(|| "-".to_owned(), value);
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

#[cfg(test)]
mod tests;
