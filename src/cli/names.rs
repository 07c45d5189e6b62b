//! The names of commands, flags and signals, and the exit code for bad input.

/// Exit code for bad usage and bad configuration.
pub const BAD_INPUT: u8 = 2;

/// The program.
pub(super) const PROGRAM: &str = "uppercased";
/// Starts the server; the default command.
pub(super) const SERVE: &str = "serve";
/// Validates the configuration, binds nothing.
pub(super) const CHECK: &str = "check";
/// Connects to a server.
pub(super) const CLIENT: &str = "client";
/// Measures a server.
pub(super) const BENCH: &str = "bench";
/// Compares measurements, below `bench`.
pub(super) const COMPARE: &str = "compare";
/// Compares two servers, below `bench`.
pub(super) const VERSUS: &str = "versus";
/// The flag of every measurement, below `bench`.
pub(super) const CONNECTIONS: &str = "connections";
/// Role of additional benchmark processes.
#[cfg(feature = "bench")]
pub(super) const BENCH_PART: &str = uppercased_bench::PART;
/// Commands to a running server.
pub(super) const RELOAD: &str = "reload";
pub(super) const UPGRADE: &str = "upgrade";
pub(super) const SCALE: &str = "scale";
pub(super) const CANCEL: &str = "cancel";
pub(super) const ROTATION: &str = "rotation";
pub(super) const STATUS: &str = "status";
pub(super) const STOP: &str = "stop";
/// Stops the workers that a supervisor has left behind.
pub(super) const DRAIN_LEFTOVERS: &str = "drain-leftovers";
/// Watches a running server on a terminal.
pub(super) const TOP: &str = "top";
/// Role of workers.
pub(super) const WORKER: &str = "worker";
/// Role of the admin endpoint.
pub(super) const ADMIN: &str = "admin";
/// `admin`: the process ID of that supervisor.
pub(super) const SUPERVISOR: &str = "supervisor";
/// Role of a new binary during its pre-flight check.
pub(super) const PREFLIGHT: &str = "preflight";
/// The roles in which the program starts itself; hidden from users.
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
/// `check`: count warnings as errors.
pub(super) const STRICT: &str = "strict";
/// `client`: where to connect.
pub(super) const TARGET: &str = "target";
/// `client`: the PROXY header to begin with.
pub(super) const PROXY_PROTOCOL: &str = "proxy-protocol";
/// Commands: the control socket of the server.
pub(super) const CONTROL: &str = "control";
/// Commands: timeout for the result.
pub(super) const TIMEOUT: &str = "timeout";
/// Operations: wait in the queue.
pub(super) const WAIT: &str = "wait";
/// Operations: allow connections that cannot migrate to be closed.
pub(super) const DRAIN: &str = "drain";
/// `scale`: target number of workers.
pub(super) const WORKERS: &str = "workers";
/// `rotation`: in or out.
pub(super) const TO: &str = "to";
/// `status`: JSON output.
pub(super) const JSON: &str = "json";
/// `status`: repeat at an interval.
pub(super) const WATCH: &str = "watch";
/// `status`: list each socket on the ports.
pub(super) const SOCKETS: &str = "sockets";
/// `top`: refresh interval.
#[cfg(feature = "top")]
pub(super) const EVERY: &str = "every";
/// `status --sockets`: maximum number of sockets.
pub(super) const LIMIT: &str = "limit";
/// `status`: report readiness by exit code only.
pub(super) const READY: &str = "ready";
/// `preflight`: the arguments of the server that this program may replace.
pub(super) const SERVER_ARGS: &str = "args";
/// Prints a completion script.
pub(super) const COMPLETIONS: &str = "completions";
/// Prints or writes manual pages.
pub(super) const MAN: &str = "man";

/// Every signal that the supervisor handles, and its effect.
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
