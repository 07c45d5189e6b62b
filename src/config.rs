//! The configuration as everything else sees it: validated, complete, plain data; and the one
//! way to it, [`resolve`], from file, environment and flags.
//!
//! Invariants: a [`Config`] that [`resolve`] returned keeps every bound in [`SETTINGS`] and every
//! rule between settings; there is no other place for a limit, its unit or its default.
//! Must not: open a file, read the environment or the clock, or look a name up. The shell hands
//! in what was read ([`from_file`], [`from_environment`]) and what the machine is like
//! ([`Facts`]).

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod admin;
mod bounds;
mod change;
mod launch;
mod limits;
mod listen;
mod networks;
pub(crate) mod path_bytes;
mod proxy;
mod rules;
mod sandbox;
mod service_links;
mod settings;
mod source;
mod value;

pub use admin::AdminAddr;
pub use bounds::*;
pub use change::{NeedsStop, check_change};
pub use launch::Launch;
pub use limits::*;
pub use listen::LISTEN_MAX;
pub use networks::{NETWORKS_IN_ALL_MAX, NETWORKS_MAX};
pub use proxy::ProxyListeners;
pub use sandbox::{Account, Sandbox};
pub use service_links::{is_service_link, service_links};
pub use settings::{Category, SETTINGS, Setting};
pub use source::{Assignment, CONFIG_VARIABLE, Origin, from_environment, from_file};
pub use value::{Count, Facts, Lookup, Size, Span};

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenAddr {
    /// Address and port; port 0 asks the kernel for one, which all slots then share.
    pub addr: SocketAddr,
    /// For an IPv6 address: whether IPv4 clients are served by the same socket.
    pub dual_stack: bool,
}

/// Where a running server takes orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Control {
    /// A socket named after the supervisor's process number, in the runtime directory.
    Auto,
    /// Nowhere: signals only.
    Off,
    /// A socket at this path.
    Path(#[serde(with = "path_bytes")] PathBuf),
}

/// How many workers must start for a server to serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// The first one; those that fail after it are tried again and again.
    #[default]
    Any,
    /// All of them; one that fails ends the start.
    All,
}

impl Boot {
    /// Whether it is the default.
    #[must_use]
    pub fn is_any(&self) -> bool {
        *self == Self::Any
    }
}

/// What a rolling restart does with established connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestartConnections {
    /// They move to the new worker, live.
    Handover,
    /// They stay with the old one until they end or `drain_timeout` passes.
    Drain,
}

/// How new connections are spread over the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Steer {
    /// By the kernel's own hash of addresses and ports.
    Hash,
    /// By the CPU that receives the first packet.
    Cpu,
    /// Evenly, at random.
    Random,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people, with colour on a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// The least severe level that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the usual five")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Everything that can be set, validated.
