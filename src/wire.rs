//! What the supervisor and its processes say to each other: versioned messages in frames.
//!
//! A frame is one datagram of a sequenced-packet socket: a header of fixed size (magic, version,
//! kind, slot, generation, number of descriptors that come along, length of the body), then a
//! JSON body. JSON because these messages are few, travel between binaries of different age, and
//! a field that the reader does not know must be skipped, one that the writer did not know must
//! get its default; the header because whom a message concerns must be readable before its body.
//!
//! Invariants: decoding is total (any bytes give a message or an [`Error`]); an unknown version or
//! kind is refused; a frame is at most [`FRAME_MAX_BYTES`] and names at most [`FDS_MAX`]
//! descriptors. Pure: no descriptor, no socket.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::handover::Part;
use crate::identity::{Generation, SlotId, WorkerId};

/// Version of the frame format and of the set of kinds.
pub const VERSION: u16 = 2;
/// Bytes of the longest frame. A configuration with a hundred addresses needs a fifth of it.
pub const FRAME_MAX_BYTES: usize = 64 * 1024;
/// Descriptors in one frame: what the kernel passes at once (`SCM_MAX_FD`), less a margin.
pub const FDS_MAX: usize = 200;

/// Who is named in what is said to and by the admin process, which lives in no slot.
pub const ADMIN: WorkerId = WorkerId {
    slot: SlotId(u16::MAX),
    generation: Generation(0),
};

const MAGIC: [u8; 4] = *b"UPPR";
const HEADER_BYTES: usize = 24;

/// A message and the worker it is for or from.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// To a worker: whom it is meant for. From a worker: who says it.
    pub worker: WorkerId,
    /// What is said.
    pub message: Message,
}

/// Everything that is said.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// To a new worker, first. Descriptors: the working memory, then the slot's listeners if it
    /// is to adopt them (one for each address, in order).
    Start(Box<Start>),
    /// From a worker that serves. Descriptors: a duplicate of each listener it bound; none if it
    /// adopted them.
    Ready(Ready),
    /// From a worker that cannot serve, last.
    Failed(Failed),
    /// To a worker: accept from a slot's listeners, in place of those of that slot that it may have:
    /// another slot's meanwhile, or its own once one was replaced. Descriptors: those listeners.
    Lend(Lend),
    /// To a worker: stop accepting from another slot's listeners.
    Recall(Recall),
    /// To a worker: stop in order.
    Stop(Stop),
    /// From a worker that stops: it has let go of its listeners.
    Draining(Draining),
    /// To a worker that was started to stand by: its predecessor is gone or leaves; accept now.
    Serve(Serve),
    /// To a worker: stop accepting, send every connection to another worker over the socket that
    /// comes along, say [`HandedOver`], and end. Descriptors: one end of a handover's socket pair.
    HandOver(HandOver),
    /// To a worker: take the connections in that come over the socket. One that stood by accepts
    /// from now on. Descriptors: the other end of that pair.
    TakeOver(TakeOver),
    /// To a worker: stop accepting, serve what is established until it ends or the time is over,
    /// then finish it in order, and end.
    Leave(Leave),
    /// From a worker that was told to hand over: how that ended.
    HandedOver(HandedOver),
    /// To a worker: make a turn of the loop, so that its pulse can be seen.
    Ping(Ping),
    /// To a program that may replace the supervisor's: show that you could. Descriptors: the
    /// state that it would take over. Answered by [`Resolved`] or [`Failed`].
    Preflight(Preflight),
    /// To a child that runs the supervisor's own program: read the configuration. Answered by
    /// [`Resolved`] or [`Failed`].
    Resolve(Resolve),
    /// From a child that was told to resolve, or that could take over: the configuration that it made
    /// of the arguments, the environment and the file.
    Resolved(Resolved),
    /// From a worker: a listener that it accepts from listens no more. Answered by [`Lend`], with
    /// the slot's listeners as they are then.
    ListenerLost(ListenerLost),
    /// To a new admin process, first; it runs the supervisor's own program, so these three are never
    /// said between versions. Descriptors: its listeners. Answered by [`Ready`] or [`Failed`].
    StartAdmin(Box<StartAdmin>),
    /// From the admin process: how is the server?
    Ask(Ask),
    /// To the admin process: so it is. Descriptors: a file with the status as JSON, to be read from
    /// its beginning; a frame is too small for it.
    Told(Told),
}

