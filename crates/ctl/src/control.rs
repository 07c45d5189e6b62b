//! The control socket: how people and scripts give a running server orders.
//!
//! One Unix socket for each instance, one request a connection. `protocol` is what is said (pure),
//! `place` where the socket is found, `client` the side of whoever asks. The server's side belongs
//! to the supervisor.
//!
//! It must not decide anything about the server, and it knows nothing of the command line.

pub mod client;
pub mod place;
pub mod protocol;

pub use protocol::{Done, Options, Reply, Request, ScaleTo};
