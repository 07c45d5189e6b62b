//! The runs to compare.

use crate::outcome::Outcome;

/// One measurement and its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The name of its file.
    pub name: String,
    /// Its outcome.
    pub outcome: Outcome,
}
