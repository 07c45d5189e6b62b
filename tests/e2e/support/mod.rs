//! The shared support of end-to-end tests: a server with its own ports and files, clients that
//! check every byte, processes held by descriptor, network namespaces with their own counters; for
//! planned operations a load that checks every byte, a delayed link, damaged copies of the program,
//! and a baseline.
//!
//! Rules for every test, ensured here: the kernel chooses ports; readiness is a message; every wait
//! has a deadline and on expiry reports its observations; nothing sleeps; no process outlives its
//! test, however the test ends.
//!
//! A test must pass on a machine that runs thirty others. So a deadline reached only by a failing
//! test is generous; a time that is waited out intentionally applies to one connection only; a
//! client that must act before a short timeout acts while the worker is [`adversity::Frozen`]; and
//! a test waits until a killed process or a closed socket is gone.

#![expect(unreachable_pub, reason = "`pub` is what the tests may use")]

mod address;
pub mod adversity;
pub mod bare;
pub mod baseline;
mod bytes;
pub mod cgroup;
mod client;
pub mod deaths;
pub mod diagnosis;
pub mod hold;
pub mod image;
mod lines;
pub mod link;
pub mod load;
pub mod netns;
pub mod observe;
pub mod planned;
pub mod process;
pub mod scene;
mod server;
pub mod service_manager;
mod stand_in;
pub mod syn_flood;
pub mod terminal;
pub mod tracer;
pub mod usage;

pub use self::address::own_address;
pub use self::bytes::{assert_same, pattern, upper};
pub use self::client::Client;
pub use self::lines::Lines;
pub use self::process::{
    DEADLINE, Deadline, Watched, children, give_children_default_signals, in_background, poll_one,
    sweep, wait_gone,
};
pub use self::server::{CommandOutput, Server, ServerBuilder};
pub use self::stand_in::{answer_all, serve_one, serve_one_at};
