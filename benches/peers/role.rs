//! The processes that the bench starts: itself again, in a role, bound to its CPUs first.
//!
//! `peers role CPUS ROLE ARGUMENT...`, where CPUS is a list of numbers. So whatever runs, also the
//! program under test and the one in C, never runs anywhere else.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{load, peer_threads, peer_tokio, peer_uring};

/// The first argument of a process in a role.
pub(crate) const ROLE: &str = "role";
/// Roles; those of peers are their names.
pub(crate) const LOAD: &str = "load";
pub(crate) const PROGRAM: &str = "program";
pub(crate) const THREADS: &str = "threads";
pub(crate) const TOKIO: &str = "tokio";
pub(crate) const URING: &str = "io_uring";

/// A command for this program in `role`, on `cpus` only.
pub(crate) fn command(cpus: &[usize], role: &str) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
    command.args([ROLE, &cpus.join(","), role]);
    Ok(command)
}

/// The CPUs that this process may use.
pub(crate) fn cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let all = 0..CpuSet::count();
    Ok(all
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect())
}

/// Plays the role that `arguments` (those after [`ROLE`]) name; returns only when it is over.
pub(crate) fn play(arguments: &[String]) -> io::Result<()> {
    let [cpus, role, rest @ ..] = arguments else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let cpus: Result<Vec<usize>, _> = cpus.split(',').map(str::parse).collect();
    let cpus = cpus.map_err(io::Error::other)?;
    bind(&cpus)?;
    // Outlives an exec: nothing stays behind if the bench is killed.
    set_pdeathsig(Signal::SIGKILL)?;
    match (role.as_str(), rest) {
        (PROGRAM, [program, arguments @ ..]) => Err(exec(program, arguments)),
        (LOAD, [order]) => load::run(serde_json::from_str(order)?),
        (peer, [port]) => {
            uppercased_ctl::process::raise_descriptor_limit()?;
            let port = port.parse().map_err(io::Error::other)?;
            match peer {
                THREADS => peer_threads::serve(port),
                TOKIO => peer_tokio::serve(port, cpus.len()),
                URING => peer_uring::serve(port),
                _ => Err(io::ErrorKind::InvalidInput.into()),
            }
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Binds this process, and all that it starts, to `cpus`.
pub(crate) fn bind(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn exec(program: &str, arguments: &[impl AsRef<OsStr>]) -> io::Error {
    Command::new(program).args(arguments).exec()
}
