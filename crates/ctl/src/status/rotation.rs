//! The state reported to load balancers, and counts of the reports.

use serde::{Deserialize, Serialize};

/// The state reported to load balancers. New connections are served in any state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rotation {
    /// In rotation: send new clients.
    #[default]
    In,
    /// Send no new clients; established connections may stay until they end.
    Drain,
    /// Send no new clients, and do not check the server's health.
    Maint,
}

impl Rotation {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::In, Self::Drain, Self::Maint];

    /// Returns the word for it in commands, status and log.
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
