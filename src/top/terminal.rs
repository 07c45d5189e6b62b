//! The terminal that `top` draws on: its modes, and the encoding of cells as bytes.
//!
//! It uses no terminal library, because those read keys in their own loop and handle signals, and
//! only six escape sequences are needed, which every current terminal supports.
//!
//! Invariants: the terminal is restored however the program ends, including a panic (a release
//! build does not unwind, so a hook does it); a frame is one write, so it is never shown
//! half-drawn.

use std::fmt::Write as _;
use std::io;

use ratatui_core::backend::{Backend, ClearType, WindowSize};
use ratatui_core::buffer::Cell;
use ratatui_core::layout::{Position, Size};
use ratatui_core::style::{Color, Modifier};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::config::{TOP_COLUMNS_MAX, TOP_ROWS_MAX};
use uppercased_ctl::output;

/// Switches to the alternate screen and hides the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// Resets colours, shows the cursor, switches to the main screen.
const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";
/// The size assumed if the terminal does not report one.
const SIZE: Size = Size {
    width: 80,
    height: 24,
};

/// The saved modes, restored at the end.
#[derive(Debug)]
pub(super) struct Modes {
    before: Termios,
}

impl Modes {
    /// Enters the alternate screen and raw mode without echo.
    ///
    /// # Errors
    /// Standard input or output is not a terminal, or refuses the modes.
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

    /// Enters again after [`Self::leave`], or after another process has changed the modes.
    pub(super) fn enter_again(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        write(ENTER)
    }

    /// Restores the terminal.
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
    // If the terminal is closed there is nothing to restore.
    let _ = write(LEAVE);
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
}

fn write(text: &str) -> io::Result<()> {
    output::write(text.as_bytes())
}

/// Encodes cells as escape sequences.
#[derive(Debug, Default)]
pub(super) struct Ansi {
    /// The buffer of the current frame.
    text: String,
    cursor: Position,
}

impl Ansi {
    fn go(&mut self, to: Position) {
        self.cursor = to;
        // Writing to a string cannot fail.
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

/// Returns the area to draw on for a terminal of this size: each cell is stored twice, and a test
/// harness may report 65535 columns.
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
