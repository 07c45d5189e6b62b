//! What load balancers are told, and how often.

use serde::{Deserialize, Serialize};

/// Whether load balancers are told to send new clients. Whoever comes is served all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rotation {
    /// They are.
    #[default]
    In,
    /// They are not; what is established may stay until it ends.
    Drain,
    /// They are not, and are not to look after the server either.
    Maint,
}

impl Rotation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::In, Self::Drain, Self::Maint];

    /// The word for it, in orders, status and log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

/// Answers to load balancers, counted by the first word of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is the word of its name")]
pub struct AgentAnswers {
    pub ready: u64,
    pub drain: u64,
    pub maint: u64,
    pub down: u64,
}

impl AgentAnswers {
    /// Returns every word with the number of answers that began with it.
    #[must_use]
    pub const fn by_word(&self) -> [(&'static str, u64); 4] {
        [
            ("ready", self.ready),
            ("drain", self.drain),
            ("maint", self.maint),
            ("down", self.down),
        ]
    }
}
