//! The terminal that `top` draws on: its modes, and how cells become bytes.
//!
//! Written here, not taken from a terminal library, because those read keys in a loop (and handle
//! signals) of their own, and what is needed of them is six escape sequences that every terminal of
//! today knows.
//!
//! Invariants: whoever has entered leaves, however the program ends, a panic included (a release
//! build does not unwind, so a hook does it); a frame is one write, so that none is seen half-drawn.

use std::fmt::Write as _;
use std::io;

use ratatui_core::backend::{Backend, ClearType, WindowSize};
use ratatui_core::buffer::Cell;
use ratatui_core::layout::{Position, Size};
use ratatui_core::style::{Color, Modifier};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::config::{TOP_COLUMNS_MAX, TOP_ROWS_MAX};
use uppercased_ctl::output;

/// The other screen, and no cursor on it.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// No colours, the cursor, the first screen.
const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";
/// What a terminal without a size has.
const SIZE: Size = Size {
    width: 80,
    height: 24,
};

/// Modes as they were, to be put back.
#[derive(Debug)]
pub(super) struct Modes {
    before: Termios,
}

impl Modes {
    /// Takes the terminal: the other screen, keys as they are pressed, no echo.
    ///
    /// # Errors
    /// Standard input or output is no terminal, or does not take it.
    pub(super) fn enter() -> io::Result<Self> {
        let modes = Self {
            before: tcgetattr(io::stdin())?,
        };
        let left = modes.before.clone();
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            leave(&left);
            earlier(panic);
        }));
        modes.enter_again()?;
        Ok(modes)
    }

    /// After [`Self::leave`], or when somebody else has changed the modes.
    pub(super) fn enter_again(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        write(ENTER)
    }

    /// Gives the terminal back as it was.
    pub(super) fn leave(&self) {
        leave(&self.before);
    }
}

impl Drop for Modes {
    fn drop(&mut self) {
        self.leave();
    }
}

fn leave(modes: &Termios) {
    // Whoever has closed the terminal needs nothing back.
    let _ = write(LEAVE);
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
}

fn write(text: &str) -> io::Result<()> {
    output::write(text.as_bytes())
}

/// Cells as the escape sequences of a terminal.
#[derive(Debug, Default)]
pub(super) struct Ansi {
    /// Of the frame that is being drawn.
    text: String,
    cursor: Position,
}

impl Ansi {
    fn go(&mut self, to: Position) {
        self.cursor = to;
        // Writing to a text cannot fail.
        let _ = write!(self.text, "\x1b[{};{}H", to.y + 1, to.x + 1);
    }

    fn style(&mut self, cell: &Cell) {
        self.text.push_str("\x1b[0");
        for (modifier, code) in [
            (Modifier::BOLD, ";1"),
            (Modifier::DIM, ";2"),
            (Modifier::REVERSED, ";7"),
        ] {
            if cell.modifier.contains(modifier) {
                self.text.push_str(code);
            }
        }
        self.text.push_str(match cell.fg {
            Color::Red => ";31",
            Color::Green => ";32",
            Color::Yellow => ";33",
            Color::Cyan => ";36",
            _ => "",
        });
        self.text.push('m');
    }
}

/// Returns the area that is drawn of a terminal with this size. Each cell of it is kept twice, and a
/// test harness may say that its terminal has 65535 columns.
fn drawn(columns: u16, rows: u16) -> Size {
    match (columns, rows) {
        (0, _) | (_, 0) => SIZE,
        (columns, rows) => Size {
            width: columns.min(TOP_COLUMNS_MAX),
            height: rows.min(TOP_ROWS_MAX),
        },
    }
}

impl Backend for Ansi {
    type Error = io::Error;

    fn draw<'a, I>(&mut self, content: I) -> io::Result<()>
    where
        I: Iterator<Item = (u16, u16, &'a Cell)>,
    {
        let mut next: Option<Position> = None;
        let mut last: Option<&Cell> = None;
        for (x, y, cell) in content {
            let here = Position { x, y };
            if next != Some(here) {
                self.go(here);
            }
            if last.is_none_or(|last| (last.fg, last.modifier) != (cell.fg, cell.modifier)) {
                self.style(cell);
            }
            self.text.push_str(cell.symbol());
            last = Some(cell);
            next = Some(Position { x: x + 1, y });
        }
        self.text.push_str("\x1b[0m");
        Ok(())
    }

    fn hide_cursor(&mut self) -> io::Result<()> {
        self.text.push_str("\x1b[?25l");
        Ok(())
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        self.text.push_str("\x1b[?25h");
        Ok(())
    }

    fn get_cursor_position(&mut self) -> io::Result<Position> {
        Ok(self.cursor)
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, position: P) -> io::Result<()> {
        self.go(position.into());
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.clear_region(ClearType::All)
    }

    fn clear_region(&mut self, what: ClearType) -> io::Result<()> {
        self.text.push_str(match what {
            ClearType::All => "\x1b[2J",
            ClearType::AfterCursor => "\x1b[J",
            ClearType::BeforeCursor => "\x1b[1J",
            ClearType::CurrentLine => "\x1b[2K",
            ClearType::UntilNewLine => "\x1b[K",
        });
        Ok(())
    }

    fn size(&self) -> io::Result<Size> {
        let size = tcgetwinsize(output::stdout())?;
        Ok(drawn(size.ws_col, size.ws_row))
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        Ok(WindowSize {
            columns_rows: self.size()?,
            pixels: Size::default(),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        let text = std::mem::take(&mut self.text);
        write(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_area_is_bounded() {
        for (columns, rows, width, height) in [
            (80, 24, 80, 24),
            (0, 50, SIZE.width, SIZE.height),
            (1, 1, 1, 1),
            (u16::MAX, 1, TOP_COLUMNS_MAX, 1),
            (3000, u16::MAX, TOP_COLUMNS_MAX, TOP_ROWS_MAX),
        ] {
            assert_eq!(drawn(columns, rows), Size { width, height });
        }
    }

    #[test]
    fn adjacent_cells_share_move_and_style() {
        let cell = |symbol: &'static str, fg: Color| {
            let mut cell = Cell::new(symbol);
            cell.fg = fg;
            cell
        };
        let (a, b) = (cell("a", Color::Reset), cell("b", Color::Reset));
        let mut c = cell("▁", Color::Red);
        c.modifier = Modifier::BOLD | Modifier::REVERSED;
        let mut ansi = Ansi::default();
        let cells = [(2, 0, &a), (3, 0, &b), (5, 1, &c)];
        ansi.draw(cells.into_iter()).unwrap();
        assert_eq!(
            ansi.text,
            "\x1b[1;3H\x1b[0mab\x1b[2;6H\x1b[0;1;7;31m▁\x1b[0m"
        );
    }
}
