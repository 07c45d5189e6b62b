//! Parses terminal input as keys.
//!
//! Invariant: parsing is total; an unknown escape sequence is skipped as a whole, so that its
//! letters are not interpreted as commands. Pure: it must not read a terminal.

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A letter, digit or symbol.
    Char(char),
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
    /// Ctrl-L.
    Redraw,
    /// Enter.
    Enter,
    /// Esc by itself.
    Escape,
    /// Arrow up.
    Up,
    /// Arrow down.
    Down,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
}

const ESCAPE: u8 = 0x1b;

/// Returns the keys in the bytes of one read.
pub(super) fn keys(mut bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let Some((&first, rest)) = bytes.split_first() {
        let (key, rest) = match first {
            0x03 => (Some(Key::Interrupt), rest),
            0x0c => (Some(Key::Redraw), rest),
            b'\r' | b'\n' => (Some(Key::Enter), rest),
            0x1a => (Some(Key::Suspend), rest),
            ESCAPE => sequence(rest),
            b' '..=b'~' => (Some(Key::Char(char::from(first))), rest),
            _ => (None, rest),
        };
        keys.extend(key);
        bytes = rest;
    }
    keys
}

/// Parses the rest of an escape sequence: `[` or `O`, parameters, and the final byte, which
/// identifies the key.
fn sequence(bytes: &[u8]) -> (Option<Key>, &[u8]) {
    let (introducer, parameters) = match bytes.split_first() {
        Some((introducer @ (b'[' | b'O'), rest)) => (*introducer, rest),
        // Esc itself, or a key with Alt, which is not used.
        Some((_, rest)) => return (None, rest),
        None => return (Some(Key::Escape), bytes),
    };
    let is_last = |byte: &u8| (0x40..=0x7e).contains(byte);
    let Some(at) = parameters.iter().position(is_last) else {
        return (None, &[]);
    };
    let (sequence, rest) = parameters.split_at(at + 1);
    let key = match (introducer, sequence) {
        (_, b"A") => Some(Key::Up),
        (_, b"B") => Some(Key::Down),
        (b'[', b"5~") => Some(Key::PageUp),
        (b'[', b"6~") => Some(Key::PageDown),
        _ => None,
    };
    (key, rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parser_reads_keys_and_sequences() {
        assert_eq!(
            keys(b"r\x1b[Ay\x1bOB\x1b[5~\x1b[6~\r\x03\x1a\x0c"),
            [
                Key::Char('r'),
                Key::Up,
                Key::Char('y'),
                Key::Down,
                Key::PageUp,
                Key::PageDown,
                Key::Enter,
                Key::Interrupt,
                Key::Suspend,
                Key::Redraw
            ]
        );
        assert_eq!(keys(b"\x1b"), [Key::Escape]);
    }

    #[test]
    fn unknown_keys_are_no_command() {
        // Ctrl-arrow, a mouse report, Alt-u, half a sequence, a letter beyond ASCII.
        for bytes in ["\x1b[1;5D", "\x1b[<0;10;10M", "\x1bu", "\x1b[1;", "ü"] {
            assert_eq!(keys(bytes.as_bytes()), [], "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn parser_reads_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(keys(&bytes).len() <= bytes.len());
        }
    }
}
