//! The rows about access control and limits per source.
//!
//! Part of [`SETTINGS`](super::SETTINGS).

use super::super::bounds;
use super::super::networks::Networks;
use super::super::value::{Grammar as _, OrWord};
use super::category::Category;
use super::setting::{Binding, Setting};

pub(super) const ALLOW: Setting = Setting {
    binding: bind!(allow, Networks),
    category: Category::Sources,
    value_name: "CIDR",
    default: "none",
    example: "10.0.0.0/8",
    help: "Serve only these networks; may be repeated",
    long_help: "A connection is served if its peer is in one of these networks and in none of \
                deny. Others are reset as soon as they are accepted, and counted. none: every peer \
                that is not denied is served.",
};

pub(super) const DENY: Setting = Setting {
    binding: bind!(deny, Networks),
    category: Category::Sources,
    value_name: "CIDR",
    default: "none",
    example: "192.0.2.0/24",
    help: "Refuse these networks; may be repeated",
    long_help: "Takes precedence over allow. Connections from these networks are reset as soon as \
                they are accepted, and counted. A packet filter does the same before a connection \
                costs anything; this setting needs no privileges.",
};

pub(super) const MAX_CONNECTIONS_PER_SOURCE: Setting = Setting {
    binding: bind!(
        max_connections_per_source,
        OrWord("off", bounds::MAX_CONNECTIONS_PER_SOURCE)
    ),
    category: Category::Sources,
    value_name: "N",
    default: "off",
    example: "100",
    help: "Maximum connections per source and worker",
    long_help: "Further connections are reset, and counted. Each worker counts only its own, so \
                the whole server holds up to this many times the number of workers; the kernel \
                distributes a source's connections among the workers. Migrated connections count, \
                and are never refused. source_prefix_v4 and source_prefix_v6 define what a source \
                is.",
};

pub(super) const ACCEPT_RATE_PER_SOURCE: Setting = Setting {
    binding: bind!(
        accept_rate_per_source,
        OrWord("off", bounds::ACCEPT_RATE_PER_SOURCE)
    ),
    category: Category::Sources,
    value_name: "N",
    default: "off",
    example: "50",
    help: "Connections per second accepted from one source",
    long_help: "A source that has been quiet for a second may open this many at once; further ones \
                are reset, and counted. Each worker counts separately, so the whole server accepts \
                up to this many times the number of workers.",
};

pub(super) const SOURCE_PREFIX_V4: Setting = Setting {
    binding: bind!(source_prefix_v4, bounds::SOURCE_PREFIX_V4),
    category: Category::Sources,
    value_name: "BITS",
    default: "32",
    example: "24",
    help: "Prefix length that identifies an IPv4 source",
    long_help: "32: every address is a source of its own. 24: all of 192.0.2.0/24 share the limits \
                of one source.",
};

pub(super) const SOURCE_PREFIX_V6: Setting = Setting {
    binding: bind!(source_prefix_v6, bounds::SOURCE_PREFIX_V6),
    category: Category::Sources,
    value_name: "BITS",
    default: "64",
    example: "56",
    help: "Prefix length that identifies an IPv6 source",
    long_help: "A host usually has a whole /64 to choose from, so limits on single IPv6 addresses \
                would limit nothing.",
};
