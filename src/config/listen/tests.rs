//! Unit tests of `listen.rs`.

use super::*;
use proptest::prelude::*;

const FACTS: Facts<'static> = Facts {
    cpus: 1,
    lookup: &|host, port| match host {
        "localhost" => Ok(vec![
            SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        ]),
        "empty" => Ok(Vec::new()),
        _ => Err("no such host".to_owned()),
    },
};

fn shown(text: &str) -> String {
    Listen
        .parse(text, &FACTS)
        .map(|all| Listen.show(&all))
        .unwrap()
}

fn refused(text: &str) -> String {
    Listen.parse(text, &FACTS).unwrap_err()
}

#[test]
fn duplicate_address_counts_once_except_port_0() {
    assert_eq!(shown("127.0.0.1:80,127.0.0.1:80"), "127.0.0.1:80");
    assert_eq!(shown("127.0.0.1:0,127.0.0.1:0"), "127.0.0.1:0,127.0.0.1:0");
    assert_eq!(shown("localhost:0"), "[::1]:0,127.0.0.1:0");
}

#[test]
fn listen_accepts_every_address_spelling() {
    assert_eq!(shown("127.0.0.1:9999"), "127.0.0.1:9999");
    assert_eq!(shown("9999"), "0.0.0.0:9999");
    assert_eq!(shown(":9999"), "0.0.0.0:9999");
    assert_eq!(shown("[::1]:0"), "[::1]:0");
    assert_eq!(shown("[::]:80"), "[::]:80");
    assert_eq!(shown("*:80"), "*:80");
    assert_eq!(shown("[fe80::1%2]:80"), "[fe80::1%2]:80");
    assert_eq!(shown("localhost:80"), "[::1]:80,127.0.0.1:80");
    assert_eq!(shown("localhost:80, 127.0.0.1:80"), "[::1]:80,127.0.0.1:80");
    assert!(!Listen.parse("[::]:80", &FACTS).unwrap()[0].dual_stack);
    assert!(Listen.parse("*:80", &FACTS).unwrap()[0].dual_stack);
}

#[test]
fn listen_reports_what_is_wrong() {
    assert_eq!(refused(""), "an address is empty");
    assert_eq!(refused("1,,2"), "an address is empty");
    assert_eq!(refused("localhost"), "\"localhost\" has no port");
    assert_eq!(refused("[::1]"), "\"[::1]\" has no port after the bracket");
    assert_eq!(
        refused("::1:80"),
        "\"::1:80\" is an IPv6 address without brackets"
    );
    assert_eq!(
        refused("[1.2.3.4]:80"),
        "\"[1.2.3.4]:80\" has no IPv6 address in brackets"
    );
    assert!(refused("[::ffff:1.2.3.4]:80").contains("remove the brackets"));
    assert!(refused("[fe80::1]:80").contains("add one, as in [fe80::1%eth0]:80"));
    assert!(refused("224.0.0.1:80").contains("multicast"));
    assert_eq!(refused("70000"), "port 70000 of \"70000\" is above 65535");
    assert_eq!(
        refused("1.2.3.4:http"),
        "\"1.2.3.4:http\" does not end in a port number"
    );
    assert_eq!(
        refused("nowhere:80"),
        "cannot resolve \"nowhere:80\": no such host"
    );
    assert_eq!(
        refused("empty:80"),
        "cannot resolve \"empty:80\": it has no address"
    );
    let many: Vec<String> = (0..=LISTEN_MAX).map(|n| (9000 + n).to_string()).collect();
    assert!(refused(&many.join(",")).contains("maximum of 16"));
}

#[test]
fn wider_address_is_found_in_either_order() {
    for (one, other, clash) in [
        ("0.0.0.0:80", "127.0.0.1:80", true),
        ("*:80", "0.0.0.0:80", true),
        ("*:80", "[::]:80", true),
        ("*:80", "[::1]:80", true),
        ("*:80", "127.0.0.1:80", true),
        ("[::]:80", "[::1]:80", true),
        ("[::]:80", "0.0.0.0:80", false),
        ("127.0.0.1:80", "127.0.0.2:80", false),
        ("0.0.0.0:80", "127.0.0.1:81", false),
        ("0.0.0.0:0", "127.0.0.1:0", false),
    ] {
        for text in [format!("{one},{other}"), format!("{other},{one}")] {
            let all = Listen.parse(&text, &FACTS).unwrap();
            assert_eq!(overlap(&all).is_some(), clash, "{text}");
        }
    }
}

proptest! {
    #[test]
    fn listen_reads_back_every_address(ip: IpAddr, port: u16) {
        prop_assume!(!ip.is_multicast());
        prop_assume!(!matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()));
        prop_assume!(!matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
        let all = vec![plain(SocketAddr::new(ip, port))];
        prop_assert_eq!(Listen.parse(&Listen.show(&all), &FACTS), Ok(all));
    }

    #[test]
    fn listen_parser_never_panics(text in "[\\[\\]:*,%.0-9a-f ]{0,40}|.{0,20}") {
        let _ = Listen.parse(&text, &FACTS);
    }
}
