//! The transformation: ASCII lower-case letters become upper-case, in place.
//!
//! [`make_uppercase`] is what the workers call, once a message; [`make_uppercase_scalar`] is the
//! plain byte loop that says what the answer is. Everything fast here is checked against it.
//!
//! Invariants:
//! - only `b'a'..=b'z'` change, each to the byte 32 below; NUL, digits, and every byte from 0x80 up
//!   (so UTF-8 and binary traffic too) pass through untouched, and no byte outside the slice is
//!   written;
//! - any length and any alignment are accepted, and no result depends on the processor;
//! - the transformation is idempotent. The fast paths lean on this: a length that is not a multiple
//!   of their width is finished by a last block that *overlaps* the one before it, which is right
//!   only because upper-casing a byte twice is upper-casing it once.
//!
//! Most messages are some tens of bytes, for which finding the path must cost no more than the work:
//! inputs below [`SHORT_LEN_BYTES`] never ask what the processor can do, longer ones test a bit that
//! the standard library has cached.
//!
//! This module must not allocate, do I/O, log, or fail.

#[cfg(target_arch = "x86_64")]
mod avx2;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;

/// Inputs shorter than this (bytes) are done by the portable code without asking for the processor:
/// it is the width of an AVX2 register, below which there is nothing to widen.
pub const SHORT_LEN_BYTES: usize = 32;

/// Upper-cases the ASCII letters of `bytes` in place, by the fastest path this processor has.
///
/// Never fails; an empty slice is fine. See the module's text for what is left alone.
///
/// ```
/// let mut message = *b"caf\xc3\xa9 42\n\0";
/// uppercased::uppercase::make_uppercase(&mut message);
/// assert_eq!(&message, b"CAF\xc3\xa9 42\n\0");
/// ```
pub fn make_uppercase(bytes: &mut [u8]) {
    if bytes.len() < SHORT_LEN_BYTES {
        return make_uppercase_short(bytes);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = Avx2::new() {
        return avx2.make_uppercase(bytes);
    }
    make_uppercase_portable(bytes);
}

/// The oracle: the same transformation, one byte at a time.
///
/// Not for serving. It is written to be obviously right, and the tests hold every other path
/// against it; the benchmark shows what the others gain.
#[expect(
    clippy::manual_is_ascii_check,
    reason = "an oracle spells out the range instead of trusting what it is compared with"
)]
pub fn make_uppercase_scalar(bytes: &mut [u8]) {
    for byte in bytes {
        if matches!(*byte, b'a'..=b'z') {
            *byte -= b'a' - b'A';
        }
    }
}

/// The name of the path [`make_uppercase`] takes here for inputs of at least [`SHORT_LEN_BYTES`]:
/// `"avx2"` or `"portable"`. For logs and benchmarks; the answer does not change while a process
/// runs.
#[must_use]
pub fn selected_path() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if Avx2::new().is_some() {
        return "avx2";
    }
    "portable"
}

/// Every processor's path: short inputs by words, the others by the standard library, which the
/// compiler turns into vector code for the target's baseline (16 bytes at a time on `x86_64` and
/// `aarch64`).
fn make_uppercase_portable(bytes: &mut [u8]) {
    if bytes.len() < SHORT_LEN_BYTES {
        make_uppercase_short(bytes);
    } else {
        bytes.make_ascii_uppercase();
    }
}

/// Inputs below [`SHORT_LEN_BYTES`]: two overlapping blocks of the largest size that fits, so that
/// no length pays for a byte loop longer than three.
///
/// Right for any length up to 32; above, the middle would be left out, so it must not be called.
#[inline]
fn make_uppercase_short(bytes: &mut [u8]) {
    debug_assert!(bytes.len() <= 32, "two blocks of 16 cover at most 32 bytes");
    let done = uppercase_both_ends::<16>(bytes)
        || uppercase_both_ends::<8>(bytes)
        || uppercase_both_ends::<4>(bytes);
    if !done {
        make_uppercase_scalar(bytes);
    }
}

