//! Looks up users and groups in the system's databases, and changes to an account.
//!
//! It must not decide the account of a process.

use std::io;

use rustix::thread::CapabilitySet;

use nix::unistd::{Gid, Group, Uid, User, geteuid, setgroups, setresgid, setresuid};

/// Returns a user's ID and that of its primary group. A number without an entry is used as is.
///
/// # Errors
/// The name does not exist, or the database cannot be read; a clause for an error message.
pub fn user(name: &str) -> Result<(u32, Option<u32>), String> {
    let unreadable = |errno| format!("cannot look up user {name:?}: {errno}");
    if let Some(found) = User::from_name(name).map_err(unreadable)? {
        return Ok((found.uid.as_raw(), Some(found.gid.as_raw())));
    }
    let id = name
        .parse()
        .map_err(|_| format!("user {name:?} does not exist"))?;
    let found = User::from_uid(Uid::from_raw(id)).map_err(unreadable)?;
    Ok((id, found.map(|user| user.gid.as_raw())))
}

/// Returns a group's ID. A number without an entry is used as is.
///
/// # Errors
/// See [`user`].
pub fn group(name: &str) -> Result<u32, String> {
    let unreadable = |errno| format!("cannot look up group {name:?}: {errno}");
    match Group::from_name(name).map_err(unreadable)? {
        Some(found) => Ok(found.gid.as_raw()),
        None => name
            .parse()
            .map_err(|_| format!("group {name:?} does not exist")),
    }
}

/// Returns whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Returns the first missing capability of those needed to become `user`, or another group, and to
/// signal that user's processes afterwards; `None` if none is missing.
#[must_use]
pub fn missing_capability(user: Option<u32>) -> Option<&'static str> {
    // If capabilities cannot be read, none counts as missing: the operation itself then fails.
    let held = rustix::thread::capabilities(None).ok()?.effective;
    let another = user.is_some_and(|user| user != geteuid().as_raw());
    let needed = [
        (CapabilitySet::SETGID, "CAP_SETGID", true),
        (CapabilitySet::SETUID, "CAP_SETUID", another),
        (CapabilitySet::KILL, "CAP_KILL", another),
    ];
    let missing = |(one, _, needed): &(CapabilitySet, &str, bool)| *needed && !held.contains(*one);
    needed.into_iter().find(missing).map(|(_, name, _)| name)
}

/// Changes group and user irrevocably, without supplementary groups.
///
/// # Errors
/// The operation that failed, with its cause. The change may be partial, so the process must exit.
pub fn become_account(user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    let step = |operation| move |errno| io::Error::other(format!("{operation}: {errno}"));
    setgroups(&[]).map_err(step("setgroups"))?;
    if let Some(group) = group.map(Gid::from_raw) {
        setresgid(group, group, group).map_err(step("setresgid"))?;
    }
    if let Some(user) = user.map(Uid::from_raw) {
        setresuid(user, user, user).map_err(step("setresuid"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_resolve_names_and_numbers() {
        assert_eq!(user("root"), Ok((0, Some(0))));
        assert_eq!(user("0"), Ok((0, Some(0))));
        assert_eq!(group("0"), Ok(0));
        assert_eq!(user("3999999999"), Ok((3_999_999_999, None)));
        let why = user("no-such-user").unwrap_err();
        assert!(why.contains("no-such-user"), "{why}");
        assert!(group("no-such-group").is_err());
    }
}
