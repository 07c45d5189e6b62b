//! The directory of the workers' rendezvous: sockets at which a later supervisor finds the workers
//! that this one leaves behind when it dies.
//!
//! Invariants: the directory belongs to this user, and no other may enter it; a socket's file exists
//! from before its worker starts until the worker is gone, whichever supervisor removes it; without
//! a directory workers cannot be adopted, and everything else works.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::channel::rendezvous::{Rendezvous, visit};
use crate::config::{Control, path_bytes};
use crate::log::event;
use uppercased_ctl::control::place::Environment;
use uppercased_ctl::identity::{Generation, SlotId, WorkerId};

use super::stored;

/// The directory beside the control socket.
const DIRECTORY: &str = "workers";
const SUFFIX: &str = ".sock";

/// The directory of this instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Directory {
    #[serde(with = "path_bytes")]
    path: PathBuf,
}

/// The file of one worker's rendezvous.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RendezvousFile {
    #[serde(with = "path_bytes")]
    path: PathBuf,
}

impl Directory {
    /// Returns the directory that belongs to a control socket, created if necessary; `None` if there
    /// is none.
    pub(crate) fn open(control: &Control) -> Option<Self> {
        let path = place(control)?;
        match make(&path) {
            Ok(()) => Some(Self { path }),
            Err(error) => {
                let path = path.display();
                event!(rendezvous_unavailable, %path, %error);
                None
            }
        }
    }

    /// Returns the directory that belongs to a control socket, if there is one.
    pub(crate) fn existing(control: &Control) -> Option<Self> {
        let path = place(control)?;
        check(&path).ok().map(|()| Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Binds the rendezvous of a worker that is about to start.
    ///
    /// # Errors
    /// What the system returned.
    pub(crate) fn bind(&self, worker: WorkerId) -> io::Result<(Rendezvous, RendezvousFile)> {
        let (pid, slot, generation) = (std::process::id(), worker.slot, worker.generation.0);
        let path = self.path.join(format!("{pid}-{slot}-{generation}{SUFFIX}"));
        // That of an earlier process with the same ID.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let bound = Rendezvous::bind(&path)?;
        Ok((bound, RendezvousFile { path }))
    }

    /// Returns the files in the directory.
    pub(crate) fn files(&self) -> Vec<RendezvousFile> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        let sockets = paths.filter(|path| path.to_string_lossy().ends_with(SUFFIX));
        sockets.map(|path| RendezvousFile { path }).collect()
    }

    /// Removes the files at which no process listens any more, and the directory without files.
    pub(crate) fn remove_unused(&self) {
        for file in self.files() {
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            if visit(file.path()).is_err_and(|error| refused(&error)) {
                file.remove();
            }
        }
        self.remove();
    }

    /// Removes the directory, unless it is in use.
    pub(crate) fn remove(&self) {
        // Without workers nothing can continue with a stored configuration.
        if self.files().is_empty() {
            stored::remove_all(&self.path);
        }
        // Fails while another instance has a file there.
        let _ = fs::remove_dir(&self.path);
    }
}

impl RendezvousFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the worker for which the file was made.
    pub(crate) fn worker(&self) -> Option<WorkerId> {
        let name = self.path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
        let mut numbers = name.split('-').skip(1);
        let slot = SlotId(numbers.next()?.parse().ok()?);
        let generation = Generation(numbers.next()?.parse().ok()?);
        Some(WorkerId { slot, generation })
    }

    /// Removes the file: no process listens there any more.
    pub(crate) fn remove(&self) {
        // A supervisor that starts meanwhile may have.
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns the path of the directory that belongs to a control socket.
fn place(control: &Control) -> Option<PathBuf> {
    match control {
        Control::Off => None,
        Control::Auto => Some(Environment::of_this_process().directory()?.join(DIRECTORY)),
        Control::Path(path) => {
            let mut path = path.as_os_str().to_owned();
            path.push(".");
            path.push(DIRECTORY);
            Some(PathBuf::from(path))
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => check(path),
    }
}

/// Checks that the directory is this user's alone.
fn check(path: &Path) -> io::Result<()> {
    let made = fs::symlink_metadata(path)?;
    let is_private = made.is_dir() && made.mode() & 0o077 == 0;
    if is_private && made.uid() == nix::unistd::geteuid().as_raw() {
        Ok(())
    } else {
        let why = "it is no directory of this user alone";
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn directory_of_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::Path(folder.path().join("c.sock"));
        let directory = Directory::open(&control).unwrap();
        let path = folder.path().join("c.sock.workers");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let (_bound, file) = directory.bind(WorkerId::default()).unwrap();
        assert_eq!(directory.files(), std::slice::from_ref(&file));
        assert_eq!(file.worker(), Some(WorkerId::default()));
        directory.remove();
        file.remove();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(Directory::open(&control), None);
        directory.remove();
        assert!(!path.exists());
        assert_eq!(Directory::open(&Control::Off), None);
    }
}
