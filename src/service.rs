//! The service: what the server does with the bytes of a connection before it sends them back.
//!
//! [`transform`] is the only place where the machinery meets the service; the shipped one converts
//! ASCII letters to upper case. Another service replaces the body and keeps the contract, on which
//! both the serving path and the recovery from the working memory rely:
//!
//! - **same length**: every received byte has one reply byte, so the byte counters give the number
//!   of unsent ones;
//! - **idempotent**: a worker that dies may leave bytes in the scratch buffer that it transformed
//!   in part; the reader transforms them again ([`memory::unsent()`](crate::memory::unsent()));
//! - **stateless**: a byte's result depends on that byte alone, so a message may be split anywhere;
//! - **pure**: no I/O, no clock, no allocation, no failure.
//!
//! `tests/prop` checks the contract on whatever is shipped.

use crate::uppercase::make_uppercase;

/// Replaces `bytes` with the reply to them.
#[inline]
pub fn transform(bytes: &mut [u8]) {
    make_uppercase(bytes);
}