///
/// It travels to the workers as JSON. Both ends may be of different versions for the time of an
/// upgrade, so a field that is unknown is skipped and one that is missing has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Addresses to listen on; at least one.
    pub listen: Vec<ListenAddr>,
    /// Number of slots, each with one worker process.
    pub workers: u16,
    /// Length asked for each accept queue; `None`: the system's `net.core.somaxconn`.
    pub backlog: Option<u32>,
    /// Join other servers on the same address instead of refusing to start beside them.
    pub share_port: bool,
    /// Connections a worker; `None`: what `RLIMIT_NOFILE` leaves after the reserve.
    pub max_connections: Option<u32>,
    /// Close a connection on which nothing moved for this long; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Cut a peer that took none of its pending output for this long; `None`: never.
    pub write_stall_timeout: Option<Duration>,
    /// How long a half-closed connection waits for its peer to close.
    pub linger_timeout: Duration,
    /// Bytes of unsent output a connection may hold; also the most that one read takes.
    pub pending_output: u32,
    /// Networks whose peers are served; empty: all.
    pub allow: Vec<IpNet>,
    /// Networks whose peers are refused, whatever `allow` says.
    pub deny: Vec<IpNet>,
    /// Connections of one source that a worker holds; `None`: as many as of all.
    pub max_connections_per_source: Option<u32>,
    /// Connections a second that a worker takes from one source, and the most at once; `None`: all.
    pub accept_rate_per_source: Option<u32>,
    /// Leading bits of an IPv4 address that make a source.
    pub source_prefix_v4: u8,
    /// Leading bits of an IPv6 address that make a source.
    pub source_prefix_v6: u8,
    /// The listeners on which a PROXY header must precede a client's bytes.
    pub proxy_protocol: ProxyListeners,
    /// Networks of the proxies that may send it.
    pub proxy_trust: Vec<IpNet>,
    /// How long it may take to come, from the accept on.
    pub proxy_header_timeout: Duration,
    /// Where load balancers may ask how the server is; `None`: nowhere.
    pub agent: Option<SocketAddr>,
    /// Connections taken from one accept queue in one turn of the loop.
    pub accepts_per_turn: u32,
    /// Bytes read from one connection in one turn of the loop.
    pub bytes_per_turn: u32,
    /// `SO_RCVBUF` of each connection in bytes; `None`: the kernel's autotuning.
    pub recv_buffer: Option<u32>,
    /// `SO_SNDBUF` of each connection in bytes; `None`: the kernel's autotuning.
    pub send_buffer: Option<u32>,
    /// Idle time before TCP keepalive probes a silent peer; `None`: no probes.
    pub keepalive: Option<Duration>,
    /// How long accepting rests after the system ran out of descriptors or memory.
    pub accept_retry: Duration,
    /// How long a worker polls for more work before it sleeps; `None`: it sleeps at once.
    pub busy_poll: Option<Duration>,
    /// How new connections are spread over the workers.
    pub steer: Steer,
    /// Whether each worker stays on one CPU.
    pub pin: bool,
    /// Whether connections move from a worker that is too busy to the one that is least so.
    pub rebalance: bool,
    /// Percent by which the one must be busier than the other.
    pub rebalance_threshold: u16,
    /// How long a stopping worker may finish what it owes.
    pub drain_timeout: Duration,
    /// How long a stopping worker goes on accepting first.
    pub lame_duck: Duration,
    /// How long a new worker may take to report Ready.
    pub start_timeout: Duration,
    /// First pause before a slot that keeps failing is tried again.
    pub backoff_initial: Duration,
    /// Longest such pause.
    pub backoff_max: Duration,
    /// A worker that served this long wipes its slot's record of failures.
    pub backoff_reset: Duration,
    /// How long a slot may be without a worker before a sibling serves its queue.
    pub lend_after: Duration,
    /// Where the running server takes orders.
    pub control: Control,
    /// Where health and metrics are shown over HTTP; `None`: nowhere.
    pub admin: Option<AdminAddr>,
    /// What a rolling restart does with established connections.
    pub restart_connections: RestartConnections,
    /// How many workers must start for the server to serve.
    pub boot: Boot,
    /// How long the first renewed worker must serve before the others are renewed.
    pub bake_time: Duration,
    /// How long a worker may take to hand its connections over.
    pub handover_timeout: Duration,
    /// How long handshakes already begun have before a listener is closed.
    pub handshake_timeout: Duration,
    /// A worker whose loop made no turn for this long is replaced; `None`: never.
    pub hang_timeout: Option<Duration>,
    /// Whether workers lock themselves in before they serve.
    pub sandbox: Sandbox,
    /// The user that workers become; `None`: they stay who started the server.
    pub user: Option<Account>,
    /// The group that workers become; `None`: the user's primary group.
    pub group: Option<Account>,
    /// The least severe level that is logged.
    pub log_level: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// Why there is no configuration. Every message is one line and says what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{name}: {why}")]
    Value { name: String, why: String },

    #[error("{}:{line}:{column}: not valid TOML: {why}", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        column: usize,
        why: String,
    },

    #[error(
        "{}:{line}: unknown setting {name:?}{nearest} (`uppercased --help` lists all)",
        path.display()
    )]
    UnknownKey {
        path: PathBuf,
        line: usize,
        name: String,
        nearest: String,
    },

    #[error(
        "{}:{line}: unexpected table {name:?}: settings must be at the top level; remove the table \
         header", path.display()
    )]
    Table {
        path: PathBuf,
        line: usize,
        name: String,
    },

    #[error("unknown setting {name}{nearest} (`uppercased --help` lists all)")]
    UnknownVariable { name: String, nearest: String },

    #[error("{name}: unexpected value of type {found}; use for example {example}")]
    WrongType {
        name: String,
        found: &'static str,
        example: String,
    },

    #[error("{name}: the value is not UTF-8; correct or unset the variable")]
    NotUtf8 { name: String },

    #[error(
        "{max_name}: {max} is shorter than the first delay of {initial} ({initial_name}); raise \
         one or lower the other"
    )]
    BackoffOrder {
        max_name: String,
        max: String,
        initial_name: String,
        initial: String,
    },

    #[error(
        "{name}: {first} and {second} overlap, and the more specific one would receive every \
         connection; remove one"
    )]
    Overlap {
        name: String,
        first: ListenAddr,
        second: ListenAddr,
    },

    #[error("{name}: {address} overlaps {other}, where {what}; choose another port")]
    Taken {
        name: String,
        address: SocketAddr,
        other: String,
        what: &'static str,
    },

    #[error(
        "{name}: cannot steer connections to a port shared with other servers (share_port), \
         because theirs would be steered too; remove one of the two settings"
    )]
    SteerShared { name: String },

    #[error(
        "{name}: {address} is not one of the addresses in listen; write it as it is written there"
    )]
    ProxyElsewhere { name: String, address: ListenAddr },

    #[error(
        "{name}: no network may send the header that proxy_protocol requires, so no client would \
         be served; list the proxies' networks, or remove proxy_protocol"
    )]
    ProxyUntrusted { name: String },

    #[error(
        "allow, deny and proxy_trust list {count} networks in total, more than the maximum of \
         {NETWORKS_IN_ALL_MAX}; merge adjacent networks"
    )]
    TooManyNetworks { count: usize },

    #[error(
        "max_connections {asked} requires a descriptor limit of {needed}, but the limit is \
         {limit}; raise it (`ulimit -n {needed}`, or `LimitNOFILE={needed}` in the systemd unit) \
         or use at most {possible} connections per worker"
    )]
    ConnectionsExceedLimit {
        asked: u32,
        needed: u64,
        limit: u64,
        possible: u64,
    },

    #[error(
        "{workers} workers with {listeners} listen addresses require a descriptor limit of at \
         least {needed}, but the limit is {limit}; raise it (`ulimit -n {needed}`, or \
         `LimitNOFILE={needed}` in the systemd unit) or use fewer workers"
    )]
    LimitTooLow {
        workers: u16,
        listeners: usize,
        needed: u64,
        limit: u64,
    },
}

