//! Test bytes that reveal every loss, repetition or swap, and the expected reply to them.

/// Returns `len` bytes of an endless fixed stream, from `offset` on.
///
/// All 256 values occur, and each byte depends only on its position: any piece can be generated
/// separately, and a piece at the wrong position never matches.
pub fn pattern(offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 16);
    let mut word = offset / 8;
    while bytes.len() < len + 8 {
        bytes.extend_from_slice(&scramble(word).to_le_bytes());
        word += 1;
    }
    let skip = usize::try_from(offset % 8).expect("below 8");
    bytes.drain(..skip);
    bytes.truncate(len);
    bytes
}

/// Returns the expected reply to `bytes`, by the standard library and one byte at a time: it must
/// not share code with the server.
pub fn upper(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(u8::to_ascii_uppercase).collect()
}

/// Asserts that two byte strings are equal; on failure shows the first difference instead of all
/// bytes.
#[track_caller]
pub fn assert_same(actual: &[u8], expected: &[u8], what: &str) {
    if actual == expected {
        return;
    }
    let at = actual
        .iter()
        .zip(expected)
        .position(|(actual, expected)| actual != expected)
        .unwrap_or_else(|| actual.len().min(expected.len()));
    let around = |bytes: &[u8]| {
        let from = at.saturating_sub(8).min(bytes.len());
        let to = (at + 8).min(bytes.len());
        bytes[from..to].escape_ascii().to_string()
    };
    panic!(
        "{what}: {} bytes, expected {}; they part at byte {at}: ...{}... instead of ...{}...",
        actual.len(),
        expected.len(),
        around(actual),
        around(expected),
    );
}

/// Scrambles a word with SplitMix64's output function: every input bit affects every output bit.
fn scramble(word: u64) -> u64 {
    let mut z = word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
