//! The addresses to listen on: their syntax, and which of them conflict.
//!
//! Invariants: [`Listen`] returns 1 to [`LISTEN_MAX`] addresses without duplicates, and parses back
//! each one's own `Display`. Must not: bind anything, or resolve a name other than through
//! [`Facts`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::types::ListenAddr;
use super::value::{Facts, Grammar};

/// Maximum number of addresses of one server. Every worker holds a listener for each.
pub const LISTEN_MAX: usize = 16;

/// Addresses separated by commas: `HOST:PORT`, `[V6]:PORT`, `*:PORT`, `:PORT` or `PORT`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listen;

impl Grammar for Listen {
    type Value = Vec<ListenAddr>;

    fn parse(&self, text: &str, facts: &Facts<'_>) -> Result<Self::Value, String> {
        let mut addresses = Vec::new();
        for part in text.split(',') {
            let earlier = addresses.len();
            for address in parse_one(part.trim(), facts)? {
                if address.addr.ip().is_multicast() {
                    return Err(format!(
                        "{address} is a multicast address, which TCP does not support"
                    ));
                }
                // A name may resolve to one address twice. Duplicates are dropped, except port 0,
                // which is a different port each time.
                let from = if address.addr.port() == 0 { earlier } else { 0 };
                if !addresses[from..].contains(&address) {
                    addresses.push(address);
                }
            }
        }
        if addresses.len() > LISTEN_MAX {
            return Err(format!(
                "{} addresses exceed the maximum of {LISTEN_MAX}",
                addresses.len()
            ));
        }
        Ok(addresses)
    }

    fn show(&self, value: &Self::Value) -> String {
        let texts: Vec<String> = value.iter().map(ToString::to_string).collect();
        texts.join(",")
    }

    fn accepts(&self) -> String {
        format!("HOST:PORT, [IPV6]:PORT, *:PORT (IPv6 and IPv4) or PORT; at most {LISTEN_MAX}")
    }
}

/// Parses one entry of the list; a name may resolve to several addresses.
fn parse_one(text: &str, facts: &Facts<'_>) -> Result<Vec<ListenAddr>, String> {
    if text.is_empty() {
        return Err("an address is empty".to_owned());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let port = parse_port(text, text)?;
        return Ok(vec![plain(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))]);
    }
    let (host, port) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("{text:?} has no port"))?;
    if let Some(inside) = host.strip_prefix('[') {
        let inside = inside
            .strip_suffix(']')
            .ok_or_else(|| format!("{text:?} has no port after the bracket"))?;
        return parse_v6(inside, parse_port(port, text)?, text, facts);
    }
    if host.contains(':') {
        return Err(format!("{text:?} is an IPv6 address without brackets"));
    }
    let port = parse_port(port, text)?;
    match host {
        "" => Ok(vec![plain(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))]),
        "*" => Ok(vec![ListenAddr {
            addr: SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            dual_stack: true,
        }]),
        _ => match host.parse::<Ipv4Addr>() {
            Ok(ip) => Ok(vec![plain(SocketAddr::from((ip, port)))]),
            Err(_) => look_up(host, port, text, facts),
        },
    }
}

/// Parses the text in brackets: an IPv6 address, perhaps with a scope (`fe80::1%eth0`).
fn parse_v6(
    inside: &str,
    port: u16,
    text: &str,
    facts: &Facts<'_>,
) -> Result<Vec<ListenAddr>, String> {
    match inside.parse::<Ipv6Addr>() {
        Ok(ip) if ip.to_ipv4_mapped().is_some() => Err(format!(
            "{text:?} is an IPv4-mapped IPv6 address; remove the brackets and ::ffff:"
        )),
        Ok(ip) if ip.is_unicast_link_local() => Err(format!(
            "{text:?} is a link-local address without an interface; add one, as in \
             [{ip}%eth0]:{port}"
        )),
        Ok(ip) => Ok(vec![plain(SocketAddr::from((ip, port)))]),
        Err(_) => match format!("[{inside}]:{port}").parse::<SocketAddrV6>() {
            Ok(addr) => Ok(vec![plain(SocketAddr::V6(addr))]),
            // Only the system's resolver maps an interface name to its number.
            Err(_) if inside.contains('%') => look_up(inside, port, text, facts),
            Err(_) => Err(format!("{text:?} has no IPv6 address in brackets")),
        },
    }
}

fn look_up(
    host: &str,
    port: u16,
    text: &str,
    facts: &Facts<'_>,
) -> Result<Vec<ListenAddr>, String> {
    let found =
        (facts.lookup)(host, port).map_err(|why| format!("cannot resolve {text:?}: {why}"))?;
    if found.is_empty() {
        return Err(format!("cannot resolve {text:?}: it has no address"));
    }
    Ok(found.into_iter().map(plain).collect())
}

fn parse_port(port: &str, text: &str) -> Result<u16, String> {
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{text:?} does not end in a port number"));
    }
    port.parse()
        .map_err(|_| format!("port {port} of {text:?} is above 65535"))
}

/// Returns an address that serves one family only.
pub(super) fn plain(addr: SocketAddr) -> ListenAddr {
    ListenAddr {
        addr,
        dual_stack: false,
    }
}

/// Returns the first two addresses of which one would receive the other's clients.
///
/// The kernel gives a connection to the most specific listener, so `127.0.0.1:9999` beside
/// `0.0.0.0:9999` would not share its load but receive all connections from loopback. Port 0 means
/// a port chosen by the kernel and overlaps with no address.
pub(crate) fn overlap(addresses: &[ListenAddr]) -> Option<(&ListenAddr, &ListenAddr)> {
    addresses.iter().enumerate().find_map(|(index, first)| {
        addresses[index + 1..]
            .iter()
            .find(|second| covers(first, second) || covers(second, first))
            .map(|second| (first, second))
    })
}

/// Returns the first of `addresses` that cannot be bound together with `address`.
pub(super) fn overlapping(address: SocketAddr, addresses: &[ListenAddr]) -> Option<&ListenAddr> {
    let own = plain(address);
    addresses.iter().find(|other| {
        let same = other.addr == address && address.port() != 0;
        same || covers(other, &own) || covers(&own, other)
    })
}

/// Returns whether `wide` accepts every client of `narrow`.
fn covers(wide: &ListenAddr, narrow: &ListenAddr) -> bool {
    if wide.addr.port() != narrow.addr.port() || wide.addr.port() == 0 {
        return false;
    }
    match (wide.addr.ip(), narrow.addr.ip()) {
        (IpAddr::V4(wide), IpAddr::V4(_)) => wide.is_unspecified(),
        (IpAddr::V6(wide), IpAddr::V6(_)) => wide.is_unspecified(),
        (IpAddr::V6(ip), IpAddr::V4(_)) => ip.is_unspecified() && wide.dual_stack,
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
    }
}

#[cfg(test)]
mod tests;
