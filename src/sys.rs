//! The only module with `unsafe` and raw system calls, except for the wide uppercase path.
//!
//! Each module wraps one kernel facility in safe functions whose contract is checked or argued
//! there. They contain no policy, limits or logging, and import nothing from the layers above.

pub mod accept_queue;
pub mod accounts;
pub mod child;
pub mod cpus;
pub mod fd;
pub mod hangup;
pub mod heap;
pub mod image;
pub mod keeper;
pub mod lease;
pub mod limits;
pub mod quota;
pub mod shared;
pub mod signals;
pub mod socket;
pub mod steering;
pub mod tcp;
pub mod usage;
