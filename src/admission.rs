//! Admission: allowed and denied networks, and limits per source.
//!
//! A source is the leading bits of an address (`source_prefix_v4`, `source_prefix_v6`). For each,
//! this worker counts open connections and tracks the rate; a worker sees only the connections that
//! the kernel assigns to it.
//!
//! Invariants: a tracked source never has more than `max_connections_per_source` connections, not
//! counting those that migrated here; at most `accept_rate_per_source` connections are admitted at
//! once, and that many per second afterwards. At most [`ADMISSION_SOURCES_MAX`] sources are
//! tracked: one without connections is forgotten when its rate is unused again, or earlier if its
//! place is needed; one with connections never is. When all have connections, a new one is admitted
//! untracked, which is reported to the caller.
//!
//! Pure. It must not count, log or close: the caller does.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::{ADMISSION_SOURCES_MAX, Config};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::RefusalCause;

/// Maximum number of sources forgotten with each decision. It exceeds one, the number that can be
/// added, so they do not pile up, and no decision takes long.
const FORGOTTEN_PER_DECISION: usize = 4;

/// Capacity that an empty table keeps; the rest of its memory is freed.
const SPARE_SOURCES: usize = 1024;

/// The decision about an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is served.
    Admit,
    /// It is closed at once.
    Refuse(RefusalCause),
}

/// The rules and their state.
#[derive(Debug)]
pub struct Admission {
    allow: Networks,
    deny: Networks,
    sources: Option<Sources>,
}

impl Admission {
    /// Creates the rules of `config`; `None` if every client is admitted, at no cost.
    #[must_use]
    pub fn new(config: &Config) -> Option<Self> {
        Self::with_room_for(config, ADMISSION_SOURCES_MAX)
    }

    /// Creates the rules with another limit on the number of sources.
    #[must_use]
    pub fn with_room_for(config: &Config, sources: usize) -> Option<Self> {
        let limits =
            config.max_connections_per_source.is_some() || config.accept_rate_per_source.is_some();
        let lists = !config.allow.is_empty() || !config.deny.is_empty();
        (limits || lists).then(|| Self {
            allow: Networks::new(&config.allow),
            deny: Networks::new(&config.deny),
            sources: limits.then(|| Sources::new(config, sources)),
        })
    }

    /// Decides whether a connection of `peer` is served. An admitted one uses its source's rate; a
    /// call of [`Admission::opened`] must follow.
    pub fn decide(&mut self, peer: IpAddr, now: Tick) -> Decision {
        // An IPv4 client of a dual-stack socket has an IPv4-mapped address.
        let peer = peer.to_canonical();
        if self.deny.contain(peer) {
            return Decision::Refuse(RefusalCause::Denied);
        }
        if !self.allow.0.is_empty() && !self.allow.contain(peer) {
            return Decision::Refuse(RefusalCause::NotAllowed);
        }
        match &mut self.sources {
            Some(sources) => sources.decide(peer, now),
            None => Decision::Admit,
        }
    }

    /// Records connection `fd` of `peer` as open, admitted or migrated here. Returns false if its
    /// source cannot be tracked: it is then unlimited.
    #[must_use]
    pub fn opened(&mut self, fd: u32, peer: IpAddr) -> bool {
        let sources = self.sources.as_mut();
        sources.is_none_or(|sources| sources.opened(fd, peer.to_canonical()))
    }

    /// Records that connection `fd` of `peer`, passed to [`Admission::opened`] before, is closed or
    /// has migrated.
    pub fn closed(&mut self, fd: u32, peer: IpAddr, now: Tick) {
        if let Some(sources) = &mut self.sources {
            sources.closed(fd, peer.to_canonical(), now);
        }
    }

    /// Returns the number of tracked sources.
    #[must_use]
    pub fn sources(&self) -> usize {
        let sources = self.sources.as_ref();
        sources.map_or(0, |sources| sources.known.len())
    }

    /// Returns the number of connections counted for the source of `peer`.
    #[must_use]
    pub fn open_of(&self, peer: IpAddr) -> u32 {
        let sources = self.sources.as_ref();
        let entry = sources.and_then(|all| all.known.get(&all.source(peer.to_canonical())));
        entry.map_or(0, |entry| entry.open)
    }
}

/// Networks that do not overlap, sorted.
#[derive(Debug)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Returns the networks of a list.
    #[must_use]
    pub fn new(networks: &[IpNet]) -> Self {
        let mut networks = IpNet::aggregate(&networks.to_vec());
        networks.sort_unstable_by_key(IpNet::network);
        Self(networks)
    }

    /// Returns whether a network contains `address`, which is not IPv4-mapped.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        let after = self.0.partition_point(|one| one.network() <= address);
        let before = after.checked_sub(1).map(|at| &self.0[at]);
        before.is_some_and(|network| network.contains(&address))
    }
}

/// The leading bits of an address, the others zero; IPv4 as IPv4-mapped, which cannot collide with
/// an IPv6 address here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Source(u128);

/// The state of one source.
#[derive(Clone, Copy, Debug)]
struct Entry {
    open: u32,
    /// The time at which its rate is unused again.
    rested: Tick,
}

