//! What the kernel says about processes and about the machine.

use std::io;

use nix::time::ClockId;
use nix::unistd::Pid;
use procfs::process::{Process, all_processes};
use procfs::{CurrentSI, KernelStats, ticks_per_second};

const KIB: u64 = 1024;
const NS_PER_S: u64 = 1_000_000_000;

/// What a set of processes used up since their start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU time, exact, threads that ended included.
    pub(crate) cpu_ns: u64,
    /// User and system time as the kernel divides them: by sampling, so only their ratio over
    /// seconds means something.
    pub(crate) user_ticks: u64,
    pub(crate) system_ticks: u64,
    /// How long main threads were ready to run and did not.
    pub(crate) waited_ns: u64,
}

/// What the whole machine used up since its start, in nanoseconds of CPU time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Machine {
    /// CPUs that the sums below are over.
    pub(crate) cpus: u64,
    pub(crate) busy_ns: u64,
    pub(crate) stolen_ns: u64,
}

fn failed(error: procfs::ProcError) -> io::Error {
    io::Error::other(error)
}

fn process(pid: u32) -> io::Result<Process> {
    Process::new(pid.cast_signed()).map_err(failed)
}

/// CPU time of one process in nanoseconds.
pub(crate) fn cpu_ns(pid: u32) -> io::Result<u64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed()))?;
    let time = clock.now()?;
    Ok(time.tv_sec().cast_unsigned() * NS_PER_S + time.tv_nsec().cast_unsigned())
}

/// The sum over `pids`.
pub(crate) fn usage(pids: &[u32]) -> io::Result<Usage> {
    let mut sum = Usage::default();
    for &pid in pids {
        let process = process(pid)?;
        let stat = process.stat().map_err(failed)?;
        sum.cpu_ns += cpu_ns(pid)?;
        sum.user_ticks += stat.utime;
        sum.system_ticks += stat.stime;
        sum.waited_ns += process.schedstat().map_err(failed)?.run_delay;
    }
    Ok(sum)
}

/// The machine.
pub(crate) fn machine() -> io::Result<Machine> {
    let stats = KernelStats::current().map_err(failed)?;
    let total = stats.total;
    let tick_ns = NS_PER_S / ticks_per_second();
    let interrupts = total.irq.unwrap_or(0) + total.softirq.unwrap_or(0);
    Ok(Machine {
        cpus: stats.cpu_time.len() as u64,
        busy_ns: (total.user + total.nice + total.system + interrupts) * tick_ns,
        stolen_ns: total.steal.unwrap_or(0) * tick_ns,
    })
}

/// Memory that `pids` have in use and that is not a file's: private and shared.
pub(crate) fn memory_bytes(pids: &[u32]) -> io::Result<u64> {
    let mut sum = 0;
    for &pid in pids {
        let status = process(pid)?.status().map_err(failed)?;
        sum += (status.rssanon.unwrap_or(0) + status.rssshmem.unwrap_or(0)) * KIB;
    }
    Ok(sum)
}

/// Open descriptors of `pids`.
pub(crate) fn descriptors(pids: &[u32]) -> io::Result<usize> {
    let count = |&pid: &u32| process(pid)?.fd_count().map_err(failed);
    pids.iter().map(count).sum()
}

/// The processes that `pid` started and that are there.
pub(crate) fn children_of(pid: u32) -> io::Result<Vec<u32>> {
    let all = all_processes().map_err(failed)?.flatten();
    let stats = all.filter_map(|process| process.stat().ok());
    let children = stats.filter(|stat| stat.ppid == pid.cast_signed());
    Ok(children.map(|stat| stat.pid.cast_unsigned()).collect())
}