/// Upper-cases the first `N` bytes and the last `N`, which may overlap. `false`, with nothing done,
/// if there are fewer than `N`.
///
/// Both blocks are read before either is written: a read that straddles a write just made must wait
/// for it to reach the cache, several times the cost of everything else here.
///
/// Inlined by force, as are the two functions below: only inside the caller are they compiled for
/// the instructions that the caller may use. An out-of-line copy, or one passed as a function value,
/// would be right but narrow.
#[inline(always)]
fn uppercase_both_ends<const N: usize>(bytes: &mut [u8]) -> bool {
    let (Some(&first), Some(&last)) = (bytes.first_chunk::<N>(), bytes.last_chunk::<N>()) else {
        return false;
    };
    let (first, last) = (uppercase_block(first), uppercase_block(last));
    if let Some(place) = bytes.first_chunk_mut::<N>() {
        *place = first;
    }
    if let Some(place) = bytes.last_chunk_mut::<N>() {
        *place = last;
    }
    true
}

/// One block, without a branch: up to eight bytes as a word, more in a shape that compilers turn
/// into whole vector registers when `N` is a multiple of their width (of smaller blocks they make
/// poor vector code).
#[inline(always)]
fn uppercase_block<const N: usize>(mut block: [u8; N]) -> [u8; N] {
    if N <= 8 {
        // Padded with zeros, which are no letters and so stay zeros.
        let mut word = [0; 8];
        word[..N].copy_from_slice(&block);
        word = uppercase_word(u64::from_ne_bytes(word)).to_ne_bytes();
        block.copy_from_slice(&word[..N]);
        return block;
    }
    for byte in &mut block {
        let is_lower = byte.wrapping_sub(b'a') < 26;
        // Bit 5 is the whole difference between the two cases.
        *byte ^= u8::from(is_lower) << 5;
    }
    block
}

