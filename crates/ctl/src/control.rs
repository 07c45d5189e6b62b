//! The control socket: accepts commands to a running server from people and scripts.
//!
//! Each instance has one Unix socket; a connection carries one request. `protocol` defines the
//! messages (pure), `place` the socket's path, `client` the client side. The server side belongs to
//! the supervisor.
//!
//! It must not decide anything about the server, and it knows nothing of the command line.

pub mod client;
pub mod place;
pub mod protocol;

pub use protocol::{Done, Options, Reply, Request, ScaleTo};
