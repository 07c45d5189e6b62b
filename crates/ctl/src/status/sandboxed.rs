//! The sandbox of a process, as it reports it.

use serde::{Deserialize, Serialize};

/// The sandbox that a process has entered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandboxed {
    /// The names of the layers in force; the user comes first.
    pub layers: Vec<String>,
    /// The layers that could not be enforced, each as `name: cause`.
    pub missing: Vec<String>,
}
