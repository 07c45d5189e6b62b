//! The conversation between the supervisor and one worker.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::direction::{Direction, Message};
use crate::config::Config;
use crate::handover::{HandedOver, Part};
use uppercased_ctl::identity::{SlotId, WorkerId};
use uppercased_ctl::status::Sandboxed;

/// A message from the supervisor to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// Starts the worker; always the first message. Descriptors: the working memory, a pidfd of the
    /// supervisor, the lease, the rendezvous if a later supervisor can adopt the worker, then the
    /// slot's listeners if the worker is to adopt them (one for each address, in order).
    Start(Box<Start>),
    /// Serve a slot's listeners in place of those of the same slot that the worker may have: those
    /// of another slot without a worker, or its own after one was replaced. Descriptors: the
    /// listeners.
    Lend {
        /// The owner of the listeners.
        slot: SlotId,
    },
    /// Close another slot's listeners.
    Recall {
        /// The owner of the listeners, which has a worker again, or is removed.
        slot: SlotId,
        /// The slot is removed: accept the connections in its queues before closing them.
        last: bool,
    },
    /// Stop gracefully; answered by [`FromWorker::Draining`].
    Stop(Stop),
    /// Begin to accept. For a worker on standby whose predecessor has exited or is leaving.
    Serve,
    /// Stop accepting, send every connection to another worker, answer with
    /// [`FromWorker::HandedOver`], and exit. Descriptor: one end of the handover's socket pair.
    HandOver(HandOver),
    /// Receive the connections sent over the socket. A worker on standby accepts from now on.
    /// Descriptor: the other end of that pair.
    TakeOver(TakeOver),
    /// Stop accepting, serve established connections until they end or the time is over, close
    /// those gracefully, and exit. Answered by [`FromWorker::Draining`].
    Leave {
        /// Milliseconds for which established connections are served.
        drain_timeout_ms: u64,
    },
    /// Make one iteration of the event loop, so that the worker's pulse shows.
    Ping,
    /// Clone a keeper in place of one that has exited; answered by [`FromWorker::Kept`].
    Keep,
    /// The supervisor has received [`FromWorker::Rescued`] and trusts the rescued worker.
    Confirm,
    /// The sender is the worker's supervisor from now on; answers [`FromWorker::Adoptable`].
    /// Descriptors: a pidfd of the supervisor, the lease.
    Adopt,
}

/// A message from a worker to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// The worker can serve. Descriptors: a duplicate of each listener that it bound; none if it
    /// adopted them.
    Ready(Ready),
    /// The worker cannot serve, and exits.
    Failed {
        /// One line: what failed, why, what to do.
        cause: String,
    },
    /// The worker has stopped accepting because it was asked to stop or to drain.
    Draining {
        /// Connections still open.
        connections: u32,
    },
    /// The requested handover has ended.
    HandedOver(HandedOver),
    /// A listener no longer listens. Answered by [`ToWorker::Lend`] with the slot's current
    /// listeners.
    ListenerLost {
        /// The worker's own slot, or one whose queue it serves for another.
        slot: SlotId,
    },
    /// The worker has a new keeper, whose process ID is in its memory.
    Kept,
    /// A keeper has become the worker, whose process died.
    Rescued(Rescued),
    /// The worker's supervisor has exited, and the receiver may adopt the worker. The first message
    /// to a process that connects at the rendezvous. Descriptors: a pidfd of the worker, the working
    /// memory, the slot's listeners, then those of the slots whose queues it serves beside its own.
    Adoptable(Box<Adoptable>),
    /// The process that has connected at the rendezvous cannot adopt the worker.
    NotAdoptable {
        /// One line.
        cause: String,
    },
}

impl Message for ToWorker {
    const DIRECTION: Direction = Direction::ToWorker;
}

impl Message for FromWorker {
    const DIRECTION: Direction = Direction::FromWorker;
}

/// The parameters of a new worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The validated configuration.
    pub config: Config,
    /// The addresses to bind or of the listeners, ports resolved.
    pub listen: Vec<Listen>,
    /// The listeners are attached; `false`: bind them.
    pub adopt: bool,
    /// The listening socket at which a later supervisor can adopt the worker is attached.
    pub adoptable: bool,
    /// Send Ready without accepting, and wait for [`ToWorker::Serve`] or [`ToWorker::TakeOver`]:
    /// another worker of the slot still serves.
    pub standby: bool,
    /// The CPU to run on; `None`: any.
    pub cpu: Option<u16>,
    /// Connection limit up to which this worker accepts new ones.
    pub max_connections: u32,
    /// Connections that its memory has room for, if more: other workers may hand theirs over.
    pub room: u32,
    /// Records in the working memory: descriptor numbers that this worker may use.
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

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dual_stack {
            write!(f, "*:{}", self.addr.port())
        } else {
            self.addr.fmt(f)
        }
    }
}

/// The state of a worker that can serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The addresses of its listeners, ports resolved.
    pub listen: Vec<Listen>,
    /// The sandbox of the worker.
    pub sandbox: Sandboxed,
}

/// The deadlines of a graceful stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Milliseconds to go on accepting first.
    pub lame_duck_ms: u64,
    /// Milliseconds for pending replies after that.
    pub drain_timeout_ms: u64,
}

/// The result of a rescue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescued {
    /// The number of the process among those that have run the worker, from 1.
    pub life: u64,
    /// The ID of this process.
    pub pid: u32,
    /// Connections that continue.
    pub connections: u32,
    /// Bytes that the dead process had received and not answered.
    pub owed_bytes: u64,
    /// Connections that were reset because they could not be repaired.
    pub reset: u32,
    /// Whether it continues the handover of all its connections.
    pub is_handing_over: bool,
    /// Microseconds from the wake-up of the keeper to this message.
    pub took_us: u64,
}

/// A worker, as it introduces itself to a new supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoptable {
    /// The longest time that it takes to drain, in milliseconds.
    pub drain_timeout_ms: u64,
    /// The addresses of its listeners.
    pub listen: Vec<Listen>,
    /// Its sandbox.
    pub sandbox: Sandboxed,
    /// The slots whose queues it serves beside its own, and whose listeners are not attached.
    pub lent: Vec<SlotId>,
    /// Those whose listeners are attached.
    #[serde(default)]
    pub passed: Vec<SlotId>,
    /// Whether it hands its connections over to another worker of its slot.
    #[serde(default)]
    pub is_handing_over: bool,
    /// If it leaves, so that it has no listeners to attach: within this time, in milliseconds.
    #[serde(default)]
    pub leaves_within_ms: Option<u64>,
}

/// The receiver and the extent of a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    /// The worker at the other end.
    pub to: WorkerId,
    /// No worker accepts from this worker's listeners afterwards: empty their queues before closing
    /// them.
    pub last: bool,
    /// Only a part of the connections: the worker stays, and goes on accepting.
    pub part: Option<Part>,
}

/// The sender of a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeOver {
    /// The worker at the other end.
    pub from: WorkerId,
    /// Estimated number of connections, for which room is reserved.
    pub expected: u32,
}
