//! Messages between the supervisor and its processes, in versioned frames.
//!
//! There are three conversations: with a worker, with the admin process and with a pre-flight
//! child. Each has one type per direction. The frame header names the direction, so a receiver gets
//! a message of its expected type, or [`Error::Direction`].
//!
//! A frame is one datagram of a sequenced-packet socket: a header of fixed size (magic, version,
//! direction, slot, generation, number of descriptors, length of the body), then the message as
//! JSON. JSON because these messages are few and pass between binaries of different
//! versions: a field that the receiver does not know is skipped.
//!
//! Invariants: decoding is total (any bytes give a message or an [`Error`]); an unknown version,
//! direction or message is refused; a frame is at most [`FRAME_MAX_BYTES`] and announces at most
//! [`FDS_MAX`] descriptors. Pure: no descriptor, no socket.

mod admin;
mod direction;
mod preflight;
mod worker;

use crate::fault;
use uppercased_ctl::identity::{Generation, SlotId, WorkerId};

pub use admin::{FromAdmin, StartAdmin, ToAdmin};
pub use direction::{Direction, Message};
pub use preflight::{FromPreflight, Job, ToPreflight};
pub use worker::{
    Adoptable, FromWorker, HandOver, Listen, Ready, Rescued, Start, Stop, TakeOver, ToWorker,
};

/// Version of the frame format and of the messages.
pub const VERSION: u16 = 1;
/// Maximum length of a frame in bytes. A configuration with a hundred addresses needs a fifth of
/// it.
pub const FRAME_MAX_BYTES: usize = 64 * 1024;
/// Maximum number of descriptors in one frame: the kernel's limit (`SCM_MAX_FD`), less a margin.
pub const FDS_MAX: usize = 200;

const MAGIC: [u8; 4] = *b"UPPR";
const HEADER_BYTES: usize = 24;

/// A message, and the worker that sends or receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<M> {
    /// The receiver of a [`ToWorker`], the sender of a [`FromWorker`]. The other processes have no
    /// slot and use the default.
    pub worker: WorkerId,
    /// The message itself.
    pub message: M,
}

/// Why a frame is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is too short or too long.
    #[error("a frame of {got} bytes where {wanted} were announced")]
    Length {
        /// Bytes that the header announces, or the length of the header.
        wanted: usize,
        /// Bytes received.
        got: usize,
    },
    /// It is not a frame of this protocol.
    #[error("a frame that does not begin with the magic bytes")]
    Magic,
    /// It has another protocol version.
    #[error("a frame of version {0}; this program supports version {VERSION}")]
    Version(u16),
    /// It belongs to another conversation, or to the other direction of this one.
    #[error("a frame of direction {got} on a channel of {wanted:?}")]
    Direction {
        /// The direction that is expected here.
        wanted: Direction,
        /// The direction that the header names.
        got: u16,
    },
    /// It announces more descriptors than a frame can carry.
    #[error("a frame that announces {0} descriptors; the limit is {FDS_MAX}")]
    Descriptors(u32),
    /// Its body is not a message of its direction.
    #[error("a frame of {direction:?} with an invalid body: {source}")]
    Body {
        /// Direction of the frame.
        direction: Direction,
        /// Position and cause.
        source: serde_json::Error,
    },
    /// It is too long to be sent.
    #[error("a message of {0} bytes; a frame carries at most {FRAME_MAX_BYTES}")]
    TooLong(usize),
}

impl<M: Message> Envelope<M> {
    /// Returns the envelope of a message to or from a process without a slot.
    pub fn without_worker(message: M) -> Self {
        let worker = WorkerId::default();
        Self { worker, message }
    }

    /// Encodes the frame that is sent with `descriptors` descriptors.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Descriptors`].
    pub fn encode(&self, descriptors: usize) -> Result<Vec<u8>, Error> {
        let count = u32::try_from(descriptors).unwrap_or(u32::MAX);
        if descriptors > FDS_MAX {
            return Err(Error::Descriptors(count));
        }
        let body = serde_json::to_vec(&self.message).map_err(refused_body::<M>)?;
        let length = HEADER_BYTES + body.len();
        if length > FRAME_MAX_BYTES {
            return Err(Error::TooLong(length));
        }
        let mut frame = Vec::with_capacity(length);
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&version().to_le_bytes());
        frame.extend_from_slice(&(M::DIRECTION as u16).to_le_bytes());
        frame.extend_from_slice(&self.worker.slot.0.to_le_bytes());
        frame.extend_from_slice(&[0; 2]);
        frame.extend_from_slice(&self.worker.generation.0.to_le_bytes());
        frame.extend_from_slice(&count.to_le_bytes());
        frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        frame.extend_from_slice(&body);
        Ok(frame)
    }

    /// Decodes a frame into its envelope and the number of descriptors that must come with it.
    ///
    /// # Errors
    /// Any [`Error`] but the sender's [`Error::TooLong`].
    pub fn decode(frame: &[u8]) -> Result<(Self, usize), Error> {
        let Some((header, body)) = frame.split_at_checked(HEADER_BYTES) else {
            return Err(Error::Length {
                wanted: HEADER_BYTES,
                got: frame.len(),
            });
        };
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if header[..4] != MAGIC {
            return Err(Error::Magic);
        }
        if u16_at(4) != version() {
            return Err(Error::Version(u16_at(4)));
        }
        let (wanted, got) = (M::DIRECTION, u16_at(6));
        if got != wanted as u16 {
            return Err(Error::Direction { wanted, got });
        }
        let worker = WorkerId {
            slot: SlotId(u16_at(8)),
            generation: Generation(u32_at(12)),
        };
        let (descriptors, length) = (u32_at(16), u32_at(20) as usize);
        if descriptors as usize > FDS_MAX {
            return Err(Error::Descriptors(descriptors));
        }
        if length != body.len() {
            return Err(Error::Length {
                wanted: length,
                got: body.len(),
            });
        }
        let message = serde_json::from_slice(body).map_err(refused_body::<M>)?;
        Ok((Self { worker, message }, descriptors as usize))
    }
}

/// Returns the version of this program; a test may give a server another one.
pub(crate) fn version() -> u16 {
    let other = fault::value("wire_version").and_then(|version| version.parse().ok());
    other.unwrap_or(VERSION)
}

const fn refused_body<M: Message>(source: serde_json::Error) -> Error {
    let direction = M::DIRECTION;
    Error::Body { direction, source }
}

#[cfg(test)]
mod tests;
