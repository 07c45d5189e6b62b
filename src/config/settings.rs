//! The one table of settings, from which flags, environment variables, file keys, defaults,
//! bounds, help and the reference in `docs/configuration.md` all come.
//!
//! Invariants: one row for each field of [`Config`]; every default and every example is accepted
//! by its own row; the texts quote the bounds, which stand in `bounds.rs` and nowhere else.
//! Must not: decide between sources or check one setting against another (`resolve` does).

use std::fmt;

pub use self::category::Category;
use super::bounds::*;
use super::listen::Listen;
use super::value::{Choice, ControlSocket, Facts, Grammar, OrWord, PerCpu, Switch};
use super::{Boot, Config, RestartConnections, Steer};

/// The prefix of every environment variable that is a setting.
pub const ENV_PREFIX: &str = "UPPERCASED_";

const BOOT: Choice<Boot> = Choice(&[("any", Boot::Any), ("all", Boot::All)]);
const RESTART_CONNECTIONS: Choice<RestartConnections> = Choice(&[
    ("handover", RestartConnections::Handover),
    ("drain", RestartConnections::Drain),
]);
const STEER: Choice<Steer> = Choice(&[
    ("hash", Steer::Hash),
    ("cpu", Steer::Cpu),
    ("random", Steer::Random),
]);

/// The link between a row of the table and a field of [`Config`].
pub(crate) struct Binding {
    key: &'static str,
    apply: fn(&mut Config, &str, &Facts<'_>) -> Result<(), String>,
    show: fn(&Config) -> String,
    accepts: fn() -> String,
    words: fn() -> Vec<&'static str>,
}

/// Ties a field to its grammar. The key *is* the field's name, so they cannot drift apart.
macro_rules! bind {
    ($field:ident, $grammar:expr) => {
        Binding {
            key: stringify!($field),
            apply: |config, text, facts| {
                config.$field = $grammar.parse(text, facts)?;
                Ok(())
            },
            show: |config| $grammar.show(&config.$field),
            accepts: || $grammar.to_string(),
            words: || $grammar.words(),
        }
    };
}

mod category;
mod endpoints;
mod logging;
mod proxy;
mod sandbox;
mod sources;

/// One setting: a row of [`SETTINGS`].
pub struct Setting {
    binding: Binding,
    /// The heading it is listed under.
    pub category: Category,
    /// What stands for the value in help (`TIME`, `SIZE`, `N`).
    pub value_name: &'static str,
    /// The value it has if nobody sets it, as text.
    pub default: &'static str,
    /// A value that somebody might want, other than the default.
    pub example: &'static str,
    /// One line: what it is, without a full stop.
    pub help: &'static str,
    /// What it is for, and what to consider when changing it.
    pub long_help: &'static str,
}

impl fmt::Debug for Setting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Setting({})", self.key())
    }
}

impl Setting {
    /// The setting whose key is `key`.
    #[must_use]
    pub fn find(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key() == key)
    }

    /// Its name in the configuration file: `idle_timeout`.
    #[must_use]
    pub fn key(&self) -> &'static str {
        self.binding.key
    }

    /// Its name on the command line, without the dashes: `idle-timeout`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.key().replace('_', "-")
    }

    /// Its name in the environment: `UPPERCASED_IDLE_TIMEOUT`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENV_PREFIX}{}", self.key().to_ascii_uppercase())
    }

    /// What it accepts, as the end of the sentence "write …": `10ms to 30days, or off`.
    #[must_use]
    pub fn accepts(&self) -> String {
        (self.binding.accepts)()
    }

    /// All values there are, if they are a few words; none if there are others.
    #[must_use]
    pub fn words(&self) -> Vec<&'static str> {
        (self.binding.words)()
    }

    /// Whether the flag alone, without a value, means `true`.
    #[must_use]
    pub fn is_switch(&self) -> bool {
        self.accepts() == Switch.to_string()
    }

    /// Whether it may be given several times (a list in the file, commas in the environment).
    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(
            self.key(),
            "listen" | "allow" | "deny" | "proxy_protocol" | "proxy_trust"
        )
    }

    /// A value as it stands in the configuration file. None has a character that TOML would want
    /// escaped: they are words, numbers with units and addresses.
    #[must_use]
    pub fn in_toml(&self, value: &str) -> String {
        if self.is_list() && value.contains(',') {
            let quoted: Vec<String> = value.split(',').map(|one| format!("\"{one}\"")).collect();
            format!("[{}]", quoted.join(", "))
        } else if self.is_switch() || value.bytes().all(|byte| byte.is_ascii_digit()) {
            value.to_owned()
        } else {
            format!("\"{value}\"")
        }
    }

    /// The value that `config` has, as text that this setting reads back.
    #[must_use]
    pub fn show(&self, config: &Config) -> String {
        (self.binding.show)(config)
    }

    /// Reads `text` into its field of `config`; the error says why it cannot and what to write.
    pub(crate) fn apply(
        &self,
        config: &mut Config,
        text: &str,
        facts: &Facts<'_>,
    ) -> Result<(), String> {
        (self.binding.apply)(config, text, facts).map_err(|why| {
            format!(
                "{why}; write for example {} ({})",
                self.example,
                self.accepts()
            )
        })
    }
}

