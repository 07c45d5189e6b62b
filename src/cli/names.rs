//! The names of commands, flags and signals, and the exit code for bad input.

/// Exit code for bad usage and bad configuration.
pub const BAD_INPUT: u8 = 2;

/// The program.
pub(super) const PROGRAM: &str = "uppercased";
/// Start the server; also what happens without a command.
pub(super) const SERVE: &str = "serve";
/// Validate, bind nothing.
pub(super) const CHECK: &str = "check";
/// Talk to a server.
pub(super) const CLIENT: &str = "client";
/// Measure a server.
pub(super) const BENCH: &str = "bench";
/// Compare measurements, below `bench`.
pub(super) const COMPARE: &str = "compare";
/// The role in which a measurement starts more processes.
#[cfg(feature = "bench")]
pub(super) const BENCH_PART: &str = uppercased_bench::PART;
/// Orders to a running server.
pub(super) const RELOAD: &str = "reload";
pub(super) const UPGRADE: &str = "upgrade";
pub(super) const SCALE: &str = "scale";
pub(super) const CANCEL: &str = "cancel";
pub(super) const ROTATION: &str = "rotation";
pub(super) const STATUS: &str = "status";
pub(super) const STOP: &str = "stop";
/// Watch a running server on a terminal.
pub(super) const TOP: &str = "top";
/// The role in which the supervisor starts its workers.
pub(super) const WORKER: &str = "worker";
/// The role in which the supervisor shows health and metrics.
pub(super) const ADMIN: &str = "admin";
/// `admin`: the process number of that supervisor.
pub(super) const SUPERVISOR: &str = "supervisor";
/// The role in which the supervisor tries a new program before it becomes that.
pub(super) const PREFLIGHT: &str = "preflight";
/// The roles in which the program starts itself: hidden from people.
pub(super) const ROLES: &[&str] = &[
    WORKER,
    ADMIN,
    #[cfg(feature = "bench")]
    BENCH_PART,
    PREFLIGHT,
];
/// The commands that settings belong to.
pub(super) const CONFIGURED: [&str; 2] = [SERVE, CHECK];

/// The flag that names the configuration file.
pub(super) const CONFIG: &str = "config";
/// `check`: show the effective configuration.
pub(super) const PRINT: &str = "print";
/// `client`: where to connect.
pub(super) const TARGET: &str = "target";
/// `client`: the PROXY header to begin with.
pub(super) const PROXY_PROTOCOL: &str = "proxy-protocol";
/// Orders: the socket of the server that is meant.
pub(super) const CONTROL: &str = "control";
/// Orders: how long to wait for the verdict.
pub(super) const TIMEOUT: &str = "timeout";
/// Operations: wait for their turn.
pub(super) const WAIT: &str = "wait";
/// Operations: let connections that cannot move be closed.
pub(super) const DRAIN: &str = "drain";
/// `scale`: how many there are to be.
pub(super) const WORKERS: &str = "workers";
/// `rotation`: in or out of it.
pub(super) const TO: &str = "to";
/// `status`: for machines.
pub(super) const JSON: &str = "json";
/// `status`: again and again.
pub(super) const WATCH: &str = "watch";
/// `status`: each socket on the ports.
pub(super) const SOCKETS: &str = "sockets";
/// `top`: how often.
#[cfg(feature = "top")]
pub(super) const EVERY: &str = "every";
/// `status --sockets`: how many of them.
pub(super) const LIMIT: &str = "limit";
/// `status`: only whether the server wants new clients, as an exit code.
pub(super) const READY: &str = "ready";
/// `preflight`: the arguments of the server that may become this program.
pub(super) const SERVER_ARGS: &str = "args";
/// The command.
pub(super) const COMPLETIONS: &str = "completions";
/// The command.
pub(super) const MAN: &str = "man";

/// Every signal with an effect on the supervisor, and the effect.
pub(super) const SIGNALS: [(&str, &str); 9] = [
    ("TERM", "stop gracefully; a second one stops at once"),
    ("INT", "same as TERM (Ctrl-C)"),
    ("QUIT", "same as TERM"),
    (
        "HUP",
        "reload the configuration, replace every worker (reload)",
    ),
    ("USR1", "log the status"),
    ("USR2", "replace the binary with the one on disk (upgrade)"),
    ("TTIN", "add a worker"),
    ("TTOU", "remove a worker"),
    ("KILL", "workers finish pending replies and exit"),
];
