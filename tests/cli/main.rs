//! Tests of the program's command line, manual pages and comparisons, without a server.

#[cfg(feature = "bench")]
mod bench_compare;
mod bench_stats;
mod manual;
mod usage;
