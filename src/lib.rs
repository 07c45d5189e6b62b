//! **uppercased** is an ASCII-uppercasing TCP echo server for Linux.
//!
//! The service is deliberately tiny. The machinery around it is the point: worker processes share
//! one port, accept queues survive a worker's exit, live connections migrate between workers, and
//! everything that a client could make grow is bounded.
//!
//! ```text
//!            signals
//!               |
//!        +------+-------+   keeps a duplicate of every slot's listeners and
//!        |  supervisor  |   one channel to every worker; serves no client
//!        +--+----+---+--+
//!   channel |    |   |      SOCK_SEQPACKET: framed, versioned, carries descriptors
//!        +--+-+  |  ++---+
//!        | w0 | ... | wN |  one process, one thread, one event loop each,
//!        +--+-+     +-+--+  one working memory shared with the supervisor
//!           |         |
//!        listeners: one SO_REUSEPORT group; the kernel spreads connections over it
//! ```
//!
//! # Where to start
//! `ARCHITECTURE.md` has the layers of the modules and follows a byte and a signal through them.
//! *Cores* decide and touch nothing outside (no descriptor, clock or environment); *shells* act.
//!
//! | module | |
//! |---|---|
//! | [`reactor`], [`connection`], [`memory`] | the serving path: event loop, one connection, its record and buffers |
//! | [`service`] | the transformation and its contract |
//! | [`supervisor`], [`supervisor::machine`] | the shell that starts workers, and the core that decides when |
//! | [`wire`], [`channel`] | messages between the processes, and their transport |
//! | [`handover`] | migration of live connections between workers |
//! | [`config`], [`cli`] | settings, and the command line |
//! | [`sys`] | the only place for `unsafe`, beside [`uppercase`] |
//! | [`uppercased_ctl`] | what a running server shares with its clients: status and control protocol |
//!
//! # Use as a library
//! The cores can be driven without a process:
//!
//! ```
//! let mut bytes = *b"stra\xc3\x9fe, gr\0und 7";
//! uppercased::uppercase::make_uppercase(&mut bytes);
//! assert_eq!(&bytes, b"STRA\xc3\x9fE, GR\0UND 7");
//! ```

// These macros panic if nothing reads their output; `output` and `stderr::write_error` do not.
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod admin;
pub mod admission;
pub mod channel;
pub mod cli;
pub mod client;
pub mod config;
pub mod connection;
#[cfg(test)]
mod documented;
pub mod fault;
pub mod handover;
pub mod listener;
pub mod log;
pub mod memory;
pub mod port;
pub mod preflight;
pub mod reactor;
mod sandbox;
pub mod service;
pub mod supervisor;
pub mod sys;
#[cfg(feature = "top")]
pub mod top;
pub mod uppercase;
pub mod wire;
pub mod worker;
