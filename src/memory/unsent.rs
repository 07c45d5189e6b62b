//! The reader's side of the store rules: the unsent output of a connection, from the memory alone.
//!
//! The memory is untrusted input here: its writer died at any instant, perhaps because of what it
//! wrote. Every word is checked before it is used, and a contradiction is [`Corrupt`], never a
//! panic.

use std::sync::atomic::Ordering;

use super::layout::{HANDS, Head, InHand, Layout, Pending, State};
use super::record::{HEAD, PENDING};
use super::{Memory, Probe};
use crate::service;

/// The memory contradicts itself or the kernel's counters, so the unsent output is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the working memory is inconsistent: {0}")]
pub struct Corrupt(pub &'static str);

/// Returns what connection `fd` had received and not sent, transformed, from the memory alone,
/// whenever its writer stopped.
///
/// `owed` is computed from the kernel's own counters: bytes read from the connection less bytes
/// written to it, those of a PROXY header left out. It is needed for the connections in hand; for
/// every other the record is exact. Nothing is unsent on a connection that lingers, is being
/// closed or does not exist.
///
/// # Errors
/// [`Corrupt`] if a word is invalid or contradicts `owed`.
pub fn unsent<P: Probe>(memory: &mut Memory<P>, fd: u32, owed: u64) -> Result<Vec<u8>, Corrupt> {
    if fd >= memory.layout.descriptors {
        return Err(Corrupt("there is no record for such a number"));
    }
    let word = load(memory, Layout::record(fd), HEAD);
    let head = Head::unpack(word).ok_or(Corrupt("a state means nothing"))?;
    if head.state != State::Open {
        return Ok(Vec::new());
    }
    let (at, length) = match in_hand_for(memory, fd)? {
        InHand::Recv { start, len, .. } => in_scratch(memory.layout, start, len, owed)?,
        InHand::Flush { .. } => in_flush(memory, fd, owed)?,
        InHand::Nothing => {
            let pending = checked_pending(memory, fd)?;
            match pending {
                Some(pending) => memory.layout.pending(pending),
                None => (memory.layout.scratch(), 0),
            }
        }
    };
    let mut bytes = memory.record_mut(fd).bytes.range(at, length).to_vec();
    service::transform(&mut bytes);
    Ok(bytes)
}

/// Returns what is in hand for connection `fd`. A word that means nothing names none.
///
/// # Errors
/// [`Corrupt`] if two words name `fd`.
pub(super) fn in_hand_for<P: Probe>(memory: &Memory<P>, fd: u32) -> Result<InHand, Corrupt> {
    let mut found = InHand::Nothing;
    for word in 0..HANDS {
        let (line, word) = Layout::in_hand(word);
        let in_hand = InHand::unpack(load(memory, line, word)).unwrap_or(InHand::Nothing);
        if in_hand.fd() == Some(fd) {
            if found != InHand::Nothing {
                return Err(Corrupt("a connection is in hand twice"));
            }
            found = in_hand;
        }
    }
    Ok(found)
}

fn in_scratch(layout: Layout, first: u32, len: u32, owed: u64) -> Result<(usize, usize), Corrupt> {
    let room = layout.room_at(first);
    if len > room {
        return Err(Corrupt("more was received than one read takes"));
    }
    let bound = if len == 0 { room } else { len };
    let owed = u32::try_from(owed).ok().filter(|&owed| owed <= bound);
    let owed = owed.ok_or(Corrupt("more is owed than was received"))?;
    // Length still unknown: nothing was sent yet, so all bytes received are unsent.
    let start = if len == 0 { 0 } else { len - owed };
    Ok((layout.scratch() + (first + start) as usize, owed as usize))
}

fn in_flush<P: Probe>(memory: &Memory<P>, fd: u32, owed: u64) -> Result<(usize, usize), Corrupt> {
    let Some(pending) = checked_pending(memory, fd)? else {
        return if owed == 0 {
            Ok((memory.layout.scratch(), 0))
        } else {
            Err(Corrupt("the output owed was let go"))
        };
    };
    let owed = u32::try_from(owed).ok().filter(|&owed| owed <= pending.end);
    let owed = owed.ok_or(Corrupt("more is owed than was pending"))?;
    let start = memory.layout.buffer(pending.buffer) + (pending.end - owed) as usize;
    Ok((start, owed as usize))
}

pub(super) fn checked_pending<P: Probe>(
    memory: &Memory<P>,
    fd: u32,
) -> Result<Option<Pending>, Corrupt> {
    let word = load(memory, Layout::record(fd), PENDING);
    if word == 0 {
        return Ok(None);
    }
    let layout = memory.layout;
    let named = |p: &Pending| p.buffer < layout.buffers;
    Pending::unpack(word)
        .filter(named)
        .map(Some)
        .ok_or(Corrupt("a pending range means nothing"))
}

pub(super) fn load<P: Probe>(memory: &Memory<P>, line: usize, word: usize) -> u64 {
    memory.shared.line(line).0[word].load(Ordering::Relaxed)
}
