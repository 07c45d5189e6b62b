//! The transformation: ASCII lower-case letters become upper-case, in place.
//!
//! [`make_uppercase`] is the shipped service; [`make_uppercase_scalar`] is the plain byte loop that
//! defines the result. Every fast path is checked against it.
//!
//! Invariants:
//! - only `b'a'..=b'z'` change, each to the byte 32 below; NUL, digits, and every byte from 0x80 up
//!   (so UTF-8 and binary traffic too) pass through untouched, and no byte outside the slice is
//!   written;
//! - any length and any alignment are accepted, and no result depends on the processor;
//! - the transformation is idempotent. The fast paths rely on this: a length that is not a multiple
//!   of their width is finished by a last block that *overlaps* the one before it, which is correct
//!   only because upper-casing a byte twice is upper-casing it once.
//!
//! Most messages are a few tens of bytes, for which selecting the path must cost no more than the
//! work: inputs below [`SHORT_LEN_BYTES`] never check the processor, longer ones test a bit that
//! the standard library has cached.
//!
//! This module must not allocate, do I/O, log, or fail.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
pub use portable::{SHORT_LEN_BYTES, make_uppercase_scalar};
use portable::{make_uppercase_portable, make_uppercase_short};

/// Upper-cases the ASCII letters of `bytes` in place, by the fastest path this processor has.
///
/// Never fails; an empty slice is fine. The module's text lists what is left alone.
///
/// ```
/// let mut message = *b"caf\xc3\xa9 42\n\0";
/// uppercased::uppercase::make_uppercase(&mut message);
/// assert_eq!(&message, b"CAF\xc3\xa9 42\n\0");
/// ```
#[inline(always)]
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

#[cfg(test)]
mod tests;
