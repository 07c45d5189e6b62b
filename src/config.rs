//! The configuration: validated, complete, plain data. [`resolve()`], the only way to obtain it,
//! combines file, environment and flags.
//!
//! Invariants: a [`Config`] returned by [`resolve()`] satisfies every bound in [`SETTINGS`] and
//! every rule between settings; limits, their units and defaults are defined here only. Must not:
//! open a file, read the environment or the clock, or resolve a name. The caller passes in the
//! input ([`from_file`], [`from_environment`]) and the properties of the machine ([`Facts`]).

mod admin;
mod change;
mod descriptors;
mod error;
mod launch;
mod limits;
mod listen;
mod networks;
pub(crate) mod path_bytes;
mod proxy;
mod resolve;
mod rules;
mod sandbox;
mod service_links;
mod settings;
mod source;
mod types;
mod value;
mod warnings;

pub use admin::AdminAddr;
pub use change::{NeedsStop, check_change};
pub use descriptors::{connection_limit, descriptor_reserve};
pub use error::{Error, Errors, in_one_line};
pub use launch::{Ignored, Launch};
pub use limits::*;
pub use listen::LISTEN_MAX;
pub use networks::{NETWORKS_IN_ALL_MAX, NETWORKS_MAX};
pub use proxy::ProxyListeners;
pub use resolve::{Draft, resolve, verify};
pub use sandbox::{Account, Sandbox};
pub use service_links::{is_service_link, service_links};
pub use settings::{Config, SETTINGS, Setting, WORKERS};
pub use source::{Assignment, CONFIG_VARIABLE, Origin, Origins, from_environment, from_file};
pub use types::{Boot, Control, ListenAddr, LogFormat, LogLevel, ReloadConnections, Steer};
pub use value::{Count, Facts, Lookup, Size, Span};
pub use warnings::{Machine, warnings};

#[cfg(test)]
mod tests;
