//! Placeholder.
pub mod backoff;
pub mod exchange;
pub mod machine;
pub mod slot;
pub mod snapshot;
