//! Default paths of control sockets, and the discovery of running servers.
//!
//! A server's socket is `PID.sock` in one directory; the process ID stays the same across reloads
//! and upgrades. `RUNTIME_DIRECTORY` (systemd sets it for a service with `RuntimeDirectory=`)
//! overrides the directory. Without it, root uses `/run/uppercased`, other users `uppercased` below
//! `XDG_RUNTIME_DIR`.
//!
//! Invariant: server and commands find the directory by the same rules. It must not remove or
//! create anything: discovery has no side effects.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The inputs that determine the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `RUNTIME_DIRECTORY`.
    pub runtime_directory: Option<OsString>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<OsString>,
    /// Whether the process runs as root.
    pub root: bool,
}

/// A socket that may belong to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The process that created it.
    pub pid: u32,
    /// The path of the socket.
    pub path: PathBuf,
}

const SYSTEM_DIRECTORY: &str = "/run/uppercased";
const SUBDIRECTORY: &str = "uppercased";
const SUFFIX: &str = ".sock";

impl Environment {
    /// Returns the environment of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            runtime_directory: set("RUNTIME_DIRECTORY"),
            xdg_runtime_dir: set("XDG_RUNTIME_DIR"),
            root: nix::unistd::geteuid().is_root(),
        }
    }

    /// Returns the directory in which a server with this environment creates its socket; `None` if
    /// there is no default.
    #[must_use]
    pub fn directory(&self) -> Option<PathBuf> {
        self.named().or_else(|| {
            if self.root {
                Some(PathBuf::from(SYSTEM_DIRECTORY))
            } else {
                self.users()
            }
        })
    }

    /// Returns the directories that a command searches for servers. A system service may run as the
    /// caller's user, so users search the system's directory, too.
    #[must_use]
    pub fn searched_directories(&self) -> Vec<PathBuf> {
        if let Some(named) = self.named() {
            return vec![named];
        }
        let mut places = Vec::new();
        if !self.root {
            places.extend(self.users());
        }
        places.push(PathBuf::from(SYSTEM_DIRECTORY));
        places
    }

    /// Returns the first of the directories, which systemd separates by colons.
    fn named(&self) -> Option<PathBuf> {
        let all = self.runtime_directory.as_deref()?.as_encoded_bytes();
        let first = all.split(|&byte| byte == b':').next()?;
        let first = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(first);
        Some(PathBuf::from(first)).filter(|path| path.is_absolute())
    }

    fn users(&self) -> Option<PathBuf> {
        let base = PathBuf::from(self.xdg_runtime_dir.as_deref()?);
        // By the variable's specification a relative path is ignored.
        base.is_absolute().then(|| base.join(SUBDIRECTORY))
    }
}

/// Returns the path of the socket of process `pid`.
#[must_use]
pub fn socket_of(directory: &Path, pid: u32) -> PathBuf {
    directory.join(format!("{pid}{SUFFIX}"))
}

/// Returns the sockets in `directory`, by process ID; none if the directory does not exist.
///
/// # Errors
/// The directory cannot be read.
pub fn candidates(directory: &Path) -> io::Result<Vec<Candidate>> {
    let listing = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut found: Vec<Candidate> = listing
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.strip_suffix(SUFFIX)?.parse();
            Some(Candidate {
                pid: pid.ok()?,
                path: entry.path(),
            })
        })
        .collect();
    found.sort_by_key(|candidate| candidate.pid);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn environment(named: &str, xdg: &str, root: bool) -> Environment {
        let set = |value: &str| Some(OsString::from(value)).filter(|value| !value.is_empty());
        Environment {
            runtime_directory: set(named),
            xdg_runtime_dir: set(xdg),
            root,
        }
    }

    #[test]
    fn server_and_commands_agree_on_directory() {
        for (named, xdg, root, directory) in [
            ("", "", true, Some("/run/uppercased")),
            ("", "/run/user/7", true, Some("/run/uppercased")),
            ("", "/run/user/7", false, Some("/run/user/7/uppercased")),
            ("", "", false, None),
            ("", "relative", false, None),
            ("/tmp/x", "/run/user/7", false, Some("/tmp/x")),
            ("/tmp/x:/tmp/y", "", true, Some("/tmp/x")),
            ("relative", "", true, Some("/run/uppercased")),
        ] {
            let here = environment(named, xdg, root);
            assert_eq!(here.directory().as_deref(), directory.map(Path::new));
            if let Some(directory) = here.directory() {
                assert!(here.searched_directories().contains(&directory), "{here:?}");
            }
        }
        let searched = environment("", "/u", false).searched_directories();
        assert_eq!(
            searched,
            ["/u/uppercased", "/run/uppercased"].map(PathBuf::from)
        );
        let searched = environment("/tmp/x", "/u", false).searched_directories();
        assert_eq!(searched, ["/tmp/x"].map(PathBuf::from));
    }

    #[test]
    fn candidate_sockets_are_named_after_process() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let _sockets = ["12.sock", "7.sock", "x.sock", "9.socket"]
            .map(|name| UnixListener::bind(at(name)).unwrap());
        fs::write(at("8.sock"), "a file").unwrap();
        let pids: Vec<u32> = candidates(directory.path())
            .unwrap()
            .iter()
            .map(|found| found.pid)
            .collect();
        assert_eq!(pids, [7, 12]);
        assert_eq!(socket_of(directory.path(), 12), at("12.sock"));
        assert_eq!(candidates(&at("nowhere")).unwrap(), []);
    }
}
