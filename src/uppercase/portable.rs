//! The path of every processor, and the blocks of which the wide path consists as well.

/// Inputs shorter than this (bytes) are done by the portable code without asking for the processor:
/// it is the width of an AVX2 register, below which there is nothing to widen.
pub const SHORT_LEN_BYTES: usize = 32;

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

/// Every processor's path: short inputs by words, the others by the standard library, which the
/// compiler turns into vector code for the target's baseline (16 bytes at a time on `x86_64` and
/// `aarch64`).
pub(super) fn make_uppercase_portable(bytes: &mut [u8]) {
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
pub(super) fn make_uppercase_short(bytes: &mut [u8]) {
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
pub(super) fn uppercase_both_ends<const N: usize>(bytes: &mut [u8]) -> bool {
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
pub(super) fn uppercase_block<const N: usize>(mut block: [u8; N]) -> [u8; N] {
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
