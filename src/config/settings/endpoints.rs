//! The rows about the admin endpoint and the agent-check.
//!
//! Part of [`SETTINGS`](super::SETTINGS).

use super::super::admin::{Admin, Agent};
use super::super::value::{Grammar as _, OrWord};
use super::category::Category;
use super::setting::{Binding, Setting};

pub(super) const AGENT: Setting = Setting {
    binding: bind!(agent, OrWord("off", Agent)),
    category: Category::Proxy,
    value_name: "ADDR",
    default: "off",
    example: "10.0.0.1:9101",
    help: "Address of the HAProxy agent-check",
    long_help: "Each connection receives one line: `ready up 75%` with a weight by load, `drain` \
                while the server stops, `drain` or `maint` if an operator has set it (uppercased \
                rotation), `down` while the server should receive no clients. The agent reports \
                nothing else and accepts no commands; still, allow only the load balancers to \
                reach it. PORT alone means every IPv4 address. Changing it requires a stop.",
};

pub(super) const ADMIN: Setting = Setting {
    binding: bind!(admin, OrWord("off", Admin)),
    category: Category::Operation,
    value_name: "ADDR",
    default: "off",
    example: "127.0.0.1:9900",
    help: "Address for health checks and metrics over HTTP",
    long_help: "Serves /metrics (OpenMetrics), /healthz, /readyz and /status from a separate \
                process, which is sandboxed like a worker. Local only: a loopback address, PORT \
                alone for 127.0.0.1, or the path of a Unix socket, which is created with mode \
                0600. Changing it requires a stop.",
};