/// What a new worker needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The validated configuration.
    pub config: Config,
    /// The addresses to bind or that the listeners have, ports resolved.
    pub listen: Vec<Listen>,
    /// Whether the listeners come along, or are to be bound.
    pub adopt: bool,
    /// Whether to be Ready without accepting, until told to serve or to take over: another worker
    /// of the slot still serves.
    #[serde(default)]
    pub standby: bool,
    /// The one CPU that it is to run on; `None`: wherever the system puts it.
    #[serde(default)]
    pub cpu: Option<u16>,
    /// Connections up to which this worker accepts new ones.
    pub max_connections: u32,
    /// Connections that its memory has room for, if those are more: others may hand it theirs.
    #[serde(default)]
    pub room: u32,
    /// Records in the working memory: descriptor numbers this worker may use.
    pub descriptors: u32,
}

/// One address of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// Address and port; port 0 only for the slot that binds first.
    pub addr: SocketAddr,
    /// Whether an IPv6 socket serves IPv4 clients too.
    pub dual_stack: bool,
}

/// What a worker that serves has to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The addresses its listeners really have.
    pub listen: Vec<Listen>,
    /// How it has locked itself in; `None` from a program that does not know how.
    #[serde(default)]
    pub sandbox: Option<Sandboxed>,
}

/// How a worker has locked itself in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandboxed {
    /// The layers that hold, by name; whom it became first.
    pub layers: Vec<String>,
    /// The layers that it wanted and has not: name, colon, why.
    pub missing: Vec<String>,
}

/// Why a worker cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// One line: what, why, what to do.
    pub cause: String,
}

/// Whose listeners are lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lend {
    /// The slot without a worker.
    pub slot: SlotId,
}

/// Whose listeners are to be looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerLost {
    /// The worker's own slot, or one whose queue it was lent.
    pub slot: SlotId,
}

/// Whose listeners are wanted back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    /// The slot that has a worker again, or leaves.
    pub slot: SlotId,
    /// The slot leaves: whoever waits in its queues is accepted before they are closed.
    pub last: bool,
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Milliseconds to go on accepting first.
    pub lame_duck_ms: u64,
    /// Milliseconds for finishing what is owed after that.
    pub drain_timeout_ms: u64,
}

/// How far a stopping worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// Connections still open.
    pub connections: u32,
}

/// Begin to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {}

/// To whom connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    /// The worker at the other end.
    pub to: WorkerId,
    /// Whether nobody accepts from this worker's listeners after it: what stands in their queues
    /// is to be taken before they are let go.
    pub last: bool,
    /// Only a part of the connections: the worker stays, and goes on accepting. Not said to workers
    /// of a program that would not know of it: their configuration does not either.
    #[serde(default)]
    pub part: Option<Part>,
}

/// From whom connections come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeOver {
    /// The worker at the other end.
    pub from: WorkerId,
    /// Connections that are about to come, as far as is known: room is kept for them.
    #[serde(default)]
    pub expected: u32,
}

/// How to leave with established connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// Milliseconds for which established connections are served on.
    pub drain_timeout_ms: u64,
}

/// How a handover ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// Connections that the other worker has acknowledged.
    pub moved: u32,
    /// Connections that this worker still has.
    pub left: u32,
    /// What comes of it.
    pub end: HandoverEnd,
    /// It was a part: the worker serves on, whatever the end is.
    #[serde(default)]
    pub part: bool,
}

/// What a worker does after a handover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverEnd {
    /// Everything has moved; it ends.
    Done,
    /// The other worker is gone. It serves on with what was not acknowledged, and accepts again.
    PeerGone,
    /// The other worker cannot take (more of) its connections. It serves them, without accepting,
    /// until it is told to leave, to serve, to take over or to hand over once more.
    Refused {
        /// In the other worker's words.
        cause: String,
    },
}

