//! Writes results to files and standard output.
//!
//! Invariants: each output is written completely, or an error reports that it was not; no output
//! overwrites another; a regular file keeps its content until the replacement is complete, and no
//! file is left empty; a measured result is always shown somewhere, whichever output fails.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::sys::stat::fstat;

use super::folder::unique;
use super::interrupt::{Interrupt, STEP};
use super::options::Format;
use super::wait::is_ready;
use uppercased_ctl::output::stdout;
use uppercased_ctl::stderr::write_error;

/// Names of standard output. If a file is written to it, the summary is not.
const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
/// Bytes that a writable pipe accepts at once (`PIPE_BUF`).
const PIECE_BYTES: usize = 4096;

/// The reason why an output is not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The system's error.
    #[error("cannot write {}: {source}; check the path and its permissions", path.display())]
    Write {
        /// The path as given.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A named pipe without a reader, which would block the open.
    #[error("cannot write {}: no process reads this pipe; start its reader first", path.display())]
    NoReader {
        /// The path as given.
        path: PathBuf,
    },
    /// Standard output cannot be written.
    #[error("cannot write standard output: {0}; check that its disk is not full")]
    Stdout(io::Error),
    /// Two outputs in one file, one of which would be lost.
    #[error("cannot write {0} and {1} to the same file; use a file for each")]
    Same(&'static str, &'static str),
}

impl Error {
    /// Returns whether the error is in the options rather than in the system.
    #[must_use]
    pub(super) const fn is_usage(&self) -> bool {
        matches!(self, Self::Same(..))
    }
}

/// All outputs of a measurement, checked before it begins.
#[derive(Debug)]
pub(super) struct Outputs(Vec<(Format, Output)>);

/// The destination of one output.
#[derive(Debug)]
struct Output {
    /// The path as given.
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Stdout,
    /// A new file, or one that is replaced when the new one is complete.
    Replaced(PathBuf),
    /// An open file that cannot be replaced, a device or a pipe.
    Open(File),
}

/// The identity of a destination, to compare two.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    Path(PathBuf),
    Inode(u64, u64),
    /// Discards data, as `/dev/null` does: may be used twice.
    None,
}

impl Outputs {
    /// Checks that every output can be written. A file keeps its content until its replacement.
    ///
    /// # Errors
    /// An output cannot be written, or two have the same destination.
    pub(super) fn open(files: &[(Format, PathBuf)]) -> Result<Self, Error> {
        let open = |(format, path): &(Format, PathBuf)| Ok((*format, Output::open(path)?));
        let outputs = Self(files.iter().map(open).collect::<Result<_, Error>>()?);
        let summary = ("the summary on standard output", of_descriptor(stdout()));
        let named = outputs
            .0
            .iter()
            .map(|(format, one)| (flag(*format), one.identity()));
        let rest = outputs.has_summary().then_some(summary);
        let all: Vec<(&'static str, Identity)> = named.chain(rest).collect();
        for (at, (name, identity)) in all.iter().enumerate() {
            let other = all[at + 1..].iter().find(|(_, other)| other == identity);
            if let Some((other, _)) = other.filter(|_| *identity != Identity::None) {
                return Err(Error::Same(name, other));
            }
        }
        let mut stdouts = outputs.0.iter().filter(|(_, output)| output.is_stdout());
        if let Some(((first, _), (second, _))) = stdouts.next().zip(stdouts.next()) {
            return Err(Error::Same(flag(*first), flag(*second)));
        }
        Ok(outputs)
    }

    /// Writes everything that `render` returns, files first. Reports failures on standard error,
    /// and the summary, too, if it would not be shown otherwise. Returns whether all was written.
    #[must_use]
    pub(super) fn write(
        &self,
        summary: &str,
        render: impl Fn(Format) -> io::Result<String>,
        interrupt: &Interrupt,
    ) -> bool {
        let mut is_shown = self.has_summary();
        let mut errors = Vec::new();
        let mut outputs: Vec<&(Format, Output)> = self.0.iter().collect();
        outputs.sort_by_key(|(_, output)| output.is_stdout());
        for (format, output) in outputs {
            let written = match render(*format) {
                Ok(text) => output.write(&text, interrupt),
                Err(error) => Err(output.failed(error)),
            };
            errors.extend(written.err());
        }
        if is_shown && let Err(error) = to_stdout(summary, interrupt) {
            errors.push(error);
            is_shown = false;
        }
        for error in &errors {
            write_error(&error.to_string());
        }
        if !errors.is_empty() && !is_shown {
            // If standard error fails as well, only the exit code reports it.
            let _ = write_all(io::stderr().as_fd(), summary.as_bytes(), interrupt);
        }
        errors.is_empty()
    }

    /// Returns whether the summary goes to standard output.
    fn has_summary(&self) -> bool {
        !self.0.iter().any(|(_, output)| output.is_stdout())
    }
}

/// Returns the flag of a format, for errors.
const fn flag(format: Format) -> &'static str {
    match format {
        Format::Json => "--json",
        Format::Report => "--report",
        Format::Csv => "--csv",
        Format::Markdown => "--markdown",
        Format::Hgrm => "--hgrm",
    }
}

