//! CPU affinity of processes.
//!
//! CPU numbers are the kernel's. It must not decide which process runs where.

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling process (its only thread), for the kernel.
const SELF: Pid = Pid::from_raw(0);

/// Returns the CPUs that this process may use, in ascending order.
///
/// # Errors
/// The error of `sched_getaffinity`; `EINVAL` on a machine with more than 1024 CPUs.
pub fn usable() -> io::Result<Vec<u16>> {
    usable_by(SELF)
}

/// Returns the only CPU of the process with this ID; `None` if it may use several or does not
/// exist.
#[must_use]
pub fn only_cpu_of(pid: u32) -> Option<u16> {
    let pid = i32::try_from(pid).ok()?;
    match usable_by(Pid::from_raw(pid)).ok()?[..] {
        [cpu] => Some(cpu),
        _ => None,
    }
}

/// Pins this process, and every process forked by it, to one CPU.
///
/// # Errors
/// The error of `sched_setaffinity`, for example `EINVAL` for a CPU that this process may not use.
pub fn pin(cpu: u16) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu.into())?;
    Ok(sched_setaffinity(SELF, &set)?)
}

fn usable_by(pid: Pid) -> io::Result<Vec<u16>> {
    let set = sched_getaffinity(pid)?;
    let most = u16::try_from(CpuSet::count()).unwrap_or(u16::MAX);
    let usable = (0..most).filter(|cpu| set.is_set((*cpu).into()).unwrap_or(false));
    Ok(usable.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in its own thread: affinity applies per thread, and this one ends with the test.
    #[test]
    fn pinned_process_stays_on_its_cpu() {
        let there = || {
            let before = usable().unwrap();
            let last = *before.last().unwrap();
            pin(last).unwrap();
            assert_eq!(usable().unwrap(), [last]);
            let thread = nix::unistd::gettid().as_raw().unsigned_abs();
            assert_eq!(only_cpu_of(thread), Some(last));
            assert!(pin(u16::MAX).is_err());
            before
        };
        let before = std::thread::scope(|scope| scope.spawn(there).join().unwrap());
        assert_eq!(usable().unwrap(), before, "nobody else is pinned");
        assert_eq!(only_cpu_of(u32::MAX), None);
    }
}
