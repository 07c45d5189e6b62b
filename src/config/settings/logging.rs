//! The rows about the log.
//!
//! As [`SETTINGS`](super::SETTINGS), of which they are a part.

use super::super::value::{Choice, Grammar as _};
use super::super::{LogFormat, LogLevel};
use super::{Binding, Category, Setting};

const LEVELS: Choice<LogLevel> = Choice(&[
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
]);
const FORMATS: Choice<LogFormat> =
    Choice(&[("human", LogFormat::Human), ("json", LogFormat::Json)]);

pub(super) const LOG_LEVEL: Setting = Setting {
    binding: bind!(log_level, LEVELS),
    category: Category::Logging,
    value_name: "LEVEL",
    default: "info",
    example: "debug",
    help: "Least severe log lines to write",
    long_help: "info: a line for what happens to the server, none for what happens to a \
                connection. debug: connections too. trace: bytes too, escaped and shortened; \
                not for production.",
};

pub(super) const LOG_FORMAT: Setting = Setting {
    binding: bind!(log_format, FORMATS),
    category: Category::Logging,
    value_name: "FORMAT",
    default: "human",
    example: "json",
    help: "How log lines look",
    long_help: "human: time, level, message and key=value pairs, in colour on a terminal \
                unless NO_COLOR is set. json: one object a line. Log lines go to standard \
                error, never wait for a slow reader and are counted when they are lost.",
};
