//! Command line, manual pages and reports: what the program prints without a server.

mod bench_report;
mod bench_stats;
mod manual;
mod usage;
