//! The addresses with the most connections.

use ratatui_core::style::Style;

use super::{Palette, Screen};
use uppercased_ctl::status::{ESTABLISHED, Sample};
use uppercased_ctl::units::{cut, percent, short};

/// Columns of the longest IPv6 address.
const ADDRESS_COLUMNS: usize = 39;
/// Columns of the numbers beside it, with their gaps.
const NUMBER_COLUMNS: usize = 5 + 5 + 7 + 8;
const ADDRESS_COLUMNS_MIN: usize = 15;

impl Screen<'_> {
    /// Draws the sources, the busiest first, as many as there is room for.
    pub(super) fn sources(&mut self, sample: &Sample) {
        let Some(sockets) = &sample.sockets else {
            return self.line(
                "the sockets have not been read yet".to_owned(),
                Style::new(),
            );
        };
        if sockets.unknown.is_some() {
            return;
        }
        let width = usize::from(self.left.width).saturating_sub(NUMBER_COLUMNS);
        let width = width.clamp(ADDRESS_COLUMNS_MIN, ADDRESS_COLUMNS);
        let heading = format!(
            "{:<width$} {:>4} {:>4} {:>6} {:>7}",
            "source", "open", "", "unread", "unacked"
        );
        self.line(heading, Palette::strong());
        let all = sockets.states.get(ESTABLISHED).copied().unwrap_or(0).max(1);
        let room = usize::from(self.left.height);
        let listed = sockets.sources.len();
        let omitted = sockets.sources_omitted;
        // One line counts the rest.
        let shown = if listed <= room && omitted == 0 {
            listed
        } else {
            listed.min(room.saturating_sub(1))
        };
        for source in &sockets.sources[..shown] {
            let share = percent(source.connections as f64 / all as f64);
            self.line(
                format!(
                    "{:<width$} {:>4} {share:>4} {:>6} {:>7}",
                    cut(&source.address, width),
                    short(source.connections),
                    short(source.recv_queue),
                    short(source.send_queue),
                ),
                Style::new(),
            );
        }
        let hidden = omitted.saturating_add((listed - shown) as u64);
        if hidden > 0 {
            let text = format!("… {} more sources", short(hidden));
            self.line(text, Palette::strong());
        }
    }
}
