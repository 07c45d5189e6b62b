//! The packets of a handover, as bytes.
//!
//! A packet is a header of fixed size (magic, version, kind, sequence number, count, length of the
//! body), then a body. A batch's body is a record for each connection: a fixed part, then its
//! unsent bytes. Numbers are little-endian. Binary, because a batch is made and read within a turn
//! of the loop.
//!
//! Invariants: decoding is total (any bytes give a packet or an [`Error`]); a packet is at most
//! [`HANDOVER_MESSAGE_BYTES`] long and holds at most [`HANDOVER_BATCH_CONNECTIONS`] connections,
//! and one connection always fits. The header, and the kinds that refuse, are the same in every
//! version, so that the sender understands a refusal. An invalid record does not spoil the others.
//! Pure: no descriptor, no socket.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::{HANDOVER_BATCH_CONNECTIONS, HANDOVER_MESSAGE_BYTES, SCRATCH_BYTES};
use crate::memory::frozen::{Frozen, Phase};
use uppercased_ctl::clock::Tick;

/// Version of batches, ends and acknowledgements.
pub const VERSION: u16 = 1;
/// Bytes of a refusal's cause; a longer one is cut.
pub const CAUSE_MAX_BYTES: usize = 512;
/// Bytes of a record without its unsent output.
pub const RECORD_BYTES: usize = 58;

const MAGIC: [u8; 4] = *b"UPHO";
const HEADER_BYTES: usize = 20;
const PEER_ENDED: u8 = 1;
const FINISH: u8 = 1 << 1;

const _: () = assert!(
    HEADER_BYTES + RECORD_BYTES + SCRATCH_BYTES <= HANDOVER_MESSAGE_BYTES,
    "one connection always fits"
);

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Number of a packet from the sender of connections, from 1; an answer repeats it.
    pub sequence: u32,
    /// The message.
    pub message: Message,
}

/// One connection of a batch, or the reason why its record cannot be read.
pub type Record = Result<Frozen, &'static str>;

/// The messages of a handover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First, with sequence number 0: the sender has stopped accepting and knows its number of
    /// connections.
    Begin {
        /// Connections that are to come.
        coming: u32,
    },
    /// Connections, with their descriptors in the same order.
    Batch(Vec<Record>),
    /// There are no more, and every batch has been acknowledged.
    End {
        /// Connections in all the batches.
        moved: u32,
    },
    /// The batch is adopted: its connections belong to the receiver from now on, except those in
    /// `left`.
    Acknowledged {
        /// Connections that the receiver has adopted.
        taken: u32,
        /// Those that it cannot adopt, if any: they stay with the sender.
        left: Option<Left>,
    },
    /// No connection of the batch is adopted; those of other batches may be.
    Declined {
        /// The cause, in one line.
        cause: String,
    },
    /// The batch is not adopted, and none after it will be.
    Refused {
        /// The cause, in one line.
        cause: String,
    },
    /// The receiver is another process now. What it had received after the packet with this number
    /// is lost, and is to be sent again.
    Again,
}

/// The connections of a batch that the receiver cannot adopt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Their places in the batch, in ascending order; at least one.
    pub places: Vec<u8>,
    /// The cause for the first of them, in one line.
    pub cause: String,
}

/// The reason why bytes are not a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is too short or too long.
    #[error("a packet of {got} bytes where {wanted} were announced")]
    Length {
        /// Bytes that the header announces, or the header's own.
        wanted: usize,
        /// Actual number of bytes.
        got: usize,
    },
    /// It does not start with the magic.
    #[error("a packet that does not begin with the magic bytes")]
    Magic,
    /// Its version is not the one that this program reads.
    #[error("the connections have format version {got}, and this program reads version {wanted}")]
    Version {
        /// Its version.
        got: u16,
        /// The one that is read.
        wanted: u16,
    },
    /// Its kind is unknown.
    #[error("a packet of unknown kind {0}")]
    Kind(u16),
    /// More connections than a batch can have, or none.
    #[error("a batch of {0} connections; it has 1 to {HANDOVER_BATCH_CONNECTIONS}")]
    Count(u32),
    /// A connection's record is invalid.
    #[error("cannot read record {index}: {what}")]
    Record {
        /// Its place in the batch.
        index: u32,
        /// The error.
        what: &'static str,
    },
    /// A text is not UTF-8 or too long.
    #[error("cannot read the cause of a refusal")]
    Cause,
    /// The list of connections that stay is invalid.
    #[error("cannot read an acknowledgement")]
    Places,
}

