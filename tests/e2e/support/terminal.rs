//! A pseudo-terminal with its two sides, the user's and the program's.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};

/// Opens a pseudo-terminal; returns the user's side and the program's. Both are close-on-exec,
/// unlike those of `openpty`, so that no child of another test inherits them.
#[track_caller]
pub fn open_terminal() -> (PtyMaster, OwnedFd) {
    let terminal = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .expect("a pseudo-terminal");
    grantpt(&terminal).expect("its other side is ours");
    unlockpt(&terminal).expect("its other side can be opened");
    let line = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(ptsname_r(&terminal).expect("its other side has a name"))
        .expect("its other side");
    (terminal, line.into())
}
