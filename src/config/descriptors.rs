//! Computes the number of connections that fit a worker's descriptor limit.

use super::error::Error;
use super::limits::{AUTO_CONNECTIONS_MAX, FD_RESERVE, FDS_PER_SLOT};

/// Returns a worker's maximum number of connections: `asked`, or if `None` as many as fit.
///
/// `nofile_limit` is the worker's descriptor limit (`RLIMIT_NOFILE`, with the soft limit raised to
/// the hard limit). The reserve suffices for a worker that serves all siblings' listeners and for
/// the supervisor, which holds them all.
///
/// # Errors
///
/// An error if the limit is too low; it gives the required limit and how to raise it.
pub fn connection_limit(
    asked: Option<u32>,
    nofile_limit: u64,
    listeners: usize,
    workers: u16,
) -> Result<u32, Error> {
    let reserve = descriptor_reserve(listeners, workers);
    let possible = nofile_limit.saturating_sub(reserve);
    if possible == 0 {
        return Err(Error::LimitTooLow {
            workers,
            listeners,
            needed: reserve.saturating_add(1),
            limit: nofile_limit,
        });
    }
    match asked {
        Some(asked) if u64::from(asked) > possible => Err(Error::ConnectionsExceedLimit {
            asked,
            needed: reserve.saturating_add(u64::from(asked)),
            limit: nofile_limit,
            possible,
        }),
        Some(asked) => Ok(asked),
        None => Ok(u32::try_from(possible)
            .unwrap_or(u32::MAX)
            .min(AUTO_CONNECTIONS_MAX)),
    }
}

/// Returns the number of descriptors reserved for uses other than connections.
#[must_use]
pub fn descriptor_reserve(listeners: usize, workers: u16) -> u64 {
    let a_slot = u64::try_from(listeners)
        .unwrap_or(u64::MAX)
        .saturating_add(u64::from(FDS_PER_SLOT));
    a_slot
        .saturating_mul(u64::from(workers))
        .saturating_add(u64::from(FD_RESERVE))
}
