//! The load generator: it measures a server of upper-case (or of plain echo) and says what it
//! found.
//!
//! What was found is an [`outcome::Outcome`]; [`report`] shows it.

pub mod outcome;
pub mod report;
