//! Escapes untrusted bytes and text for log lines, error messages and terminals.
//!
//! Invariants: each byte is escaped once, reversibly, to at most four characters of printable
//! ASCII; visible text has no control character, so it can neither end its line nor control the
//! terminal, and [`visible`] is idempotent. It must not guess at an encoding.

use std::fmt::{self, Write as _};

/// Formats `bytes` as the inside of a quoted text (`\n`, `\"`, `\xNN`).
pub fn escape(bytes: &[u8]) -> impl fmt::Display {
    Escaped(bytes)
}

/// Returns `bytes` as the characters with the same code points, for a format with its own escapes.
pub fn as_characters(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Returns `text`, escaping every character that would end the line, control the terminal or
/// reorder the output.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    push_visible(&mut shown, text);
    shown
}

/// Appends `text` to `line`, escaped as by [`visible`].
pub fn push_visible(line: &mut String, text: &str) {
    for letter in text.chars() {
        if letter.is_control() || separates_or_reorders(letter) {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
}

/// Returns whether a character is a line separator or a directional mark. Unicode does not count
/// these as control characters, but they too can make a line look like another.
const fn separates_or_reorders(letter: char) -> bool {
    matches!(
        letter,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            match byte {
                b'\n' => out.write_str("\\n")?,
                b'\r' => out.write_str("\\r")?,
                b'\t' => out.write_str("\\t")?,
                b'\0' => out.write_str("\\0")?,
                b'\\' => out.write_str("\\\\")?,
                b'"' => out.write_str("\\\"")?,
                b' '..=b'~' => out.write_char(char::from(*byte))?,
                _ => write!(out, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_escaped_once() {
        assert_eq!(escape(b"abc").to_string(), "abc");
        assert_eq!(
            escape(b"a\n\r\t\0\\\"\x7f\xc3\xa9").to_string(),
            "a\\n\\r\\t\\0\\\\\\\"\\x7f\\xc3\\xa9"
        );
        assert_eq!(escape(b"").to_string(), "");
        assert_eq!(as_characters(b"a\n\xff"), "a\n\u{ff}");
    }

    #[test]
    fn visible_text_keeps_letters_only() {
        assert_eq!(visible("Straße \\n"), "Straße \\n");
        assert_eq!(
            visible("a\nERROR\r\t\x1b[31m\u{9b}31m\x07\u{202e}x\u{2028}"),
            "a\\nERROR\\r\\t\\u{1b}[31m\\u{9b}31m\\u{7}\\u{202e}x\\u{2028}"
        );
    }

    proptest! {
        #[test]
        fn visible_text_has_no_control_character(text: String) {
            let shown = visible(&text);
            prop_assert!(!shown.contains(char::is_control));
            prop_assert_eq!(visible(&shown), shown);
        }

        #[test]
        fn escape_yields_printable_ascii_only(bytes: Vec<u8>) {
            let text = escape(&bytes).to_string();
            prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }
}
