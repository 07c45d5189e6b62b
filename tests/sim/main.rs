//! Seeded simulations: the state machines in worlds in which everything fails.

mod handover;
mod supervisor;
