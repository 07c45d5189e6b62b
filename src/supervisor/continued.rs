//! A start whose own configuration is refused: it continues the workers of a dead supervisor with the
//! configuration that this one has stored.
//!
//! Invariants: nothing is changed here; a server whose supervisor lives is not meant; with several
//! that are left it is unknown which one is meant, and none is.
//!
//! It must not decide whether there are workers to continue (`adoption` does).

use std::ffi::OsString;
use std::path::Path;

use crate::config::{Config, Control, Launch};
use crate::port;
use crate::wire::Listen;

use super::allowed::{check, wanted};
use super::error::Error;
use super::rendezvous::Directory;
use super::stored;

/// Returns `launch`, or, if this machine does not allow its configuration, one that continues the
/// workers of a dead supervisor.
///
/// # Errors
/// Its configuration is refused, and there are no such workers.
pub(super) fn allowed(launch: Launch) -> Result<Launch, Error> {
    let error = match check(&launch.config) {
        Err(error) if launch.refused.is_none() && error.exit_code() == 2 => error,
        checked => return checked.map(|()| launch),
    };
    match continue_stored(&launch.config.control, launch.args, error.to_string()) {
        Ok(Some(launch)) => Ok(launch),
        Ok(None) => Err(error),
        Err(why) => Err(Error::Refused(format!("{error}; {why}"))),
    }
}

/// Returns the launch of a server whose own configuration has `error`: with that of the server with
/// this control socket whose supervisor has died and whose workers serve. `None` if there is none.
///
/// # Errors
/// Why the stored configuration cannot be used.
pub fn continue_stored(
    control: &Control,
    args: Vec<OsString>,
    error: String,
) -> Result<Option<Launch>, String> {
    let Some(directory) = Directory::existing(control) else {
        return Ok(None);
    };
    let (mut left, mut unusable) = (Vec::new(), None);
    for path in stored::all(directory.path()) {
        match read(&path) {
            Ok((config, listen)) if is_left(&config, &listen) => left.push(config),
            Ok(_) => {}
            Err(why) => unusable = Some((path, why)),
        }
    }
    match (left.pop(), unusable) {
        // With several it is unknown which one is meant.
        (Some(config), _) if left.is_empty() => Ok(Some(Launch {
            config,
            args,
            ignored: Vec::new(),
            refused: Some(error),
        })),
        (None, Some((path, why))) => Err(format!(
            "cannot continue running workers: the stored configuration {} is not valid: {why}; \
             correct the configuration of the start",
            path.display()
        )),
        _ => Ok(None),
    }
}

/// Reads a stored configuration; returns it with its addresses.
fn read(path: &Path) -> Result<(Config, Vec<Listen>), String> {
    let config = stored::read(path)?;
    let listen = wanted(&config);
    if stored::is_of(path, &listen) {
        Ok((config, listen))
    } else {
        Err("it is that of other addresses".to_owned())
    }
}

/// Returns whether the server with this configuration serves without a supervisor.
fn is_left(config: &Config, listen: &[Listen]) -> bool {
    let serves = listen.iter().all(|one| port::is_held(one, &[]));
    config.adopt && serves && (config.share_port || port::lock(listen).is_ok())
}
