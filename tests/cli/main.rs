//! Command line, manual pages and reports: what the program prints without a server.

mod bench_compare;
mod bench_stats;
mod manual;
mod usage;
