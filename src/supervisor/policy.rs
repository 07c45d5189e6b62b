//! Derives the limits of the machine from a configuration.

use crate::config::{Config, STALL_CHECK_EVERY};

use super::machine::Policy;

pub(super) fn policy(config: &Config) -> Policy {
    Policy {
        workers: config.workers,
        start_timeout: config.start_timeout,
        drain_timeout: config.drain_timeout,
        lame_duck: config.lame_duck,
        backoff_initial: config.backoff_initial,
        backoff_max: config.backoff_max,
        backoff_reset: config.backoff_reset,
        lend_after: config.lend_after,
        reload_connections: config.reload_connections,
        boot: config.boot,
        linger_timeout: config.linger_timeout,
        bake_time: config.bake_time,
        handover_timeout: config.handover_timeout,
        handshake_timeout: config.handshake_timeout,
        hang_timeout: config.hang_timeout,
        stall_check: Some(STALL_CHECK_EVERY),
        rebalance: config.rebalance.then_some(config.rebalance_threshold),
    }
}
