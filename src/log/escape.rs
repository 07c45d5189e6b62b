//! Bytes of strangers made fit for a log line.
//!
//! Invariants: what comes out is printable ASCII (and the mark of a cut), at most four times as
//! long as the bytes that were asked for. Must not: guess at an encoding.

use std::fmt::{self, Write as _};

/// Shows at most `max` of `bytes`, escaped (`\n`, `\0`, `\xNN`); a cut is marked `…(+N bytes)`.
pub fn escape(bytes: &[u8], max: usize) -> impl fmt::Display {
    Escaped { bytes, max }
}

struct Escaped<'a> {
    bytes: &'a [u8],
    max: usize,
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, cut) = self.bytes.split_at(self.max.min(self.bytes.len()));
        for byte in shown {
            match byte {
                b'\n' => out.write_str("\\n")?,
                b'\r' => out.write_str("\\r")?,
                b'\t' => out.write_str("\\t")?,
                b'\0' => out.write_str("\\0")?,
                b'\\' => out.write_str("\\\\")?,
                b' '..=b'~' => out.write_char(char::from(*byte))?,
                _ => write!(out, "\\x{byte:02x}")?,
            }
        }
        if cut.is_empty() {
            Ok(())
        } else {
            write!(out, "…(+{} bytes)", cut.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_escaped_and_cut() {
        assert_eq!(escape(b"abc", 3).to_string(), "abc");
        assert_eq!(
            escape(b"a\n\r\t\0\\\x7f\xc3\xa9", 99).to_string(),
            "a\\n\\r\\t\\0\\\\\\x7f\\xc3\\xa9"
        );
        assert_eq!(escape(b"abcdef", 2).to_string(), "ab…(+4 bytes)");
        assert_eq!(escape(b"abc", 0).to_string(), "…(+3 bytes)");
        assert_eq!(escape(b"", 0).to_string(), "");
    }

    proptest! {
        #[test]
        fn nothing_but_printable_ascii_comes_out(bytes: Vec<u8>) {
            let text = escape(&bytes, bytes.len()).to_string();
            prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }
}
