//! Unit tests of `networks.rs`.

use std::net::{Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::super::{
    Assignment, Config, LISTEN_MAX, ListenAddr, Origin, ProxyListeners, Setting, resolve,
};
use super::*;
use crate::wire::FRAME_MAX_BYTES;

const FACTS: Facts<'static> = Facts::NONE;

fn shown(text: &str) -> String {
    Networks
        .parse(text, &FACTS)
        .map(|all| Networks.show(&all))
        .unwrap()
}

#[test]
fn networks_accept_every_spelling() {
    assert_eq!(shown("none"), "none");
    assert_eq!(shown("10.0.0.0/8"), "10.0.0.0/8");
    assert_eq!(shown("192.0.2.7"), "192.0.2.7/32");
    assert_eq!(shown("2001:db8::/32, ::1"), "2001:db8::/32,::1/128");
    assert_eq!(shown("0.0.0.0/0,::/0"), "0.0.0.0/0,::/0");
    assert_eq!(shown("10.0.0.0/8,10.0.0.0/8"), "10.0.0.0/8");
}

#[test]
fn invalid_network_is_refused_with_cause() {
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
fn network_list_is_bounded() {
    let full = full();
    assert_eq!(full.len(), NETWORKS_MAX);
    let more = format!("{},10.0.0.0/8", Networks.show(&full));
    let refused = Networks.parse(&more, &FACTS).unwrap_err();
    assert!(refused.contains("maximum of 512"), "{refused}");
}

#[test]
fn full_lists_fit_their_message() {
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
    // The other fields of a start message take a few hundred bytes.
    let bytes = serde_json::to_vec(&config).unwrap().len();
    assert!(bytes + 4096 < FRAME_MAX_BYTES, "{bytes}");
}

#[test]
fn all_lists_together_are_bounded() {
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
    fn networks_read_back_every_network(address: u128, v4: u32, prefix in 0_u8..=128) {
        let v6 = IpNet::new(IpAddr::V6(address.into()), prefix).unwrap().trunc();
        let v4 = IpNet::new(IpAddr::V4(v4.into()), prefix % 33).unwrap().trunc();
        prop_assume!(v6.addr() == v6.addr().to_canonical());
        let list = vec![v6, v4];
        prop_assert_eq!(Networks.parse(&Networks.show(&list), &FACTS), Ok(list));
    }

    #[test]
    fn networks_parser_never_panics(text in ".{0,40}") {
        let _ = Networks.parse(&text, &FACTS);
    }
}
