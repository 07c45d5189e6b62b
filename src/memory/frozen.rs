//! A connection by value, to be passed from one owner to the next.
//!
//! [`RecordMut::freeze`] copies a live connection between two calls, [`rescued`] reconstructs one
//! from the memory of a worker that died at any instant, and both end in [`Memory::thaw`], under
//! any descriptor number of any memory. The kernel's part (unread input, undelivered output)
//! travels with the descriptor.
//!
//! Invariants:
//! - freezing only reads: until the copy has arrived, the sender owns the connection and can
//!   continue it;
//! - `thaw(freeze(c))` equals `c` except for readiness, which the new event loop reports when it
//!   begins to watch the descriptor;
//! - bytes received less bytes sent are the unsent ones, before and after;
//! - a thaw that fails has changed nothing, and one that is cut short by the death of its process
//!   can be repaired from the memory like everything else.
//!
//! It must not know how a frozen connection is sent, or when.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::layout::{Flags, InHand, Pending, SCRATCH_BYTES, State};
use super::record::Entry;
use super::unsent::in_hand_for;
use super::{Corrupt, Memory, NoBuffer, Probe, Record, RecordMut, unsent};
use uppercased_ctl::clock::Tick;

/// The state of a connection outside the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Transformed output that the kernel has not accepted, in order.
    pub unsent: Vec<u8>,
    /// The phase of its life.
    pub phase: Phase,
    /// The peer ended its stream; the end is answered after the unsent output.
    pub peer_ended: bool,
    /// Whether the stream is to be ended as soon as no output is pending, because the worker stops.
    pub finish: bool,
    /// The peer's address; an IPv4-mapped one as IPv4.
    pub peer: SocketAddr,
    /// Bytes received, each of which is owed to the peer.
    pub bytes_in: u64,
    /// Bytes of them that the kernel accepted for sending.
    pub bytes_out: u64,
    /// Start of its current deadline.
    pub last_progress: Tick,
    /// When it was accepted.
    pub opened: Tick,
    /// Bytes of its PROXY header, which are not among those received; 0 without one.
    pub header_bytes: u16,
}

/// The phase of a connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is served.
    Open,
    /// Its stream was ended after `idle_timeout`; it waits for the peer to close.
    LingeringIdle,
    /// Its stream was ended because the worker stops; it waits for the peer to close.
    LingeringStop,
    /// Its PROXY header is still in the kernel.
    AwaitingHeader,
}

/// The reason why a frozen connection cannot be thawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThawError {
    /// The memory has no record for the number.
    #[error("descriptor {fd} has no record: the working memory has {descriptors}")]
    NoRecord {
        /// The descriptor number.
        fd: u32,
        /// Number of records.
        descriptors: u32,
    },
    /// The record belongs to another connection, or to one that is being closed.
    #[error("descriptor {fd} is another connection's in the working memory")]
    Occupied {
        /// The descriptor number.
        fd: u32,
    },
    /// More output than one buffer holds.
    #[error("{unsent} bytes of unsent output do not fit a buffer of {SCRATCH_BYTES}")]
    TooLong {
        /// Bytes of unsent output.
        unsent: usize,
    },
    /// Every buffer is in use.
    #[error(transparent)]
    NoBuffer(#[from] NoBuffer),
    /// It contradicts itself.
    #[error("the frozen connection is inconsistent: {0}")]
    Inconsistent(&'static str),
}

/// Returns the state of the connection of `fd` from the memory alone, whenever its writer stopped;
/// `None` if there was none, or it was being closed. `owed` as for [`unsent()`].
///
/// # Errors
/// As [`unsent()`].
pub fn rescued<P: Probe>(
    memory: &mut Memory<P>,
    fd: u32,
    owed: u64,
) -> Result<Option<Frozen>, Corrupt> {
    let unsent = unsent(memory, fd, owed)?;
    let (received, sent) = memory.record(fd).bytes_moved();
    let rest = unsent.len() as u64;
    let moved = match in_hand_for(memory, fd)? {
        // Nothing was owed before the call, so everything counted before it was sent.
        InHand::Recv { len: 0, .. } => sent.checked_add(rest),
        InHand::Recv { .. } | InHand::Flush { .. } | InHand::Nothing => Some(received),
    };
    let moved = moved.and_then(|received| Some((received, received.checked_sub(rest)?)));
    let (bytes_in, bytes_out) = moved.ok_or(Corrupt("more is unsent than was received"))?;
    Ok(copy_of(&memory.record(fd), unsent, bytes_in, bytes_out))
}

impl<P: Probe> RecordMut<'_, P> {
    /// Copies the connection between two calls; `None` if the record is free, or the connection is
    /// being closed or belongs to another worker. Only reads.
    pub fn freeze(&mut self) -> Option<Frozen> {
        debug_assert!(!self.is_in_hand(), "a connection is frozen between calls");
        let unsent = self.pending().map_or_else(Vec::new, |pending| {
            let (at, length) = self.layout.pending(pending);
            self.bytes.range(at, length).to_vec()
        });
        let (bytes_in, bytes_out) = self.bytes_moved();
        copy_of(self, unsent, bytes_in, bytes_out)
    }

    /// Stores a frozen connection with `flags`; `unsent` is the number of its unsent bytes.
    fn store_frozen(
        &mut self,
        generation: u32,
        frozen: &Frozen,
        unsent: u32,
        flags: Flags,
    ) -> Result<(), NoBuffer> {
        let pending = if unsent == 0 {
            None
        } else {
            let buffer = self.pool.take().ok_or(NoBuffer)?;
            let at = self.layout.buffer(buffer);
            self.bytes
                .range(at, frozen.unsent.len())
                .copy_from_slice(&frozen.unsent);
            Some(Pending {
                buffer,
                offset: 0,
                end: unsent,
            })
        };
        let replaced = self.pending();
        self.enter(&Entry {
            pending,
            bytes_in: frozen.bytes_in,
            bytes_out: frozen.bytes_out,
            last_progress: frozen.last_progress,
            opened: frozen.opened,
            header_bytes: frozen.header_bytes,
            peer: frozen.peer,
            state: frozen.phase.state(),
            flags,
            generation,
        });
        self.settle();
        if let Some(replaced) = replaced {
            self.release(replaced.buffer);
        }
        Ok(())
    }
}

