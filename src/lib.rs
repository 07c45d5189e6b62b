//! **uppercased** answers every byte it receives over TCP with its ASCII upper-case.

pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod connection;
pub mod identity;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod reactor;
pub mod supervisor;
pub mod sys;
pub mod uppercase;
