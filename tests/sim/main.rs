//! Seeded simulations of the state machines, with faults at every step.

mod handover;
#[expect(dead_code, reason = "the property tests use all of it")]
#[path = "../prop/model/mod.rs"]
mod model;
mod rescue;
mod supervisor;
