//! Seeded simulations of the state machines, with faults at every step.

mod handover;
mod supervisor;
