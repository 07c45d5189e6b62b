//! Unit tests of `uppercase.rs`.

use super::portable::uppercase_block;
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
    fn check(&mut self, paths: &[Path], len: usize, alignment: usize, fill: impl Fn(usize) -> u8) {
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
fn oracle_changes_letters_only() {
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
fn words_agree_with_oracle_for_byte_pairs() {
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
fn every_path_agrees_with_oracle() {
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
fn every_path_agrees_on_repeated_bytes() {
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
fn every_path_agrees_around_alignment_length() {
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
fn selected_path_matches_processor() {
    #[cfg(target_arch = "x86_64")]
    let wide = Avx2::new().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    let wide = false;
    assert_eq!(selected_path(), if wide { "avx2" } else { "portable" });
}
