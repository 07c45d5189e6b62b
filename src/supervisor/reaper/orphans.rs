//! The duty of a container's first process: it becomes the parent of every process there whose parent has
//! ended, and reaps it.
//!
//! Invariant: a child that is known by a pidfd is not reaped here; its exit status belongs to the part
//! that started it.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;

use crate::sys::child::is_first_process;

/// Orphans reaped in one turn of the loop. A container in which processes end faster than this is busy
/// with nothing else, and its supervisor must not be.
const ORPHANS_PER_TURN: usize = 256;

/// Reaps the orphans that have ended. An own child that has ended hides those behind it: it is reaped as
/// soon as its pidfd is reported, and that turn ends here, too.
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
        // It has ended: this does not wait.
        let _ = waitpid(ended, Some(WaitPidFlag::WNOHANG));
    }
    true
}

/// The first child that has ended and has not been waited for.
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