/// A batch under construction: accepts connections as long as they fit.
#[derive(Debug)]
pub struct BatchEncoder {
    frame: Vec<u8>,
    count: u32,
}

impl BatchEncoder {
    /// Returns an empty batch.
    #[must_use]
    pub fn new(sequence: u32) -> Self {
        let mut frame = Vec::with_capacity(HEADER_BYTES + 16 * RECORD_BYTES);
        put_header(&mut frame, VERSION, Kind::Batch, sequence, 0);
        Self { frame, count: 0 }
    }

    /// Adds a connection. Returns false if it does not fit.
    #[must_use]
    pub fn push(&mut self, frozen: &Frozen) -> bool {
        let length = self.frame.len() + RECORD_BYTES + frozen.unsent.len();
        if self.count as usize >= HANDOVER_BATCH_CONNECTIONS || length > HANDOVER_MESSAGE_BYTES {
            return false;
        }
        put_record(&mut self.frame, frozen);
        self.count += 1;
        true
    }

    /// Returns the number of connections in it.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Returns the packet.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.frame[COUNT_AT..COUNT_AT + 4].copy_from_slice(&self.count.to_le_bytes());
        close(self.frame)
    }
}

impl Packet {
    /// Encodes the packet. A batch is cut to the connections that fit, a cause to
    /// [`CAUSE_MAX_BYTES`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        let mut head = |kind, count| put_header(&mut frame, VERSION, kind, self.sequence, count);
        match &self.message {
            Message::Batch(connections) => {
                let mut batch = BatchEncoder::new(self.sequence);
                let _ = connections.iter().flatten().all(|one| batch.push(one));
                return batch.finish();
            }
            Message::Begin { coming } => head(Kind::Begin, *coming),
            Message::End { moved } => head(Kind::End, *moved),
            Message::Again => head(Kind::Again, 0),
            Message::Acknowledged { taken, left } => {
                head(Kind::Acknowledged, *taken);
                if let Some(left) = left {
                    let places = &left.places[..left.places.len().min(HANDOVER_BATCH_CONNECTIONS)];
                    // A batch has fewer connections than a byte has values.
                    frame.push(places.len() as u8);
                    frame.extend_from_slice(places);
                    put_cause(&mut frame, &left.cause);
                }
            }
            Message::Declined { cause } => {
                head(Kind::Declined, 0);
                put_cause(&mut frame, cause);
            }
            Message::Refused { cause } => {
                head(Kind::Refused, 0);
                put_cause(&mut frame, cause);
            }
        }
        close(frame)
    }

    /// Decodes a packet of version [`VERSION`]; refusals are decoded in any version.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn decode(frame: &[u8]) -> Result<Self, Error> {
        let (header, body) = header_of(frame)?;
        let Header {
            version,
            kind,
            sequence,
            count,
            length,
        } = header;
        let kind = Kind::from_number(kind).ok_or(Error::Kind(kind))?;
        if version != VERSION && !matches!(kind, Kind::Refused | Kind::Declined) {
            return Err(Error::Version {
                got: version,
                wanted: VERSION,
            });
        }
        let wanted = length as usize;
        let bound = HANDOVER_MESSAGE_BYTES - HEADER_BYTES;
        if wanted != body.len() || wanted > bound || (kind.has_no_body() && wanted > 0) {
            let got = body.len();
            return Err(Error::Length { wanted, got });
        }
        let message = match kind {
            Kind::Batch => Message::Batch(batch(body, count)?),
            Kind::Begin => Message::Begin { coming: count },
            Kind::End => Message::End { moved: count },
            Kind::Again => Message::Again,
            Kind::Acknowledged => Message::Acknowledged {
                taken: count,
                left: left(body)?,
            },
            Kind::Declined => Message::Declined {
                cause: cause(body, count)?,
            },
            Kind::Refused => Message::Refused {
                cause: cause(body, count)?,
            },
        };
        Ok(Self { sequence, message })
    }
}

