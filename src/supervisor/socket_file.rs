//! The file of a Unix socket: bound for its owner only, replaced if its server no longer runs,
//! removed at the end.
//!
//! Invariants: it has mode 0600 from its creation; a socket is removed only if it is this process's
//! own, or if no server answers at it; a path is bound, and a dead socket removed there, by one
//! process at a time (`Turn`), so that none mistakes a socket under construction for a dead one. It
//! must not accept or read.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::poll::poll;
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::config::path_bytes;
use crate::log::event;
use uppercased_ctl::clock;
use uppercased_ctl::control::client::{Conversation, Error as AskError};
use uppercased_ctl::control::place::{self, Environment};

/// The reason why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another server listens there.
    #[error(
        "cannot listen on control socket {}: {} listens there; stop it or choose another path with \
         --control", path.display(), owner(*pid)
    )]
    InUse {
        /// The configured path.
        path: PathBuf,
        /// The process that listens there, if it is in this namespace.
        pid: Option<i32>,
    },
    /// The path exists and is not a socket.
    #[error(
        "cannot listen on control socket {}: the file is not a socket; choose another path with --control",
        path.display()
    )]
    NotASocket {
        /// The configured path.
        path: PathBuf,
    },
    /// The environment names no directory.
    #[error(
        "cannot choose a control socket: XDG_RUNTIME_DIR is not set; name a path with --control"
    )]
    NoPlace,
    /// The system refused an operation.
    #[error(
        "cannot listen on control socket {}: cannot {operation}: {source}; choose another path with --control",
        path.display()
    )]
    System {
        /// The path concerned.
        path: PathBuf,
        /// The operation.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// Returns the cause alone, for a socket other than the control socket.
    pub(crate) fn why(&self) -> String {
        match self {
            Self::InUse { pid, .. } => format!("{} listens there", owner(*pid)),
            Self::NotASocket { .. } => "the file is not a socket".to_owned(),
            Self::NoPlace => "no directory for it".to_owned(),
            Self::System {
                operation, source, ..
            } => format!("{operation}: {source}"),
        }
    }
}

/// The file of the socket. The process that created it removes it on drop: that covers every
/// regular exit, and excludes a forked copy and an exec, which drops nothing.
#[derive(Debug)]
pub(crate) struct SocketFile {
    pub(crate) id: FileId,
    /// The process that removes it.
    owner: u32,
}

/// The identity of a file, to distinguish it from another at the same path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileId {
    #[serde(with = "path_bytes")]
    pub(crate) path: PathBuf,
    device: u64,
    inode: u64,
}

/// Time to wait for another process that binds the same path, which takes less than a millisecond.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);
/// Retry interval meanwhile.
const TURN_RETRY_MS: u16 = 5;

/// The right to bind a path and to remove a socket without a server there: a locked file beside it.
///
/// Between `bind` and `listen` a socket refuses connections like one whose server has exited, and
/// between a check of a socket and its removal another may have replaced it. The file belongs to
/// this user and no other user may open it, so no other user can hold its lock.
#[derive(Debug)]
struct Turn {
    _lock: Flock<File>,
    path: PathBuf,
}

impl Turn {
    /// Waits for the lock for `patience` at most.
    fn take(path: &Path, patience: Duration) -> Result<Self, Error> {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let until = clock::now() + patience;
        loop {
            if let Some(turn) = Self::try_take(&lock).map_err(refused(path, "lock it"))? {
                return Ok(turn);
            }
            if clock::now() >= until {
                return Err(Error::InUse {
                    path: PathBuf::from(path),
                    pid: None,
                });
            }
            // Only time is awaited; an interruption merely shortens the wait.
            let _ = poll(&mut [], TURN_RETRY_MS);
        }
    }

