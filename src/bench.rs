//! `uppercased bench`: a load generator that tells the truth about a TCP server which answers every
//! byte with its upper-case, or with itself.

pub mod outcome;
