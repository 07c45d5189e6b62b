//! Signals and what they mean.

pub(crate) mod terminal;