/// Returns the sequence number of a batch that cannot be read otherwise; `None` for any other
/// packet.
#[must_use]
pub fn sequence_of_batch(frame: &[u8]) -> Option<u32> {
    let (header, _) = header_of(frame).ok()?;
    (header.kind == Kind::Batch as u16).then_some(header.sequence)
}

/// The fixed part of a packet.
struct Header {
    version: u16,
    kind: u16,
    sequence: u32,
    count: u32,
    length: u32,
}

fn header_of(frame: &[u8]) -> Result<(Header, &[u8]), Error> {
    let Some((header, body)) = frame.split_at_checked(HEADER_BYTES) else {
        return Err(Error::Length {
            wanted: HEADER_BYTES,
            got: frame.len(),
        });
    };
    let mut header = Reader(header);
    if header.bytes() != Some(MAGIC) {
        return Err(Error::Magic);
    }
    let read = |from: &mut Reader<'_>| {
        Some(Header {
            version: from.u16()?,
            kind: from.u16()?,
            sequence: from.u32()?,
            count: from.u32()?,
            length: from.u32()?,
        })
    };
    let header = read(&mut header).ok_or(Error::Magic)?;
    Ok((header, body))
}

/// Kinds of packets, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Kind {
    Batch = 1,
    End = 2,
    Acknowledged = 3,
    Refused = 4,
    Declined = 5,
    Begin = 6,
    Again = 7,
}

impl Kind {
    const fn from_number(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Batch),
            2 => Some(Self::End),
            3 => Some(Self::Acknowledged),
            4 => Some(Self::Refused),
            5 => Some(Self::Declined),
            6 => Some(Self::Begin),
            7 => Some(Self::Again),
            _ => None,
        }
    }

    const fn has_no_body(self) -> bool {
        match self {
            Self::End | Self::Begin | Self::Again => true,
            Self::Batch | Self::Acknowledged | Self::Refused | Self::Declined => false,
        }
    }
}

const COUNT_AT: usize = 12;
const LENGTH_AT: usize = 16;

fn put_header(frame: &mut Vec<u8>, version: u16, kind: Kind, sequence: u32, count: u32) {
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&version.to_le_bytes());
    frame.extend_from_slice(&(kind as u16).to_le_bytes());
    frame.extend_from_slice(&sequence.to_le_bytes());
    frame.extend_from_slice(&count.to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
}

