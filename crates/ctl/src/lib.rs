//! The part of **uppercased** that a running server shares with its clients: names and numbers, the status, the
//! control protocol, and what any command needs to write its output.
//!
//! | module | |
//! |---|---|
//! | [`identity`], [`clock`], [`metrics`] | slots, generations and workers; points in time; counters by name |
//! | [`status`] | the state of a server, as data and as text |
//! | [`control`] | the control socket: protocol, place and client |
//! | [`look`], [`sockets`] | repeated samples of a status, with the kernel's list of sockets |
//! | [`target`], [`proxy_header`] | addresses as people write them; the PROXY protocol |
//! | [`process`] | what a process of the program inherits |
//! | [`output`], [`stderr`], [`writer`], [`escape`] | lines for people and programs |
//! | [`limits`] | fixed limits that both sides know |
//!
//! It must not depend on the server.

#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod clock;
pub mod control;
pub mod escape;
pub mod identity;
pub mod limits;
pub mod look;
pub mod metrics;
pub mod output;
pub mod process;
pub mod proxy_header;
pub mod sockets;
pub mod status;
pub mod stderr;
pub mod target;
pub mod writer;
