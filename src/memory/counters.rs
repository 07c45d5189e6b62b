//! What the counters in a working memory say to whoever maps it.
//!
//! Invariant: total; a writer may have left any words.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::Layout;
use crate::metrics::{CloseReason, Counter};
use crate::sys::shared::SharedMemory;

/// One counter as its writer left it; any process that maps the memory may ask.
#[must_use]
pub fn counter(shared: &SharedMemory, counter: Counter) -> u64 {
    metrics_cell(shared, counter).load(Ordering::Relaxed)
}

/// Connections open by the counters: taken or moved in, not yet ended or moved out.
#[must_use]
pub fn open_connections(shared: &SharedMemory) -> u64 {
    open_by(|one| counter(shared, one))
}

/// The same, by counters that stand elsewhere. While they are being written more may seem gone than
/// came: that is none.
#[must_use]
pub fn open_by(count: impl Fn(Counter) -> u64) -> u64 {
    balance_of(count).max(0).cast_unsigned()
}

/// Whether the counters can be a worker's that did what workers do. One that was taken over by a
/// stranger may have left any words: then none of them is worth being added to anything.
#[must_use]
pub fn is_believable(shared: &SharedMemory) -> bool {
    balance_of(|one| counter(shared, one)).unsigned_abs() <= Layout::MAX_DESCRIPTORS.into()
}

/// What came less what went. Goes round, for the words may be anything.
fn balance_of(count: impl Fn(Counter) -> u64) -> i64 {
    let came = count(Counter::Accepted).wrapping_add(count(Counter::MovedIn));
    let ended = CloseReason::ALL.into_iter().map(Counter::Closed);
    let gone = ended.chain([Counter::MovedOut]);
    gone.fold(came, |open, one| open.wrapping_sub(count(one)))
        .cast_signed()
}

pub(super) fn metrics_cell(shared: &SharedMemory, counter: Counter) -> &AtomicU64 {
    let cell = counter.cell();
    &shared.line(Layout::metrics_line(cell)).0[cell % 8]
}
