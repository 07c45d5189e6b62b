//! Resource limits of the process.
//!
//! It must not decide their consequences.

use std::{fs, io};

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// Limits of this process that apply to the memory of its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRoom {
    /// Maximum bytes of a file, memory files included (`RLIMIT_FSIZE`).
    pub file_bytes: u64,
    /// Maximum bytes of mappings (`RLIMIT_AS`).
    pub address_bytes: u64,
}

/// Returns the current limits on memory files and mappings of this process.
///
/// # Errors
/// The error of `getrlimit`.
pub fn memory_room() -> io::Result<MemoryRoom> {
    Ok(MemoryRoom {
        file_bytes: getrlimit(Resource::RLIMIT_FSIZE)?.0,
        address_bytes: getrlimit(Resource::RLIMIT_AS)?.0,
    })
}

/// Describes the cause of an error of a memory file or a mapping, with the limit that was reached,
/// if any.
#[must_use]
pub fn explain(error: &io::Error) -> String {
    let limited = match (memory_room(), error.raw_os_error().map(Errno::from_raw)) {
        (Ok(room), Some(Errno::EFBIG)) if room.file_bytes < RLIM_INFINITY => Some(format!(
            "the file size limit is {} bytes (RLIMIT_FSIZE, `ulimit -f`); raise it",
            room.file_bytes
        )),
        (Ok(room), Some(Errno::ENOMEM)) if room.address_bytes < RLIM_INFINITY => Some(format!(
            "the address space limit is {} bytes (RLIMIT_AS, `ulimit -v`); raise it or lower \
             max_connections",
            room.address_bytes
        )),
        _ => None,
    };
    limited.map_or_else(|| error.to_string(), |limit| format!("{error}: {limit}"))
}

/// The file with the OOM score adjustment of this process.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// The maximum adjustment.
const OOM_SCORE_MAX: i16 = 1000;

/// Makes the kernel kill this process before its parent if memory runs out. Needs no privilege, but
/// access to `/proc/self`, so call it before entering the sandbox.
///
/// # Errors
/// The error of reading or writing the score.
pub fn be_killed_before_parent(step: i16) -> io::Result<()> {
    let inherited: i16 = fs::read_to_string(OOM_SCORE)?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    let own = inherited.saturating_add(step).min(OOM_SCORE_MAX);
    fs::write(OOM_SCORE, own.to_string())
}
