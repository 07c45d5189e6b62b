//! The headings of the table of settings.

/// The headings under which help and documentation list the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// Listening addresses and accept queues.
    Listening,
    /// Timeouts and buffers of a connection.
    Connections,
    /// Access control and limits per source.
    Sources,
    /// PROXY protocol and agent-check.
    Proxy,
    /// Work per event loop iteration.
    Turn,
    /// Distribution of connections, CPU affinity of workers.
    Placement,
    /// Starting and stopping workers.
    Lifecycle,
    /// Reloads, upgrades and scaling of a running server.
    Operation,
    /// Log lines.
    Logging,
}

impl Category {
    /// Returns the heading above its settings.
    #[must_use]
    pub fn heading(self) -> &'static str {
        match self {
            Self::Listening => "Listening",
            Self::Connections => "Connections",
            Self::Sources => "Access and source limits",
            Self::Proxy => "Load balancers",
            Self::Turn => "Event loop",
            Self::Placement => "Placement of connections and workers",
            Self::Lifecycle => "Starting and stopping",
            Self::Operation => "Operating a running server",
            Self::Logging => "Logging",
        }
    }
}