/// Where each value of a [`Config`] comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins(Vec<Origin>);

impl Origins {
    /// Every setting with the origin of its value, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Setting, &Origin)> {
        SETTINGS.iter().zip(&self.0)
    }

    /// How the setting with this key is spelled where its value comes from.
    pub(crate) fn name_of(&self, key: &str) -> String {
        self.iter()
            .find(|(setting, _)| setting.key() == key)
            .map_or_else(String::new, |(setting, origin)| origin.name_of(setting))
    }
}

/// Settles what is set: of several assignments to one setting the last one wins, so `assignments`
/// come in rising precedence (file, environment, flags).
///
/// # Errors
///
/// The first value that its setting does not accept (also one that another source overrides: it
/// would be a trap for whoever takes that source away), then the first rule between settings that
/// does not hold.
pub fn resolve(assignments: &[Assignment], facts: &Facts<'_>) -> Result<(Config, Origins), Error> {
    let mut config = BLANK;
    let mut origins = Vec::with_capacity(SETTINGS.len());
    for setting in SETTINGS {
        let given: Vec<&Assignment> = assignments
            .iter()
            .filter(|one| one.setting.key() == setting.key())
            .collect();
        let apply = |config: &mut Config, text: &str, origin: &Origin, facts: &Facts<'_>| {
            let refused = |why| Error::Value {
                name: origin.name_of(setting),
                why,
            };
            setting.apply(config, text, facts).map_err(refused)
        };
        let Some((winner, overridden)) = given.split_last() else {
            apply(&mut config, setting.default, &Origin::Default, facts)?;
            origins.push(Origin::Default);
            continue;
        };
        // A name that nobody will listen on is not looked up: it may well be another machine's.
        let offline = Facts {
            lookup: &|_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]),
            ..*facts
        };
        for one in overridden {
            apply(&mut config, &one.text, &one.origin, &offline)?;
        }
        apply(&mut config, &winner.text, &winner.origin, facts)?;
        origins.push(winner.origin.clone());
    }
    let origins = Origins(origins);
    rules::check(&config, &origins)?;
    Ok((config, origins))
}

/// Checks a configuration that came as data from another process: it keeps what [`resolve`]
/// promises. No name is looked up.
///
/// # Errors
///
/// The first value that its setting does not accept, then the first rule that does not hold.
pub fn verify(config: &Config) -> Result<(), Error> {
    let facts = Facts {
        cpus: 1,
        lookup: &|_, _| Err("it is a name, not an address".to_owned()),
    };
    let mut copy = BLANK;
    for setting in SETTINGS {
        let refused = |why| Error::Value {
            name: setting.key().to_owned(),
            why,
        };
        let text = setting.show(config);
        setting.apply(&mut copy, &text, &facts).map_err(refused)?;
    }
    let origins = Origins(vec![Origin::Default; SETTINGS.len()]);
    rules::check(config, &origins)
}

