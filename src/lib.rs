//! **uppercased** answers every byte it receives over TCP with its ASCII upper-case.
//!
//! The service is deliberately tiny; the machinery round it is the point: worker processes that
//! share one port, accept queues that survive a worker's death, a hot path of one receive and one
//! send a message, and limits for everything.
//!
//! ```text
//!            signals
//!               |
//!        +------+-------+   keeps a duplicate of every slot's listeners,
//!        |  supervisor  |   one channel to every worker; serves no client
//!        +--+----+---+--+
//!   channel |    |   |      SOCK_SEQPACKET: framed, versioned, carries descriptors
//!        +--+-+  |  ++---+
//!        | w0 | ... | wN |  one process, one thread, one mio loop each,
//!        +--+-+     +-+--+  one working memory shared with the supervisor
//!           |         |
//!        listeners: one SO_REUSEPORT group; the kernel spreads connections over it
//! ```
//!
//! # Where things are
//! *Cores* decide and touch nothing outside (no descriptor, clock, environment): they are tested
//! as plain values. *Shells* carry out.
//!
//! | module | | |
//! |---|---|---|
//! | [`cli`], [`config`] | shell, core | what was typed, and the one validated configuration with every limit |
//! | [`supervisor::machine`] | core | slots, generations, backoff, lending, stop: events in, actions out |
//! | [`supervisor`] | shell | forks, signals, channels, pidfds for the machine |
//! | [`worker`] | shell | a worker's life: bind or adopt, say Ready, serve, drain |
//! | [`reactor`] | shell | the event loop: readiness, budgets, accepting, deadlines |
//! | [`admission`] | core | who may connect: networks, and what one source may have |
//! | [`connection`] | core | one connection over any [`connection::Stream`] |
//! | [`handover`] | core | connections move to another worker, live: format and rules |
//! | [`memory`] | | the working memory: records, scratch, pending output; the store rules |
//! | [`wire`], [`channel`] | core, shell | what the supervisor and its processes say, and how |
//! | [`listener`], [`port`] | shell | binding; who holds a port |
//! | [`service`] | core | the transformation and its contract |
//! | [`uppercase`] | core | the shipped service, with a wide path |
//! | [`admin`] | shell, core | health and metrics over HTTP: a process of its own, with threads |
//! | [`client`] | | the line client |
//! | [`sys`] | shell | the only door to `unsafe`, beside the wide path |
//!
//! [`uppercased_bench`] is the load generator. [`uppercased_ctl`] has what a running server shares with its clients: identity, clock, counters, status and the
//! control protocol.
//!
//! Dependencies point one way: `cli` to supervisor, worker, client and bench, those to their cores, all to
//! the leaves. Supervisor and worker never import each other.
//!
//! # Using it as a library
//! The cores can be driven without a process:
//!
//! ```
//! let mut bytes = *b"stra\xc3\x9fe, gr\0und 7";
//! uppercased::uppercase::make_uppercase(&mut bytes);
//! assert_eq!(&bytes, b"STRA\xc3\x9fE, GR\0UND 7");
//! ```

// They panic where nobody reads; `output` and `stderr::complain` do not.
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
pub mod top;
pub mod uppercase;
pub mod wire;
pub mod worker;