/// The limits per source, and the tracked sources.
#[derive(Debug)]
struct Sources {
    most: Option<u32>,
    rate: Option<Rate>,
    mask_v4: u32,
    mask_v6: u128,
    room: usize,
    known: HashMap<Source, Entry>,
    /// Sources without connections, the next one to be forgotten first.
    idle: BTreeSet<(Tick, Source)>,
    /// Connections of untracked sources, by descriptor number.
    untracked: HashSet<u32>,
}

impl Sources {
    fn new(config: &Config, room: usize) -> Self {
        let (v4, v6) = (config.source_prefix_v4, config.source_prefix_v6);
        Self {
            most: config.max_connections_per_source,
            rate: config.accept_rate_per_source.map(Rate::new),
            mask_v4: !u32::MAX.checked_shr(v4.into()).unwrap_or(0),
            mask_v6: !u128::MAX.checked_shr(v6.into()).unwrap_or(0),
            room,
            known: HashMap::new(),
            idle: BTreeSet::new(),
            untracked: HashSet::new(),
        }
    }

    fn source(&self, peer: IpAddr) -> Source {
        Source(match peer {
            IpAddr::V4(v4) => {
                let bits = u32::from(v4) & self.mask_v4;
                u128::from(std::net::Ipv4Addr::from(bits).to_ipv6_mapped())
            }
            IpAddr::V6(v6) => u128::from(v6) & self.mask_v6,
        })
    }

    fn decide(&mut self, peer: IpAddr, now: Tick) -> Decision {
        self.forget_idle(now);
        let source = self.source(peer);
        let entry = self.known.get(&source).copied();
        let Entry { open, rested } = entry.unwrap_or(Entry {
            open: 0,
            rested: Tick::ZERO,
        });
        if self.most.is_some_and(|most| open >= most) {
            return Decision::Refuse(RefusalCause::PerSourceLimit);
        }
        let Some(rate) = self.rate else {
            return Decision::Admit;
        };
        let Some(later) = rate.take(rested, now) else {
            return Decision::Refuse(RefusalCause::PerSourceRate);
        };
        if entry.is_none() && !self.make_room() {
            return Decision::Admit;
        }
        if open == 0 {
            self.idle.remove(&(rested, source));
            self.idle.insert((later, source));
        }
        let rested = later;
        self.known.insert(source, Entry { open, rested });
        Decision::Admit
    }

    fn opened(&mut self, fd: u32, peer: IpAddr) -> bool {
        let source = self.source(peer);
        if let Some(entry) = self.known.get_mut(&source) {
            if entry.open == 0 {
                self.idle.remove(&(entry.rested, source));
            }
            entry.open += 1;
            return true;
        }
        if !self.make_room() {
            self.untracked.insert(fd);
            return false;
        }
        let entry = Entry {
            open: 1,
            rested: Tick::ZERO,
        };
        self.known.insert(source, entry);
        true
    }

    fn closed(&mut self, fd: u32, peer: IpAddr, now: Tick) {
        if self.untracked.remove(&fd) {
            if self.untracked.is_empty() {
                self.untracked.shrink_to(SPARE_SOURCES);
            }
            return;
        }
        let source = self.source(peer);
        let Some(entry) = self.known.get_mut(&source) else {
            return;
        };
        entry.open = entry.open.saturating_sub(1);
        let Entry { open, rested } = *entry;
        if open > 0 {
            return;
        }
        if rested > now {
            self.idle.insert((rested, source));
        } else {
            self.forget(source);
        }
    }

    /// Forgets sources whose state equals that of unknown ones.
    fn forget_idle(&mut self, now: Tick) {
        for _ in 0..FORGOTTEN_PER_DECISION {
            match self.idle.first().copied() {
                Some((rested, source)) if rested <= now => {
                    self.idle.pop_first();
                    self.forget(source);
                }
                Some(_) | None => return,
            }
        }
    }

    /// Makes room for one more source, if necessary by evicting the source without connections
    /// whose rate is nearest to being unused; returns false if there is none.
    fn make_room(&mut self) -> bool {
        if self.known.len() < self.room {
            return true;
        }
        let Some((_, source)) = self.idle.pop_first() else {
            return false;
        };
        self.forget(source);
        true
    }

    fn forget(&mut self, source: Source) {
        self.known.remove(&source);
        if self.known.is_empty() {
            self.known.shrink_to(SPARE_SOURCES);
        }
    }
}

/// A rate per second with a burst of at most the same number: each admission advances the time at
/// which the rate is unused by its share of a second, up to one second from now.
#[derive(Clone, Copy, Debug)]
struct Rate {
    interval: Duration,
    burst: Duration,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self {
            interval,
            burst: interval.saturating_mul(per_second.max(1)),
        }
    }

    /// Admits one; returns the time at which the rate is unused again, or `None` if it is used up.
    fn take(self, rested: Tick, now: Tick) -> Option<Tick> {
        let later = rested.max(now) + self.interval;
        (later.since(now) <= self.burst).then_some(later)
    }
}

#[cfg(test)]
mod tests;
