//! Lists of networks (`allow`, `deny`): how they are written.
//!
//! Invariants: what [`Networks`] returns has at most [`NETWORKS_MAX`] networks, none twice, each
//! written with no bit set beyond its prefix, and every one of them reads back from its own
//! `Display`. An empty text is refused: a variable that somebody forgot to fill must not open a
//! server to everybody.
//! Must not: look a name up (a name is not an address, and may be another one tomorrow), or decide
//! who is admitted (`admission` does).

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::value::{Facts, Grammar};

/// Networks of one list, at most.
pub const NETWORKS_MAX: usize = 512;

/// Networks of all lists together, at most, for they travel to a worker in one message: two full lists,
/// and the third with its default or little more.
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
}

impl fmt::Display for Networks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
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
mod tests {
    use std::net::{Ipv6Addr, SocketAddr};

    use proptest::prelude::*;

    use super::super::{
        Assignment, Config, LISTEN_MAX, ListenAddr, Origin, ProxyListeners, Setting, resolve,
    };
    use super::*;
    use crate::wire::FRAME_MAX_BYTES;

    const FACTS: Facts<'static> = Facts {
        cpus: 1,
        lookup: &|_, _| Err("no names here".to_owned()),
    };

    fn shown(text: &str) -> String {
        Networks
            .parse(text, &FACTS)
            .map(|all| Networks.show(&all))
            .unwrap()
    }

    #[test]
    fn every_spelling_of_a_network() {
        assert_eq!(shown("none"), "none");
        assert_eq!(shown("10.0.0.0/8"), "10.0.0.0/8");
        assert_eq!(shown("192.0.2.7"), "192.0.2.7/32");
        assert_eq!(shown("2001:db8::/32, ::1"), "2001:db8::/32,::1/128");
        assert_eq!(shown("0.0.0.0/0,::/0"), "0.0.0.0/0,::/0");
        assert_eq!(shown("10.0.0.0/8,10.0.0.0/8"), "10.0.0.0/8");
    }

    #[test]
    fn what_is_no_network_is_refused_with_a_word_why() {
        for (text, why) in [
            ("", "a network is empty"),
            ("10.0.0.0/8,", "a network is empty"),
            ("localhost", "\"localhost\" is not an IP address"),
            ("none,::1", "\"none\" is not an IP address"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("::1/129", "from 0 to 128"),
            ("10.0.0.0/", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("10.0.0.0/-1", "from 0 to 32"),
            ("10.0.0.0/8/8", "from 0 to 32"),
            ("10.1.2.3/8", "the network is 10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "write it as IPv4"),
        ] {
            let refused = Networks.parse(text, &FACTS).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    fn full() -> Vec<IpNet> {
        let full: Vec<String> = (0..NETWORKS_MAX as u128)
            .map(|at| Ipv6Addr::from(u128::MAX - (at << 64)).to_string())
            .collect();
        Networks.parse(&full.join(","), &FACTS).unwrap()
    }

    #[test]
    fn a_list_has_an_end() {
        let full = full();
        assert_eq!(full.len(), NETWORKS_MAX);
        let more = format!("{},10.0.0.0/8", Networks.show(&full));
        let refused = Networks.parse(&more, &FACTS).unwrap_err();
        assert!(refused.contains("maximum of 512"), "{refused}");
    }

    #[test]
    fn the_fullest_lists_fit_the_message_that_carries_them() {
        let far = ListenAddr {
            addr: SocketAddr::new(Ipv6Addr::from(u128::MAX).into(), u16::MAX),
            dual_stack: false,
        };
        let listen = vec![far; LISTEN_MAX];
        let config = Config {
            allow: full(),
            deny: full(),
            proxy_trust: full()[..NETWORKS_IN_ALL_MAX - 2 * NETWORKS_MAX].to_vec(),
            proxy_protocol: ProxyListeners::These(listen.clone()),
            listen,
            ..Config::default()
        };
        // What else a start message has is a few hundred bytes.
        let bytes = serde_json::to_vec(&config).unwrap().len();
        assert!(bytes + 4096 < FRAME_MAX_BYTES, "{bytes}");
    }

    #[test]
    fn all_lists_together_have_an_end_too() {
        let list = Networks.show(&full());
        let given = ["allow", "deny", "proxy_trust"].map(|key| Assignment {
            setting: Setting::find(key).unwrap(),
            text: list.clone(),
            origin: Origin::Flag,
        });
        let (two, three) = (&given[..2], &given[..]);
        resolve(two, &FACTS).unwrap();
        let refused = resolve(three, &FACTS).unwrap_err().to_string();
        assert!(refused.contains("1536 networks"), "{refused}");
    }

    proptest! {
        #[test]
        fn every_network_reads_back(address: u128, v4: u32, prefix in 0_u8..=128) {
            let v6 = IpNet::new(IpAddr::V6(address.into()), prefix).unwrap().trunc();
            let v4 = IpNet::new(IpAddr::V4(v4.into()), prefix % 33).unwrap().trunc();
            prop_assume!(v6.addr() == v6.addr().to_canonical());
            let list = vec![v6, v4];
            prop_assert_eq!(Networks.parse(&Networks.show(&list), &FACTS), Ok(list));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = Networks.parse(&text, &FACTS);
        }
    }
}
