//! The sockets on a server's ports in the kernel's list, whichever process owns them.
//!
//! The supervisor knows only its own listeners; the reader of the status adds this from the
//! kernel's list of the server's network namespace. Invariants: each entry is counted once; the
//! individual list is bounded, and omitted entries are counted. Pure: it must not read `/proc`.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::data::{SlotStatus, Status};
use crate::identity::SlotId;

/// Maximum number of foreign listeners listed individually.
const OTHERS_MAX: usize = 16;

/// Maximum number of sources listed.
const SOURCES_MAX: usize = 64;

/// One line of the kernel's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The local address.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
    /// The state's name in `netstat`: "LISTEN", "TIME_WAIT".
    pub state: &'static str,
    /// Bytes received and not read; for a listener, connections waiting to be accepted.
    pub recv_queue: u32,
    /// Bytes sent and not acknowledged.
    pub send_queue: u32,
    /// The socket's inode; 0 if no process owns it: not accepted yet, or closed by its process.
    pub inode: u64,
}

/// The owner of a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// The slot to which it belongs, if it is this server's.
    pub slot: Option<SlotId>,
    /// The process; `None`: no process owns it, or it may not be inspected as another user's.
    pub pid: Option<i32>,
    /// The process's name.
    pub program: Option<String>,
}

/// One socket of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketStatus {
    /// The state's name in `netstat`.
    pub state: String,
    /// The local address.
    pub local: String,
    /// The peer's address.
    pub peer: String,
    /// Bytes received and not read; for a listener, connections waiting to be accepted.
    pub recv_queue: u32,
    /// Bytes sent and not acknowledged.
    pub send_queue: u32,
    /// The socket's inode; 0 if no process owns it.
    pub inode: u64,
    /// Its owner.
    #[serde(flatten)]
    pub owner: Owner,
}

/// The connections from one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// The clients' address, or that of a proxy.
    pub address: String,
    /// Its established connections.
    pub connections: u64,
    /// Bytes received from it and not read, in all of them.
    pub recv_queue: u64,
    /// Bytes sent to it and not acknowledged, in all of them.
    pub send_queue: u64,
}

/// The sockets on a server's ports; see the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sockets {
    /// The reason why they are unknown, if so.
    pub unknown: Option<String>,
    /// Age of the list when the status was made.
    pub age_ms: u64,
    /// Number of sockets in each state, listeners included.
    pub states: BTreeMap<String, u64>,
    /// Established connections that are not accepted yet.
    pub unaccepted: u64,
    /// The clients' ends on this machine: number of sockets in each state.
    pub local_clients: BTreeMap<String, u64>,
    /// The sources with the most established connections, the busiest first.
    pub sources: Vec<Source>,
    /// Number of sources omitted.
    pub sources_omitted: u64,
    /// Foreign listeners on the same ports.
    pub others: Vec<SocketStatus>,
    /// Number of foreign listeners omitted.
    pub others_omitted: u64,
    /// Every socket, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub list: Option<Vec<SocketStatus>>,
    /// Number of sockets omitted from the list because of its limit.
    pub unlisted: u64,
}

impl Sockets {
    /// Returns a value that has only the reason why the sockets are unknown.
    #[must_use]
    pub fn unknown(why: String) -> Self {
        Self {
            unknown: Some(why),
            ..Self::default()
        }
    }

    /// Counts the sockets on the ports of `status`, and lists at most `list` of them if requested.
    /// Owners are set only for this server's listeners; see [`Self::foreign`] for others.
    #[must_use]
    pub fn count(entries: Vec<Entry>, status: &Status, list: Option<usize>) -> Self {
        let ports = ports(status);
        let slots = listeners_of(status);
        let mut sockets = Self::default();
        let mut listed = Vec::new();
        let mut sources: BTreeMap<IpAddr, Source> = BTreeMap::new();
        let mut seen = HashSet::new();
        for entry in entries {
            if !seen.insert(entry.identity()) {
                continue;
            }
            if ports.contains(&entry.local.port()) {
                *sockets.states.entry(entry.state.to_owned()).or_default() += 1;
                if entry.state == ESTABLISHED && entry.inode == 0 {
                    sockets.unaccepted += 1;
                }
                if entry.state == ESTABLISHED {
                    let source = sources.entry(entry.peer.ip().to_canonical());
                    source.or_default().add(&entry);
                }
                let ours = slots.get(&entry.inode);
                if entry.state == LISTEN && ours.is_none() {
                    sockets.others.push(SocketStatus::of(&entry, None));
                }
                if list.is_some() {
                    listed.push(SocketStatus::of(&entry, ours));
                }
            } else if ports.contains(&entry.peer.port()) && entry.is_within_this_machine() {
                let clients = sockets.local_clients.entry(entry.state.to_owned());
                *clients.or_default() += 1;
            }
        }
        sockets.sources = busiest(sources);
        sockets.sources_omitted = drop_beyond(&mut sockets.sources, SOURCES_MAX);
        sockets.others_omitted = drop_beyond(&mut sockets.others, OTHERS_MAX);
        if let Some(most) = list {
            listed.sort_by(|a, b| a.order().cmp(&b.order()));
            sockets.unlisted = drop_beyond(&mut listed, most);
            sockets.list = Some(listed);
        }
        sockets
    }

