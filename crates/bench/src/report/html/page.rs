//! The parts of every page: the document, its texts and its tables.
//!
//! Invariants: those of the parent module. It must not know what is measured.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use crate::report::file::DATA;
use uppercased_ctl::units;

/// Maximum length of a text from an outcome, in characters.
const TEXT_MAX: usize = 500;

/// Maximum length of a flag, in bytes, so that it fits a phone.
const FLAG_MAX: usize = 24;

/// Maximum number of notes listed.
const NOTES_MAX: usize = 50;

/// The last second of the year 9999, in milliseconds: later times have no common notation.
const UNIX_MS_MAX: u64 = 253_402_300_799_000;

/// Maximum length of the JSON in a page. A measurement has a few hundred kilobytes.
const JSON_MAX_BYTES: usize = 4 << 20;

/// The style sheet of a page.
const STYLE: &str = include_str!("page.css");

/// Returns a page with this title, which must not be escaped, this body, which must be, and its
/// data as JSON, which is omitted if it is too long.
pub(super) fn document(title: &str, body: &str, json: serde_json::Result<String>) -> String {
    let data = match json {
        Ok(json) if json.len() <= JSON_MAX_BYTES => format!("{DATA}{}</script>\n", inert(&json)),
        _ => String::new(),
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{} - uppercased bench</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n{data}</body>\n</html>\n",
        escaped(title)
    )
}

/// Returns JSON without characters that could end its element, which strings may have as escapes.
fn inert(json: &str) -> String {
    let json = json.replace('<', "\\u003c").replace('>', "\\u003e");
    json.replace('&', "\\u0026")
}

/// Returns untrusted text for the page: one line, bounded, without markup.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in units::cut(text, TEXT_MAX).chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// Returns untrusted text for the page, in which no flag is broken at a hyphen.
pub(super) fn with_flags(text: &str) -> String {
    let text = escaped(text);
    let words = text.split(' ').map(|word| {
        // A longer one must be broken.
        if word.starts_with('-') && word.len() <= FLAG_MAX {
            format!("<span>{word}</span>")
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Returns a list of notes, which must not be escaped; nothing if there are none.
pub(super) fn notes(all: impl Iterator<Item = String>) -> String {
    let items: String = all
        .take(NOTES_MAX)
        .map(|note| format!("<li>{}</li>\n", with_flags(&note)))
        .collect();
    if items.is_empty() {
        return items;
    }
    format!("<ul class=\"notes\">\n{items}</ul>\n")
}

/// Returns a table that scrolls in its own container; its cells must already be escaped. The first
/// cell of each row is the row's head.
pub(super) fn table(caption: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    // The container takes the focus, so that it can be scrolled by keys.
    let mut text = format!(
        "<div class=\"scroll\" role=\"region\" aria-label=\"{caption}\" tabindex=\"0\">\n\
         <table>\n<caption>{caption}</caption>\n"
    );
    if !head.is_empty() {
        let cells: String = head
            .iter()
            .map(|name| format!("<th scope=\"col\">{name}</th>"))
            .collect();
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "<thead><tr>{cells}</tr></thead>");
    }
    text.push_str("<tbody>\n");
    for row in rows {
        let mut cells = row.iter();
        let name = cells.next().map_or("", String::as_str);
        let cells: String = cells.map(|cell| format!("<td>{cell}</td>")).collect();
        let _ = writeln!(text, "<tr><th scope=\"row\">{name}</th>{cells}</tr>");
    }
    text + "</tbody>\n</table>\n</div>\n"
}

/// Returns a time for people: "2026-11-30 11:41 UTC".
pub(super) fn date(unix_ms: u64) -> String {
    let since = Duration::from_millis(unix_ms.min(UNIX_MS_MAX));
    let exact = humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string();
    format!("{} {} UTC", &exact[..10], &exact[11..16])
}