/// Make a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {}

/// Show that you could take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {}

/// Read the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {}

/// A configuration as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// A [`Config`] of the program that sends it, which may be another version than the one that
    /// receives it and passes it on.
    pub config: serde_json::Value,
}

/// What a new admin process needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartAdmin {
    /// The validated configuration: how it is to log, and to lock itself in.
    pub config: Config,
    /// There is a listener for HTTP.
    pub http: bool,
    /// There is one for load balancers, behind that.
    pub agent: bool,
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Comes back with the answer.
    pub number: u64,
    /// What load balancers were told until now.
    pub agent: AgentAnswers,
}

/// How often an admin process has told load balancers what, by the first word of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is the word of its name")]
pub struct AgentAnswers {
    pub ready: u64,
    pub drain: u64,
    pub maint: u64,
    pub down: u64,
}

impl AgentAnswers {
    /// Every word, and how often it was said.
    #[must_use]
    pub const fn by_word(&self) -> [(&'static str, u64); 4] {
        [
            ("ready", self.ready),
            ("drain", self.drain),
            ("maint", self.maint),
            ("down", self.down),
        ]
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// That of the question.
    pub number: u64,
}

/// Why a frame is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It ends too early or goes on too long.
    #[error("a frame of {got} bytes where {wanted} were announced")]
    Length {
        /// Bytes that the header announces, or the header's own.
        wanted: usize,
        /// Bytes there are.
        got: usize,
    },
    /// It is not one of ours.
    #[error("a frame that does not begin with the magic bytes")]
    Magic,
    /// It is from a program too old or too new.
    #[error("a frame of version {0}; this program speaks version {VERSION}")]
    Version(u16),
    /// It says something unheard of.
    #[error("a frame of unknown kind {0}")]
    Kind(u16),
    /// It announces more descriptors than a frame can carry.
    #[error("a frame that announces {0} descriptors; at most {FDS_MAX} can come along")]
    Descriptors(u32),
    /// Its body is not what its kind wants.
    #[error("the body of a frame of kind {kind} cannot be read: {source}")]
    Body {
        /// Kind of the frame.
        kind: u16,
        /// Where and why.
        source: serde_json::Error,
    },
    /// It is too long to be sent.
    #[error("a message of {0} bytes; a frame carries at most {FRAME_MAX_BYTES}")]
    TooLong(usize),
}

impl Envelope {
    /// As a frame that `descriptors` descriptors go along with.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Descriptors`].
    pub fn encode(&self, descriptors: usize) -> Result<Vec<u8>, Error> {
        let (kind, body) = self.message.encode()?;
        let count = u32::try_from(descriptors).unwrap_or(u32::MAX);
        if descriptors > FDS_MAX {
            return Err(Error::Descriptors(count));
        }
        let length = HEADER_BYTES + body.len();
        if length > FRAME_MAX_BYTES {
            return Err(Error::TooLong(length));
        }
        let mut frame = Vec::with_capacity(length);
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&VERSION.to_le_bytes());
        frame.extend_from_slice(&kind.to_le_bytes());
        frame.extend_from_slice(&self.worker.slot.0.to_le_bytes());
        frame.extend_from_slice(&[0; 2]);
        frame.extend_from_slice(&self.worker.generation.0.to_le_bytes());
        frame.extend_from_slice(&count.to_le_bytes());
        frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        frame.extend_from_slice(&body);
        Ok(frame)
    }

    /// From a frame; also how many descriptors must have come along with it.
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
        if u16_at(4) != VERSION {
            return Err(Error::Version(u16_at(4)));
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
        let message = Message::decode(u16_at(6), body)?;
        Ok((Self { worker, message }, descriptors as usize))
    }
}

