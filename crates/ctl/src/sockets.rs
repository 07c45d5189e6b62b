//! The kernel's list of TCP sockets, and the processes that own them.
//!
//! It must not open, bind or touch a socket: reading the list must not disturb the server.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use procfs::net::TcpState;
use procfs::process::{FDTarget, Process, Stat, all_processes};

use crate::status::{ESTABLISHED, Entry, LISTEN};

/// Returns the processes that own sockets, with their names, by inode; the oldest if several share
/// a socket. Reads the descriptors of every process that this one may inspect; sockets of other
/// processes are absent.
#[must_use]
pub fn owners_of(inodes: &BTreeSet<u64>) -> BTreeMap<u64, (i32, String)> {
    let mut holders: BTreeMap<u64, Vec<Stat>> = BTreeMap::new();
    for process in all_processes().into_iter().flatten().flatten() {
        let descriptors = process.fd().into_iter().flatten().flatten();
        let sockets = descriptors.filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        });
        let found: BTreeSet<u64> = sockets.filter(|inode| inodes.contains(inode)).collect();
        if !found.is_empty()
            && let Ok(stat) = process.stat()
        {
            for inode in found {
                holders.entry(inode).or_default().push(stat.clone());
            }
        }
    }
    let eldest = |family: &[Stat]| {
        let no_child = |one: &&Stat| family.iter().all(|other| other.pid != one.ppid);
        let eldest = family.iter().find(no_child)?;
        Some((eldest.pid, eldest.comm.clone()))
    };
    holders
        .iter()
        .filter_map(|(inode, family)| Some((*inode, eldest(family)?)))
        .collect()
}

/// Returns every TCP socket in the network namespace of a process, from the kernel's list.
///
/// # Errors
/// The process does not exist in this namespace, or its list cannot be read.
pub fn sockets_of(pid: i32) -> io::Result<Vec<Entry>> {
    let process = Process::new(pid).map_err(io::Error::other)?;
    let mut entries = process.tcp().map_err(io::Error::other)?;
    // A kernel without IPv6 has no IPv6 list.
    entries.extend(process.tcp6().unwrap_or_default());
    let entries = entries.into_iter().map(|entry| Entry {
        local: entry.local_address,
        peer: entry.remote_address,
        state: state_name(&entry.state),
        recv_queue: entry.rx_queue,
        send_queue: entry.tx_queue,
        inode: entry.inode,
    });
    Ok(entries.collect())
}

/// Returns the state's name in `netstat`.
const fn state_name(state: &TcpState) -> &'static str {
    match state {
        TcpState::Established => ESTABLISHED,
        TcpState::SynSent => "SYN_SENT",
        TcpState::SynRecv | TcpState::NewSynRecv => "SYN_RECV",
        TcpState::FinWait1 => "FIN_WAIT1",
        TcpState::FinWait2 => "FIN_WAIT2",
        TcpState::TimeWait => "TIME_WAIT",
        TcpState::Close => "CLOSE",
        TcpState::CloseWait => "CLOSE_WAIT",
        TcpState::LastAck => "LAST_ACK",
        TcpState::Listen => LISTEN,
        TcpState::Closing => "CLOSING",
    }
}
