//! The path of the program for a reload or an upgrade: the one by which this program was started,
//! so that a link is followed again (`current -> releases/7`) instead of its former target.
//!
//! A relative path stays relative, like that of the configuration file: the working directory never
//! changes, so both refer to the directory in which the server was started, even if that is
//! renamed.
//!
//! Invariant: at the start the path leads to the running file; if no such path was named, it is
//! that file's own.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;

/// Returns the path of this program, which was started by `name`.
pub(crate) fn path_of_this(name: Option<&OsStr>) -> io::Result<PathBuf> {
    let running = std::env::current_exe()?;
    let search = std::env::var_os("PATH").unwrap_or_default();
    let leads_here = |path: &PathBuf| path.canonicalize().is_ok_and(|real| real == running);
    let named = name.map_or_else(Vec::new, |name| candidates(name, &search));
    Ok(named.into_iter().find(leads_here).unwrap_or(running))
}

/// Returns the files that the starter of the program may have meant by `name`.
fn candidates(name: &OsStr, search: &OsStr) -> Vec<PathBuf> {
    let is_path = name.as_encoded_bytes().contains(&b'/');
    if is_path {
        vec![PathBuf::from(name)]
    } else {
        let folders = std::env::split_paths(search);
        folders.map(|folder| folder.join(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn path_is_used_and_name_is_searched() {
        let of = |name: &str| candidates(name.as_ref(), "/a:/b/c".as_ref());
        assert_eq!(of("/opt/current/up"), [Path::new("/opt/current/up")]);
        assert_eq!(of("up"), [Path::new("/a/up"), Path::new("/b/c/up")]);
        assert_eq!(of("./up"), [Path::new("./up")]);
    }

    #[test]
    fn name_of_another_file_is_refused() {
        let running = std::env::current_exe().unwrap();
        for name in [None, Some("/bin/sh"), Some("sh"), Some("")] {
            assert_eq!(path_of_this(name.map(OsStr::new)).unwrap(), running);
        }
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("current");
        std::os::unix::fs::symlink(&running, &link).unwrap();
        assert_eq!(path_of_this(Some(link.as_os_str())).unwrap(), link);
    }
}
