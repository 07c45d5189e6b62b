//! End-to-end tests: real processes, driven from outside through `support`.
//!
//! They are one binary, so that the support is compiled once; tests of all files run concurrently.

mod abuse;
mod admin;
mod adopt;
mod agent;
#[cfg(feature = "bench")]
mod bench;
mod bounded;
mod churn;
mod client;
mod closing;
mod control;
mod deadlines;
mod faults;
mod foreign_clients;
mod handover;
mod hang;
mod haproxy;
mod harness;
mod hostile;
mod judges;
mod lease;
mod limits;
mod logs;
mod placement;
mod planned;
mod planned_limits;
mod pressure;
mod proxy;
mod rebalance;
mod rebind;
mod reload;
mod requests;
mod rescue;
mod runbooks;
mod sandbox;
mod scale;
mod service_job;
mod serving;
mod status;
mod stop;
mod supervising;
mod support;
mod survive;
mod systemd;
#[cfg(feature = "top")]
mod top;
mod upgrade;