impl<P: Probe> Memory<P> {
    /// Rule 4 for a connection that comes from another owner: records it for `fd` with
    /// `generation`. Where `fd` is recorded with that generation already, as after a crash, its
    /// record is replaced and what was in hand for it is settled.
    ///
    /// Nothing is ready yet: the event loop reports readiness when it begins to watch `fd`. Only a
    /// connection that is to finish has work at once, the last look at the kernel.
    ///
    /// # Errors
    /// [`ThawError`]; nothing has changed then.
    pub fn thaw(&mut self, fd: u32, generation: u32, frozen: &Frozen) -> Result<(), ThawError> {
        self.store_frozen(fd, generation, frozen, frozen.flags().resumed())
    }

    /// [`Memory::thaw`] by rule 8: the connection belongs to the sender until that has received the
    /// acknowledgement, and nothing is done to it before [`RecordMut::take_ownership`].
    ///
    /// # Errors
    /// As [`Memory::thaw`].
    pub fn arrive(&mut self, fd: u32, generation: u32, frozen: &Frozen) -> Result<(), ThawError> {
        let flags = frozen.flags().with(Flags::ARRIVING);
        self.store_frozen(fd, generation, frozen, flags)
    }

    fn store_frozen(
        &mut self,
        fd: u32,
        generation: u32,
        frozen: &Frozen,
        flags: Flags,
    ) -> Result<(), ThawError> {
        self.check_room(fd, generation)?;
        let unsent = check(frozen)?;
        self.use_number(fd);
        let mut record = self.record_mut(fd);
        Ok(record.store_frozen(generation, frozen, unsent, flags)?)
    }

    fn check_room(&self, fd: u32, generation: u32) -> Result<(), ThawError> {
        let descriptors = self.layout.descriptors;
        if fd >= descriptors {
            return Err(ThawError::NoRecord { fd, descriptors });
        }
        let record = self.record(fd);
        match record.state() {
            State::Free => Ok(()),
            State::Open | State::AwaitingHeader | State::LingeringIdle | State::LingeringStop
                if record.generation() == generation =>
            {
                Ok(())
            }
            State::Open
            | State::AwaitingHeader
            | State::LingeringIdle
            | State::LingeringStop
            | State::Closing
            | State::Handed => Err(ThawError::Occupied { fd }),
        }
    }
}

/// Returns the number of unsent bytes if `frozen` is consistent and fits a buffer.
fn check(frozen: &Frozen) -> Result<u32, ThawError> {
    let unsent = frozen.unsent.len();
    if unsent > SCRATCH_BYTES {
        return Err(ThawError::TooLong { unsent });
    }
    // Bounded by the check above.
    let unsent = unsent as u32;
    if frozen.bytes_in.checked_sub(frozen.bytes_out) != Some(u64::from(unsent)) {
        return Err(ThawError::Inconsistent(
            "bytes received and sent do not differ by the unsent ones",
        ));
    }
    if unsent > 0 && frozen.phase != Phase::Open {
        return Err(ThawError::Inconsistent(
            "its stream was ended before its last byte",
        ));
    }
    if frozen.bytes_in > 0 && frozen.phase == Phase::AwaitingHeader {
        return Err(ThawError::Inconsistent(
            "something was received before its header",
        ));
    }
    Ok(unsent)
}

fn copy_of(record: &Record<'_>, unsent: Vec<u8>, bytes_in: u64, bytes_out: u64) -> Option<Frozen> {
    Some(Frozen {
        unsent,
        phase: Phase::of(record.state())?,
        peer_ended: record.flags().has(Flags::PEER_ENDED),
        finish: record.flags().has(Flags::FINISH),
        peer: record.peer(),
        bytes_in,
        bytes_out,
        last_progress: record.last_progress(),
        opened: record.opened_at(),
        header_bytes: record.header_bytes(),
    })
}

impl Frozen {
    fn flags(&self) -> Flags {
        let mut flags = Flags::default();
        if self.peer_ended {
            flags = flags.with(Flags::PEER_ENDED);
        }
        if self.finish {
            flags = flags.with(Flags::FINISH);
        }
        flags
    }
}

impl Phase {
    /// Returns the state of a record that is this far; the inverse of [`Phase::of`].
    const fn state(self) -> State {
        match self {
            Self::Open => State::Open,
            Self::LingeringIdle => State::LingeringIdle,
            Self::LingeringStop => State::LingeringStop,
            Self::AwaitingHeader => State::AwaitingHeader,
        }
    }

    /// Returns `None` for a state without a connection, or with one that is being closed.
    const fn of(state: State) -> Option<Self> {
        match state {
            State::Open => Some(Self::Open),
            State::LingeringIdle => Some(Self::LingeringIdle),
            State::LingeringStop => Some(Self::LingeringStop),
            State::AwaitingHeader => Some(Self::AwaitingHeader),
            State::Free | State::Closing | State::Handed => None,
        }
    }
}

#[cfg(test)]
mod tests;
