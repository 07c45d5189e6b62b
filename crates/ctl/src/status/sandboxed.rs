//! How a process has been sandboxed, as it reports it.

use serde::{Deserialize, Serialize};

/// How a process has sandboxed itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandboxed {
    /// The names of the layers in force; the user comes first.
    pub layers: Vec<String>,
    /// The layers that could not be put in force, each as `name: cause`.
    pub missing: Vec<String>,
}
