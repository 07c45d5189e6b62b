//! Formats one event as one line of text, for people or for machines. Pure.
//!
//! Invariants: a rendered line ends in its only newline, contains no control character except its
//! level's colour, and has at most [`LOG_LINE_MAX_BYTES`] bytes; JSON stays valid whatever is
//! omitted. Must not: write, or read the clock.

use std::error;
use std::fmt::{self, Write as _};
use std::time::SystemTime;

use tracing::Level;
use tracing::field::{Field, Visit};

use super::events::{self, Declared};

use uppercased_ctl::escape::{as_characters, escape, push_visible};

/// Maximum length of a line in bytes, including its newline. This is `PIPE_BUF`: a write of up to
/// that many bytes into a pipe is atomic, so lines of several processes never mix.
pub const LOG_LINE_MAX_BYTES: usize = 4096;

/// Maximum bytes of a message in a line.
const BYTES_SHOWN_MAX: usize = 128;

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Time, level, message, then `key=value`.
    Human {
        /// Whether the level is coloured.
        colour: bool,
    },
    /// A JSON object.
    Json,
    /// A JSON object in the layout of OpenTelemetry's log records.
    OpenTelemetry,
}

/// A field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    /// A number or a boolean: written unquoted in both styles.
    Plain(String),
    /// Any other value, with the number of bytes cut off its end.
    Text(String, usize),
    /// Bytes received from or sent to a peer, cut in the same way.
    Bytes(Vec<u8>, usize),
}

/// The fields of an event or a span, in order, including the event's message.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// Returns the fields of the line that reports the number of lost lines.
    pub(super) fn of_loss(lost: u64) -> Self {
        let Declared { key, message, .. } = events::log_lines_lost;
        Self(vec![
            ("message", Value::Text(message.to_owned(), 0)),
            ("event", Value::Text(key.to_owned(), 0)),
            ("lines", Value::Plain(lost.to_string())),
        ])
    }

    /// Adds each field of `others` whose name is not present yet.
    pub(super) fn add_missing(&mut self, others: &Self) {
        for (name, value) in &others.0 {
            if !self.0.iter().any(|(known, _)| known == name) {
                self.0.push((name, value.clone()));
            }
        }
    }

    fn set(&mut self, field: &Field, value: Value) {
        match self.0.iter_mut().find(|(name, _)| *name == field.name()) {
            Some((_, known)) => *known = value,
            None => self.0.push((field.name(), value)),
        }
    }

    fn set_text(&mut self, field: &Field, text: fmt::Arguments<'_>) {
        let mut bounded = Bounded::default();
        // `Bounded` never fails. If a value's own formatting fails, its output so far is kept.
        let _ = bounded.write_fmt(text);
        self.set(field, Value::Text(bounded.text, bounded.cut));
    }

    fn message(&self) -> Option<&Value> {
        self.0
            .iter()
            .find(|(name, _)| *name == MESSAGE)
            .map(|(_, value)| value)
    }

    fn others(&self) -> impl Iterator<Item = &(&'static str, Value)> {
        self.0.iter().filter(|(name, _)| *name != MESSAGE)
    }
}