/// Writes the length of the body into the header.
fn close(mut frame: Vec<u8>) -> Vec<u8> {
    let length = narrow(frame.len() - HEADER_BYTES);
    frame[LENGTH_AT..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    frame
}

/// Writes a cause, cut to [`CAUSE_MAX_BYTES`] between two characters.
fn put_cause(frame: &mut Vec<u8>, cause: &str) {
    let whole = |end: &usize| cause.is_char_boundary(*end);
    let end = (0..=cause.len().min(CAUSE_MAX_BYTES)).rev().find(whole);
    frame.extend_from_slice(&cause.as_bytes()[..end.unwrap_or(0)]);
}

fn put_record(frame: &mut Vec<u8>, frozen: &Frozen) {
    let phase = match frozen.phase {
        Phase::Open => 1,
        Phase::LingeringIdle => 2,
        Phase::LingeringStop => 3,
        // A program that does not know it leaves the connection where it is.
        Phase::AwaitingHeader => 4,
    };
    let mut flags = 0;
    if frozen.peer_ended {
        flags |= PEER_ENDED;
    }
    if frozen.finish {
        flags |= FINISH;
    }
    let address = match frozen.peer.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    frame.extend_from_slice(&[phase, flags]);
    frame.extend_from_slice(&frozen.peer.port().to_le_bytes());
    frame.extend_from_slice(&narrow(frozen.unsent.len()).to_le_bytes());
    frame.extend_from_slice(&address.octets());
    frame.extend_from_slice(&frozen.bytes_in.to_le_bytes());
    frame.extend_from_slice(&frozen.bytes_out.to_le_bytes());
    frame.extend_from_slice(&frozen.last_progress.as_nanos().to_le_bytes());
    frame.extend_from_slice(&frozen.opened.as_nanos().to_le_bytes());
    frame.extend_from_slice(&frozen.header_bytes.to_le_bytes());
    frame.extend_from_slice(&frozen.unsent);
}

fn batch(body: &[u8], count: u32) -> Result<Vec<Record>, Error> {
    if count == 0 || count as usize > HANDOVER_BATCH_CONNECTIONS {
        return Err(Error::Count(count));
    }
    let mut rest = Reader(body);
    let mut connections = Vec::with_capacity(count as usize);
    for index in 0..count {
        let one = record(&mut rest).map_err(|what| Error::Record { index, what })?;
        connections.push(one);
    }
    if rest.0.is_empty() {
        return Ok(connections);
    }
    Err(Error::Record {
        index: count,
        what: "there are bytes behind the last one",
    })
}

/// Reads one record. Only one whose end is not known spoils those after it.
fn record(from: &mut Reader<'_>) -> Result<Record, &'static str> {
    let short = "it is cut short";
    let [phase, flags] = from.bytes().ok_or(short)?;
    let port = from.u16().ok_or(short)?;
    let unsent = from.u32().ok_or(short)? as usize;
    let address = Ipv6Addr::from(from.bytes::<16>().ok_or(short)?);
    let bytes_in = from.u64().ok_or(short)?;
    let bytes_out = from.u64().ok_or(short)?;
    let last_progress = Tick::from_nanos(from.u64().ok_or(short)?);
    let opened = Tick::from_nanos(from.u64().ok_or(short)?);
    let header_bytes = from.u16().ok_or(short)?;
    if unsent > SCRATCH_BYTES {
        return Err("more bytes are unsent than any buffer holds");
    }
    let unsent = from.take(unsent).ok_or(short)?.to_vec();
    let phase = match phase {
        1 => Phase::Open,
        2 => Phase::LingeringIdle,
        3 => Phase::LingeringStop,
        4 => Phase::AwaitingHeader,
        _ => return Ok(Err("its phase is invalid")),
    };
    if flags & !(PEER_ENDED | FINISH) != 0 {
        return Ok(Err("its flags are invalid"));
    }
    Ok(Ok(Frozen {
        unsent,
        phase,
        peer_ended: flags & PEER_ENDED != 0,
        finish: flags & FINISH != 0,
        peer: SocketAddr::new(address.to_canonical(), port),
        bytes_in,
        bytes_out,
        last_progress,
        opened,
        header_bytes,
    }))
}

/// Decodes the list of connections that stay: their number, their places, then the cause.
fn left(body: &[u8]) -> Result<Option<Left>, Error> {
    let Some((&count, rest)) = body.split_first() else {
        return Ok(None);
    };
    let (places, text) = rest
        .split_at_checked(count.into())
        .filter(|(places, _)| !places.is_empty() && places.is_sorted_by(|one, next| one < next))
        .filter(|_| usize::from(count) <= HANDOVER_BATCH_CONNECTIONS)
        .ok_or(Error::Places)?;
    Ok(Some(Left {
        places: places.to_vec(),
        cause: cause(text, 0)?,
    }))
}

fn cause(body: &[u8], count: u32) -> Result<String, Error> {
    if count != 0 || body.len() > CAUSE_MAX_BYTES {
        return Err(Error::Cause);
    }
    let text = str::from_utf8(body).map_err(|_| Error::Cause)?;
    Ok(text.to_owned())
}

/// Lengths here are bounded by [`HANDOVER_MESSAGE_BYTES`].
const fn narrow(length: usize) -> u32 {
    length as u32
}

/// Reads numbers from the front of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests;
