//! The rows about the log.
//!
//! Part of [`SETTINGS`](super::SETTINGS).

use super::super::types::{LogFormat, LogLevel};
use super::super::value::{Choice, Grammar as _};
use super::category::Category;
use super::setting::{Binding, Setting};

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
    help: "Minimum log level",
    long_help: "info: events of the server, none of single connections. debug: connections as \
                well. trace: bytes as well, escaped and truncated; not for production.",
};

pub(super) const LOG_FORMAT: Setting = Setting {
    binding: bind!(log_format, FORMATS),
    category: Category::Logging,
    value_name: "FORMAT",
    default: "human",
    example: "json",
    help: "Log format",
    long_help: "human: time, level, message and key=value pairs, in colour on a terminal unless \
                NO_COLOR is set. json: one object per line. Log lines go to standard error; they \
                never wait for a slow reader, and lost lines are counted.",
};