impl Message {
    fn encode(&self) -> Result<(u16, Vec<u8>), Error> {
        let (kind, body) = match self {
            Self::Start(body) => (1, serde_json::to_vec(body)),
            Self::Ready(body) => (2, serde_json::to_vec(body)),
            Self::Failed(body) => (3, serde_json::to_vec(body)),
            Self::Lend(body) => (4, serde_json::to_vec(body)),
            Self::Recall(body) => (5, serde_json::to_vec(body)),
            Self::Stop(body) => (6, serde_json::to_vec(body)),
            Self::Draining(body) => (7, serde_json::to_vec(body)),
            Self::Serve(body) => (8, serde_json::to_vec(body)),
            Self::HandOver(body) => (9, serde_json::to_vec(body)),
            Self::TakeOver(body) => (10, serde_json::to_vec(body)),
            Self::Leave(body) => (11, serde_json::to_vec(body)),
            Self::HandedOver(body) => (12, serde_json::to_vec(body)),
            Self::Ping(body) => (13, serde_json::to_vec(body)),
            Self::Preflight(body) => (14, serde_json::to_vec(body)),
            Self::StartAdmin(body) => (15, serde_json::to_vec(body)),
            Self::Ask(body) => (16, serde_json::to_vec(body)),
            Self::Told(body) => (17, serde_json::to_vec(body)),
            Self::Resolve(body) => (18, serde_json::to_vec(body)),
            Self::Resolved(body) => (19, serde_json::to_vec(body)),
            Self::ListenerLost(body) => (20, serde_json::to_vec(body)),
        };
        Ok((kind, body.map_err(|source| Error::Body { kind, source })?))
    }

