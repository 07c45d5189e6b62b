//! Unit tests of `config.rs`.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;

const FACTS: Facts<'static> = Facts {
    cpus: 2,
    lookup: &|host, _| Err(format!("{host} was looked up")),
};

fn assign(key: &str, text: &str, origin: Origin) -> Assignment {
    Assignment {
        setting: Setting::find(key).unwrap(),
        text: text.to_owned(),
        origin,
    }
}

fn flags(given: &[(&str, &str)]) -> Result<Config, String> {
    let given: Vec<Assignment> = given
        .iter()
        .map(|(key, text)| assign(key, text, Origin::Flag))
        .collect();
    resolve(&given, &FACTS)
        .map(|(config, _)| config)
        .map_err(|error| error.to_string())
}

#[test]
fn last_source_wins_and_is_named() {
    let given = [
        assign("workers", "3", Origin::Environment),
        assign("workers", "4", Origin::Flag),
    ];
    let (config, origins) = resolve(&given, &FACTS).unwrap();
    assert_eq!(config.workers, 4);
    let named: Vec<&str> = origins
        .iter()
        .filter(|(_, origin)| **origin == Origin::Flag)
        .map(|(setting, _)| setting.key())
        .collect();
    assert_eq!(named, ["workers"]);
}

#[test]
fn verify_refuses_same_as_resolve() {
    let named = [("listen", "localhost:80"), ("allow", "10.0.0.0/8")];
    let facts = Facts {
        cpus: 2,
        lookup: &|_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]),
    };
    let given = named.map(|(key, text)| assign(key, text, Origin::Flag));
    let (config, _) = resolve(&given, &facts).unwrap();
    verify(&config).unwrap();
    let damaged = [
        Config {
            workers: 0,
            ..config.clone()
        },
        Config {
            listen: Vec::new(),
            ..config.clone()
        },
        Config {
            backoff_max: Duration::from_millis(1),
            backoff_initial: Duration::from_secs(1),
            ..config
        },
    ];
    for damaged in damaged {
        verify(&damaged).unwrap_err();
    }
}

#[test]
fn overridden_value_is_checked_without_name_lookup() {
    let bad = [
        assign("workers", "0", Origin::Environment),
        assign("workers", "4", Origin::Flag),
    ];
    assert_eq!(
        resolve(&bad, &FACTS).unwrap_err().to_string(),
        "UPPERCASED_WORKERS: 0 is too low; use for example 4 (1 to 1024, or auto)"
    );
    let named = [
        assign("listen", "elsewhere:80", Origin::Environment),
        assign("listen", "80", Origin::Flag),
    ];
    assert!(resolve(&named, &FACTS).is_ok());
    let why = resolve(&named[..1], &FACTS).unwrap_err().to_string();
    assert!(why.contains("elsewhere was looked up"), "{why}");
}

#[test]
fn rules_between_settings_hold() {
    assert_eq!(
        flags(&[("backoff_max", "50ms")]).unwrap_err(),
        "--backoff-max: 50ms is shorter than the first delay of 100ms (the default of \
             backoff_initial); raise one or lower the other"
    );
    assert!(flags(&[("backoff_max", "50ms"), ("backoff_initial", "50ms")]).is_ok());
    assert_eq!(
        flags(&[("listen", "9999,127.0.0.1:9999")]).unwrap_err(),
        "--listen: 0.0.0.0:9999 and 127.0.0.1:9999 overlap, and the more specific one would \
             receive every connection; remove one"
    );
    assert_eq!(
        flags(&[("steer", "random"), ("share_port", "true")]).unwrap_err(),
        "--steer: cannot steer connections to a port shared with other servers (share_port), \
             because theirs would be steered too; remove one of the two settings"
    );
    assert!(flags(&[("steer", "hash"), ("share_port", "true")]).is_ok());
    assert_eq!(
        flags(&[("admin", "9999")]).unwrap_err(),
        "--admin: 127.0.0.1:9999 overlaps 0.0.0.0:9999, where the server listens for clients \
             (listen); choose another port"
    );
    for (listen, agent) in [("9999", "9999"), ("[::1]:7", "[::1]:7"), ("*:7", "7")] {
        let why = flags(&[("listen", listen), ("agent", agent)]).unwrap_err();
        assert!(why.starts_with("--agent: "), "{why}");
    }
    let why = flags(&[("admin", "10.0.0.1:7")]).unwrap_err();
    assert!(why.contains("admin_allow lists no network"), "{why}");
    for admin in ["10.0.0.1:7", "127.0.0.1:7", "/path"] {
        let both = flags(&[("admin", admin), ("admin_allow", "10.0.0.0/8")]);
        assert!(both.is_ok(), "{both:?}");
    }
    let why = flags(&[("admin", "7"), ("agent", "7")]).unwrap_err();
    assert!(
        why.contains("overlaps 127.0.0.1:7, where the server serves health"),
        "{why}"
    );
    for (listen, agent) in [("0", "0"), ("127.0.0.1:7", "127.0.0.2:7"), ("[::1]:7", "7")] {
        let both = flags(&[("listen", listen), ("agent", agent), ("admin", "0")]);
        assert!(both.is_ok(), "{both:?}");
    }
}

