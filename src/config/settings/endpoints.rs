//! The rows about where others can see how the server is.
//!
//! As [`SETTINGS`](super::SETTINGS), of which they are a part.

use super::super::admin::{Admin, Agent};
use super::super::value::{Grammar as _, OrWord};
use super::{Binding, Category, Setting};

pub(super) const AGENT: Setting = Setting {
    binding: bind!(agent, OrWord("off", Agent)),
    category: Category::Proxy,
    value_name: "ADDR",
    default: "off",
    example: "10.0.0.1:9101",
    help: "Address where load balancers ask how the server is",
    long_help: "HAProxy's agent-check: whoever connects gets a line, `ready up 75%` with a weight \
                by load, `drain` while the server stops, `drain` or `maint` when an operator has \
                said so (uppercased rotation), `down` while nobody should come. It says nothing \
                else and takes no orders; still, let only the load balancers through to it. \
                PORT alone means every IPv4 address. Cannot change without a stop.",
};

pub(super) const ADMIN: Setting = Setting {
    binding: bind!(admin, OrWord("off", Admin)),
    category: Category::Operation,
    value_name: "ADDR",
    default: "off",
    example: "127.0.0.1:9900",
    help: "Address for health checks and metrics over HTTP",
    long_help: "Answers /metrics (OpenMetrics), /healthz, /readyz and /status, from a process \
                    of its own that is locked in like a worker. On this machine only: a loopback \
                    address, PORT alone for 127.0.0.1, or the path of a Unix socket, which is \
                    made with mode 0600. Cannot change without a stop.",
};
