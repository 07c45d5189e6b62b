//! What a server holds, to be compared with what it holds later: processes, descriptors, memory.
//! After any number of restarts with no client left it must be back where it was, or it leaks.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::observe::{some_within, try_descriptors, until_some};
use super::server::Server;
use super::usage::try_resident_bytes;

/// How long a server may take to be back, unless a test says otherwise.
const RETURN: Duration = Duration::from_secs(60);

/// By how much the memory of one process may have grown, in bytes.
///
/// Not zero: allocators round up and keep, and a worker whose predecessor served more clients has
/// touched more of its table of records and keeps a few buffers at hand. What is looked for is what
/// grows with every operation, and that passes this bound after a few dozen of them: one leaked
/// buffer or one leaked message is 64 KiB.
pub const MEMORY_TOLERANCE_BYTES: u64 = 2 << 20;

/// What a server held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baseline {
    supervisor: Holdings,
    /// In order of their descriptors, for their numbers change with every restart.
    workers: Vec<Holdings>,
    /// Living processes that descend from this server and are neither.
    strangers: usize,
}

/// What one process held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Holdings {
    /// How many of each kind.
    descriptors: BTreeMap<String, usize>,
    memory_bytes: u64,
}

impl Baseline {
    /// What `server` holds now. To be asked for with no client connected, or the same ones as
    /// later.
    ///
    /// Waits until what it sees holds still: a connection that a client has closed is closed by
    /// the server a moment later.
    #[track_caller]
    pub fn of(server: &Server) -> Self {
        let mut before = None;
        until_some("what the server holds has settled", || {
            let this = Self::look(server);
            let settled = this.is_some() && this == before;
            before = this.clone();
            this.filter(|_| settled)
        })
    }

    /// Asserts that `server` is back at this; waits for processes that are leaving and
    /// connections that are closing.
    #[track_caller]
    pub fn assert_back(&self, server: &Server) {
        self.assert_back_within(server, RETURN);
    }

    /// The same with another deadline.
    #[track_caller]
    pub fn assert_back_within(&self, server: &Server, within: Duration) {
        let mut now = None;
        let back = some_within(within, || {
            now = Self::look(server).or_else(|| now.take());
            now.as_ref().filter(|now| self.admits(now)).map(|_| ())
        });
        let now = now.map_or_else(|| "never seen whole".to_owned(), |now| now.to_string());
        assert!(
            back.is_some(),
            "the baseline was\n{self}\nand now it is\n{now}"
        );
    }

    /// Whether `now` is this again.
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

    /// One look; nothing if a process ended under it.
    fn look(server: &Server) -> Option<Self> {
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

    /// Processes, of whatever kind.
    pub fn processes(&self) -> usize {
        1 + self.workers.len() + self.strangers
    }

    /// Descriptors of all processes.
    pub fn descriptors(&self) -> usize {
        let workers = self.workers.iter().map(Holdings::count);
        self.supervisor.count() + workers.sum::<usize>()
    }

    /// Memory of all processes, in bytes; what two of them share is in it twice.
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

/// What a descriptor refers to, without the numbers that tell one of its kind from another.
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