    /// Returns every listed socket whose owner is unknown.
    pub fn foreign(&mut self) -> impl Iterator<Item = &mut SocketStatus> {
        let listed = self.list.iter_mut().flatten();
        let all = self.others.iter_mut().chain(listed);
        all.filter(|one| one.inode != 0 && one.owner.pid.is_none())
    }
}

/// The state of listeners.
pub const LISTEN: &str = "LISTEN";
/// The state of connections.
pub const ESTABLISHED: &str = "ESTABLISHED";

impl Entry {
    /// Returns the identity of an entry: the kernel's list can contain an entry twice if it changes
    /// while it is read. Connections are identified by their addresses (one without an inode gets
    /// it later); listeners, which may share an address, by their inode.
    fn identity(&self) -> (SocketAddr, SocketAddr, u64) {
        let inode = if self.state == LISTEN { self.inode } else { 0 };
        (self.local, self.peer, inode)
    }

    /// Returns whether both ends are on this machine.
    fn is_within_this_machine(&self) -> bool {
        let peer = self.peer.ip().to_canonical();
        peer.is_loopback() || peer == self.local.ip().to_canonical()
    }
}

impl Source {
    fn add(&mut self, entry: &Entry) {
        self.connections += 1;
        self.recv_queue = self.recv_queue.saturating_add(entry.recv_queue.into());
        self.send_queue = self.send_queue.saturating_add(entry.send_queue.into());
    }
}

/// Returns the sources, those with the most connections first.
fn busiest(sources: BTreeMap<IpAddr, Source>) -> Vec<Source> {
    let named = sources.into_iter().map(|(address, source)| Source {
        address: address.to_string(),
        ..source
    });
    let mut sources: Vec<Source> = named.collect();
    sources.sort_by_key(|it| {
        std::cmp::Reverse((it.connections, it.recv_queue.saturating_add(it.send_queue)))
    });
    sources
}

impl SocketStatus {
    fn of(entry: &Entry, ours: Option<&Owner>) -> Self {
        Self {
            state: entry.state.to_owned(),
            local: shown(entry.local),
            peer: if entry.state == LISTEN {
                "*".to_owned()
            } else {
                shown(entry.peer)
            },
            recv_queue: entry.recv_queue,
            send_queue: entry.send_queue,
            inode: entry.inode,
            owner: ours.cloned().unwrap_or_default(),
        }
    }

    /// Returns the sort key: listeners first, then by state.
    fn order(&self) -> (bool, &str, &str, Option<SlotId>, &str) {
        let not_listening = self.state != LISTEN;
        (
            not_listening,
            &self.state,
            &self.local,
            self.owner.slot,
            &self.peer,
        )
    }
}

/// Formats an address, an IPv4-mapped one as IPv4.
fn shown(address: SocketAddr) -> String {
    SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
}

/// Returns the ports on which the server listens.
fn ports(status: &Status) -> Vec<u16> {
    let port = |address: &String| address.rsplit(':').next()?.parse().ok();
    status.addresses.iter().filter_map(port).collect()
}

/// Returns the server's own listeners, by inode.
fn listeners_of(status: &Status) -> BTreeMap<u64, Owner> {
    let owner = |slot: &SlotStatus| Owner {
        slot: Some(slot.slot),
        pid: slot.pid.and_then(|pid| i32::try_from(pid).ok()),
        program: None,
    };
    let queues = status.slots.iter().flat_map(|slot| {
        let of_slot = slot.accept_queues.iter();
        of_slot.map(move |queue| (queue.inode, owner(slot)))
    });
    queues.filter(|(inode, _)| *inode != 0).collect()
}

/// Truncates a list to `most` entries and returns the number removed.
fn drop_beyond<T>(list: &mut Vec<T>, most: usize) -> u64 {
    let more = list.len().saturating_sub(most);
    list.truncate(most);
    more as u64
}

#[cfg(test)]
mod tests {
    use super::super::{AcceptQueueStatus, SlotStatus};
    use super::*;

    fn entry(local: &str, peer: &str, state: &'static str, inode: u64) -> Entry {
        Entry {
            local: local.parse().unwrap(),
            peer: peer.parse().unwrap(),
            state,
            recv_queue: 1,
            send_queue: 2,
            inode,
        }
    }

