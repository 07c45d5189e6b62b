//! What a process uses, as the kernel tells any user who may see the process: memory, CPU time and
//! the number of its descriptors.
//!
//! A worker is not dumpable, so its descriptors cannot be listed by its own user; their number is
//! the size of the directory (Linux 6.2). It must not stop, trace or signal a process.

use std::fs;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use procfs::FromRead as _;
use procfs::process::{SmapsRollup, Stat};

use uppercased_ctl::clock::millis;
use uppercased_ctl::status::Usage;

/// Reads processes; the origin of their start times is fixed, so that repeated readings are equal.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    /// The Unix time at which the system started.
    booted: Duration,
}

impl Meter {
    /// Returns a meter that uses the present setting of the system's clock.
    ///
    /// # Errors
    /// The error of `clock_gettime`.
    pub fn new() -> io::Result<Self> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
        Ok(Self {
            booted: now.saturating_sub(up()),
        })
    }

    /// Returns the Unix time in milliseconds, by the clock as it was set at the start.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        millis(self.booted + up())
    }

    /// Returns what the process with this ID uses; `None` if it has ended or is hidden.
    #[must_use]
    pub fn read(&self, pid: u32) -> Option<Usage> {
        let stat = Stat::from_file(format!("/proc/{pid}/stat")).ok()?;
        let ticks = procfs::ticks_per_second().max(1);
        let time = |count: u64| Duration::from_millis(count.saturating_mul(1000) / ticks);
        let descriptors = fs::metadata(format!("/proc/{pid}/fd")).ok()?.len();
        Some(Usage {
            started_at_ms: millis(self.booted + time(stat.starttime)),
            age_ms: millis(up().saturating_sub(time(stat.starttime))),
            cpu_ms: millis(time(stat.utime.saturating_add(stat.stime))),
            resident_bytes: Some(stat.rss.saturating_mul(procfs::page_size())),
            descriptors: (descriptors > 0).then_some(descriptors),
        })
    }
}

/// Returns the bytes of resident memory that only the process with this ID has; `None` if the kernel
/// denies access: it requires `CAP_SYS_PTRACE`, or a dumpable process of the same user.
#[must_use]
pub fn private_bytes(pid: u32) -> Option<u64> {
    let rollup = SmapsRollup::from_file(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let sums = &rollup.memory_map_rollup.0.first()?.extension.map;
    let [clean, dirty] = ["Private_Clean", "Private_Dirty"].map(|name| sums.get(name));
    Some(clean?.saturating_add(*dirty?))
}

/// Returns the time since the system started.
fn up() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meter_reads_this_process() {
        let meter = Meter::new().unwrap();
        let pid = std::process::id();
        let first = meter.read(pid).unwrap();
        let before = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
        let until = Duration::from(before) + Duration::from_millis(50);
        while clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
            .is_ok_and(|it| Duration::from(it) < until)
        {}
        let files: Vec<fs::File> = (0..3).map(|_| fs::File::open("/").unwrap()).collect();
        let later = meter.read(pid).unwrap();
        assert_eq!(first.started_at_ms, later.started_at_ms);
        assert!(later.cpu_ms > first.cpu_ms, "{first:?} {later:?}");
        assert!(later.resident_bytes > Some(100_000), "{later:?}");
        assert!(private_bytes(pid) > Some(100_000));
        // Other tests open and close files, too.
        let least = files.len() as u64;
        assert!(later.descriptors.is_none_or(|open| open > least));
        assert_eq!((meter.read(0), private_bytes(0)), (None, None));
    }
}
