//! What the workers are and have: processes, channels, memories, listeners, releases.

pub(crate) mod children;
pub(crate) mod placement;
pub(crate) mod queues;
pub(crate) mod releases;
pub(crate) mod relisten;
pub(crate) mod resources;
pub(crate) mod totals;
