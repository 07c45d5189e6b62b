//! The processes started by the bench: its own binary in a role, first bound to its CPUs.
//!
//! `peers role CPUS ROLE ARGUMENT...`, where CPUS is a list of numbers. Every process, including
//! the program under test and the one in C, therefore runs only on these CPUs.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{peer_threads, peer_tokio, peer_uring};

/// First argument of a process in a role.
pub(crate) const ROLE: &str = "role";
/// Roles; those of peers are the peers' names.
pub(crate) const PROGRAM: &str = "program";
pub(crate) const THREADS: &str = "threads";
pub(crate) const TOKIO: &str = "tokio";
pub(crate) const URING: &str = "io_uring";

/// Returns a command that runs this program in `role`, on `cpus` only.
pub(crate) fn command(cpus: &[usize], role: &str) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
    command.args([ROLE, &cpus.join(","), role]);
    Ok(command)
}

/// Returns the CPUs that this process may use.
pub(crate) fn cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let all = 0..CpuSet::count();
    Ok(all
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect())
}

/// Runs the role given by `arguments` (those after [`ROLE`]); returns only when it has ended.
pub(crate) fn play(arguments: &[String]) -> io::Result<()> {
    let [cpus, role, rest @ ..] = arguments else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let cpus: Result<Vec<usize>, _> = cpus.split(',').map(str::parse).collect();
    let cpus = cpus.map_err(io::Error::other)?;
    bind(&cpus)?;
    // Kept across exec: no process remains if the bench is killed.
    set_pdeathsig(Signal::SIGKILL)?;
    match (role.as_str(), rest) {
        (PROGRAM, [program, arguments @ ..]) => Err(exec(program, arguments)),
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

/// Binds this thread, and every thread and process that it starts, to `cpus`.
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
