//! The names of a process's inherited environment variables, and its limit on descriptors.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The prefix of every environment variable that is a setting.
pub const ENV_PREFIX: &str = "UPPERCASED_";

/// The variable with the state that a program inherits from the one it replaces in the same
/// process. Not a setting: users never set it.
pub const STATE_VARIABLE: &str = "_UPPERCASED_STATE";

/// How a service manager hands over sockets: sd_listen_fds(3).
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
