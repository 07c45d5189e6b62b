//! The CPU time and memory of all processes of a server on this machine.
//!
//! A server is a set of processes that may change while it is sampled: the named processes and all
//! their descendants. The time of an exited process is added to the parent that waited for it, so
//! the sum over the set of own and inherited time loses nothing in a reload.
//!
//! Invariant: it changes nothing; unreadable values are omitted. CPU times have the kernel's
//! resolution of a tick (10 ms) per process.

use std::collections::BTreeSet;
use std::time::Duration;

use procfs::process::Process;

/// The CPU time of a set of processes so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// The processes.
    pub pids: Vec<u32>,
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
}

/// Maximum number of samples if the set changes while it is read.
const SAMPLES_MAX: usize = 5;

/// Returns the CPU time of `roots` and their descendants.
#[must_use]
pub(super) fn spent(roots: &[u32]) -> Spent {
    let mut before = family(roots);
    let mut spent = sum(&before);
    for _ in 1..SAMPLES_MAX {
        let after = family(roots);
        if after == before {
            break;
        }
        spent = sum(&after);
        before = after;
    }
    spent
}

/// Returns the memory of `roots` and their descendants in bytes: private pages, and shared ones
/// once. `None` if it is unreadable for a live process.
#[must_use]
pub(super) fn memory(roots: &[u32]) -> Option<u64> {
    let mut bytes = 0;
    for pid in family(roots) {
        let rollup = Process::new(pid.cast_signed()).and_then(|process| process.smaps_rollup());
        match rollup {
            Ok(rollup) => {
                let maps = rollup.memory_map_rollup;
                bytes += maps
                    .0
                    .iter()
                    .filter_map(|map| map.extension.map.get("Pss"))
                    .sum::<u64>();
            }
            // It has exited in the meantime.
            Err(procfs::ProcError::NotFound(_)) => {}
            Err(_) => return None,
        }
    }
    (bytes > 0).then_some(bytes)
}

fn sum(pids: &BTreeSet<u32>) -> Spent {
    let ticks = procfs::ticks_per_second().max(1);
    let time = |count: u64| Duration::from_nanos(count.saturating_mul(1_000_000_000 / ticks));
    let mut spent = Spent {
        pids: pids.iter().copied().collect(),
        ..Spent::default()
    };
    for pid in pids {
        if let Ok(stat) = Process::new(pid.cast_signed()).and_then(|process| process.stat()) {
            spent.user += time(stat.utime + u64::try_from(stat.cutime).unwrap_or(0));
            spent.system += time(stat.stime + u64::try_from(stat.cstime).unwrap_or(0));
        }
    }
    spent
}

/// Returns the live `roots` and all their descendants.
fn family(roots: &[u32]) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut to_visit = roots.to_vec();
    while let Some(pid) = to_visit.pop() {
        let Ok(process) = Process::new(pid.cast_signed()) else {
            continue;
        };
        if found.insert(pid) {
            // A child is listed under the thread that forked it.
            let tasks = process.tasks().into_iter().flatten().flatten();
            to_visit.extend(tasks.filter_map(|task| task.children().ok()).flatten());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn exited_descendants_keep_counting_cpu_time() {
        // Uses CPU time in a grandchild, reports, and waits for its input to end.
        let script = "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; echo; read x";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let spent = spent(&[child.id()]);
        assert!(spent.pids.contains(&child.id()));
        assert!(spent.user + spent.system > Duration::ZERO, "{spent:?}");
        assert!(memory(&[child.id()]).unwrap() > 0);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(super::spent(&[child.id()]), Spent::default());
        assert_eq!(memory(&[child.id()]), None);
    }
}
