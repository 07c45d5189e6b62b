//! The part of **uppercased** that a running server shares with its clients: identifiers and
//! counters, the status, the control protocol, and the output of commands.
//!
//! | module | |
//! |---|---|
//! | [`identity`], [`clock`], [`metrics`] | slots, generations and workers; points in time; counters |
//! | [`status`] | the state of a server, as data and as text |
//! | [`control`], [`operation`] | the control socket: protocol, place and client; what can be requested |
//! | [`sampler`], [`sockets`] | repeated samples of a status, with the kernel's list of sockets |
//! | [`target`], [`proxy_header`] | server addresses as text; the PROXY protocol |
//! | [`mod@words`] | enums whose variants are words |
//! | [`process`] | inherited environment and limits |
//! | [`output`], [`stderr`], [`writer`], [`escape`] | lines for people and programs |
//! | [`units`] | numbers and texts for a screen |
//! | [`limits`] | fixed limits of both sides |
//!
//! It must not depend on the server.

#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod clock;
pub mod control;
pub mod escape;
pub mod identity;
pub mod limits;
pub mod metrics;
pub mod operation;
pub mod output;
pub mod process;
pub mod proxy_header;
pub mod sampler;
pub mod sockets;
pub mod status;
pub mod stderr;
pub mod target;
pub mod units;
pub mod words;
pub mod writer;
