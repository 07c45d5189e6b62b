//! Log lines: writes each `tracing` event to standard error as one line, without blocking.
//!
//! Invariants: an event is one line of at most [`LOG_LINE_MAX_BYTES`] and one write, so lines of
//! several processes never mix; a line that cannot be written at once is dropped and counted
//! ([`uppercased_ctl::writer::dropped_lines`]), and a line with the number lost precedes the next
//! successful line. No value can end the line or colour the terminal. Must not: block, start a
//! thread, or set a flag on the open file, which is shared with the process that started the
//! server.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::time::SystemTime;

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::SetGlobalDefaultError;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;

use crate::config::{LogFormat, LogLevel};
use uppercased_ctl::stderr;
use uppercased_ctl::writer::LineWriter;

pub mod events;
mod line;
mod tally;

pub use line::LOG_LINE_MAX_BYTES;
pub use tally::Tally;

use line::{Fields, Line, Style};

/// Installs the log of this process on its standard error. Call it once, before anything else.
///
/// # Errors
///
/// A log was installed before, or standard error cannot be duplicated.
pub fn init(level: LogLevel, format: LogFormat) -> Result<(), Error> {
    let writer = LineWriter::open(io::stderr().as_fd()).map_err(Error::Open)?;
    let (filter, level) = reload::Layer::new(filter(level));
    let (lines, style) = reload::Layer::new(Lines {
        style: style(format),
        is_for_journal: stderr::is_journal(),
        writer,
    });
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    tracing::subscriber::set_global_default(subscriber)?;
    let adjust = move |to_level, to_format| {
        // Fails only if the log no longer exists, which does not happen.
        let _ = level.modify(|level| *level = self::filter(to_level));
        let _ = style.modify(|lines| lines.style = self::style(to_format));
    };
    // Not set before: a process installs one log.
    let _ = ADJUST.set(Box::new(adjust));
    Ok(())
}

/// Changes the level and the format of the log that [`init`] installed; does nothing without one.
pub fn adjust(level: LogLevel, format: LogFormat) {
    if let Some(adjust) = ADJUST.get() {
        adjust(level, format);
    }
}

/// Writes one of the [`events`] with the fields of its declaration. With `key; worker` the worker's
/// slot and generation come first.
macro_rules! event {
    ($key:ident; $worker:expr $(, $($field:tt)+)?) => {{
        let worker = &$worker;
        $crate::log::event!(
            $key,
            slot = worker.slot.0,
            generation = worker.generation.0
            $(, $($field)+)?
        )
    }};
    ($key:ident $(, $($field:tt)+)?) => {
        ::tracing::event!(
            $crate::log::events::$key.level,
            $($($field)+,)?
            event = $crate::log::events::$key.key,
            "{}",
            $crate::log::events::$key.message
        )
    };
}
pub(crate) use event;

static ADJUST: OnceLock<Box<dyn Fn(LogLevel, LogFormat) + Send + Sync>> = OnceLock::new();

fn style(format: LogFormat) -> Style {
    match format {
        LogFormat::Json => Style::Json,
        LogFormat::OpenTelemetry => Style::OpenTelemetry,
        LogFormat::Human => Style::Human {
            colour: wants_colour(io::stderr()),
        },
    }
}