/// `tracing`'s name for the text of an event.
const MESSAGE: &str = "message";

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set_text(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set_text(field, format_args!("{value}"));
    }

    fn record_bytes(&mut self, field: &Field, value: &[u8]) {
        let (shown, cut) = value.split_at(value.len().min(BYTES_SHOWN_MAX));
        self.set(field, Value::Bytes(shown.to_vec(), cut.len()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn error::Error + 'static)) {
        self.set_text(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Value::Plain(value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Value::Plain(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Value::Plain(value.to_string()));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.set(field, Value::Plain(value.to_string()));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.set(field, Value::Plain(value.to_string()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no NaN and no infinity.
        let text = value.to_string();
        let value = if value.is_finite() {
            Value::Plain(text)
        } else {
            Value::Text(text, 0)
        };
        self.set(field, value);
    }
}

/// Keeps the beginning of its input and counts the rest, so that a huge value needs no more memory
/// than a line.
#[derive(Default)]
struct Bounded {
    text: String,
    cut: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = if self.cut == 0 {
            LOG_LINE_MAX_BYTES - self.text.len()
        } else {
            0
        };
        let end = boundary(text, room);
        self.text.push_str(&text[..end]);
        self.cut += text.len() - end;
        Ok(())
    }
}

/// The event to render.
pub(super) struct Line<'a> {
    pub(super) at: SystemTime,
    pub(super) level: Level,
    pub(super) target: &'a str,
    pub(super) fields: &'a Fields,
    /// Whether the journal reads the line: then it begins with its priority, as in sd-daemon(3).
    pub(super) is_for_journal: bool,
}

impl Line<'_> {
    /// Returns the line, including its newline.
    pub(super) fn render(&self, style: Style) -> String {
        match style {
            Style::Human { colour } => self.human(colour),
            Style::Json => self.json(),
            Style::OpenTelemetry => self.open_telemetry(),
        }
    }

    const fn priority(&self) -> &'static str {
        match self.level {
            _ if !self.is_for_journal => "",
            Level::ERROR => "<3>",
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            Level::DEBUG | Level::TRACE => "<7>",
        }
    }

    fn human(&self, colour: bool) -> String {
        let (on, off) = match self.level {
            _ if !colour => ("", ""),
            Level::ERROR => ("\x1b[31m", "\x1b[0m"),
            Level::WARN => ("\x1b[33m", "\x1b[0m"),
            Level::INFO => ("\x1b[32m", "\x1b[0m"),
            _ => ("\x1b[2m", "\x1b[0m"),
        };
        let time = humantime::format_rfc3339_millis(self.at);
        let mut line = format!("{}{time} {on}{}{off}", self.priority(), self.level);
        if let Some(Value::Plain(text) | Value::Text(text, _)) = self.fields.message() {
            line.push(' ');
            push_visible(&mut line, text);
        }
        for (name, value) in self.fields.others() {
            let _ = write!(line, " {name}=");
            match value {
                Value::Plain(text) => line.push_str(text),
                Value::Text(text, _) if reads_as_one_word(text) => line.push_str(text),
                Value::Text(text, _) => push_quoted(&mut line, text),
                Value::Bytes(bytes, cut) => {
                    let _ = write!(line, "\"{}", escape(bytes));
                    if *cut > 0 {
                        push_cut_mark(&mut line, *cut);
                    }
                    line.push('"');
                }
            }
        }
        // Cut values lie beyond the end of a full line, so one mark covers them all.
        let unseen: usize = self.fields.0.iter().map(|(_, value)| value.cut()).sum();
        if line.len() + unseen >= LOG_LINE_MAX_BYTES {
            let end = boundary(&line, LOG_LINE_MAX_BYTES - CUT_MARK_MAX - 1);
            let cut = line.len() - end + unseen;
            line.truncate(end);
            push_cut_mark(&mut line, cut);
        }
        line.push('\n');
        line
    }

    /// Omits fields that do not fit, and adds `"truncated":true`.
    fn json(&self) -> String {
        let time = humantime::format_rfc3339_millis(self.at);
        let (priority, level) = (self.priority(), self.level);
        let mut line = format!("{priority}{{\"timestamp\":\"{time}\",\"level\":\"{level}\"");
        let mut whole = push_member(&mut line, "target", &Value::text(self.target));
        if let Some(message) = self.fields.message() {
            whole &= push_member(&mut line, MESSAGE, message);
        }
        for (name, value) in self.fields.others() {
            if !RESERVED.contains(name) {
                whole &= push_member(&mut line, name, value);
            }
        }
        line.push_str(if whole { "}\n" } else { TRUNCATED_END });
        line
    }

    /// Truncates like [`Self::json`].
    fn open_telemetry(&self) -> String {
        let time = humantime::format_rfc3339_millis(self.at);
        let (priority, level) = (self.priority(), self.level);
        let severity = match level {
            Level::ERROR => 17,
            Level::WARN => 13,
            Level::INFO => 9,
            Level::DEBUG => 5,
            Level::TRACE => 1,
        };
        let mut line = format!(
            "{priority}{{\"timestamp\":\"{time}\",\"severity_text\":\"{level}\",\
             \"severity_number\":{severity},\"instrumentation_scope\":{{\"name\":\"{}\"}}",
            self.target
        );
        let mut whole = true;
        if let Some(message) = self.fields.message() {
            whole &= push_member(&mut line, "body", message);
        }
        let is_key = |(name, _): &&(&str, Value)| *name == EVENT;
        if let Some((_, key)) = self.fields.others().find(is_key) {
            whole &= push_member(&mut line, "event_name", key);
        }
        line.push_str(ATTRIBUTES_BEGIN);
        let begin = line.len();
        for (name, value) in self.fields.others() {
            if ![EVENT, TRUNCATED].contains(name) {
                whole &= push_member(&mut line, name, value);
            }
        }
        line.push_str(if whole {
            "}}\n"
        } else {
            TRUNCATED_ATTRIBUTES_END
        });
        // Each member brings a comma.
        if line[begin..].starts_with(',') {
            line.remove(begin);
        }
        line
    }
}

impl Value {
    fn text(text: &str) -> Self {
        Self::Text(text.to_owned(), 0)
    }

    fn cut(&self) -> usize {
        match self {
            Self::Text(_, cut) => *cut,
            // Bytes are marked differently.
            Self::Plain(_) | Self::Bytes(..) => 0,
        }
    }
}

/// Members of every object; a field of the same name would be ambiguous.
const RESERVED: [&str; 4] = ["timestamp", "level", "target", TRUNCATED];

/// The field with an event's stable name.
const EVENT: &str = "event";

/// The member of an object with omitted fields.
const TRUNCATED: &str = "truncated";

/// The ends of objects with omitted fields.
const TRUNCATED_END: &str = ",\"truncated\":true}\n";
const TRUNCATED_ATTRIBUTES_END: &str = ",\"truncated\":true}}\n";

/// The beginning of an object's inner one.
const ATTRIBUTES_BEGIN: &str = ",\"attributes\":{";

/// Room for what follows the members of an object.
const END_MAX: usize = ATTRIBUTES_BEGIN.len() + TRUNCATED_ATTRIBUTES_END.len();

/// The longest `…(+N bytes)`: the ellipsis is three bytes, N at most twenty digits.
const CUT_MARK_MAX: usize = 3 + 2 + 20 + 7;

fn push_cut_mark(line: &mut String, cut: usize) {
    let _ = write!(line, "…(+{cut} bytes)");
}

/// Adds `,"name":value` as far as there is room; returns whether it is complete.
fn push_member(line: &mut String, name: &str, value: &Value) -> bool {
    let room = LOG_LINE_MAX_BYTES - END_MAX;
    let before = line.len();
    line.push_str(",\"");
    push_json_escaped(line, name, usize::MAX);
    line.push_str("\":");
    let fits = match value {
        Value::Plain(text) => {
            line.push_str(text);
            true
        }
        Value::Bytes(bytes, cut) => {
            let text = Value::Text(as_characters(bytes), *cut);
            line.truncate(before);
            return push_member(line, name, &text);
        }
        Value::Text(text, cut) => {
            line.push('"');
            let taken = push_json_escaped(line, text, room.saturating_sub(CUT_MARK_MAX + 1));
            let cut = text.len() - taken + cut;
            if cut > 0 {
                push_cut_mark(line, cut);
            }
            line.push('"');
            cut == 0
        }
    };
    if line.len() > room {
        line.truncate(before);
        return false;
    }
    fits
}

/// Adds `text`, escaped for a JSON string, while the line stays within `room` bytes; returns the
/// number of bytes of `text` added.
fn push_json_escaped(line: &mut String, text: &str, room: usize) -> usize {
    for (at, letter) in text.char_indices() {
        let before = line.len();
        match letter {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            _ if letter.is_control() => {
                let _ = write!(line, "\\u{:04x}", u32::from(letter));
            }
            _ => line.push(letter),
        }
        if line.len() > room {
            line.truncate(before);
            return at;
        }
    }
    text.len()
}

/// Returns the largest index up to `most` at which `text` may be cut without splitting a character.
fn boundary(text: &str, most: usize) -> usize {
    (0..=most.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

/// Returns whether `key=text` is unambiguous without quotes.
fn reads_as_one_word(text: &str) -> bool {
    let splits = |c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=';
    !text.is_empty() && !text.contains(splits)
}

fn push_quoted(line: &mut String, text: &str) {
    line.push('"');
    for part in text.split_inclusive(['"', '\\']) {
        let end = part.trim_end_matches(['"', '\\']).len();
        push_visible(line, &part[..end]);
        if end < part.len() {
            line.push('\\');
            line.push_str(&part[end..]);
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests;
