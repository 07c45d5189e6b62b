//! The process's own limits, asked of the kernel.
//!
//! It must not decide what they mean: `crate::config::connection_limit` does.

use std::io;

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
