//! Environment variables that a process inherits, and its limit on descriptors.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The prefix of environment variables for settings.
pub const ENV_PREFIX: &str = "UPPERCASED_";

/// The variable with the state that a program inherits from its predecessor in the same process.
/// Not a setting: users never set it.
pub const STATE_VARIABLE: &str = "_UPPERCASED_STATE";

/// A service manager's variables for passed sockets: sd_listen_fds(3).
pub const LISTEN_VARIABLES: [&str; 4] = [
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];
/// The service manager's notification socket and watchdog: sd_notify(3).
pub const NOTIFY_VARIABLES: [&str; 4] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE"];

/// Raises the soft limit on open descriptors to the hard limit and returns it.
///
/// The supervisor calls it once; workers inherit the limit.
///
/// # Errors
/// The error of `getrlimit` or `setrlimit`.
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
    fn soft_limit_is_raised_to_hard_limit() {
        let limit = raise_descriptor_limit().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (limit, limit));
        assert_eq!(
            raise_descriptor_limit().unwrap(),
            limit,
            "twice changes nothing"
        );
    }
}