/// How many connections a worker may hold: `asked`, or without it all that fits.
///
/// `nofile_limit` is the descriptor limit of the worker (`RLIMIT_NOFILE`, the soft limit after it
/// was raised as far as it goes). What is kept free of connections covers a worker that serves
/// every sibling's listeners as well as the supervisor, which holds them all.
///
/// # Errors
///
/// The limit is too low; the message says how high it has to be, and how to raise it.
pub fn connection_limit(
    asked: Option<u32>,
    nofile_limit: u64,
    listeners: usize,
    workers: u16,
) -> Result<u32, Error> {
    let reserve = descriptor_reserve(listeners, workers);
    let possible = nofile_limit.saturating_sub(reserve);
    if possible == 0 {
        return Err(Error::LimitTooLow {
            workers,
            listeners,
            needed: reserve.saturating_add(1),
            limit: nofile_limit,
        });
    }
    match asked {
        Some(asked) if u64::from(asked) > possible => Err(Error::ConnectionsExceedLimit {
            asked,
            needed: reserve.saturating_add(u64::from(asked)),
            limit: nofile_limit,
            possible,
        }),
        Some(asked) => Ok(asked),
        None => Ok(u32::try_from(possible)
            .unwrap_or(u32::MAX)
            .min(AUTO_CONNECTIONS_MAX)),
    }
}

/// Descriptors of a process that are kept for other things than connections.
#[must_use]
pub fn descriptor_reserve(listeners: usize, workers: u16) -> u64 {
    let a_slot = u64::try_from(listeners)
        .unwrap_or(u64::MAX)
        .saturating_add(u64::from(FDS_PER_SLOT));
    a_slot
        .saturating_mul(u64::from(workers))
        .saturating_add(u64::from(FD_RESERVE))
}

impl Config {
    /// Whether the listener at place `index` of [`Config::listen`] asks for a PROXY header.
    #[must_use]
    pub fn asks_for_header(&self, index: usize) -> bool {
        match &self.proxy_protocol {
            ProxyListeners::None => false,
            ProxyListeners::All => true,
            ProxyListeners::These(asking) => {
                let listener = self.listen.get(index);
                listener.is_some_and(|listener| asking.contains(listener))
            }
        }
    }
}

impl Default for Config {
    /// What `resolve` gives when nothing is set, on a machine with one CPU.
    fn default() -> Self {
        let facts = Facts {
            cpus: 1,
            lookup: &|_, _| Err("the default has no names".to_owned()),
        };
        resolve(&[], &facts)
            .map(|(config, _)| config)
            .expect("invariant: every default is accepted (tested row by row in settings.rs)")
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dual_stack && self.addr.ip().is_unspecified() {
            write!(out, "*:{}", self.addr.port())
        } else {
            write!(out, "{}", self.addr)
        }
    }
}

/// The paper on which `resolve` writes; it fills every field before anybody sees it.
const BLANK: Config = Config {
    listen: Vec::new(),
    workers: 0,
    backlog: None,
    share_port: false,
    max_connections: None,
    idle_timeout: None,
    write_stall_timeout: None,
    linger_timeout: Duration::ZERO,
    pending_output: 0,
    allow: Vec::new(),
    deny: Vec::new(),
    max_connections_per_source: None,
    accept_rate_per_source: None,
    source_prefix_v4: 0,
    source_prefix_v6: 0,
    proxy_protocol: ProxyListeners::None,
    proxy_trust: Vec::new(),
    proxy_header_timeout: Duration::ZERO,
    agent: None,
    accepts_per_turn: 0,
    bytes_per_turn: 0,
    recv_buffer: None,
    send_buffer: None,
    keepalive: None,
    accept_retry: Duration::ZERO,
    busy_poll: None,
    steer: Steer::Hash,
    pin: false,
    rebalance: false,
    rebalance_threshold: 0,
    drain_timeout: Duration::ZERO,
    lame_duck: Duration::ZERO,
    start_timeout: Duration::ZERO,
    backoff_initial: Duration::ZERO,
    backoff_max: Duration::ZERO,
    backoff_reset: Duration::ZERO,
    lend_after: Duration::ZERO,
    control: Control::Off,
    admin: None,
    restart_connections: RestartConnections::Handover,
    boot: Boot::Any,
    bake_time: Duration::ZERO,
    handover_timeout: Duration::ZERO,
    handshake_timeout: Duration::ZERO,
    hang_timeout: None,
    sandbox: Sandbox::Off,
    user: None,
    group: None,
    log_level: LogLevel::Info,
    log_format: LogFormat::Human,
};

#[cfg(test)]
mod tests {
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
    fn the_last_source_wins_and_is_named() {
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
    fn verify_refuses_what_resolve_would() {
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
    fn an_overridden_value_is_checked_but_its_names_are_not_looked_up() {
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
    fn it_travels_as_json_between_versions() {
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
}