/// An error that prevents installing the log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Standard error cannot be duplicated.
    #[error("cannot duplicate standard error for the log: {0}; raise the descriptor limit")]
    Open(#[source] io::Error),
    /// A log is already installed.
    #[error("a log is installed already; install it once, at the start of the process")]
    Installed(#[from] SetGlobalDefaultError),
}

/// Returns the span of a worker process: its lines carry `slot`, `generation` and `pid`.
///
/// Its level is the most severe, so that it is enabled at any `log_level`.
#[must_use]
pub fn worker_span(slot: u16, generation: u32) -> tracing::Span {
    tracing::error_span!("worker", slot, generation, pid = std::process::id())
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Returns whether to use colour: on a terminal that supports it, unless the user disabled it
/// (<https://no-color.org>).
pub(crate) fn wants_colour(out: impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).unwrap_or_default();
    out.is_terminal() && set("NO_COLOR").is_empty() && set("TERM") != "dumb"
}

/// The layer that formats events as lines.
struct Lines {
    style: Style,
    is_for_journal: bool,
    writer: LineWriter,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            record.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut around = Fields::default();
        // From the innermost span outwards: the nearest field wins.
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(known) = span.extensions().get::<Fields>() {
                around.add_missing(known);
            }
        }
        let at = time_of_day();
        let render = |level, fields: &mut Fields| {
            fields.add_missing(&around);
            let target = event.metadata().target();
            Line {
                at,
                level,
                target,
                fields,
                is_for_journal: self.is_for_journal,
            }
            .render(self.style)
        };
        let line = render(*event.metadata().level(), &mut fields);
        self.writer.write_line(line.as_bytes(), |lost| {
            render(Level::WARN, &mut Fields::of_loss(lost))
        });
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "only a log line needs the time of day"
)]
fn time_of_day() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;

    /// Runs `log` with a log of this level and style; returns the output.
    fn logged(level: LogLevel, style: Style, log: impl FnOnce()) -> String {
        let (reader, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        log_to(end, level, style, log);
        let mut text = String::new();
        io::PipeReader::from(reader)
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    fn log_to(end: OwnedFd, level: LogLevel, style: Style, log: impl FnOnce()) {
        let writer = LineWriter::open(end.as_fd()).unwrap();
        let subscriber = tracing_subscriber::registry()
            .with(filter(level))
            .with(Lines {
                style,
                is_for_journal: false,
                writer,
            });
        tracing::subscriber::with_default(subscriber, log);
    }

    #[test]
    fn text_line_is_readable() {
        let text = logged(LogLevel::Info, Style::Human { colour: false }, || {
            tracing::info!(address = %"0.0.0.0:9999", workers = 2, pid = 123, "ready");
            tracing::debug!("not at this level");
        });
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
        assert_eq!(time.len(), "2026-11-23T10:00:00.000Z".len());
        assert_eq!(rest, "INFO ready address=0.0.0.0:9999 workers=2 pid=123\n");
    }

    #[test]
    fn worker_lines_identify_worker_at_every_level() {
        let pid = std::process::id();
        let say = || {
            let _inside = worker_span(3, 7).entered();
            tracing::error!(reason = "it broke", "stopping");
        };
        let text = logged(LogLevel::Error, Style::Human { colour: false }, say);
        let whose = format!(" ERROR stopping reason=\"it broke\" slot=3 generation=7 pid={pid}\n");
        assert!(text.ends_with(&whose), "{text}");

        let json: serde_json::Value =
            serde_json::from_str(&logged(LogLevel::Error, Style::Json, say)).unwrap();
        assert_eq!(json["level"], "ERROR");
        assert_eq!(json["message"], "stopping");
        assert_eq!(json["reason"], "it broke");
        assert_eq!(json["target"], module_path!());
        assert_eq!((&json["slot"], &json["generation"]), (&3.into(), &7.into()));
        assert_eq!(json["pid"], pid);
    }

    #[test]
    fn innermost_latest_field_wins() {
        let text = logged(LogLevel::Info, Style::Human { colour: false }, || {
            let outer = tracing::info_span!("outer", a = 1, b = 1, c = tracing::field::Empty);
            let _outer = outer.clone().entered();
            outer.record("c", 9);
            outer.record("a", 8);
            let _inner = tracing::info_span!("inner", b = 2).entered();
            tracing::info!(d = true, "now");
        });
        assert!(text.ends_with(" INFO now d=true b=2 a=8 c=9\n"), "{text}");
    }

    #[test]
    fn one_event_is_always_one_line() {
        let hostile = "a\nFAKE line\x1b[31m \u{9b}31m\r\0\"=é";
        for style in [Style::Human { colour: false }, Style::Json] {
            let text = logged(LogLevel::Info, style, || {
                tracing::info!(hostile, shown = %hostile, "{hostile}");
            });
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            let control = text.trim_end().chars().find(|c| c.is_control());
            assert_eq!(control, None, "{text}");
        }
    }
}
