//! Kernel statistics of processes and of the machine.

use std::io;
use std::sync::OnceLock;

use nix::time::ClockId;
use nix::unistd::Pid;
use procfs::process::{Process, all_processes};
use procfs::{CurrentSI, KernelStats, ticks_per_second};

const KIB: u64 = 1024;
const NS_PER_S: u64 = 1_000_000_000;
/// The kernel's numbering of process clocks: the kind in the low bits, the PID's complement above
/// them.
const CLOCK_KIND_BITS: u32 = 3;
/// Parent of the kernel threads.
const KERNEL_THREADS: u32 = 2;
const SAMPLED_ALL: i32 = 0;
const SAMPLED_USER: i32 = 1;
/// Command name of the processes that share their workers' descriptor tables.
const KEEPER: &str = "uppercased-keep";

/// Resources that a set of processes has used since their start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Exact CPU time, including that of exited threads.
    pub(crate) cpu_ns: u64,
    /// User time, and user plus system time, as sampled by the kernel; only their ratio over
    /// seconds is meaningful.
    pub(crate) sampled_user_ns: u64,
    pub(crate) sampled_ns: u64,
    /// Time that main threads were runnable but not running.
    pub(crate) waited_ns: u64,
}

/// Resources that the whole machine has used since boot, in nanoseconds of CPU time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Machine {
    /// Number of CPUs in the sums below.
    pub(crate) cpus: u64,
    pub(crate) busy_ns: u64,
    pub(crate) stolen_ns: u64,
    /// Share of `busy_ns` used by the kernel threads for deferred network work (`ksoftirqd`).
    pub(crate) deferred_ns: u64,
}

fn failed(error: procfs::ProcError) -> io::Error {
    io::Error::other(error)
}

fn process(pid: u32) -> io::Result<Process> {
    Process::new(pid.cast_signed()).map_err(failed)
}

/// Returns the CPU time of one process in nanoseconds.
pub(crate) fn cpu_ns(pid: u32) -> io::Result<u64> {
    time_ns(ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed()))?)
}

/// Returns the clock of process `pid` that counts sampled time. Its number is composed as in
/// clock_getcpuclockid(3) for the exact clock. `/proc/PID/stat` has the same value truncated to 10
/// ms, which is as much user time as a good server needs per second.
const fn sampled_clock(pid: u32, which: i32) -> ClockId {
    ClockId::from_raw((!pid.cast_signed() << CLOCK_KIND_BITS) | which)
}

fn time_ns(clock: ClockId) -> io::Result<u64> {
    let time = clock.now()?;
    Ok(time.tv_sec().cast_unsigned() * NS_PER_S + time.tv_nsec().cast_unsigned())
}

/// Returns the sum of the resources used by `pids`.
pub(crate) fn usage(pids: &[u32]) -> io::Result<Usage> {
    let mut sum = Usage::default();
    for &pid in pids {
        let process = process(pid)?;
        sum.cpu_ns += cpu_ns(pid)?;
        sum.sampled_user_ns += time_ns(sampled_clock(pid, SAMPLED_USER))?;
        sum.sampled_ns += time_ns(sampled_clock(pid, SAMPLED_ALL))?;
        sum.waited_ns += process.schedstat().map_err(failed)?.run_delay;
    }
    Ok(sum)
}

/// Reads the statistics of the machine.
pub(crate) fn machine() -> io::Result<Machine> {
    let stats = KernelStats::current().map_err(failed)?;
    let total = stats.total;
    let tick_ns = NS_PER_S / ticks_per_second();
    let interrupts = total.irq.unwrap_or(0) + total.softirq.unwrap_or(0);
    Ok(Machine {
        cpus: stats.cpu_time.len() as u64,
        busy_ns: (total.user + total.nice + total.system + interrupts) * tick_ns,
        stolen_ns: total.steal.unwrap_or(0) * tick_ns,
        deferred_ns: deferred_ns()?,
    })
}

fn deferred_ns() -> io::Result<u64> {
    /// One per CPU: children of kernel process 2, present as long as their CPUs.
    static THREADS: OnceLock<Vec<u32>> = OnceLock::new();
    let threads = match THREADS.get() {
        Some(threads) => threads,
        None => {
            let mut found = children_of(KERNEL_THREADS)?;
            found.retain(|&pid| {
                let stat = process(pid).and_then(|it| it.stat().map_err(failed));
                stat.is_ok_and(|stat| stat.comm.starts_with("ksoftirqd/"))
            });
            THREADS.get_or_init(|| found)
        }
    };
    let ran = |&pid: &u32| Ok(process(pid)?.schedstat().map_err(failed)?.sum_exec_runtime);
    threads.iter().map(ran).sum()
}

/// Returns the resident memory of `pids` that is not file-backed: private and shared.
pub(crate) fn memory_bytes(pids: &[u32]) -> io::Result<u64> {
    let mut sum = 0;
    for &pid in pids {
        let status = process(pid)?.status().map_err(failed)?;
        sum += (status.rssanon.unwrap_or(0) + status.rssshmem.unwrap_or(0)) * KIB;
    }
    Ok(sum)
}

/// Returns the number of open descriptors of `pids`; those of a worker and its keeper, which are
/// the same, count once.
pub(crate) fn descriptors(pids: &[u32]) -> io::Result<usize> {
    let mut sum = 0;
    for &pid in pids {
        let process = process(pid)?;
        if process.stat().map_err(failed)?.comm != KEEPER {
            sum += process.fd_count().map_err(failed)?;
        }
    }
    Ok(sum)
}

/// Returns the live children of `pid`.
pub(crate) fn children_of(pid: u32) -> io::Result<Vec<u32>> {
    let all = all_processes().map_err(failed)?.flatten();
    let stats = all.filter_map(|process| process.stat().ok());
    let children = stats.filter(|stat| stat.ppid == pid.cast_signed());
    Ok(children.map(|stat| stat.pid.cast_unsigned()).collect())
}
