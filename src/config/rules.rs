//! The rules between settings: combinations of values that are not allowed.
//!
//! Must not: check a single value (its row does).

use super::admin::AdminAddr;
use super::error::Error;
use super::listen;
use super::networks::NETWORKS_IN_ALL_MAX;
use super::proxy::ProxyListeners;
use super::settings::{Config, Setting};
use super::source::Origins;
use super::types::Steer;

/// Returns an error for the first violated rule.
pub(super) fn check(config: &Config, origins: &Origins) -> Result<(), Error> {
    let refused = |key, why: String| {
        let name = origins.name_of(key);
        Err(Error::Value { name, why })
    };
    if config.backoff_max < config.backoff_initial {
        let shown = |key| Setting::find(key).map_or_else(String::new, |row| row.show(config));
        let why = format!(
            "{} is shorter than the first delay of {} ({}); raise one or lower the other",
            shown("backoff_max"),
            shown("backoff_initial"),
            origins.name_of("backoff_initial")
        );
        return refused("backoff_max", why);
    }
    if config.share_port && config.steer != Steer::Hash {
        let why = "cannot steer connections to a port shared with other servers (share_port), \
                   because theirs would be steered too; remove one of the two settings";
        return refused("steer", why.to_owned());
    }
    if let ProxyListeners::These(asking) = &config.proxy_protocol
        && let Some(address) = asking.iter().find(|one| !config.listen.contains(one))
    {
        let why = format!(
            "{address} is not one of the addresses in listen; write it as it is written there"
        );
        return refused("proxy_protocol", why);
    }
    if config.proxy_protocol != ProxyListeners::None && config.proxy_trust.is_empty() {
        let why = "no network may send the header that proxy_protocol requires, so no client would \
                   be served; list the proxies' networks, or remove proxy_protocol";
        return refused("proxy_trust", why.to_owned());
    }
    let lists = [&config.allow, &config.deny, &config.proxy_trust];
    let count = lists.iter().map(|list| list.len()).sum();
    if count > NETWORKS_IN_ALL_MAX {
        return Err(Error::TooManyNetworks { count });
    }
    if let Some((first, second)) = listen::overlap(&config.listen) {
        let why = format!(
            "{first} and {second} overlap, and the more specific one would receive every \
             connection; remove one"
        );
        return refused("listen", why);
    }
    match taken(config) {
        Some((key, why)) => refused(key, why),
        None => Ok(()),
    }
}

/// Returns the endpoint whose address conflicts with another address of this server. Otherwise the
/// error of the second bind would blame another server.
fn taken(config: &Config) -> Option<(&'static str, String)> {
    let admin = match config.admin {
        Some(AdminAddr::Tcp(address)) => Some(address),
        Some(AdminAddr::Unix(_)) | None => None,
    };
    let (agent, of_admin) = (config.agent, admin.map(listen::plain));
    let clients = "the server listens for clients (listen)";
    let health = "the server serves health checks and metrics (admin)";
    [
        ("admin", admin, &*config.listen, clients),
        ("agent", agent, &*config.listen, clients),
        ("agent", agent, of_admin.as_slice(), health),
    ]
    .into_iter()
    .find_map(|(key, address, others, what)| {
        let address = address?;
        let other = listen::overlapping(address, others)?;
        let why = format!("{address} overlaps {other}, where {what}; choose another port");
        Some((key, why))
    })
}
