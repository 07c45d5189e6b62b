//! One worker in detail, with a chart of its messages.

use ratatui_core::style::Style;

use super::{Palette, Screen};
use crate::top::model::Model;
use uppercased_ctl::status::{Sample, SlotStatus};

impl Screen<'_> {
    pub(super) fn worker(&mut self, slot: &SlotStatus, sample: &Sample, model: &Model) {
        let mut lines = sample.worker(slot).into_iter();
        let style = Palette::strong().patch(self.palette.of_state(&slot.state));
        self.line(lines.next().unwrap_or_default(), style);
        for line in lines {
            self.line(line, Style::new());
        }
        let history = model.history(slot.slot).into_iter().flatten();
        let rates: Vec<u64> = history.map(|rate| *rate as u64).collect();
        let rows = self.left.height;
        let title = format!("messages/s of slot {}", slot.slot);
        self.chart((&title, " samples"), &rates, rows);
    }
}
