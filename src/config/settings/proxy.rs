//! The rows about running behind a load balancer.
//!
//! Part of [`SETTINGS`](super::SETTINGS).

use super::super::bounds;
use super::super::networks::Networks;
use super::super::proxy::Asking;
use super::super::value::Grammar as _;
use super::category::Category;
use super::setting::{Binding, Setting};

pub(super) const PROXY_PROTOCOL: Setting = Setting {
    binding: bind!(proxy_protocol, Asking),
    category: Category::Proxy,
    value_name: "WHERE",
    default: "none",
    example: "all",
    help: "Listeners that require a PROXY header",
    long_help: "May be repeated. Behind a load balancer the header (PROXY protocol, version 1 or \
                2) names the client: allow, deny and the limits per source then apply to the \
                client, and log lines name it. On these listeners every connection must begin with \
                a header; others are reset, and counted. On other listeners a header is ordinary \
                client data.",
};

pub(super) const PROXY_TRUST: Setting = Setting {
    binding: bind!(proxy_trust, Networks),
    category: Category::Proxy,
    value_name: "CIDR",
    default: "127.0.0.0/8,::1/128",
    example: "10.0.0.0/28",
    help: "Networks that may send a PROXY header",
    long_help: "May be repeated. A peer in these networks can claim any client address, so list \
                the load balancers and nothing else. On a listener that requires a header, \
                connections from other networks are reset as soon as they are accepted, and \
                counted.",
};

pub(super) const PROXY_HEADER_TIMEOUT: Setting = Setting {
    binding: bind!(proxy_header_timeout, bounds::PROXY_HEADER_TIMEOUT),
    category: Category::Proxy,
    value_name: "TIME",
    default: "5s",
    example: "2s",
    help: "Timeout for the PROXY header",
    long_help: "Counts from the accept, even if a part of the header has arrived. A connection \
                that exceeds it is reset, and counted.",
};
