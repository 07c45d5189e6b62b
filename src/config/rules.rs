//! The rules between settings: combinations of values that are not allowed.
//!
//! Must not: check a single value (its row does).

use std::net::SocketAddr;

use super::admin::AdminAddr;
use super::error::Error;
use super::listen;
use super::networks::NETWORKS_IN_ALL_MAX;
use super::proxy::ProxyListeners;
use super::settings::{Config, Setting};
use super::source::Origins;
use super::types::{ListenAddr, Steer};

/// A rule: the settings that it compares, and its check.
type Rule = (&'static [&'static str], Check);
/// Returns the setting to blame with the reason, if the rule is violated.
type Check = fn(&Config, &Origins) -> Option<(&'static str, String)>;

/// The settings with networks, which share a limit.
const NETWORKS: &[&str] = &["allow", "deny", "proxy_trust", "admin_allow"];

const RULES: &[Rule] = &[
    (&["backoff_initial", "backoff_max"], shrinking_delays),
    (&["share_port", "steer"], steering_of_others),
    (&["proxy_protocol", "listen"], header_elsewhere),
    (&["proxy_protocol", "proxy_trust"], header_of_nobody),
    (&["listen"], overlapping_listeners),
    (&["admin", "admin_allow"], admin_for_nobody),
    (&["admin", "listen"], |config, _| {
        let clients = "the server listens for clients (listen)";
        taken("admin", admin(config)?, &config.listen, clients)
    }),
    (&["agent", "listen"], |config, _| {
        let clients = "the server listens for clients (listen)";
        taken("agent", config.agent?, &config.listen, clients)
    }),
    (&["agent", "admin"], |config, _| {
        let health = "the server serves health checks and metrics (admin)";
        taken(
            "agent",
            config.agent?,
            &[listen::plain(admin(config)?)],
            health,
        )
    }),
];

/// Returns an error for each violated rule. A rule about a rejected value is not checked.
pub(super) fn violations(config: &Config, origins: &Origins, rejected: &[&str]) -> Vec<Error> {
    let valid = |keys: &[&str]| !keys.iter().any(|key| rejected.contains(key));
    let mut errors: Vec<Error> = RULES
        .iter()
        .filter(|(keys, _)| valid(keys))
        .filter_map(|(_, check)| check(config, origins))
        .map(|(key, why)| Error::Value {
            name: origins.name_of(key),
            why,
        })
        .collect();
    let Config {
        allow,
        deny,
        proxy_trust,
        admin_allow,
        ..
    } = config;
    let lists = [allow, deny, proxy_trust, admin_allow];
    let count = lists.iter().map(|list| list.len()).sum();
    if valid(NETWORKS) && count > NETWORKS_IN_ALL_MAX {
        errors.push(Error::TooManyNetworks { count });
    }
    errors
}

fn shrinking_delays(config: &Config, origins: &Origins) -> Option<(&'static str, String)> {
    let shown = |key| Setting::find(key).map_or_else(String::new, |row| row.show(config));
    (config.backoff_max < config.backoff_initial).then(|| {
        let why = format!(
            "{} is shorter than the first delay of {} ({}); raise one or lower the other",
            shown("backoff_max"),
            shown("backoff_initial"),
            origins.name_of("backoff_initial")
        );
        ("backoff_max", why)
    })
}

fn steering_of_others(config: &Config, _: &Origins) -> Option<(&'static str, String)> {
    (config.share_port && config.steer != Steer::Hash).then(|| {
        let why = "cannot steer connections to a port shared with other servers (share_port), \
                   because theirs would be steered too; remove one of the two settings";
        ("steer", why.to_owned())
    })
}

fn header_elsewhere(config: &Config, _: &Origins) -> Option<(&'static str, String)> {
    let ProxyListeners::These(asking) = &config.proxy_protocol else {
        return None;
    };
    let address = asking.iter().find(|one| !config.listen.contains(one))?;
    let why =
        format!("{address} is not one of the addresses in listen; write it as it is written there");
    Some(("proxy_protocol", why))
}

fn header_of_nobody(config: &Config, _: &Origins) -> Option<(&'static str, String)> {
    let required = config.proxy_protocol != ProxyListeners::None;
    (required && config.proxy_trust.is_empty()).then(|| {
        let why = "no network may send the header that proxy_protocol requires, so no client would \
                   be served; list the proxies' networks, or remove proxy_protocol";
        ("proxy_trust", why.to_owned())
    })
}

fn overlapping_listeners(config: &Config, _: &Origins) -> Option<(&'static str, String)> {
    let (first, second) = listen::overlap(&config.listen)?;
    let why = format!(
        "{first} and {second} overlap, and the more specific one would receive every connection; \
         remove one"
    );
    Some(("listen", why))
}

fn admin_for_nobody(config: &Config, _: &Origins) -> Option<(&'static str, String)> {
    let address = admin(config)?;
    (!address.ip().is_loopback() && config.admin_allow.is_empty()).then(|| {
        let why = format!(
            "other machines reach {address}, and admin_allow lists no network that may read; list \
             some, or use a loopback address"
        );
        ("admin", why)
    })
}

/// Returns the address of the admin endpoint, if that is no socket file.
fn admin(config: &Config) -> Option<SocketAddr> {
    match config.admin {
        Some(AdminAddr::Tcp(address)) => Some(address),
        Some(AdminAddr::Unix(_)) | None => None,
    }
}

/// Returns a conflict of an endpoint with another address of this server. Otherwise the error of
/// the second bind would blame another server.
fn taken(
    key: &'static str,
    address: SocketAddr,
    others: &[ListenAddr],
    what: &str,
) -> Option<(&'static str, String)> {
    let other = listen::overlapping(address, others)?;
    let why = format!("{address} overlaps {other}, where {what}; choose another port");
    Some((key, why))
}
