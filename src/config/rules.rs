//! The rules between settings: combinations of values that are not allowed.
//!
//! Must not: check a value alone (its row does).

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
    if config.backoff_max < config.backoff_initial {
        let shown = |key| Setting::find(key).map_or_else(String::new, |row| row.show(config));
        return Err(Error::BackoffOrder {
            max_name: origins.name_of("backoff_max"),
            max: shown("backoff_max"),
            initial_name: origins.name_of("backoff_initial"),
            initial: shown("backoff_initial"),
        });
    }
    if config.share_port && config.steer != Steer::Hash {
        return Err(Error::SteerShared {
            name: origins.name_of("steer"),
        });
    }
    if let ProxyListeners::These(asking) = &config.proxy_protocol
        && let Some(address) = asking.iter().find(|one| !config.listen.contains(one))
    {
        return Err(Error::ProxyElsewhere {
            name: origins.name_of("proxy_protocol"),
            address: address.clone(),
        });
    }
    if config.proxy_protocol != ProxyListeners::None && config.proxy_trust.is_empty() {
        return Err(Error::ProxyUntrusted {
            name: origins.name_of("proxy_trust"),
        });
    }
    let lists = [&config.allow, &config.deny, &config.proxy_trust];
    let count = lists.iter().map(|list| list.len()).sum();
    if count > NETWORKS_IN_ALL_MAX {
        return Err(Error::TooManyNetworks { count });
    }
    if let Some((first, second)) = listen::overlap(&config.listen) {
        return Err(Error::Overlap {
            name: origins.name_of("listen"),
            first: first.clone(),
            second: second.clone(),
        });
    }
    check_endpoints(config, origins)
}

/// Checks that the addresses this server binds do not conflict: otherwise the second bind would
/// blame another server.
fn check_endpoints(config: &Config, origins: &Origins) -> Result<(), Error> {
    let admin = match config.admin {
        Some(AdminAddr::Tcp(address)) => Some(address),
        Some(AdminAddr::Unix(_)) | None => None,
    };
    for (key, address) in [("admin", admin), ("agent", config.agent)] {
        let Some(address) = address else { continue };
        if let Some(other) = listen::in_the_way(address, &config.listen) {
            return Err(Error::Taken {
                name: origins.name_of(key),
                address,
                other: other.to_string(),
                what: "the server listens for clients (listen)",
            });
        }
    }
    if let (Some(admin), Some(agent)) = (admin, config.agent)
        && listen::in_the_way(agent, &[listen::plain(admin)]).is_some()
    {
        return Err(Error::Taken {
            name: origins.name_of("agent"),
            address: agent,
            other: admin.to_string(),
            what: "the server serves health checks and metrics (admin)",
        });
    }
    Ok(())
}
