//! The counters in a working memory, for any process that maps it.
//!
//! Invariant: every function is total; a compromised writer may leave any words.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::Layout;
use crate::sys::shared::{SharedMemory, Words};
use uppercased_ctl::metrics::{CloseReason, Counter};

/// Returns a counter as its writer left it.
#[must_use]
pub fn counter(shared: &SharedMemory, counter: Counter) -> u64 {
    metrics_cell(shared.words(), counter).load(Ordering::Relaxed)
}

/// Returns the connections opened less those closed, which differ from the open ones only while the
/// counters are being written, or if their writer died.
pub(super) fn balance(shared: &SharedMemory) -> i64 {
    balance_of(|one| counter(shared, one))
}

/// Returns the number of open connections by the counters: accepted or migrated in, not yet closed
/// or migrated out.
#[must_use]
pub fn open_connections(shared: &SharedMemory) -> u64 {
    open_by(|one| counter(shared, one))
}

/// Returns the same from counters stored elsewhere. While they are being written more may seem
/// closed than opened: that reads as zero.
#[must_use]
pub fn open_by(count: impl Fn(Counter) -> u64) -> u64 {
    balance_of(count).max(0).cast_unsigned()
}

/// Progress of a worker's handovers: the latest from it and the latest to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Batches sent.
    pub sent: u64,
    /// Batches sent whose answer was read.
    pub settled: u64,
    /// Batches received and answered.
    pub answered: u64,
}

/// Returns the progress of a worker's handovers as it reports it.
#[must_use]
pub fn moves(shared: &SharedMemory) -> Moves {
    let word = |at: usize| shared.line(Layout::MOVING).0[at].load(Ordering::Relaxed);
    Moves {
        sent: word(0),
        settled: word(1),
        answered: word(2),
    }
}

/// Returns the number of connections that the memory has room for, according to its writer.
#[must_use]
pub fn room(shared: &SharedMemory) -> u32 {
    let buffers = shared.line(Layout::HEADER).0[2].load(Ordering::Relaxed);
    u32::try_from(buffers).unwrap_or(0).min(Layout::MAX_BUFFERS)
}

/// Returns everything but the counters to the system, after the last process of a worker has ended:
/// until its successor begins, its connections' buffers would count against a memory limit.
///
/// # Errors
/// The error of `fallocate`; nothing is changed then.
pub fn release(shared: &SharedMemory) -> io::Result<()> {
    shared.clear_from(Layout::LISTENERS)
}

/// Returns whether the counters are plausible. A compromised worker may have left any words: then
/// none of them may be added to anything.
#[must_use]
pub fn is_believable(shared: &SharedMemory) -> bool {
    balance_of(|one| counter(shared, one)).unsigned_abs() <= Layout::MAX_DESCRIPTORS.into()
}

/// Returns the connections opened less those closed. Wraps, because the words may be
/// anything.
fn balance_of(count: impl Fn(Counter) -> u64) -> i64 {
    let came = count(Counter::Accepted).wrapping_add(count(Counter::MigratedIn));
    let ended = CloseReason::ALL.into_iter().map(Counter::Closed);
    let gone = ended.chain([Counter::MigratedOut]);
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
