//! What the counters in a working memory say to whoever maps it.
//!
//! Invariant: total; a writer may have left any words.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::Layout;
use crate::sys::shared::{SharedMemory, Words};
use uppercased_ctl::metrics::{CloseReason, Counter};

/// One counter as its writer left it; any process that maps the memory may ask.
#[must_use]
pub fn counter(shared: &SharedMemory, counter: Counter) -> u64 {
    metrics_cell(shared.words(), counter).load(Ordering::Relaxed)
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

/// How far a worker's handovers are: the latest from it, and the latest to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Batches sent.
    pub sent: u64,
    /// Batches sent whose answer was read.
    pub settled: u64,
    /// Batches received and answered.
    pub answered: u64,
}

/// How far the worker says that its handovers are.
#[must_use]
pub fn moves(shared: &SharedMemory) -> Moves {
    let word = |at: usize| shared.line(Layout::MOVING).0[at].load(Ordering::Relaxed);
    Moves {
        sent: word(0),
        settled: word(1),
        answered: word(2),
    }
}

/// Connections that the working memory has room for, by what its writer says of its layout.
#[must_use]
pub fn room(shared: &SharedMemory) -> u32 {
    let buffers = shared.line(Layout::HEADER).0[2].load(Ordering::Relaxed);
    u32::try_from(buffers).unwrap_or(0).min(Layout::MAX_BUFFERS)
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

/// Adds `amount` to a counter of the memory that is this process's to write.
#[inline]
pub(super) fn add(words: Words<'_>, counter: Counter, amount: u64) {
    let cell = metrics_cell(words, counter);
    let sum = cell.load(Ordering::Relaxed).wrapping_add(amount);
    cell.store(sum, Ordering::Relaxed);
}

fn metrics_cell(words: Words<'_>, counter: Counter) -> &AtomicU64 {
    let cell = counter.cell();
    &words.line(Layout::metrics_line(cell)).0[cell % 8]
}