    fn decode(kind: u16, body: &[u8]) -> Result<Self, Error> {
        let message = match kind {
            1 => serde_json::from_slice(body).map(Self::Start),
            2 => serde_json::from_slice(body).map(Self::Ready),
            3 => serde_json::from_slice(body).map(Self::Failed),
            4 => serde_json::from_slice(body).map(Self::Lend),
            5 => serde_json::from_slice(body).map(Self::Recall),
            6 => serde_json::from_slice(body).map(Self::Stop),
            7 => serde_json::from_slice(body).map(Self::Draining),
            8 => serde_json::from_slice(body).map(Self::Serve),
            9 => serde_json::from_slice(body).map(Self::HandOver),
            10 => serde_json::from_slice(body).map(Self::TakeOver),
            11 => serde_json::from_slice(body).map(Self::Leave),
            12 => serde_json::from_slice(body).map(Self::HandedOver),
            13 => serde_json::from_slice(body).map(Self::Ping),
            14 => serde_json::from_slice(body).map(Self::Preflight),
            15 => serde_json::from_slice(body).map(Self::StartAdmin),
            16 => serde_json::from_slice(body).map(Self::Ask),
            17 => serde_json::from_slice(body).map(Self::Told),
            18 => serde_json::from_slice(body).map(Self::Resolve),
            19 => serde_json::from_slice(body).map(Self::Resolved),
            20 => serde_json::from_slice(body).map(Self::ListenerLost),
            unknown => return Err(Error::Kind(unknown)),
        };
        message.map_err(|source| Error::Body { kind, source })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn envelope(message: Message) -> Envelope {
        let worker = WorkerId {
            slot: SlotId(3),
            generation: Generation(70_000),
        };
        Envelope { worker, message }
    }

    fn messages() -> Vec<Message> {
        let addr = "[::1]:9999".parse().unwrap();
        vec![
            Message::Ready(Ready {
                listen: vec![Listen {
                    addr,
                    dual_stack: false,
                }],
                sandbox: Some(Sandboxed {
                    layers: vec!["seccomp".into()],
                    missing: vec!["landlock: none here".into()],
                }),
            }),
            Message::Failed(Failed {
                cause: "no \"luck\"\n".into(),
            }),
            Message::Lend(Lend { slot: SlotId(9) }),
            Message::Recall(Recall {
                slot: SlotId(u16::MAX),
                last: true,
            }),
            Message::Stop(Stop {
                lame_duck_ms: 0,
                drain_timeout_ms: u64::MAX,
            }),
            Message::Draining(Draining { connections: 7 }),
            Message::Serve(Serve {}),
            Message::HandOver(HandOver {
                to: WorkerId::default(),
                last: true,
                part: Some(Part {
                    permille: 333,
                    at_most: 200,
                    active_within: std::time::Duration::from_secs(2),
                }),
            }),
            Message::TakeOver(TakeOver {
                from: WorkerId::default(),
                expected: 3,
            }),
            Message::Leave(Leave {
                drain_timeout_ms: 5,
            }),
            Message::HandedOver(HandedOver {
                moved: 1,
                left: 2,
                end: HandoverEnd::Refused {
                    cause: "full".into(),
                },
                part: true,
            }),
            Message::Ping(Ping {}),
            Message::Preflight(Preflight {}),
            Message::StartAdmin(Box::new(StartAdmin {
                config: Config::default(),
                http: true,
                agent: false,
            })),
            Message::Ask(Ask {
                number: u64::MAX,
                agent: AgentAnswers {
                    ready: 1,
                    drain: 2,
                    maint: 3,
                    down: u64::MAX,
                },
            }),
            Message::Told(Told { number: 0 }),
            Message::ListenerLost(ListenerLost { slot: SlotId(3) }),
            Message::Resolve(Resolve {}),
            Message::Resolved(Resolved {
                config: serde_json::to_value(Config::default()).unwrap(),
            }),
        ]
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for message in messages() {
            let sent = envelope(message);
            let frame = sent.encode(2).unwrap();
            assert_eq!(Envelope::decode(&frame).unwrap(), (sent, 2));
        }
    }

    #[test]
    fn bytes_of_version_2_are_read_for_ever() {
        let frame = b"UPPR\x02\x00\x04\x00\x02\x00\x00\x00\x05\x00\x00\x00\x01\x00\x00\x00\x0a\x00\x00\x00{\"slot\":1}";
        let (read, descriptors) = Envelope::decode(frame).unwrap();
        assert_eq!(
            read.worker,
            WorkerId {
                slot: SlotId(2),
                generation: Generation(5)
            }
        );
        assert_eq!(read.message, Message::Lend(Lend { slot: SlotId(1) }));
        assert_eq!(descriptors, 1);
        assert_eq!(read.encode(1).unwrap(), frame);
    }

    #[test]
    fn fields_of_a_newer_program_are_skipped() {
        let body = br#"{"slot":1,"why":"because"}"#;
        let read = Message::decode(4, body).unwrap();
        assert_eq!(read, Message::Lend(Lend { slot: SlotId(1) }));
    }

    #[test]
    fn strangers_are_refused_with_a_reason() {
        let good = envelope(Message::Lend(Lend { slot: SlotId(1) }))
            .encode(0)
            .unwrap();
        let with = |at: usize, byte: u8| {
            let mut frame = good.clone();
            frame[at] = byte;
            Envelope::decode(&frame)
        };
        assert!(matches!(with(0, b'X'), Err(Error::Magic)));
        assert!(matches!(with(4, 1), Err(Error::Version(1))));
        assert!(matches!(with(6, 99), Err(Error::Kind(99))));
        assert!(matches!(with(16, 201), Err(Error::Descriptors(201))));
        assert!(matches!(with(20, 1), Err(Error::Length { .. })));
        assert!(matches!(with(24, b'['), Err(Error::Body { kind: 4, .. })));
        assert!(matches!(
            Envelope::decode(&good[..23]),
            Err(Error::Length { .. })
        ));
        assert!(matches!(
            envelope(Message::Failed(Failed {
                cause: "x".repeat(FRAME_MAX_BYTES)
            }))
            .encode(0),
            Err(Error::TooLong(_))
        ));
        assert!(matches!(
            envelope(Message::Lend(Lend { slot: SlotId(1) })).encode(FDS_MAX + 1),
            Err(Error::Descriptors(_))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Envelope::decode(&bytes);
        }

        #[test]
        fn any_change_of_one_byte_decodes_or_is_refused(
            which in 0usize..16, at: prop::sample::Index, byte: u8,
        ) {
            let mut frame = envelope(messages().swap_remove(which)).encode(0).unwrap();
            let at = at.index(frame.len());
            frame[at] = byte;
            let _ = Envelope::decode(&frame);
        }
    }
}
