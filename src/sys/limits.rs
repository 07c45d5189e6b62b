//! The process's own limits, asked of the kernel.
//!
//! It must not decide what follows from them.

use std::{fs, io};

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// What this process may have of what its workers' memory takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRoom {
    /// Bytes that a file may have, a memory file as well (`RLIMIT_FSIZE`).
    pub file_bytes: u64,
    /// Bytes that may be mapped (`RLIMIT_AS`).
    pub address_bytes: u64,
}

/// The limits on memory files and mappings of this process, as they are now.
///
/// # Errors
/// What `getrlimit` returned.
pub fn memory_room() -> io::Result<MemoryRoom> {
    Ok(MemoryRoom {
        file_bytes: getrlimit(Resource::RLIMIT_FSIZE)?.0,
        address_bytes: getrlimit(Resource::RLIMIT_AS)?.0,
    })
}

/// The cause of an error of a memory file or a mapping, with the limit that was met if there is one.
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

/// Where the kernel has, and takes, what is added to this process's size when it looks for one to kill
/// for want of memory.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// The most that it takes.
const OOM_SCORE_MAX: i16 = 1000;

/// Has the kernel kill this process rather than its parent if memory runs out. Needs no privilege, but
/// files of this process, so it comes before those are out of reach.
///
/// # Errors
/// What reading or writing the score returned.
pub fn be_killed_before_parent(step: i16) -> io::Result<()> {
    let inherited: i16 = fs::read_to_string(OOM_SCORE)?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    let own = inherited.saturating_add(step).min(OOM_SCORE_MAX);
    fs::write(OOM_SCORE, own.to_string())
}
