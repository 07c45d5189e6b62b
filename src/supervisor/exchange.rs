//! What goes into the supervisor's machine and what comes out: events, actions, notices.
//!
//! Plain values without behaviour. Each names a worker by slot *and* generation, so that what comes
//! late is recognised. They can be serialised because actions not yet carried out are part of a
//! snapshot: renaming a variant or a field changes the snapshot's format (and its version).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::slot::{Death, SlotId, WorkerId};

/// What happened in the world.
///
/// Of one worker, hand in what its channel says before its `Exited`: its own last words name the
/// cause better than an exit code does. Any other order is survived, at the price of that text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Begin. Once, first.
    Boot,
    /// The worker's listener is deposited and it serves.
    Ready {
        /// Who.
        worker: WorkerId,
    },
    /// The worker's own last words before it exits without having been Ready.
    StartFailed {
        /// Who.
        worker: WorkerId,
        /// In its words.
        cause: String,
    },
    /// The answer to [`Action::Spawn`] when no process exists (fork or the like failed).
    SpawnFailed {
        /// Who would have been.
        worker: WorkerId,
        /// What the system said.
        cause: String,
    },
    /// The process is gone and reaped.
    Exited {
        /// Who.
        worker: WorkerId,
        /// How it ended.
        how: Death,
    },
    /// The channel ended or carried nonsense; the process may still live.
    ChannelBroken {
        /// Whose channel.
        worker: WorkerId,
        /// What broke.
        cause: String,
    },
    /// Stop: the first time gracefully, the second time at once.
    Stop {
        /// Who asked, for the log ("SIGTERM").
        by: String,
    },
}

/// Where a new worker gets its slot's listener from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListenerSource {
    /// It binds one itself: the slot has never had one.
    Bind,
    /// It adopts the one deposited with the supervisor. A fresh one would leave the old queue, and
    /// the clients in it, to nobody.
    Adopt,
}

/// What the shell must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Start a process; if that fails, say so with [`Event::SpawnFailed`].
    Spawn {
        /// Who it will be.
        worker: WorkerId,
        /// Where its listener comes from.
        listener: ListenerSource,
    },
    /// SIGKILL, by pidfd. The process may be gone already, or its spawn may have failed: no error.
    Kill {
        /// Whom.
        worker: WorkerId,
    },
    /// Close the kept duplicates of all listeners: no worker will adopt one any more. From now on
    /// a listener lives as long as a worker serves it, so that new clients are refused, and not
    /// left to wait in a queue that nobody will empty. Comes before the first `StopWorker`: else
    /// clients could arrive between a worker's last accept and the end of its listener.
    EndCustody,
    /// Order the worker to stop gracefully, over its channel.
    StopWorker {
        /// Whom.
        worker: WorkerId,
    },
    /// Give a duplicate of the slot's listener to a serving sibling, which accepts on it meanwhile.
    Lend {
        /// Whose listener.
        slot: SlotId,
        /// To whom.
        to: WorkerId,
    },
    /// The sibling stops accepting on the slot's listener and closes its duplicate.
    Recall {
        /// Whose listener.
        slot: SlotId,
        /// From whom.
        from: WorkerId,
    },
    /// Something to log and count.
    Notice(Notice),
    /// Every slot has been Ready once: print the address. Once in a life.
    Announce,
    /// The last action ever: no process is left.
    Exit(Verdict),
}

/// How the supervisor's life ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It was told to stop, and did.
    Clean,
    /// It could not start.
    Failed {
        /// Why, in one line.
        cause: String,
    },
}

/// Something worth a log line, with all that the line needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// A worker is being spawned.
    WorkerStarting {
        /// Who.
        worker: WorkerId,
        /// Where its listener comes from.
        listener: ListenerSource,
    },
    /// A worker serves.
    WorkerReady {
        /// Who.
        worker: WorkerId,
        /// From its spawn to its Ready.
        took: Duration,
    },
    /// A worker ended that should not have.
    WorkerDied {
        /// Who.
        worker: WorkerId,
        /// How.
        how: Death,
        /// How long it had served; `None` if it never was Ready.
        served_for: Option<Duration>,
        /// Why, if anybody said so.
        cause: Option<String>,
    },
    /// A worker ended as it was told to, one way or the other.
    WorkerStopped {
        /// Who.
        worker: WorkerId,
        /// How; anything but exit code 0 means that it did not end by itself.
        how: Death,
    },
    /// A process could not be made.
    SpawnFailed {
        /// Who would have been.
        worker: WorkerId,
        /// What the system said.
        cause: String,
    },
    /// A worker was not Ready in time and is killed.
    StartTimedOut {
        /// Who.
        worker: WorkerId,
        /// How long it was given.
        after: Duration,
    },
    /// A worker's channel broke; the worker is killed.
    ChannelBroken {
        /// Who.
        worker: WorkerId,
        /// What broke.
        cause: String,
    },
    /// The slot failed again and pauses.
    BackingOff {
        /// Which.
        slot: SlotId,
        /// For how long.
        delay: Duration,
        /// Failures in a row, this one included.
        failures: u32,
    },
    /// A sibling serves the slot's queue now.
    Lent {
        /// Whose queue.
        slot: SlotId,
        /// Which sibling.
        to: WorkerId,
        /// How long nobody had served it (on a second loan: since its own worker stopped).
        after: Duration,
    },
    /// The slot's own worker is back.
    Recalled {
        /// Whose queue.
        slot: SlotId,
        /// From which sibling.
        from: WorkerId,
    },
    /// A graceful stop begins.
    Stopping {
        /// Who asked.
        by: String,
        /// After this, what is left is killed.
        at_most: Duration,
    },
    /// A second request to stop: everything is killed.
    StopForced {
        /// Who asked.
        by: String,
    },
    /// A worker has not finished in time and is killed.
    StillDraining {
        /// Who.
        worker: WorkerId,
        /// How long it had.
        after: Duration,
    },
    /// The boot failed; what runs already is killed.
    BootFailed {
        /// Why, in one line.
        cause: String,
    },
    /// An event about a worker that is no more, an unknown slot, or something already told. It has
    /// been dropped.
    StaleEvent {
        /// The event.
        event: Event,
        /// How many there have been.
        total: u64,
    },
}