#[test]
fn every_error_is_reported_once() {
    let why = flags(&[
        ("workers", "0"),
        ("backoff_max", "50ms"),
        ("admin", "9999"),
        ("idle_timeout", "5"),
    ])
    .unwrap_err();
    assert!(
        why.starts_with("4 errors: (1) --workers: 0 is too low"),
        "{why}"
    );
    for part in [
        "--idle-timeout: ",
        "--backoff-max: 50ms",
        "--admin: 127.0.0.1",
    ] {
        assert_eq!(why.matches(part).count(), 1, "{why}");
    }
    // A rule about a rejected value is no further error.
    let why = flags(&[("backoff_max", "50"), ("backoff_initial", "1m")]).unwrap_err();
    assert!(why.starts_with("--backoff-max: \"50\""), "{why}");
}

#[test]
fn number_of_shown_errors_is_bounded() {
    let errors: Vec<u32> = (1..100).collect();
    let line = in_one_line(&errors);
    assert!(line.starts_with("99 errors: (1) 1 (2) 2 "), "{line}");
    assert!(line.ends_with(" (20) 20"), "{line}");
}

#[test]
fn connections_fit_the_descriptor_limit() {
    let reserve = u64::from(FD_RESERVE + 2 * (1 + FDS_PER_SLOT));
    assert_eq!(connection_limit(None, 1024, 1, 2).unwrap() + 74, 1024);
    assert_eq!(connection_limit(Some(10), reserve + 10, 1, 2).unwrap(), 10);
    assert_eq!(
        connection_limit(None, u64::MAX, 1, 2).unwrap(),
        AUTO_CONNECTIONS_MAX
    );
    assert_eq!(
        connection_limit(Some(5000), 1024, 1, 2)
            .unwrap_err()
            .to_string(),
        "max_connections 5000 requires a descriptor limit of 5074, but the limit is 1024; \
             raise it (`ulimit -n 5074`, or `LimitNOFILE=5074` in the systemd unit) or use at most \
             950 connections per worker"
    );
    for limit in [0, 1, reserve] {
        let why = connection_limit(None, limit, 1, 2).unwrap_err().to_string();
        assert!(why.contains("ulimit -n 75"), "{why}");
    }
    assert!(connection_limit(Some(1), u64::MAX, usize::MAX, u16::MAX).is_err());
}

#[test]
fn config_survives_json_between_versions() {
    let config = flags(&[("listen", "*:80"), ("idle_timeout", "1m30s")]).unwrap();
    let mut json = serde_json::to_value(&config).unwrap();
    assert_eq!(
        serde_json::from_value::<Config>(json.clone()).unwrap(),
        config
    );

    let fields = json.as_object_mut().unwrap();
    fields.insert("from_the_future".to_owned(), 1.into());
    fields.remove("lend_after");
    let read: Config = serde_json::from_value(json).unwrap();
    assert_eq!(read.lend_after, Config::default().lend_after);
    assert_eq!(read, config);
}
