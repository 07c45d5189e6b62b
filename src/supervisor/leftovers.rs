//! Stops the workers that a supervisor has left behind: `uppercased drain-leftovers`, which a service
//! manager runs when the service has ended (`ExecStopPost=`).
//!
//! A worker whose supervisor lives refuses the connection at its rendezvous, so nothing can happen to
//! it. The command waits until the workers have drained, as a stop does.
//!
//! It must not decide whether to stop them (the command does, after it has asked the service manager).

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd as _;

use crate::config::{Control, LEFTOVERS_MARGIN};
use crate::sys::image::Process;
use uppercased_ctl::clock::{self, Tick};

use super::adoption::find_orphans;
use super::rendezvous::Directory;
use super::systemd;

/// The end of the workers that were left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Workers that have exited.
    pub drained: usize,
    /// Workers that were signalled and still run.
    pub remaining: usize,
}

/// Signals every worker that has no supervisor to stop, and waits until all have exited, as long as
/// their `drain_timeout` allows.
///
/// # Errors
/// A worker cannot be signalled or waited for.
pub fn drain_leftovers(control: &Control) -> io::Result<Leftovers> {
    let Some(directory) = Directory::open(control) else {
        return Ok(Leftovers::default());
    };
    let orphans = find_orphans(&directory);
    let longest = orphans.iter().map(|(_, drain)| *drain).max();
    let within = longest.unwrap_or(Duration::ZERO) + LEFTOVERS_MARGIN;
    let mut running: Vec<Process> = Vec::new();
    for (process, _) in orphans {
        match process.terminate() {
            // It has exited meanwhile.
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            signalled => signalled?,
        }
        running.push(process);
    }
    let all = running.len();
    if all > 0 {
        systemd::extend_timeout(within);
        wait(&mut running, clock::now() + within)?;
    }
    // The files go with the last worker, unless a supervisor has begun to use the directory.
    directory.remove_unused();
    Ok(Leftovers {
        drained: all - running.len(),
        remaining: running.len(),
    })
}

/// Waits until every process has exited, or until then. Removes those that have.
fn wait(running: &mut Vec<Process>, until: Tick) -> io::Result<()> {
    loop {
        running.retain(|process| !process.has_ended());
        let left = until.since(clock::now());
        if running.is_empty() || left.is_zero() {
            return Ok(());
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut ends: Vec<_> = running
            .iter()
            .map(|process| PollFd::new(process.as_fd(), PollFlags::POLLIN))
            .collect();
        match poll(&mut ends, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
