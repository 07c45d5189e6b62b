//! The headings of the table of settings.

/// The headings under which help and documentation list the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// Where clients connect.
    Listening,
    /// What one connection may cost.
    Connections,
    /// Who may connect, and how much one source may have.
    Sources,
    /// Running behind a load balancer.
    Proxy,
    /// How much one turn of the loop does.
    Turn,
    /// Which worker serves whom, and where it runs.
    Placement,
    /// Starting and stopping workers.
    Lifecycle,
    /// Restarts, upgrades and scaling of a running server.
    Operation,
    /// Log lines.
    Logging,
}

impl Category {
    /// What stands above its settings.
    #[must_use]
    pub fn heading(self) -> &'static str {
        match self {
            Self::Listening => "Listening",
            Self::Connections => "Connections",
            Self::Sources => "Who may connect",
            Self::Proxy => "Behind a load balancer",
            Self::Turn => "Turn of the loop",
            Self::Placement => "Placing connections and workers",
            Self::Lifecycle => "Starting and stopping",
            Self::Operation => "Operating a running server",
            Self::Logging => "Logging",
        }
    }
}
