//! The file of the control socket: bound for its owner only, found in the way, removed at the end.
//!
//! Invariants: it has mode 0600 from birth; only a socket that is ours, or at which nobody answers,
//! is ever removed. It must not accept or read.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};

use crate::config::path_bytes;
use crate::control::client::{Conversation, Error as AskError};
use crate::control::place::{self, Surroundings};

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another server takes its orders there.
    #[error(
        "cannot take orders at {}: {} has that socket; stop it or choose another path with \
         --control", path.display(), owner(*pid)
    )]
    InUse {
        /// The path asked for.
        path: PathBuf,
        /// Who has it, if it lives in this namespace.
        pid: Option<i32>,
    },
    /// There is something that is not ours to remove.
    #[error(
        "cannot take orders at {}: it exists and is no socket; choose another path with --control",
        path.display()
    )]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
    },
    /// The environment names no directory for it.
    #[error(
        "no directory for a control socket: XDG_RUNTIME_DIR is not set; name one with --control"
    )]
    NoPlace,
    /// The system refused an operation.
    #[error(
        "cannot take orders at {}: {operation}: {source}; choose another path with --control",
        path.display()
    )]
    System {
        /// The path concerned.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// The reason alone, for a socket that takes no orders.
    pub(in crate::supervisor) fn why(&self) -> String {
        match self {
            Self::InUse { pid, .. } => format!("{} has that socket", owner(*pid)),
            Self::NotASocket { .. } => "it exists and is no socket".to_owned(),
            Self::NoPlace => "there is no directory for it".to_owned(),
            Self::System {
                operation, source, ..
            } => format!("{operation}: {source}"),
        }
    }
}

/// The file of the socket. Dropped by the process that made it, it is removed: so it is at every
/// orderly end, and neither by a forked copy nor by an exec, which drops nothing.
#[derive(Debug)]
pub(in crate::supervisor) struct SocketFile(pub(in crate::supervisor) FileId);

/// A file and the process that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::supervisor) struct FileId {
    #[serde(with = "path_bytes")]
    pub(super) path: PathBuf,
    device: u64,
    inode: u64,
    pub(super) maker: u32,
}

/// How long a socket's owner may take to let a connection in before it counts as busy.
const LOOK_TIMEOUT: Duration = Duration::from_millis(1);

/// Where a server of these surroundings has its socket; makes the directory, and tidies away what
/// servers that were killed have left there.
pub(super) fn default_path(here: &Surroundings) -> Result<PathBuf, Error> {
    let directory = here.directory().ok_or(Error::NoPlace)?;
    // Others may see which servers of the system there are; a user's are nobody's business.
    let mode = if here.root { 0o755 } else { 0o700 };
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(&directory)
        .map_err(refused(&directory, "make the directory"))?;
    remove_left_behind(&directory);
    Ok(place::socket_of(&directory, std::process::id()))
}

/// Binds `path`, for its owner only, in the place of a socket at which nobody answers any more.
pub(in crate::supervisor) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    let bound = match bind_private(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            make_room(path)?;
            bind_private(path)
        }
        bound => bound,
    };
    let listener = bound.map_err(refused(path, "bind"))?;
    let file = SocketFile::made(path).map_err(refused(path, "look at the socket"))?;
    Ok((listener, file))
}

/// A mode that is set after `bind` would come too late for who connects in between. The mask is
/// the whole process's, which has one thread.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let before = umask(Mode::S_IXUSR | Mode::S_IRWXG | Mode::S_IRWXO);
    let bound = UnixListener::bind(path);
    umask(before);
    bound
}

/// Removes a socket whose server is dead, and nothing else.
fn make_room(path: &Path) -> Result<(), Error> {
    let there = fs::symlink_metadata(path).map_err(refused(path, "look at it"))?;
    if !there.file_type().is_socket() {
        return Err(Error::NotASocket {
            path: PathBuf::from(path),
        });
    }
    // A live server's queue may be full: that is an answer, too.
    match Conversation::open(path, Some(LOOK_TIMEOUT)) {
        Ok(live) => Err(Error::InUse {
            path: PathBuf::from(path),
            pid: live.server(),
        }),
        Err(AskError::Unreachable { source, .. })
            if source.kind() == io::ErrorKind::ConnectionRefused =>
        {
            fs::remove_file(path).map_err(refused(path, "remove the old socket"))
        }
        Err(_) => Err(Error::InUse {
            path: PathBuf::from(path),
            pid: None,
        }),
    }
}

/// Removes the sockets of servers that were killed. One whose process lives is left alone: it may
/// be about to listen.
fn remove_left_behind(directory: &Path) {
    let candidates = place::candidates(directory).unwrap_or_default();
    for candidate in candidates {
        if Path::new("/proc").join(candidate.pid.to_string()).exists() {
            continue;
        }
        if make_room(&candidate.path).is_ok() {
            let path = candidate.path.display();
            tracing::debug!(%path, "control socket of a dead server removed");
        }
    }
}

pub(super) fn refused(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = PathBuf::from(path);
    move |source| Error::System {
        path,
        operation,
        source,
    }
}

fn owner(pid: Option<i32>) -> String {
    let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    match pid {
        Some(pid) => match name(pid) {
            Some(program) => format!("pid {pid} ({})", program.trim_end()),
            None => format!("pid {pid}"),
        },
        None => "another process".to_owned(),
    }
}

impl SocketFile {
    /// The file that was just made at `path`.
    fn made(path: &Path) -> io::Result<Self> {
        let made = fs::symlink_metadata(path)?;
        Ok(Self(FileId {
            path: PathBuf::from(path),
            device: made.dev(),
            inode: made.ino(),
            maker: std::process::id(),
        }))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let FileId {
            path,
            device,
            inode,
            maker,
        } = &self.0;
        if *maker != std::process::id() {
            return;
        }
        // Somebody may have removed it and put another one there.
        let still_ours = fs::symlink_metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (*device, *inode));
        if still_ours && let Err(error) = fs::remove_file(path) {
            let path = path.display();
            tracing::warn!(%path, %error, "cannot remove the socket");
        }
    }
}
