//! What this machine allows of a configuration, and the addresses that follow from it.
//!
//! It must not decide what follows if something is not allowed.

use crate::config::{self, Config, ListenAddr};
use crate::listener;
use crate::sys::accounts;
use crate::wire::Listen;
use uppercased_ctl::process::raise_descriptor_limit;

use super::error::Error;
use super::fleet::releases::Limits;

/// Checks that this machine allows a configuration.
///
/// # Errors
/// The first limit or privilege that it lacks.
pub(super) fn check(config: &Config) -> Result<(), Error> {
    check_account(config)?;
    let nofile = raise_descriptor_limit().map_err(|source| Error::System {
        operation: "raise the descriptor limit",
        source,
    })?;
    Limits::of_worker(config, config.workers, nofile)?;
    Ok(())
}

/// Returns the addresses on which a server with this configuration listens.
pub(super) fn wanted(config: &Config) -> Vec<Listen> {
    let mut wanted: Vec<Listen> = config.listen.iter().map(address).collect();
    listener::fall_back_to_ipv4(&mut wanted, listener::has_ipv6());
    wanted
}

/// Checks that this process may run workers as another user, and kill them: an error now is better
/// than one from each worker, or a worker that cannot be killed.
pub(super) fn check_account(config: &Config) -> Result<(), config::Error> {
    let named = [("user", &config.user), ("group", &config.group)];
    let Some((name, _)) = named.into_iter().find(|(_, account)| account.is_some()) else {
        return Ok(());
    };
    let refused = |why: String| config::Error::Value {
        name: name.to_owned(),
        why,
    };
    if !accounts::is_root() {
        return Err(refused(
            "only root can run workers as another user; start the server as root, or omit the setting"
                .to_owned(),
        ));
    }
    let user = config.user.as_ref().and_then(|user| user.id);
    match accounts::missing_capability(user) {
        Some(capability) => Err(refused(format!(
            "the server lacks the capability {capability}, without which it cannot run workers as \
             somebody else, or end them; grant it, or leave {name} out"
        ))),
        None => Ok(()),
    }
}

const fn address(one: &ListenAddr) -> Listen {
    Listen {
        addr: one.addr,
        dual_stack: one.dual_stack,
    }
}
