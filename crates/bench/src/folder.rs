//! A temporary directory for the files of a measurement.
//!
//! Invariants: no other user can access it or predict its name; the path of a socket in it is short
//! enough for the kernel, however long `TMPDIR` is; it is removed when the value is dropped.

use std::collections::hash_map::RandomState;
use std::fs::DirBuilder;
use std::hash::BuildHasher as _;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use uppercased_ctl::limits::SOCKET_PATH_MAX_BYTES;

/// Parent directory if `TMPDIR` is not set or too long.
const DEFAULT: &str = "/tmp";
/// Upper bound of the length of `/NAME/control.sock` in bytes.
const BELOW_MAX_BYTES: usize = 64;
/// Number of names to try.
const ATTEMPTS: u32 = 16;
/// Accessible only to this user.
const MODE: u32 = 0o700;

/// A temporary directory, empty at first.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

/// The cause of a failure to create it.
#[derive(Debug, thiserror::Error)]
#[error("cannot create a folder in {}: {source}; set TMPDIR to a writable folder",
    base.display())]
pub(super) struct Error {
    base: PathBuf,
    source: io::Error,
}

impl Folder {
    /// Creates one below `TMPDIR`, or `/tmp`.
    ///
    /// # Errors
    /// Any error of the system.
    pub(super) fn create() -> Result<Self, Error> {
        let set = std::env::var_os("TMPDIR").filter(|value| !value.is_empty());
        let asked = set.map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from);
        let base = std::path::absolute(&asked).map_err(|source| Error {
            base: asked,
            source,
        })?;
        Self::below(if fits(&base) { base } else { DEFAULT.into() })
    }

    fn below(base: PathBuf) -> Result<Self, Error> {
        let mut refused = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..ATTEMPTS {
            let path = base.join(unique("uppercased-bench-"));
            match DirBuilder::new().mode(MODE).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => refused = error,
                Err(source) => return Err(Error { base, source }),
            }
        }
        Err(Error {
            base,
            source: refused,
        })
    }

    /// Returns its absolute path.
    #[must_use]
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns `start` with a random, unpredictable suffix.
#[must_use]
pub(super) fn unique(start: &str) -> String {
    // The kernel's random numbers provide the keys of each instance.
    format!("{start}{:016x}", RandomState::new().hash_one(start))
}

/// Returns whether a server accepts the path of a socket below `base`: short enough, and valid
/// text.
fn fits(base: &Path) -> bool {
    let limit = SOCKET_PATH_MAX_BYTES - BELOW_MAX_BYTES;
    base.to_str().is_some_and(|text| text.len() <= limit)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn folder_is_private_unique_and_removed() {
        let base = tempfile::tempdir().unwrap();
        let folders = [(); 3].map(|()| Folder::below(base.path().to_owned()).unwrap());
        assert_ne!(folders[0].path(), folders[1].path());
        let mode = std::fs::metadata(folders[0].path()).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, MODE);
        std::fs::write(folders[0].path().join("log"), "x").unwrap();
        drop(folders);
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn error_names_missing_folder() {
        let base = tempfile::tempdir().unwrap();
        let missing = base.path().join("none");
        let error = Folder::below(missing.clone()).unwrap_err().to_string();
        assert!(
            error.contains(missing.to_str().unwrap()) && error.contains("TMPDIR"),
            "{error}"
        );
    }

    #[test]
    fn long_or_strange_base_is_not_used() {
        use std::os::unix::ffi::OsStrExt as _;

        assert!(fits(Path::new("/tmp")));
        assert!(!fits(Path::new(&"/x".repeat(30))));
        assert!(!fits(Path::new(std::ffi::OsStr::from_bytes(b"/caf\xe9"))));
        let name = unique("uppercased-bench-");
        assert!("/control.sock".len() + 1 + name.len() <= BELOW_MAX_BYTES);
    }
}
