//! The configuration as everything else sees it: validated, complete, plain data; and the one
//! way to it, [`resolve()`], from file, environment and flags.
//!
//! Invariants: a [`Config`] that [`resolve()`] returned keeps every bound in [`SETTINGS`] and every
//! rule between settings; there is no other place for a limit, its unit or its default.
//! Must not: open a file, read the environment or the clock, or look a name up. The shell hands
//! in what was read ([`from_file`], [`from_environment`]) and what the machine is like
//! ([`Facts`]).

mod admin;
mod bounds;
mod change;
mod data;
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

pub use admin::AdminAddr;
pub use bounds::*;
pub use change::{NeedsStop, check_change};
pub use data::Config;
pub use descriptors::{connection_limit, descriptor_reserve};
pub use error::Error;
pub use launch::Launch;
pub use limits::*;
pub use listen::LISTEN_MAX;
pub use networks::{NETWORKS_IN_ALL_MAX, NETWORKS_MAX};
pub use proxy::ProxyListeners;
pub use resolve::{resolve, verify};
pub use sandbox::{Account, Sandbox};
pub use service_links::{is_service_link, service_links};
pub use settings::{Category, SETTINGS, Setting};
pub use source::{Assignment, CONFIG_VARIABLE, Origin, Origins, from_environment, from_file};
pub use types::{Boot, Control, ListenAddr, LogFormat, LogLevel, RestartConnections, Steer};
pub use value::{Count, Facts, Lookup, Size, Span};

#[cfg(test)]
mod tests;
