//! The rows about running behind a load balancer.
//!
//! As [`SETTINGS`](super::SETTINGS), of which they are a part.

use super::super::bounds;
use super::super::networks::Networks;
use super::super::proxy::Asking;
use super::super::value::Grammar as _;
use super::{Binding, Category, Setting};

pub(super) const PROXY_PROTOCOL: Setting = Setting {
    binding: bind!(proxy_protocol, Asking),
    category: Category::Proxy,
    value_name: "WHERE",
    default: "none",
    example: "all",
    help: "Listeners that want a PROXY header; may be repeated",
    long_help: "Behind a load balancer the header (PROXY protocol, version 1 or 2) says who the \
                client is: allow, deny and the limits on sources then hold for the client, and \
                log lines name it. On these listeners every connection must begin with one; \
                others are reset, which is counted. Elsewhere a header is a client's bytes.",
};

pub(super) const PROXY_TRUST: Setting = Setting {
    binding: bind!(proxy_trust, Networks),
    category: Category::Proxy,
    value_name: "CIDR",
    default: "127.0.0.0/8,::1/128",
    example: "10.0.0.0/28",
    help: "Networks that may send a PROXY header",
    long_help: "May be repeated. Whoever can send one can be anybody, so name the load balancers and nobody else. \
                On a listener that asks for a header, connections from elsewhere are reset as \
                soon as they are taken, which is counted.",
};

pub(super) const PROXY_HEADER_TIMEOUT: Setting = Setting {
    binding: bind!(proxy_header_timeout, bounds::PROXY_HEADER_TIMEOUT),
    category: Category::Proxy,
    value_name: "TIME",
    default: "5s",
    example: "2s",
    help: "Time for a PROXY header to come",
    long_help: "From the accept on, however many bytes of it have come. Over it the connection is \
                reset, which is counted.",
};