    /// Returns `None` if another process has the lock.
    fn try_take(lock: &Path) -> io::Result<Option<Self>> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags.bits())
            .open(lock)?;
        let opened = file.metadata()?;
        if !opened.is_file() || opened.uid() != geteuid().as_raw() {
            let why = format!("{} belongs to another user", lock.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => held,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        };
        // The previous holder may have removed the file after it was opened here.
        let same = fs::symlink_metadata(lock)
            .is_ok_and(|there| (there.dev(), there.ino()) == (opened.dev(), opened.ino()));
        Ok(same.then(|| Self {
            _lock: held,
            path: PathBuf::from(lock),
        }))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Removed while it is locked: the next process creates a new one. A remaining file is
        // harmless.
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns the default path of a server in this environment. Creates the directory, and removes the
/// sockets of killed servers there.
pub(crate) fn default_path(here: &Environment) -> Result<PathBuf, Error> {
    let directory = here.directory().ok_or(Error::NoPlace)?;
    make_directory(&directory, here.root)?;
    remove_left_behind(&directory);
    Ok(place::socket_of(&directory, std::process::id()))
}

/// Creates the directory. Other users may see the system's servers, but not those of a user.
fn make_directory(directory: &Path, root: bool) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(if root { 0o755 } else { 0o700 })
        .create(directory)
        .map_err(refused(directory, "create the directory"))
}

/// Binds `path`, for its owner only, replacing a socket at which no server answers.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    bind_within(path, TURN_TIMEOUT)
}

/// Binds `path` again after its file, and perhaps its directory, was removed. Does not wait.
pub(crate) fn bind_again(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    if let Some(directory) = path.parent() {
        make_directory(directory, geteuid().is_root())?;
    }
    bind_within(path, Duration::ZERO)
}

fn bind_within(path: &Path, patience: Duration) -> Result<(UnixListener, SocketFile), Error> {
    let _turn = Turn::take(path, patience)?;
    let bound = match bind_private(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            make_room(path)?;
            bind_private(path)
        }
        bound => bound,
    };
    let listener = bound.map_err(refused(path, "bind"))?;
    let file = SocketFile::made(path).map_err(refused(path, "inspect the socket"))?;
    Ok((listener, file))
}

/// Binds with mode 0600: a mode that is set after `bind` would come too late. The mask is that of
/// the whole process, which has one thread.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let before = umask(Mode::S_IXUSR | Mode::S_IRWXG | Mode::S_IRWXO);
    let bound = UnixListener::bind(path);
    umask(before);
    bound
}

/// Removes a socket whose server has exited, and no other file.
fn make_room(path: &Path) -> Result<(), Error> {
    let there = fs::symlink_metadata(path).map_err(refused(path, "inspect the file"))?;
    if !there.file_type().is_socket() {
        return Err(Error::NotASocket {
            path: PathBuf::from(path),
        });
    }
    // A running server's queue may be full: that counts as an answer, too. Nothing is awaited: a
    // deadline that passes before this process gets a CPU would make every socket look served.
    match Conversation::open_at_once(path) {
        Ok(live) if live.server().is_none_or(|pid| exists(pid.cast_unsigned())) => {
            Err(Error::InUse {
                path: PathBuf::from(path),
                pid: live.server(),
            })
        }
        // A child of a killed server that has not exec'd yet still has the socket, and serves nobody.
        Ok(_) => remove_old(path),
        Err(AskError::Unreachable { source, .. })
            if source.kind() == io::ErrorKind::ConnectionRefused =>
        {
            remove_old(path)
        }
        Err(_) => Err(Error::InUse {
            path: PathBuf::from(path),
            pid: None,
        }),
    }
}

fn remove_old(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(refused(path, "remove the old socket"))
}

fn exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Removes the sockets of servers that were killed. One whose process exists is kept: the process
/// may be about to listen.
fn remove_left_behind(directory: &Path) {
    let candidates = place::candidates(directory).unwrap_or_default();
    for candidate in candidates {
        if exists(candidate.pid) {
            continue;
        }
        let turn = Turn::take(&candidate.path, Duration::ZERO);
        if turn.is_ok() && make_room(&candidate.path).is_ok() {
            let path = candidate.path.display();
            event!(control_socket_replaced, %path);
        }
    }
}

