//! What each process of a server uses: memory, CPU time, descriptors; and how often it was restarted.

use serde::{Deserialize, Serialize};

use crate::identity::SlotId;

/// One process of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessStatus {
    /// One of the constants of this type.
    pub process: String,
    /// The slot of a worker or a keeper.
    pub slot: Option<SlotId>,
    /// The process ID.
    pub pid: u32,
    /// How often it was replaced, planned or not, within the last ten minutes.
    pub restarts_10m: u32,
    /// `None` if the kernel does not tell, for example with `hidepid`.
    pub usage: Option<Usage>,
}

/// Resources that a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Its start, in milliseconds of Unix time.
    pub started_at_ms: u64,
    /// Time since its start.
    pub age_ms: u64,
    /// CPU time of all its threads.
    pub cpu_ms: u64,
    /// Resident memory; of a keeper, which shares most of its pages with its worker, only those that
    /// no other process has. `None` if the kernel does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Open descriptors; `None` before Linux 6.2. A keeper shares those of its worker.
    pub descriptors: Option<u64>,
}

impl ProcessStatus {
    /// The process that starts and watches the others.
    pub const SUPERVISOR: &str = "supervisor";
    /// The process that serves HTTP and load balancers' agent checks.
    pub const ADMIN: &str = "admin";
    /// The active worker of a slot.
    pub const WORKER: &str = "worker";
    /// The process that continues a worker whose process has died.
    pub const KEEPER: &str = "keeper";
    /// The worker that is to take over a slot.
    pub const SUCCESSOR: &str = "successor";
    /// A worker that was replaced and is draining.
    pub const PREDECESSOR: &str = "predecessor";

    /// Returns the process with its slot: "supervisor", "worker 3".
    #[must_use]
    pub fn name(&self) -> String {
        match self.slot {
            Some(slot) => format!("{} {slot}", self.process),
            None => self.process.clone(),
        }
    }
}
