//! Reaps orphans for a container's first process, which becomes the parent of every process whose
//! parent has exited.
//!
//! Invariant: a child that is known by a pidfd is not reaped here; its exit status belongs to the
//! part that started it.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;

use crate::sys::child::is_first_process;

/// Maximum orphans reaped per turn. A container in which processes exit faster keeps reaping; its
/// supervisor must do other work, too.
const ORPHANS_PER_TURN: usize = 256;

/// Reaps the orphans that have exited. An own child that has exited hides those behind it: it is
/// reaped as soon as its pidfd is reported, and that turn ends here, too.
///
/// Returns whether there may be more of them.
pub(crate) fn reap_orphans(is_own: impl Fn(i32) -> bool) -> bool {
    if !is_first_process() {
        return false;
    }
    for _ in 0..ORPHANS_PER_TURN {
        let Some(ended) = first_ended().filter(|ended| !is_own(ended.as_raw())) else {
            return false;
        };
        // It has exited: this does not wait.
        let _ = waitpid(ended, Some(WaitPidFlag::WNOHANG));
    }
    true
}

/// Returns the first child that has exited and has not been waited for.
fn first_ended() -> Option<Pid> {
    let looking = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::All, looking) {
            Ok(status) => return status.pid(),
            Err(Errno::EINTR) => {}
            // There are no children at all.
            Err(_) => return None,
        }
    }
}
