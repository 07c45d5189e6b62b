//! Counters and resources of a running server, from outside: its metrics, and the memory and CPU
//! time of its workers. Reading them does not disturb it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use uppercased::memory;
use uppercased::sys::shared::SharedMemory;
use uppercased_ctl::metrics::Counter;

use super::observe::until;
use super::server::Server;

/// The counters of every slot of a server, read from the working memory.
#[derive(Debug)]
pub struct Counters {
    /// Ordered by slot.
    slots: Vec<SharedMemory>,
}

impl Counters {
    /// Opens the counters of `server`. They stay readable after it has exited.
    #[track_caller]
    pub fn of(server: &Server) -> Self {
        let pid = server.pid();
        let mut found: Vec<(i32, PathBuf)> = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("the supervisor's descriptors")
            .flatten()
            .filter(|entry| is_slot_memory(&entry.path()))
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .collect();
        assert!(!found.is_empty(), "process {pid} has no slot's memory");
        // The memory files are created, and so numbered, in slot order.
        found.sort_unstable();
        let open = |path: &PathBuf| {
            let file = File::options().read(true).write(true).open(path);
            SharedMemory::map(file.expect("a slot's memory").into()).expect("map a slot's memory")
        };
        Self {
            slots: found.iter().map(|(_, path)| open(path)).collect(),
        }
    }

    /// Returns one counter, summed over all slots.
    pub fn count(&self, counter: Counter) -> u64 {
        self.by_slot(counter).into_iter().sum()
    }

    /// Returns one counter per slot.
    pub fn by_slot(&self, counter: Counter) -> Vec<u64> {
        let of = |memory| memory::counter(memory, counter);
        self.slots.iter().map(of).collect()
    }

    /// Returns the number of open connections of all slots.
    pub fn open(&self) -> u64 {
        self.slots.iter().map(memory::open_connections).sum()
    }

    /// Waits until a counter is at least `count`.
    #[track_caller]
    pub fn wait(&self, counter: Counter, count: u64) {
        until(&format!("{counter:?} at {count}"), || {
            self.count(counter) >= count
        });
    }

    /// Waits until exactly `count` connections are open.
    #[track_caller]
    pub fn wait_open(&self, count: u64) {
        until(&format!("{count} connections open"), || {
            self.open() == count
        });
    }
}

fn is_slot_memory(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| {
        let target: &OsStr = target.as_os_str();
        target.as_bytes().starts_with(b"/memfd:uppercased-slot")
    })
}

/// Returns the resident memory of a process in bytes, private and working memory, without pages of
/// program files.
///
/// Counts page by page: the kernel's own sums may be stale by megabytes.
#[track_caller]
pub fn resident_bytes(pid: u32) -> u64 {
    try_resident_bytes(pid).expect("a living process's memory")
}

/// Like [`resident_bytes`], for a process that may exit; `None` if it has.
pub fn try_resident_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let mut counts = false;
    let mut kib = 0;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Rss:") if counts => {
                let value = words.next().and_then(|value| value.parse().ok());
                kib += value.unwrap_or(0_u64);
            }
            // The first line of a mapping: range, rights, offset, device, inode, file.
            Some(first) if !first.ends_with(':') => {
                let file = words.nth(4).unwrap_or("");
                counts = !file.starts_with('/') || file.starts_with("/memfd:");
            }
            _ => {}
        }
    }
    Some(kib * 1024)
}

/// Returns the CPU time of a process so far.
#[track_caller]
pub fn cpu_time(pid: u32) -> Duration {
    // The unit, USER_HZ, is 100 on every supported Linux.
    const TICK_MS: u64 = 10;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living process's times");
    // The name, in parentheses, may contain parentheses; the state, field 3, follows it.
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = ticks
        .map(|field| field.parse::<u64>().expect("ticks"))
        .sum();
    Duration::from_millis(ticks * TICK_MS)
}
