//! What the first process of a container owes: whoever loses its parent there becomes its child, and
//! stays in the process table after its end until it is waited for.
//!
//! Invariant: nobody is buried here who is known by a pidfd: how such a child ended is for those
//! who started it.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;

use crate::supervisor::Supervisor;
use crate::supervisor::fleet::resources::SlotResources;
use crate::supervisor::upgrade::Preflight;

/// Orphans that are buried in one turn of the loop. A container in which processes end faster than
/// this is busy with nothing else, and its supervisor must not be.
const ORPHANS_PER_TURN: usize = 256;

/// Whether orphans become this process's children.
pub(crate) fn come_here() -> bool {
    std::process::id() == 1
}

impl Supervisor {
    /// Buries the orphans that have ended. One of our own hides those behind it; it is reaped as soon
    /// as its pidfd is reported, and that turn ends here, too.
    ///
    /// Says whether there may be more of them.
    pub(crate) fn bury_orphans(&self) -> bool {
        if !come_here() {
            return false;
        }
        for _ in 0..ORPHANS_PER_TURN {
            let Some(ended) = first_ended().filter(|ended| !self.is_known(*ended)) else {
                return false;
            };
            // It has ended: this does not wait.
            let _ = waitpid(ended, Some(WaitPidFlag::WNOHANG));
        }
        true
    }

    fn is_known(&self, ended: Pid) -> bool {
        let ended = ended.as_raw();
        let preflight = match &self.preflight {
            Preflight::Running { process, .. } => process.pid() == ended,
            Preflight::Idle | Preflight::Passed { .. } => false,
        };
        let admin = self.admin.as_ref().and_then(|admin| admin.status().pid);
        let killed = self.killed.iter().any(|child| child.pid() == ended);
        killed || preflight || admin == Some(ended.unsigned_abs()) || {
            let mut children = self.slots.iter().flat_map(SlotResources::children);
            children.any(|child| child.pid() == ended)
        }
    }
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
