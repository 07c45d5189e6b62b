//! **uppercased** answers every byte it receives over TCP with its ASCII upper-case.

pub mod channel;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod connection;
pub mod identity;
pub mod listener;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod port;
pub mod reactor;
pub mod supervisor;
pub mod sys;
pub mod uppercase;
pub mod wire;
pub mod worker;
