//! The command line, manual pages and comparisons of the program, without a server.

#[cfg(feature = "bench")]
mod bench_compare;
mod bench_stats;
mod manual;
mod usage;
