//! The wide path for `x86_64` processors with AVX2: 32 bytes at a time.
//!
//! There are no intrinsics: the kernel is ordinary Rust in a function that is *allowed* AVX2, and
//! the compiler makes one register of each 32-byte block. So the one obligation, and the only
//! `unsafe` here, is that the processor has AVX2; a value of [`Avx2`] is the proof of it.
//!
//! AVX-512 was measured (Zen 4): 1.2 to 1.3 times this path from 4 KiB up, nothing at 64 bytes. It
//! needs a newer compiler than the one this package promises to build with, and at 64 KiB this path
//! is already a small part of what the two system calls cost.
//!
//! This file must not be reached but through [`Avx2::new`].

#![expect(
    unsafe_code,
    reason = "calls a function compiled for AVX2, having asked the processor for it"
)]

use super::portable::{make_uppercase_short, uppercase_block, uppercase_both_ends};

/// Bytes in a register.
const WIDTH: usize = 32;

/// Bytes a turn of the main loop: four independent registers hide the latency of each.
const UNROLLED: usize = 4 * WIDTH;

/// From this length on (bytes) the main loop starts at a multiple of [`WIDTH`]. Writes that
/// straddle two cache lines cost a quarter of the speed of a long run, but finding the first
/// aligned byte costs more than that for a short one.
const ALIGN_FROM_LEN_BYTES: usize = 2048;

/// Proof that the processor, and the operating system, support AVX2.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// Asks the processor: `None` if it lacks AVX2. Cheap enough for each message: the
    /// standard library caches the answer, and what is left is a load, a test and a branch that is
    /// always predicted.
    #[inline]
    #[must_use]
    pub fn new() -> Option<Self> {
        std::arch::is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    /// [`make_uppercase`](super::make_uppercase) by this path, for any length.
    #[inline]
    pub fn make_uppercase(self, bytes: &mut [u8]) {
        // SAFETY: the callee's only requirement is that the processor has AVX2. `self` can only
        // come from `new`, which has checked just that.
        unsafe { make_uppercase_avx2(bytes) }
    }
}

/// The kernel. `uppercase_block` and `uppercase_both_ends` are inlined into it by force and thereby
/// compiled for AVX2.
#[target_feature(enable = "avx2")]
fn make_uppercase_avx2(bytes: &mut [u8]) {
    if bytes.len() <= 2 * WIDTH {
        if !uppercase_both_ends::<WIDTH>(bytes) {
            make_uppercase_short(bytes);
        }
    } else if bytes.len() < ALIGN_FROM_LEN_BYTES {
        uppercase_run(bytes);
    } else {
        uppercase_aligned(bytes);
    }
}

/// A run whose main loop starts at the first multiple of [`WIDTH`] after the start of `bytes`; the
/// bytes before that are covered by one unaligned block.
#[inline(always)]
fn uppercase_aligned(bytes: &mut [u8]) {
    let Some(&first) = bytes.first_chunk::<WIDTH>() else {
        return make_uppercase_short(bytes);
    };
    // From 1 to WIDTH, so the block above reaches the rest; an aligned start skips exactly a block.
    let skipped = WIDTH - bytes.as_ptr().addr() % WIDTH;
    uppercase_run(&mut bytes[skipped..]);
    // Written last, so that no read of the run straddles it (see `uppercase_both_ends`).
    if let Some(place) = bytes.first_chunk_mut::<WIDTH>() {
        *place = uppercase_block(first);
    }
}

/// A run of at least [`WIDTH`] bytes from wherever it starts.
#[inline(always)]
fn uppercase_run(bytes: &mut [u8]) {
    // The last register's worth is read first and written last: it overlaps the blocks before it
    // unless the length is a multiple of the width.
    let Some(&last) = bytes.last_chunk::<WIDTH>() else {
        return make_uppercase_short(bytes);
    };
    let (turns, rest) = bytes.as_chunks_mut::<UNROLLED>();
    for block in turns {
        *block = uppercase_block(*block);
    }
    for block in rest.as_chunks_mut::<WIDTH>().0 {
        *block = uppercase_block(*block);
    }
    if let Some(place) = bytes.last_chunk_mut::<WIDTH>() {
        *place = uppercase_block(last);
    }
}
