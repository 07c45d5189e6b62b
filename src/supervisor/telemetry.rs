//! What the supervisor measures and announces.

pub(crate) mod announcement;
pub(crate) mod times;
