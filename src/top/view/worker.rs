//! One worker in detail, with a chart of its messages.

use ratatui_core::style::Style;

use super::{Palette, Screen};
use uppercased_ctl::status::{Sample, SlotStatus};

impl Screen<'_> {
    pub(super) fn worker(&mut self, slot: &SlotStatus, sample: &Sample) {
        let mut lines = sample.worker(slot).into_iter();
        let style = Palette::strong().patch(self.palette.of_state(&slot.state));
        self.line(lines.next().unwrap_or_default(), style);
        for line in lines {
            self.line(line, Style::new());
        }
        let rows = self.left.height;
        let title = format!("messages/s of slot {}", slot.slot);
        self.chart(&title, &slot.history, rows);
    }
}
