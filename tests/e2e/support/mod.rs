//! What the end-to-end tests stand on: a server of their own, clients that check every byte,
//! processes waited for without polling, and network namespaces with counters of their own; for
//! whole operations a load with a verdict, a delayed link, copies of the program that misbehave,
//! and a baseline to come back to.
//!
//! Manners, kept here so that every test has them: ports are the kernel's choice, readiness is a
//! message, every wait has a deadline and tells on expiry what it saw, nothing sleeps, and no
//! process outlives the test that started it, however the test ends.
//!
//! A test must pass on a machine that does thirty other things. So a deadline that only a failing test
//! waits for is generous; a time that is waited out on purpose applies to nobody else; what a client
//! must do before a short timeout is done while the worker is [`adversity::Frozen`]; and what was just
//! given up or killed is waited for until it is gone.

#![expect(unreachable_pub, reason = "`pub` is what the tests may use")]

mod address;
pub mod adversity;
pub mod bare;
pub mod baseline;
mod bytes;
pub mod cgroup;
mod client;
pub mod diagnosis;
pub mod image;
mod lines;
pub mod link;
pub mod load;
pub mod netns;
pub mod observe;
pub mod planned;
mod process;
pub mod scene;
mod server;
pub mod service_manager;
mod stand_in;
pub mod syn_flood;
pub mod terminal;
pub mod usage;

pub use self::address::own_address;
pub use self::bytes::{assert_same, pattern, upper};
pub use self::client::Client;
pub use self::lines::Lines;
pub use self::process::{
    DEADLINE, Deadline, Watched, children, in_background, poll_one, sweep, wait_gone,
};
pub use self::server::{Answered, Server, ServerBuilder};
pub use self::stand_in::{answer_all, serve_one, serve_one_at};