/// Every setting, in the order in which help, documentation and `check --print` list them.
pub static SETTINGS: &[Setting] = &[
    Setting {
        binding: bind!(listen, Listen),
        category: Category::Listening,
        value_name: "ADDR",
        default: "0.0.0.0:9999",
        example: "127.0.0.1:8080",
        help: "Address to listen on; may be repeated",
        long_help: "A name stands for all its addresses (IPv6 addresses that this machine does not \
                    have are ignored if the name has IPv4 ones); it is looked up at the start, and \
                    at each reload and upgrade by a child of the server, within start_timeout. \
                    [::]:PORT is IPv6 only, *:PORT serves IPv6 and IPv4 on one socket (IPv4 alone \
                    where there is no IPv6), PORT alone \
                    means every IPv4 address. Port 0 asks the kernel for a free port, which all \
                    workers share. Addresses that overlap are refused, because the more specific \
                    one would take every client from the other.",
    },
    Setting {
        binding: bind!(workers, PerCpu(WORKERS)),
        category: Category::Listening,
        value_name: "N",
        default: "auto",
        example: "4",
        help: "Worker processes",
        long_help: "Each worker is one process with one thread and a listening socket of its own; \
                    the kernel spreads new connections over them. auto: one for each CPU that \
                    this process may use (affinity and cgroup quota count).",
    },
    Setting {
        binding: bind!(backlog, OrWord("auto", BACKLOG)),
        category: Category::Listening,
        value_name: "N",
        default: "auto",
        example: "1024",
        help: "Connections that may wait in each accept queue",
        long_help: "Every worker has one queue for each address. The kernel lowers a longer one \
                    to net.core.somaxconn; auto asks for just that.",
    },
    Setting {
        binding: bind!(share_port, Switch),
        category: Category::Listening,
        value_name: "BOOL",
        default: "false",
        example: "true",
        help: "Join another server on the same address",
        long_help: "A second server on an address would silently take half of its clients, so \
                    starting one is an error unless this says that it is meant.",
    },
    Setting {
        binding: bind!(max_connections, OrWord("auto", MAX_CONNECTIONS)),
        category: Category::Connections,
        value_name: "N",
        default: "auto",
        example: "50000",
        help: "Connections a worker holds at once",
        long_help: "At the limit a worker stops accepting until a tenth of them has closed, or \
                    100 ms after the first has; clients wait in the accept queue. auto: what the descriptor limit (ulimit -n) \
                    leaves after a reserve, at most 1000000.",
    },
    Setting {
        binding: bind!(idle_timeout, OrWord("off", IDLE_TIMEOUT)),
        category: Category::Connections,
        value_name: "TIME",
        default: "off",
        example: "30s",
        help: "Close a connection on which nothing moved for so long",
        long_help: "Bytes in either direction count as movement. A long time may take up to 3 % \
                    longer, so that idle workers wake rarely. off: a silent client may stay, \
                    at the cost of one descriptor and no buffer.",
    },
    Setting {
        binding: bind!(write_stall_timeout, OrWord("off", WRITE_STALL_TIMEOUT)),
        category: Category::Connections,
        value_name: "TIME",
        default: "1m",
        example: "20s",
        help: "Cut a client that took none of its output for so long",
        long_help: "Only a client that owes us reading is meant; it is not read from meanwhile. \
                    What the kernel still has for it is given up as well, also after the close, \
                    but not before 1 s. off: it may keep its buffer for ever.",
    },
    Setting {
        binding: bind!(linger_timeout, LINGER_TIMEOUT),
        category: Category::Connections,
        value_name: "TIME",
        default: "5s",
        example: "2s",
        help: "Wait so long for the client to close at the end",
        long_help: "Closing with unread input resets the connection and can destroy the reply \
                    that is still in flight; so the server closes its writing side first and \
                    waits. 0s closes at once.",
    },
    Setting {
        binding: bind!(pending_output, PENDING_OUTPUT),
        category: Category::Connections,
        value_name: "SIZE",
        default: "64KiB",
        example: "16KiB",
        help: "Unsent bytes that a connection may hold",
        long_help: "Also the most that one read takes. A connection with unsent bytes is not \
                    read, so a client that does not read cannot make the server grow; memory for \
                    this exists only while there are such bytes.",
    },
    Setting {
        binding: bind!(recv_buffer, OrWord("auto", SOCKET_BUFFER)),
        category: Category::Connections,
        value_name: "SIZE",
        default: "192KiB",
        example: "auto",
        help: "Kernel receive buffer of a connection (SO_RCVBUF)",
        long_help: "A fixed size bounds what a fast sender can park in the kernel, which counts \
                    twice as much for it; with the default of both buffers a client that never \
                    reads holds less than 1MiB. It also bounds speed over distance, to about \
                    this much a round trip (192KiB at 100ms: 20 Mbit/s). auto: the kernel tunes \
                    it within net.ipv4.tcp_rmem. The kernel lowers it to net.core.rmem_max.",
    },
    Setting {
        binding: bind!(send_buffer, OrWord("auto", SOCKET_BUFFER)),
        category: Category::Connections,
        value_name: "SIZE",
        default: "192KiB",
        example: "auto",
        help: "Kernel send buffer of a connection (SO_SNDBUF)",
        long_help: "A fixed size bounds what a slow reader can make the kernel hold; as for the \
                    receive buffer, the kernel counts twice as much, and speed over distance is \
                    bounded with it. auto: the kernel tunes it within net.ipv4.tcp_wmem. The \
                    kernel lowers it to net.core.wmem_max.",
    },
    Setting {
        binding: bind!(keepalive, OrWord("off", KEEPALIVE)),
        category: Category::Connections,
        value_name: "TIME",
        default: "10m",
        example: "2m",
        help: "Probe a client that was silent for so long",
        long_help: "TCP keepalive: finds clients that vanished without a word. Whole seconds \
                    count. off: no probes.",
    },
    sources::ALLOW,
    sources::DENY,
    sources::MAX_CONNECTIONS_PER_SOURCE,
    sources::ACCEPT_RATE_PER_SOURCE,
    sources::SOURCE_PREFIX_V4,
    sources::SOURCE_PREFIX_V6,
    proxy::PROXY_PROTOCOL,
    proxy::PROXY_TRUST,
    proxy::PROXY_HEADER_TIMEOUT,
    endpoints::AGENT,
    Setting {
        binding: bind!(accepts_per_turn, ACCEPTS_PER_TURN),
        category: Category::Turn,
        value_name: "N",
        default: "64",
        example: "16",
        help: "Connections accepted in one turn of the loop",
        long_help: "Bounds how long a flood of new clients can keep a worker from those it has. \
                    The rest is taken in the next turn.",
    },
    Setting {
        binding: bind!(bytes_per_turn, BYTES_PER_TURN),
        category: Category::Turn,
        value_name: "SIZE",
        default: "256KiB",
        example: "1MiB",
        help: "Bytes read from one connection in one turn",
        long_help: "Bounds how long one fast client can keep a worker from the others. What it \
                    sent beyond is read in the next turn.",
    },
    Setting {
        binding: bind!(accept_retry, ACCEPT_RETRY),
        category: Category::Turn,
        value_name: "TIME",
        default: "100ms",
        example: "500ms",
        help: "Rest from accepting when resources are out",
        long_help: "After EMFILE, ENFILE, ENOBUFS or ENOMEM accepting again at once would fail \
                    again and burn a CPU. A connection that closes ends the rest early.",
    },
    Setting {
        binding: bind!(busy_poll, OrWord("off", BUSY_POLL)),
        category: Category::Turn,
        value_name: "TIME",
        default: "off",
        example: "50us",
        help: "Poll for more work so long before sleeping",
        long_help: "After work the loop asks again and again instead of sleeping, until nothing \
                    has come for this long: lower latency, because nobody has to wake it, at the \
                    price of a CPU that is busy meanwhile. Worth it with fewer workers than CPUs; \
                    workers and clients that share a CPU only get into each other's way.",
    },
    Setting {
        binding: bind!(steer, STEER),
        category: Category::Placement,
        value_name: "HOW",
        default: "hash",
        example: "cpu",
        help: "How new connections are spread over the workers",
        long_help: "hash: by the kernel's hash of both addresses. cpu: to the worker whose CPU \
                    has received the connection's first packet (worker i belongs to the i-th CPU \
                    that the server may use, which is where pin puts it). random: evenly, \
                    whatever the addresses are. cpu and random are a small program on the port, \
                    which must then not be shared.",
    },
    Setting {
        binding: bind!(pin, Switch),
        category: Category::Placement,
        value_name: "BOOL",
        default: "false",
        example: "true",
        help: "Keep each worker on a CPU of its own",
        long_help: "Worker i runs on the i-th CPU that the server may use, and on no other; with \
                    more workers than CPUs it begins again with the first. The CPU is shown by \
                    status. Worth it on a machine with nothing else to do: a pinned worker cannot \
                    get out of anybody's way.",
    },
    Setting {
        binding: bind!(rebalance, Switch),
        category: Category::Placement,
        value_name: "BOOL",
        default: "false",
        example: "true",
        help: "Move connections away from a worker that is too busy",
        long_help: "Spreading connections is not spreading work: one worker may have all the busy \
                    ones, for as long as they live. With this, when a worker is busier than the \
                    idlest by rebalance_threshold for some seconds, some of its active \
                    connections move there, live, a bounded number at a time and with rests in \
                    between. Never while a restart, an upgrade or a change of the number of \
                    workers is under way.",
    },
    Setting {
        binding: bind!(rebalance_threshold, REBALANCE_THRESHOLD),
        category: Category::Placement,
        value_name: "PERCENT",
        default: "50",
        example: "25",
        help: "How much busier a worker must be, in percent",
        long_help: "Compares the reads and writes that the busiest and the idlest worker do in a \
                    second (16 KiB count as one more). Only for rebalance.",
    },
    Setting {
        binding: bind!(drain_timeout, DRAIN_TIMEOUT),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "30s",
        example: "2m",
        help: "Time a stopping worker has to finish what it owes",
        long_help: "After it, what is left is cut. Give the service's own stop timeout a little \
                    more than lame_duck and this together.",
    },
    Setting {
        binding: bind!(lame_duck, LAME_DUCK),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "0s",
        example: "5s",
        help: "Go on accepting for so long when stopping",
        long_help: "Gives a load balancer time to notice that the server is no longer ready \
                    before clients are refused.",
    },
    Setting {
        binding: bind!(start_timeout, START_TIMEOUT),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "10s",
        example: "30s",
        help: "Time a new worker has to become ready",
        long_help: "One that is not ready by then is ended and counted as failed. A reload or an \
                    upgrade has the same time to read the configuration.",
    },
    Setting {
        binding: bind!(backoff_initial, BACKOFF),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "100ms",
        example: "200ms",
        help: "First pause before a failing slot is tried again",
        long_help: "A worker that dies after good service is replaced at once; only repeated \
                    failures wait, each twice as long as the one before.",
    },
    Setting {
        binding: bind!(backoff_max, BACKOFF),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "10s",
        example: "1m",
        help: "Longest such pause",
        long_help: "Must not be shorter than backoff_initial.",
    },
    Setting {
        binding: bind!(backoff_reset, BACKOFF_RESET),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "1m",
        example: "5m",
        help: "Good service that wipes a slot's failures",
        long_help: "A worker that served this long was sound; its death starts a new count.",
    },
    Setting {
        binding: bind!(lend_after, LEND_AFTER),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "100ms",
        example: "50ms",
        help: "Lend a queue without worker to a sibling after this",
        long_help: "Clients in the accept queue of a slot without a worker wait; this bounds for \
                    how long.",
    },
    Setting {
        binding: bind!(control, ControlSocket),
        category: Category::Operation,
        value_name: "PATH",
        default: "auto",
        example: "/run/uppercased.sock",
        help: "Socket for reload, upgrade, scale, status, stop",
        long_help: "Made with mode 0600; only the same user and root are heard. auto: a socket \
                    named after the process, in RUNTIME_DIRECTORY if set, else in \
                    /run/uppercased for root, else in uppercased below XDG_RUNTIME_DIR; a server \
                    that cannot make it there goes on without. off: signals only. Cannot change \
                    without a stop.",
    },
    endpoints::ADMIN,
    Setting {
        binding: bind!(boot, BOOT),
        category: Category::Operation,
        value_name: "WHICH",
        default: "any",
        example: "all",
        help: "Which workers must start for the server to serve",
        long_help: "any: the server serves once the first worker does. Workers start in order; one \
                    that cannot start is tried again, with pauses, and those after it wait. The \
                    server says that it is degraded meanwhile. all: one worker that cannot start \
                    ends the start.",
    },
    Setting {
        binding: bind!(restart_connections, RESTART_CONNECTIONS),
        category: Category::Operation,
        value_name: "HOW",
        default: "handover",
        example: "drain",
        help: "What a restart does with connections",
        long_help: "handover: established connections move to the new worker, live; no client \
                    notices. drain: they stay with the old worker until they end or \
                    drain_timeout passes, and are then closed politely.",
    },
    Setting {
        binding: bind!(bake_time, BAKE_TIME),
        category: Category::Operation,
        value_name: "TIME",
        default: "1s",
        example: "30s",
        help: "Watch the first renewed worker for so long",
        long_help: "A restart renews one worker, watches it for this time, and goes on only if it \
                    stays healthy; otherwise the old program and configuration come back.",
    },
    Setting {
        binding: bind!(handover_timeout, HANDOVER_TIMEOUT),
        category: Category::Operation,
        value_name: "TIME",
        default: "10s",
        example: "30s",
        help: "Time without progress in a handover",
        long_help: "Counts from the last step of either side; while both make progress there is no \
                    limit. The worker that owes the next step is then killed: a new one that does \
                    not take connections over, and everything goes back to the old one; or an old \
                    one that does not hand them over, and what has moved stays with the new one. \
                    Either way the operation fails.",
    },
    Setting {
        binding: bind!(handshake_timeout, HANDSHAKE_TIMEOUT),
        category: Category::Operation,
        value_name: "TIME",
        default: "3s",
        example: "8s",
        help: "Time for handshakes before a listener is closed",
        long_help: "With fewer workers, new connections are steered away from the sockets that \
                    will go; handshakes that have begun on them get this time to finish. A lost \
                    answer is repeated after 1s and again after 3s.",
    },
    Setting {
        binding: bind!(hang_timeout, OrWord("off", HANG_TIMEOUT)),
        category: Category::Operation,
        value_name: "TIME",
        default: "10s",
        example: "2s",
        help: "Replace a worker whose loop stands still so long",
        long_help: "The supervisor watches a counter that every turn of a worker's loop moves; it \
                    costs the worker nothing. off: a hung worker stays.",
    },
    sandbox::SANDBOX,
    sandbox::USER,
    sandbox::GROUP,
    logging::LOG_LEVEL,
    logging::LOG_FORMAT,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Origin, resolve};
    use std::fmt::Write as _;

    const FACTS: Facts<'static> = Facts {
        cpus: 2,
        lookup: &|_, _| Err("no names here".to_owned()),
    };

    #[test]
    fn every_default_and_example_is_accepted_and_canonical() {
        let (config, _) = resolve(&[], &FACTS).unwrap();
        for setting in SETTINGS {
            let shown = setting.show(&config);
            if setting.key() == "workers" {
                assert_eq!(shown, "2", "auto is what the facts say");
            } else {
                assert_eq!(shown, setting.default, "{setting:?}");
            }
            let mut changed = config.clone();
            setting
                .apply(&mut changed, setting.example, &FACTS)
                .unwrap();
            assert_ne!(changed, config, "{setting:?}: the example is the default");
            assert_eq!(setting.show(&changed), setting.example, "{setting:?}");
        }
    }

    #[test]
    fn every_word_that_is_offered_is_accepted() {
        let offered = |setting: &&Setting| !setting.words().is_empty();
        assert!(SETTINGS.iter().filter(offered).count() > 5);
        let mut config = Config::default();
        for setting in SETTINGS {
            for word in setting.words() {
                setting.apply(&mut config, word, &FACTS).unwrap();
                assert_eq!(setting.show(&config), word, "{setting:?}");
            }
        }
    }

    #[test]
    fn there_is_a_row_for_every_field_and_only_one() {
        let fields = serde_json::to_value(Config::default()).unwrap();
        let mut fields: Vec<String> = fields.as_object().unwrap().keys().cloned().collect();
        let mut keys: Vec<String> = SETTINGS.iter().map(|row| row.key().to_owned()).collect();
        fields.sort();
        keys.sort();
        assert_eq!(fields, keys);
    }

    #[test]
    fn the_bounds_in_the_texts_are_the_bounds_that_hold() {
        let mut config = Config::default();
        for setting in SETTINGS {
            let accepts = setting.accepts();
            let range = accepts.split(", or ").next().unwrap_or_default();
            let Some((least, most)) = range.split_once(" to ") else {
                continue;
            };
            for bound in [least, most] {
                setting.apply(&mut config, bound, &FACTS).unwrap();
                assert_eq!(setting.show(&config), bound, "{setting:?}");
            }
            // One unit more is too much, whatever the unit is.
            let end = most
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(most.len());
            let (digits, unit) = most.split_at(end);
            let beyond = format!("{}{unit}", digits.parse::<u64>().unwrap() + 1);
            let why = setting.apply(&mut config, &beyond, &FACTS).unwrap_err();
            assert!(why.contains(&accepts), "{setting:?}: {why}");
        }
    }

    #[test]
    fn one_name_has_three_spellings() {
        let setting = Setting::find("idle_timeout").unwrap();
        assert_eq!(setting.flag(), "idle-timeout");
        assert_eq!(setting.variable(), "UPPERCASED_IDLE_TIMEOUT");
        assert_eq!(Origin::Flag.name_of(setting), "--idle-timeout");
    }

    #[test]
    fn short_help_reads_well() {
        for setting in SETTINGS {
            assert!(!setting.help.ends_with('.'), "{setting:?}");
            assert!(setting.long_help.ends_with('.'), "{setting:?}");
        }
    }

    /// The reference between the two marks in `docs/configuration.md`.
    fn reference() -> String {
        let mut text = String::new();
        let mut heading = None;
        for setting in SETTINGS {
            if heading != Some(setting.category) {
                heading = Some(setting.category);
                let _ = writeln!(text, "\n### {}", setting.category.heading());
            }
            let (key, example) = (setting.key(), setting.example);
            let _ = write!(
                text,
                "\n#### `{key}`\n\n{}. {}\n\n\
                 - flag: `--{} {example}`\n\
                 - environment: `{}={example}`\n\
                 - file: `{key} = {}`\n\
                 - accepts: {}\n\
                 - default: `{}`\n",
                setting.help,
                setting.long_help,
                setting.flag(),
                setting.variable(),
                setting.in_toml(example),
                setting.accepts(),
                setting.default,
            );
        }
        // A switch may stand alone.
        for switch in SETTINGS.iter().filter(|setting| setting.is_switch()) {
            let flag = format!("`--{}", switch.flag());
            text = text.replace(&format!("{flag} true`"), &format!("{flag}`"));
        }
        text
    }

    /// With `UPDATE_DOCS=1` in the environment it writes the reference instead of comparing it.
    #[test]
    fn the_documentation_agrees_with_the_table() {
        const BEGIN: &str = "<!-- reference: begin -->\n";
        const END: &str = "\n<!-- reference: end -->";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        let document = std::fs::read_to_string(path).unwrap();
        let (before, rest) = document.split_once(BEGIN).unwrap();
        let (written, after) = rest.split_once(END).unwrap();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let document = format!("{before}{BEGIN}{}{END}{after}", reference());
            std::fs::write(path, document).unwrap();
            return;
        }
        assert_eq!(
            written,
            reference(),
            "run UPDATE_DOCS=1 cargo test --lib the_documentation_agrees"
        );
    }
}
