//! The state reported to load balancers, and counts of the reports.

use crate::words;
use serde::{Deserialize, Serialize};

words! {
    /// The state reported to load balancers. New connections are served in any state.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Rotation {
        /// In rotation: send new clients.
        #[default]
        In = "in",
        /// Send no new clients; established connections may stay until they end.
        Drain = "drain",
        /// Send no new clients, and do not check the server's health.
        Maint = "maint",
    }
}

/// Replies to load balancers, counted by their first word.
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
    /// Returns every first word with the number of such replies.
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
