//! A snapshot of the processes, descriptors and memory of a server, to compare with a later one.
//! After any number of reloads, an idle server must be back at its baseline; otherwise it leaks.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::observe::{some_within, try_descriptors, until_some};
use super::server::Server;
use super::usage::try_resident_bytes;

/// Default time limit for a server to return to its baseline.
const RETURN: Duration = Duration::from_secs(60);

/// Maximum growth of one process's memory, in bytes.
///
/// Not zero: allocators round up and keep memory, and a worker after a busier predecessor has
/// touched more of its record table and keeps a few buffers. A leak grows with every operation and
/// exceeds this limit after a few dozen: one leaked buffer or message is 64 KiB.
pub const MEMORY_TOLERANCE_BYTES: u64 = 2 << 20;

/// The resources of a server at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baseline {
    supervisor: Holdings,
    /// Ordered by descriptors, because process IDs change with every reload.
    workers: Vec<Holdings>,
    /// Other running descendants of the server.
    strangers: usize,
}

/// The resources of one process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Holdings {
    /// Number of descriptors of each kind.
    descriptors: BTreeMap<String, usize>,
    memory_bytes: u64,
}

impl Baseline {
    /// Returns the current resources of `server`, with no client connected or the same ones as
    /// later.
    ///
    /// Waits until two samples agree, because the server closes a connection shortly after its
    /// client.
    #[track_caller]
    pub fn of(server: &Server) -> Self {
        let mut before = None;
        until_some("what the server holds has settled", || {
            let this = Self::read(server);
            let settled = this.is_some() && this == before;
            before = this.clone();
            this.filter(|_| settled)
        })
    }

    /// Asserts that `server` returns to this baseline; waits for exiting processes and closing
    /// connections.
    #[track_caller]
    pub fn assert_back(&self, server: &Server) {
        self.assert_back_within(server, RETURN);
    }

    /// Like [`Self::assert_back`], with another deadline.
    #[track_caller]
    pub fn assert_back_within(&self, server: &Server, within: Duration) {
        let mut now = None;
        let back = some_within(within, || {
            now = Self::read(server).or_else(|| now.take());
            now.as_ref().filter(|now| self.admits(now)).map(|_| ())
        });
        let now = now.map_or_else(|| "never seen whole".to_owned(), |now| now.to_string());
        assert!(
            back.is_some(),
            "the baseline was\n{self}\nand now it is\n{now}"
        );
    }

    /// Returns whether `now` equals this baseline, within the allowed growth.
    fn admits(&self, now: &Self) -> bool {
        let all = |base: &Self| {
            let supervisor = std::iter::once(base.supervisor.clone());
            supervisor.chain(base.workers.clone()).collect::<Vec<_>>()
        };
        let (then, later) = (all(self), all(now));
        self.strangers == now.strangers
            && then.len() == later.len()
            && then.iter().zip(&later).all(|(then, later)| {
                then.descriptors == later.descriptors
                    && later.memory_bytes <= then.memory_bytes + MEMORY_TOLERANCE_BYTES
            })
    }

    /// Takes one sample; returns `None` if a process exits meanwhile.
    fn read(server: &Server) -> Option<Self> {
        let pids = server.worker_pids();
        let family = server.processes();
        let known = |pid: &u32| *pid == server.pid() || pids.contains(pid);
        let mut workers: Vec<_> = pids
            .iter()
            .map(|pid| Holdings::of(*pid))
            .collect::<Option<_>>()?;
        workers.sort();
        Some(Self {
            supervisor: Holdings::of(server.pid())?,
            workers,
            strangers: family.iter().filter(|pid| !known(pid)).count(),
        })
    }

    /// Returns the number of processes of any kind.
    pub fn processes(&self) -> usize {
        1 + self.workers.len() + self.strangers
    }

    /// Returns the number of descriptors of all processes.
    pub fn descriptors(&self) -> usize {
        let workers = self.workers.iter().map(Holdings::count);
        self.supervisor.count() + workers.sum::<usize>()
    }

    /// Returns the memory of all processes, in bytes; shared memory is counted once per process.
    pub fn memory_bytes(&self) -> u64 {
        let workers = self.workers.iter().map(|worker| worker.memory_bytes);
        self.supervisor.memory_bytes + workers.sum::<u64>()
    }
}

impl Holdings {
    fn of(pid: u32) -> Option<Self> {
        let mut descriptors = BTreeMap::new();
        for target in try_descriptors(pid)?.into_values() {
            *descriptors.entry(kind_of(&target)).or_default() += 1;
        }
        Some(Self {
            descriptors,
            memory_bytes: try_resident_bytes(pid)?,
        })
    }

    fn count(&self) -> usize {
        self.descriptors.values().sum()
    }
}

/// Returns the kind of a descriptor's target, without the numbers that identify it.
fn kind_of(target: &str) -> String {
    target.chars().filter(|c| !c.is_ascii_digit()).collect()
}

impl fmt::Display for Baseline {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "  supervisor: {}", self.supervisor)?;
        for worker in &self.workers {
            writeln!(out, "  worker: {worker}")?;
        }
        write!(out, "  {} other processes", self.strangers)
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} KiB, {:?}",
            self.memory_bytes / 1024,
            self.descriptors
        )
    }
}
