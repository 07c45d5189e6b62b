//! Executable files made by tests: copies of the program, including damaged ones, and scripts.
//!
//! The test process never opens such a file for writing. Another thread may fork at any moment, and
//! its child holds a copy of that descriptor until exec; until then `execve` of the file fails with
//! ETXTBSY. Child processes write these files, and no descriptor is left when they have exited.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use uppercased::fault::{TRAILER_MARK, TRAILER_MAX_BYTES};

/// An executable file that a server can run.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
}

impl Image {
    /// Copies the program as built into `folder`.
    #[track_caller]
    pub fn copy(folder: &Path) -> Self {
        Self::copy_of(Path::new(env!("CARGO_BIN_EXE_uppercased")), folder)
    }

    /// Copies a different program, which exits at once without output.
    #[track_caller]
    pub fn other_program(folder: &Path) -> Self {
        let candidates = ["/bin/true", "/usr/bin/true"].map(Path::new);
        let found = candidates.into_iter().find(|path| path.exists());
        Self::copy_of(found.expect("every system has true"), folder)
    }

    /// Creates a shell script, in which `"$@"` are the arguments of its run.
    #[track_caller]
    pub fn script(folder: &Path, script: &str) -> Self {
        let path = next_path(folder);
        let create = OsStr::new("cat > \"$0\" && chmod 755 \"$0\"");
        let text = format!("#!/bin/sh\n{script}\n");
        let arguments = [OsStr::new("-c"), create, path.as_os_str()];
        run("sh", &arguments, text.as_bytes());
        Self { path }
    }

    /// Copies the program as built into `folder`, executable by every user.
    #[track_caller]
    pub fn for_every_user(folder: &Path) -> Self {
        let image = Self::copy(folder);
        for path in [folder, image.path()] {
            let permissions = Permissions::from_mode(0o755);
            fs::set_permissions(path, permissions).expect("change the mode of an own file");
        }
        image
    }

    #[track_caller]
    fn copy_of(program: &Path, folder: &Path) -> Self {
        let path = next_path(folder);
        run("cp", &[program.as_os_str(), path.as_os_str()], b"");
        Self { path }
    }

    /// Appends a fault plan, such as `receiver.received=kill;version=9.9.9`: it applies only to
    /// processes that run this file (see `uppercased::fault`).
    #[track_caller]
    pub fn with_faults(self, plan: &str) -> Self {
        let trailer = [TRAILER_MARK, plan.as_bytes()].concat();
        assert!(
            trailer.len() as u64 <= TRAILER_MAX_BYTES,
            "the program would not find so long a plan"
        );
        let append = OsStr::new("cat >> \"$0\"");
        let arguments = [OsStr::new("-c"), append, self.path.as_os_str()];
        run("sh", &arguments, &trailer);
        self
    }

    /// Truncates the file, as a full disk would. The kernel starts it, and it crashes.
    #[track_caller]
    pub fn truncated(self) -> Self {
        // All headers and almost no code: a debug build without its second half, the debug
        // information, would still run.
        const KEPT_BYTES: u64 = 64 * 1024;
        let size = format!("--size={KEPT_BYTES}");
        run("truncate", &[OsStr::new(&size), self.path.as_os_str()], b"");
        self
    }

    /// Removes the permission to execute the file.
    #[track_caller]
    pub fn not_executable(self) -> Self {
        let permissions = Permissions::from_mode(0o644);
        fs::set_permissions(&self.path, permissions).expect("change the mode of an own file");
        self
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces `target` with it by a rename, as package managers do, so that the path always
    /// exists and running processes keep the old file.
    #[track_caller]
    pub fn replace(self, target: &Path) -> Self {
        fs::rename(&self.path, target).expect("both are in one file system");
        Self {
            path: target.to_owned(),
        }
    }
}

fn next_path(folder: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    folder.join(format!("image-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Runs a command with `input`, and waits for it.
#[track_caller]
fn run(program: &str, arguments: &[&OsStr], input: &[u8]) {
    let mut command = Command::new(program);
    let child = command.args(arguments).stdin(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("start {program}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe was asked for");
    if !input.is_empty() {
        stdin.write_all(input).expect("it reads its input");
    }
    drop(stdin);
    let status = child.wait().expect("a child of this process");
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// Returns whether a process executes the file at `path`: the kernel then refuses to open it for
/// writing.
pub fn is_being_run(path: &Path) -> bool {
    File::options()
        .append(true)
        .open(path)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ExecutableFileBusy)
}
