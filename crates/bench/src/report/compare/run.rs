//! What is compared.

use crate::outcome::Outcome;

/// One measurement and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The name of its file.
    pub name: String,
    /// What it found.
    pub outcome: Outcome,
}