impl Output {
    fn open(path: &Path) -> Result<Self, Error> {
        let place = place(path, true).map_err(|source| {
            let path = path.to_owned();
            match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENXIO) => Error::NoReader { path },
                _ => Error::Write { path, source },
            }
        })?;
        Ok(Self {
            path: path.to_owned(),
            place,
        })
    }

    const fn is_stdout(&self) -> bool {
        matches!(self.place, Place::Stdout)
    }

    fn identity(&self) -> Identity {
        match &self.place {
            Place::Stdout => of_descriptor(stdout()),
            Place::Open(file) => of_descriptor(file.as_fd()),
            Place::Replaced(path) => fs::metadata(path).map_or_else(
                |_| Identity::Path(path.clone()),
                |known| Identity::Inode(known.dev(), known.ino()),
            ),
        }
    }

    fn write(&self, text: &str, interrupt: &Interrupt) -> Result<(), Error> {
        let written = match &self.place {
            Place::Stdout => return to_stdout(text, interrupt),
            Place::Replaced(path) => replace(path, text),
            Place::Open(file) => overwrite(file, text, interrupt),
        };
        written.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        Error::Write { path, source }
    }
}

/// Chooses how to write to `path`, and checks it. `follow`: a dangling link is followed once.
fn place(path: &Path, follow: bool) -> io::Result<Place> {
    if STDOUT.iter().any(|name| path == Path::new(name)) {
        return Ok(Place::Stdout);
    }
    let known = match fs::metadata(path) {
        Ok(known) => known,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = folder_of(path);
            if follow && let Ok(target) = fs::read_link(path) {
                return place(&folder.join(target), false);
            }
            let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
            let folder = folder.canonicalize()?;
            try_folder(&folder)?;
            return Ok(Place::Replaced(folder.join(name)));
        }
        Err(error) => return Err(error),
    };
    // A pipe without a reader is then an error instead of a wait.
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let real = path.canonicalize();
    match real {
        Ok(real) if is_replaceable(&known) && try_folder(folder_of(&real)).is_ok() => {
            Ok(Place::Replaced(real))
        }
        _ => Ok(Place::Open(file)),
    }
}

/// Returns whether replacing the file makes no difference to its users.
fn is_replaceable(known: &Metadata) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    known.is_file() && known.nlink() == 1 && known.uid() == own
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Creates a file in `folder`, and removes it.
fn try_folder(folder: &Path) -> io::Result<()> {
    let path = folder.join(unique(".uppercased-bench-"));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(&path)
}

/// Replaces the file at `path` by `text`, atomically.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let beside = folder_of(path).join(unique(".uppercased-bench-"));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&beside)?;
    let fill = || {
        if let Ok(known) = fs::metadata(path) {
            file.set_permissions(known.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        // A full disk may be detected only during writeback.
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    let mut fill = fill;
    fill().inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// Writes `text` to an open file, replacing the content of a regular one.
fn overwrite(file: &File, text: &str, interrupt: &Interrupt) -> io::Result<()> {
    let is_file = file.metadata()?.is_file();
    if is_file {
        file.set_len(0)?;
    }
    write_all(file.as_fd(), text.as_bytes(), interrupt)?;
    if is_file {
        file.sync_all()?;
    }
    Ok(())
}

/// Writes to standard output. A reader that closes early, as `head` does, is not an error.
fn to_stdout(text: &str, interrupt: &Interrupt) -> Result<(), Error> {
    match write_all(stdout(), text.as_bytes(), interrupt) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Error::Stdout),
    }
}

/// Writes all of `bytes`; waits for a slow reader until a signal arrives.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8], interrupt: &Interrupt) -> io::Result<()> {
    let signals = interrupt.signals();
    while !bytes.is_empty() {
        if !is_ready(to, PollFlags::POLLOUT, STEP) {
            if interrupt.signals() > signals {
                return Err(io::Error::other(
                    "interrupted while its reader took nothing",
                ));
            }
            continue;
        }
        match nix::unistd::write(to, &bytes[..bytes.len().min(PIECE_BYTES)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn of_descriptor(fd: BorrowedFd<'_>) -> Identity {
    let Ok(known) = fstat(fd) else {
        return Identity::None;
    };
    let kind = fs::metadata(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&fd)
    ));
    if kind.is_ok_and(|known| known.file_type().is_char_device()) {
        return Identity::None;
    }
    Identity::Inode(known.st_dev, known.st_ino)
}

#[cfg(test)]
mod tests;
