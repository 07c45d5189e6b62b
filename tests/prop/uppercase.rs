//! Properties of the transformation through its public interface: for any bytes, length and
//! alignment, [`make_uppercase`] has exactly the effect of the byte loop.

use proptest::prelude::*;
use uppercased::uppercase::{make_uppercase, make_uppercase_scalar};

/// Longer than any block and than the length at which the fast path starts to align (bytes).
const MAX_LEN_BYTES: usize = 2400;

/// The neighbours of both ends of the range, the same with the high bit set, and NUL: bytes that a
/// wrong comparison would change.
const CRITICAL: [u8; 10] = [b'`', b'a', b'z', b'{', 0xe0, 0xe1, 0xfa, 0xfb, 0x00, 0x80];

/// Returns bytes of every value, half of the time those of [`CRITICAL`]; mostly short messages, as
/// in traffic.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u16>().prop_map(|random| {
        let [value, choice] = random.to_le_bytes();
        if choice < 128 {
            CRITICAL[usize::from(choice) % CRITICAL.len()]
        } else {
            value
        }
    });
    prop_oneof![
        5 => prop::collection::vec(byte.clone(), 0..=130),
        1 => prop::collection::vec(byte, 0..=MAX_LEN_BYTES),
    ]
}

proptest! {
    #[test]
    fn uppercase_equals_oracle_and_spares_surroundings(
        bytes in message(),
        from in 0..128usize,
        after in 0..128usize,
    ) {
        let from = from.min(bytes.len());
        let to = bytes.len().saturating_sub(after).max(from);
        let mut expected = bytes.clone();
        make_uppercase_scalar(&mut expected[from..to]);
        let mut actual = bytes;
        make_uppercase(&mut actual[from..to]);
        prop_assert_eq!(actual, expected);
    }

    #[test]
    fn uppercase_ignores_chunking(bytes in message(), cut in any::<prop::sample::Index>()) {
        let mut whole = bytes.clone();
        make_uppercase(&mut whole);
        let mut parts = bytes;
        let cut = cut.index(parts.len() + 1);
        let (head, tail) = parts.split_at_mut(cut);
        make_uppercase(head);
        make_uppercase(tail);
        prop_assert_eq!(parts, whole);
    }

    #[test]
    fn uppercase_is_idempotent(bytes in message()) {
        let mut once = bytes;
        make_uppercase(&mut once);
        let mut twice = once.clone();
        make_uppercase(&mut twice);
        prop_assert_eq!(twice, once);
    }
}
