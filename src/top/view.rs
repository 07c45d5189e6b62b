//! Draws `top`'s model at any terminal size.
//!
//! Invariants: no information depends on colour; if there is too little room, parts are omitted in
//! a fixed order (columns of the table by their need, the chart, the notes), rows of the table last.
//! The chart takes what is left. Pure: it must not access a terminal.

mod sources;
mod table;
mod worker;

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};
use ratatui_core::text::Line;
use ratatui_core::widgets::Widget;
use ratatui_widgets::paragraph::Paragraph;
use ratatui_widgets::sparkline::Sparkline;

use super::model::{Model, Page, Sort};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::status::{Rate, Sample};
use uppercased_ctl::units::{age, busy, cut, per_second, short};

/// Minimum screen rows for a chart of all workers.
const CHART_FROM_ROWS: u16 = 22;
/// Minimum rows of a chart: a title, three rows of bars, an axis.
const CHART_ROWS_MIN: u16 = 5;
/// Columns of a chart's values, with a gap.
const AXIS_COLUMNS: u16 = 6;
/// Rows of bars from which the middle of the axis has a value.
const AXIS_MIDDLE_FROM_ROWS: u16 = 5;
/// Maximum lines of an operation on the screen: of one begun here, and of another.
const PROGRESS_ROWS: usize = 4;
const STEPS_ROWS: usize = 3;

const HELP: [&str; 15] = [
    "r        reload the configuration, replace every worker",
    "u        upgrade to the binary on disk",
    "+ -      add or remove a worker",
    "         (each asks for confirmation; y confirms)",
    "p        pause or resume",
    "up down  select a worker (also page up, page down)",
    "Enter    show the selected worker in detail",
    "s        sort by slot, open, queue, msg/s, busy, mem or crash",
    "c        show the addresses with the most connections",
    "Esc      go back; dismiss the result",
    "Ctrl-L   redraw",
    "q        quit; an operation in progress continues",
    "",
    "acc/s: connections accepted. msg/s: reads. busy: time not waiting.",
    "Bars: msg/s of the latest seconds, all slots on one scale.",
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

    const fn good(self) -> Style {
        self.of(Color::Green, Modifier::empty())
    }

    /// Returns the style of a worker's state, which is always written in words as well.
    fn of_state(self, state: &str) -> Style {
        match state {
            "serving" => self.good(),
            "starting" | "standing by" | "handing over" | "leaving" | "stopping" => self.notable(),
            _ => self.bad(),
        }
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
    match model.page {
        Page::Help => {
            for line in HELP {
                screen.line(line.to_owned(), Style::new());
            }
        }
        Page::Sources => screen.sources(sample),
        Page::Worker(shown) => {
            let slot = sample.status.slots.iter().find(|it| it.slot == shown);
            if let Some(slot) = slot {
                screen.worker(slot, sample);
            }
        }
        Page::Table => {
            if area.height >= CHART_FROM_ROWS {
                let table = 1 + sample.status.slots.len() + sample.notes().len();
                let table = u16::try_from(table).unwrap_or(u16::MAX);
                let rows = screen.left.height.saturating_sub(table);
                let title = "messages/s of all workers";
                let history = &sample.status.history;
                screen.chart(title, history, rows.max(CHART_ROWS_MIN));
            }
            return Some(screen.table(sample, model));
        }
    }
    None
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
        let sorted = match (model.page, model.sort) {
            (Page::Table, Sort::Slot) | (Page::Help | Page::Sources | Page::Worker(_), _) => {
                String::new()
            }
            (Page::Table, sort) => format!(" [by {}]", sort.name()),
        };
        let title = format!(
            "uppercased {}, pid {}: {} for {}, release {}, crashes {}{sorted}{paused}",
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
            // The steps of an operation that was begun here are shown above the keys.
            let steps = status.operation_steps.iter().rev().take(STEPS_ROWS);
            let steps: Vec<&String> = steps.filter(|_| model.progress.is_empty()).collect();
            for step in steps.into_iter().rev() {
                self.line(format!("  {step}"), Style::new());
            }
        }
        for line in sample.context() {
            self.line(line, Style::new());
        }
    }

    /// Draws rates with their axes in `rows` rows, one second per column and the latest at the right;
    /// nothing if there is too little room.
    fn chart(&mut self, title: &str, rates: &[u32], rows: u16) {
        if rows < CHART_ROWS_MIN || self.left.height < rows || self.left.width <= AXIS_COLUMNS {
            return;
        }
        let columns = self.left.width - AXIS_COLUMNS;
        let older = rates.len().saturating_sub(usize::from(columns));
        let shown = &rates[older..];
        let most = shown.iter().copied().max().map_or(0, u64::from);
        let style = Style::new();
        self.line(format!("{title} (peak {})", short(most)), style);
        let area = self.take_top(rows - 2);
        let value = |row: u16, text: String, screen: &mut Self| {
            let area = Rect {
                y: area.y + row,
                height: 1,
                ..area
            };
            screen.put(area, Line::styled(format!("{text:>5}"), style));
        };
        value(0, short(most), self);
        if area.height >= AXIS_MIDDLE_FROM_ROWS {
            value(area.height / 2, short(most / 2), self);
        }
        value(area.height - 1, "0".to_owned(), self);
        // Its bars begin at the left: the area has their number of columns.
        let width = u16::try_from(shown.len()).unwrap_or(columns);
        let bars = Rect {
            x: area.x + AXIS_COLUMNS + (columns - width),
            width,
            ..area
        };
        Sparkline::default()
            .data(shown.iter().map(|rate| u64::from(*rate)))
            .max(most)
            .style(self.palette.bars())
            .render(bars, self.buffer);
        let begin = format!("-{columns}s");
        let gap = usize::from(self.left.width) - usize::from(AXIS_COLUMNS);
        self.line(
            format!(
                "{:6}{begin}{:>2$}",
                "",
                "now",
                gap.saturating_sub(begin.len())
            ),
            style,
        );
    }
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
    if width >= 80 {
        "q quit  r reload  u upgrade  + - scale  Enter detail  s sort  c clients  ? help"
    } else {
        "q quit r u + - Enter s c p ? help"
    }
}

#[cfg(test)]
mod tests;
