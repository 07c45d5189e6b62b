//! **uppercased** answers every byte it receives over TCP with its ASCII upper-case.

pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod log;
pub mod supervisor;
pub mod uppercase;
