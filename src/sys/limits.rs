//! The process's own limits, asked of the kernel.
//!
//! It must not decide what they mean: `crate::config::connection_limit` does.

use std::{fs, io};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit on open descriptors to the hard limit and returns it.
///
/// Done once, by the supervisor; workers inherit it.
///
/// # Errors
/// What `getrlimit` or `setrlimit` returned.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_meets_the_hard_one() {
        let limit = raise_descriptor_limit().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (limit, limit));
        assert_eq!(
            raise_descriptor_limit().unwrap(),
            limit,
            "twice changes nothing"
        );
    }
}
