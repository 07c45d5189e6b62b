//! One store to the working memory, and the probe for tests.

use std::sync::atomic::Ordering;

use crate::fault;
use crate::sys::shared::Line;

/// Observes every store, so that a test can stop execution after each. The product uses
/// [`Unprobed`], which compiles to nothing in a release build.
pub trait Probe {
    /// Called after each store.
    fn stored(&mut self);
}

/// No probe. In a debug build a fault plan may end the process after a store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unprobed;

impl Probe for Unprobed {
    #[inline(always)]
    fn stored(&mut self) {
        fault::stored();
    }
}

/// Stores one word. `Release` keeps the store behind everything before it in program order; on
/// x86-64 it is a plain move.
#[inline]
pub(super) fn store(probe: &mut impl Probe, line: &Line, word: usize, value: u64) {
    line.0[word].store(value, Ordering::Release);
    probe.stored();
}