pub(crate) fn refused(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> Error {
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
    /// Returns the identity of the file just created at `path`.
    fn made(path: &Path) -> io::Result<Self> {
        let made = fs::symlink_metadata(path)?;
        Ok(Self {
            id: FileId {
                path: PathBuf::from(path),
                device: made.dev(),
                inode: made.ino(),
            },
            owner: std::process::id(),
        })
    }

    /// Returns the file created by an earlier binary of this process, which keeps it until
    /// [`Self::own`] because it may resume.
    pub(crate) const fn inherited(id: FileId) -> Self {
        Self { id, owner: 0 }
    }

    /// Takes ownership of the file.
    pub(crate) fn own(&mut self) {
        self.owner = std::process::id();
    }

    /// Leaves the file to another program.
    #[cfg(test)]
    pub(crate) const fn disown(&mut self) {
        self.owner = 0;
    }

    /// Returns whether the file is still at its path.
    pub(crate) fn is_there(&self) -> bool {
        let FileId {
            path,
            device,
            inode,
        } = &self.id;
        fs::symlink_metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (*device, *inode))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.owner != std::process::id() {
            return;
        }
        let path = &self.id.path;
        // Another process may have replaced it.
        if self.is_there()
            && let Err(error) = fs::remove_file(path)
        {
            let path = path.display();
            event!(control_socket_not_removed, %path, %error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn one_process_at_a_time_binds_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("12.sock");
        let turn = Turn::take(&path, Duration::ZERO).unwrap();
        assert!(matches!(bind_again(&path), Err(Error::InUse { .. })));
        drop(turn);
        let bound = bind_again(&path).unwrap();
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "the socket, and no lock");
        drop(bound);
    }

    #[test]
    fn lock_file_that_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("12.sock");
        std::os::unix::fs::symlink("/dev/null", folder.path().join("12.sock.lock")).unwrap();
        let why = bind(&path).unwrap_err().to_string();
        assert!(why.contains("lock it"), "{why}");
        assert!(!path.exists());
    }

    /// The role of a test process that creates a socket here, gives it to a child, and exits.
    const ROLE: &str = "TEST_KILLED_SERVER";

    #[test]
    fn socket_of_killed_server_is_replaced() {
        if let Some(path) = std::env::var_os(ROLE) {
            let listener = OwnedFd::from(UnixListener::bind(path).unwrap());
            let child = Command::new("sleep")
                .arg("600")
                .stdin(listener)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            println!("child={}", child.unwrap().id());
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.sock");
        let name = "supervisor::socket_file::tests::socket_of_killed_server_is_replaced";
        let server = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(ROLE, &path)
            .output();
        let output = String::from_utf8(server.unwrap().stdout).unwrap();
        let child = output.split("child=").nth(1).unwrap();
        let child: i32 = child.lines().next().unwrap().parse().unwrap();
        let is_served = UnixStream::connect(&path).is_ok();
        let bound = bind(&path);
        kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
        assert!(is_served, "the child has the socket");
        assert!(bound.unwrap().1.is_there());
    }

    #[test]
    fn live_server_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let own = std::process::id().cast_signed();
        let in_use = |pid: Option<i32>| move |bound: Result<_, Error>| matches!(bound.err(), Some(Error::InUse { pid: found, .. }) if found == pid);
        assert!(in_use(Some(own))(bind(&path)));
        // Until its queue is full, which is no time to wait either.
        listener.set_nonblocking(true).unwrap();
        let mut queued = Vec::new();
        while let Ok(client) = Conversation::open_at_once(&path) {
            queued.push(client);
        }
        assert!(in_use(None)(bind(&path)));
        drop(listener);
        assert!(bind(&path).is_ok());
    }

    #[test]
    fn concurrent_starts_leave_one_server_at_dead_socket() {
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("c.sock");
            drop(UnixListener::bind(&path).unwrap());
            let start = std::sync::Barrier::new(4);
            let bound: Vec<_> = std::thread::scope(|scope| {
                let all = std::array::from_fn::<_, 4, _>(|_| {
                    scope.spawn(|| {
                        start.wait();
                        bind(&path)
                    })
                });
                let all = all.into_iter().map(|one| one.join().unwrap());
                all.collect()
            });
            let living = bound.iter().flatten();
            let there = living.filter(|(_, file)| file.is_there()).count();
            let won = bound.iter().flatten().count();
            assert_eq!((won, there), (1, 1));
        }
    }
}
