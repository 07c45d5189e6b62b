//! Lists of networks (`allow`, `deny` and others) and their syntax.
//!
//! Invariants: [`Networks`] returns at most [`NETWORKS_MAX`] networks without duplicates, with no
//! bit set beyond the prefix, and parses back each one's own `Display`. An empty text is refused:
//! an unset variable must not open a server to every client. Must not: resolve a name (its address
//! may change), or decide about admission (`admission` does).

use std::net::IpAddr;

use ipnet::IpNet;

use super::value::{Facts, Grammar};

/// Maximum number of networks in one list.
pub const NETWORKS_MAX: usize = 512;

/// Maximum number of networks in all lists, which go to a worker in one message: two full lists,
/// and others near their defaults.
pub const NETWORKS_IN_ALL_MAX: usize = 1040;

/// The word for an empty list.
const NONE: &str = "none";

/// Networks in CIDR notation or single addresses, separated by commas, or `none`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Networks;

impl Grammar for Networks {
    type Value = Vec<IpNet>;

    fn parse(&self, text: &str, _: &Facts<'_>) -> Result<Self::Value, String> {
        let mut networks = Vec::new();
        if text == NONE {
            return Ok(networks);
        }
        for part in text.split(',') {
            let network = parse_one(part.trim())?;
            if !networks.contains(&network) {
                networks.push(network);
            }
            if networks.len() > NETWORKS_MAX {
                return Err(format!(
                    "the list exceeds the maximum of {NETWORKS_MAX} networks; merge adjacent \
                     networks"
                ));
            }
        }
        Ok(networks)
    }

    fn show(&self, value: &Self::Value) -> String {
        if value.is_empty() {
            return NONE.to_owned();
        }
        let texts: Vec<String> = value.iter().map(ToString::to_string).collect();
        texts.join(",")
    }

    fn accepts(&self) -> String {
        format!(
            "ADDRESS/PREFIX or ADDRESS, at most {NETWORKS_MAX} ({NETWORKS_IN_ALL_MAX} in all lists), \
             or {NONE}"
        )
    }
}

fn parse_one(text: &str) -> Result<IpNet, String> {
    if text.is_empty() {
        return Err("a network is empty".to_owned());
    }
    let (address, prefix) = text
        .split_once('/')
        .map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address
        .parse()
        .map_err(|_| format!("{text:?} is not a network: {address:?} is not an IP address"))?;
    if address != address.to_canonical() {
        return Err(format!(
            "{text:?} is an IPv4-mapped IPv6 network; write it as IPv4"
        ));
    }
    let Some(prefix) = prefix else {
        return Ok(IpNet::from(address));
    };
    let most = IpNet::from(address).max_prefix_len();
    let bad_prefix = || format!("{text:?} has no prefix length from 0 to {most} after the slash");
    if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad_prefix());
    }
    let network = prefix
        .parse()
        .ok()
        .and_then(|prefix| IpNet::new(address, prefix).ok())
        .ok_or_else(bad_prefix)?;
    if network != network.trunc() {
        return Err(format!(
            "{text:?} has bits set beyond its prefix; the network is {}",
            network.trunc()
        ));
    }
    Ok(network)
}

#[cfg(test)]
mod tests;
