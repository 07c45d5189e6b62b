//! Seeded simulations: the state machines in worlds where everything goes wrong.

mod handover;
mod supervisor;
