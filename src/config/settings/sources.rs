//! The rows about who may connect, and how much one source may have.
//!
//! As [`SETTINGS`](super::SETTINGS), of which they are a part.

use super::super::bounds;
use super::super::networks::Networks;
use super::super::value::{Grammar as _, OrWord};
use super::{Binding, Category, Setting};

pub(super) const ALLOW: Setting = Setting {
    binding: bind!(allow, Networks),
    category: Category::Sources,
    value_name: "CIDR",
    default: "none",
    example: "10.0.0.0/8",
    help: "Serve only these networks; may be repeated",
    long_help: "A connection is served if its peer is in one of them and in none of deny. Others \
                are reset as soon as they are taken, which is counted. none: everybody is served \
                who is not denied.",
};

pub(super) const DENY: Setting = Setting {
    binding: bind!(deny, Networks),
    category: Category::Sources,
    value_name: "CIDR",
    default: "none",
    example: "192.0.2.0/24",
    help: "Refuse these networks; may be repeated",
    long_help: "Wins over allow. Their connections are reset as soon as they are taken, which is \
                counted. A packet filter does the same before a connection costs anything; this \
                needs no rights.",
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
    help: "Connections of one source that a worker holds",
    long_help: "One more is reset, and counted. Each worker counts those that it has itself, so \
                the whole server holds up to workers times as many; the kernel spreads a source's \
                connections over the workers. Connections that move from another worker count, \
                and are never refused. What a source is: source_prefix_v4, source_prefix_v6.",
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
    help: "Connections a second taken from one source",
    long_help: "A source that was quiet for a second may open this many at once; beyond that they \
                are reset, and counted. Each worker counts by itself, so the whole server takes up \
                to workers times as many.",
};

pub(super) const SOURCE_PREFIX_V4: Setting = Setting {
    binding: bind!(source_prefix_v4, bounds::SOURCE_PREFIX_V4),
    category: Category::Sources,
    value_name: "BITS",
    default: "32",
    example: "24",
    help: "Leading bits of an IPv4 address that make a source",
    long_help: "32: every address is a source of its own. 24: all of 192.0.2.0/24 share what one \
                source may have.",
};

pub(super) const SOURCE_PREFIX_V6: Setting = Setting {
    binding: bind!(source_prefix_v6, bounds::SOURCE_PREFIX_V6),
    category: Category::Sources,
    value_name: "BITS",
    default: "64",
    example: "56",
    help: "Leading bits of an IPv6 address that make a source",
    long_help: "64 is what one host usually has to choose from; limits on single IPv6 addresses \
                would limit nobody.",
};