/// Eight bytes in a general register, whichever end of it comes first.
///
/// No sum below carries into the byte above: both addends of every byte are below 0x80.
#[inline(always)]
fn uppercase_word(word: u64) -> u64 {
    const EVERY_BYTE: u64 = 0x0101_0101_0101_0101;
    const HIGH_BITS: u64 = 0x80 * EVERY_BYTE;
    let low_seven = word & !HIGH_BITS;
    // The high bit of each byte becomes: "is at least 'a'", and "is beyond 'z'".
    let from_a = low_seven + (0x80 - b'a' as u64) * EVERY_BYTE;
    let beyond_z = low_seven + (0x7f - b'z' as u64) * EVERY_BYTE;
    // A byte that is not ASCII has its own high bit set, and is no letter.
    let is_lower = (from_a ^ beyond_z) & !word & HIGH_BITS;
    word ^ (is_lower >> 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alignments tried: every offset into a cache line (bytes).
    const ALIGNMENTS: usize = 64;

    /// Bytes kept around the slice under test, to see that they stay; more than any block is wide.
    const GUARD_BYTES: usize = 128;

    /// What surrounds the slice: a letter that any write out of bounds would change.
    const GUARD: u8 = b'q';

    type Path = (&'static str, fn(&mut [u8]));

    /// Every way the transformation can go on this processor.
    fn paths() -> Vec<Path> {
        let everywhere: [Path; 2] = [
            ("dispatched", make_uppercase),
            ("portable", make_uppercase_portable),
        ];
        let paths = everywhere.into_iter();
        #[cfg(target_arch = "x86_64")]
        let paths = paths.chain(Avx2::new().map(|_| -> Path {
            ("avx2", |bytes| {
                Avx2::new().expect("asked above").make_uppercase(bytes);
            })
        }));
        paths.collect()
    }

    /// Room for a slice of up to `max_len` at every alignment.
    struct Arena {
        bytes: Vec<u8>,
        expected: Vec<u8>,
        /// Where the first cache line begins that leaves room for the guard.
        origin: usize,
    }

    impl Arena {
        fn new(max_len: usize) -> Self {
            let bytes = vec![GUARD; 2 * GUARD_BYTES + 2 * ALIGNMENTS + max_len];
            let origin = GUARD_BYTES + ALIGNMENTS - bytes.as_ptr().addr() % ALIGNMENTS;
            Self {
                expected: bytes.clone(),
                bytes,
                origin,
            }
        }

        /// Holds every path against the oracle on `len` bytes at `alignment`, byte `i` being
        /// `fill(i)`, and against the guards. Leaves the arena as it was.
        fn check(
            &mut self,
            paths: &[Path],
            len: usize,
            alignment: usize,
            fill: impl Fn(usize) -> u8,
        ) {
            let place = self.origin + alignment..self.origin + alignment + len;
            assert_eq!(
                self.bytes[place.start..].as_ptr().addr() % ALIGNMENTS,
                alignment
            );
            let input: Vec<u8> = (0..len).map(fill).collect();
            self.expected[place.clone()].copy_from_slice(&input);
            make_uppercase_scalar(&mut self.expected[place.clone()]);

            for (name, path) in paths {
                self.bytes[place.clone()].copy_from_slice(&input);
                path(&mut self.bytes[place.clone()]);
                assert!(
                    self.bytes == self.expected,
                    "{name} differs from the oracle: length {len}, alignment {alignment}, byte {:?}",
                    (self.bytes.iter().zip(&self.expected))
                        .position(|(got, wanted)| got != wanted)
                        // Relative to the slice; negative, or `len` and more, is a guard.
                        .map(|at| at.cast_signed() - place.start.cast_signed())
                );
            }
            self.bytes[place.clone()].fill(GUARD);
            self.expected[place].fill(GUARD);
        }
    }

    /// Returns the distance from one case to the next. Miri is a thousand times slower than the processor, so
    /// it gets every `n`th case.
    fn stride(n: usize) -> usize {
        if cfg!(miri) { n } else { 1 }
    }

    #[test]
    fn the_oracle_moves_the_26_letters_and_nothing_else() {
        let mut bytes: Vec<u8> = (0..=255).collect();
        make_uppercase_scalar(&mut bytes);
        assert_eq!(&bytes[97..123], b"ABCDEFGHIJKLMNOPQRSTUVWXYZ");
        for (at, byte) in (0..=255u8).zip(&bytes) {
            if !(97..123).contains(&at) {
                assert_eq!(at, *byte);
            }
        }
    }

    #[test]
    fn words_agree_with_the_oracle_for_every_pair_of_neighbours() {
        // What a word can get wrong and a byte cannot is a carry from one byte into the next.
        for low in (0..=255u8).step_by(stride(85)) {
            for high in 0..=255u8 {
                let pair = [low, high];
                let word = [pair, pair, pair, pair].concat();
                let mut expected = word.clone();
                make_uppercase_scalar(&mut expected);
                let mut block = [0; 8];
                block.copy_from_slice(&word);
                assert_eq!(uppercase_block(block)[..], expected[..]);
            }
        }
    }

    /// Four fills for each length and alignment, chosen so that over the 64 alignments every byte
    /// value stands at every position of every length.
    #[test]
    fn every_path_agrees_with_the_oracle_for_lengths_0_to_300_alignments_and_byte_values() {
        const FILLS: usize = 256 / ALIGNMENTS;
        let mut arena = Arena::new(300);
        let paths = paths();
        for len in (0..=300).step_by(stride(59)) {
            for alignment in (0..ALIGNMENTS).step_by(stride(21)) {
                for fill in 0..FILLS {
                    let phase = alignment * FILLS + fill;
                    arena.check(&paths, len, alignment, |at| {
                        ((at + phase) % 256).to_le_bytes()[0]
                    });
                }
            }
        }
    }

    /// One value filling the slice: a block that is left out, or done by a wrong comparison, cannot
    /// hide behind its neighbours.
    #[test]
    fn every_path_agrees_on_each_byte_value_repeated() {
        let mut arena = Arena::new(300);
        let paths = paths();
        for len in (0..=300).step_by(stride(75)) {
            for value in (0..=255).step_by(stride(17)) {
                arena.check(&paths, len, len % ALIGNMENTS, |_| value);
            }
        }
    }

    /// Long enough for the aligned main loop, with every remainder of its turn before and after it.
    #[test]
    fn every_path_agrees_round_the_length_that_aligns() {
        const LONG_LEN_BYTES: usize = 2048;
        const TURN_BYTES: usize = 128;
        let lens = LONG_LEN_BYTES - 2..=LONG_LEN_BYTES + TURN_BYTES;
        let mut arena = Arena::new(*lens.end());
        let paths = paths();
        for len in lens.clone().step_by(stride(43)) {
            for alignment in (0..ALIGNMENTS).step_by(stride(31)) {
                arena.check(&paths, len, alignment, |at| {
                    ((at * 7 + len) % 256).to_le_bytes()[0]
                });
            }
        }
    }

    #[test]
    fn the_selected_path_is_named_after_what_the_processor_has() {
        #[cfg(target_arch = "x86_64")]
        let wide = Avx2::new().is_some();
        #[cfg(not(target_arch = "x86_64"))]
        let wide = false;
        assert_eq!(selected_path(), if wide { "avx2" } else { "portable" });
    }
}