    fn status() -> Status {
        let slot = |number: u16| SlotStatus {
            slot: SlotId(number),
            pid: Some(4712 + u32::from(number)),
            accept_queues: vec![AcceptQueueStatus {
                inode: 100 + u64::from(number),
                ..AcceptQueueStatus::default()
            }],
            ..SlotStatus::default()
        };
        Status {
            addresses: vec!["*:9999".to_owned(), "[::1]:80".to_owned()],
            slots: vec![slot(0), slot(1)],
            ..Status::default()
        }
    }

    fn entries() -> Vec<Entry> {
        let anywhere = "0.0.0.0:0";
        vec![
            entry("[::]:9999", anywhere, LISTEN, 100),
            entry("[::]:9999", anywhere, LISTEN, 101),
            entry("10.0.0.1:9999", anywhere, LISTEN, 7),
            entry("[::1]:81", anywhere, LISTEN, 8),
            entry(
                "[::ffff:127.0.0.1]:9999",
                "[::ffff:127.0.0.1]:5",
                ESTABLISHED,
                9,
            ),
            entry("127.0.0.1:9999", "192.0.2.1:6", ESTABLISHED, 0),
            // A duplicate: the connection was accepted while the list was read.
            entry("127.0.0.1:9999", "192.0.2.1:6", ESTABLISHED, 12),
            entry("127.0.0.1:9999", "127.0.0.1:7", "TIME_WAIT", 0),
            entry("127.0.0.1:5", "127.0.0.1:9999", ESTABLISHED, 10),
            entry("127.0.0.1:8", "127.0.0.1:9999", "TIME_WAIT", 0),
            entry("127.0.0.1:9", "192.0.2.1:9999", ESTABLISHED, 11),
        ]
    }

    fn counts(expected: &[(&str, u64)]) -> BTreeMap<String, u64> {
        let owned = expected
            .iter()
            .map(|&(state, count)| (state.to_owned(), count));
        owned.collect()
    }

    #[test]
    fn each_socket_is_counted_once() {
        let sockets = Sockets::count(entries(), &status(), None);
        let states = [(ESTABLISHED, 2), (LISTEN, 3), ("TIME_WAIT", 1)];
        assert_eq!(sockets.states, counts(&states));
        assert_eq!(sockets.unaccepted, 1);
        let clients = [(ESTABLISHED, 1), ("TIME_WAIT", 1)];
        assert_eq!(sockets.local_clients, counts(&clients));
        assert_eq!(sockets.list, None);
        let others: Vec<_> = sockets.others.iter().map(|it| it.local.as_str()).collect();
        assert_eq!(others, ["10.0.0.1:9999"]);
    }

    #[test]
    fn list_starts_with_listeners_and_counts_rest() {
        let mut sockets = Sockets::count(entries(), &status(), Some(4));
        let list = sockets.list.clone().unwrap();
        let states: Vec<_> = list.iter().map(|it| it.state.as_str()).collect();
        assert_eq!(states, [LISTEN, LISTEN, LISTEN, ESTABLISHED]);
        assert_eq!(sockets.unlisted, 2);
        assert_eq!(list[1].owner.slot, Some(SlotId(0)));
        assert_eq!(list[2].owner.pid, Some(4713));
        assert_eq!(list[3].peer, "127.0.0.1:5");
        // The foreign listener twice, and the one connection with an owner.
        assert_eq!(sockets.foreign().count(), 3);
    }

    #[test]
    fn sources_are_ordered_and_bounded() {
        let mut entries = entries();
        let client = |number: usize| {
            let peer = format!("10.1.{}.{}:7", number / 256, number % 256);
            entry("127.0.0.1:9999", &peer, ESTABLISHED, 13)
        };
        entries.extend((0..100).map(client));
        entries.push(entry("127.0.0.1:9999", "192.0.2.1:8", ESTABLISHED, 14));
        let sockets = Sockets::count(entries, &status(), None);
        let busiest = Source {
            address: "192.0.2.1".to_owned(),
            connections: 2,
            recv_queue: 2,
            send_queue: 4,
        };
        assert_eq!(sockets.sources[0], busiest);
        assert_eq!(sockets.sources.len(), SOURCES_MAX);
        assert_eq!(sockets.sources_omitted, 102 - SOURCES_MAX as u64);
    }

    #[test]
    fn foreign_socket_details_are_bounded() {
        let many = (200..300).map(|inode| entry("0.0.0.0:80", "0.0.0.0:0", LISTEN, inode));
        let sockets = Sockets::count(many.collect(), &status(), None);
        assert_eq!(sockets.others.len(), OTHERS_MAX);
        assert_eq!(sockets.others_omitted, 84);
    }
}
