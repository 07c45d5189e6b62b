//! Claims of addresses: of two conflicting instances exactly one continues.
//!
//! A claim is a listening abstract Unix socket. Its name contains the address, the phase of its
//! instance and an unpredictable ticket. A starting instance publishes its claims as *starting*,
//! then reads the kernel's list of such sockets. It gives up if it finds a conflicting instance
//! that *runs*, or one that is starting with an earlier ticket; it waits for one with a later
//! ticket, until that has given up or runs. Then it publishes that it runs.
//!
//! Why exactly one continues: of two that conflict, the one that publishes later reads the list
//! while the other's claim is in it. If its own ticket is the later one it gives up; if not it
//! waits, and gives up only if the other runs. The earliest ticket gives up only for an instance
//! that runs.
//!
//! Why another user can neither defeat nor abuse this: only sockets of one user can share a port,
//! so only claims of this user count, and the kernel records the creator of a socket. A name that
//! another user bound is ignored; it cannot equal one of ours, which end in an unpredictable
//! ticket. Connections that fill a claim's queue do not hide it: then the processes of this user
//! are searched for it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net as unix;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::poll;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, sockopt};
use nix::unistd::geteuid;
use procfs::process::Process;

use super::{Error, Holder, Lock, owners_of};
use crate::wire::Listen;
use uppercased_ctl::clock::{self, Tick};

/// The prefix of every claim's name.
const PREFIX: &str = "uppercased:";
/// Time to wait for an instance that started later to give up; normally milliseconds.
const CONFLICT_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two checks.
const CHECK_INTERVAL_MS: u16 = 2;

/// The phase of a claim's instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
}

/// The order of starting instances. The last part only makes it unpredictable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket {
    at: Tick,
    salt: u64,
}

/// One address of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    address: SocketAddr,
    phase: Phase,
    ticket: Ticket,
}

/// A claim in the kernel's list.
#[derive(Clone, Copy, Debug)]
struct Published {
    claim: Claim,
    inode: u64,
}

/// The creator of a claim.
#[derive(Debug)]
enum Creator {
    /// A process of this user.
    Own(Holder),
    /// A process of another user.
    OtherUser,
    /// The creator is gone.
    Exited,
}

/// Takes the locks for all addresses of a starting instance.
///
/// # Errors
/// [`Error::Held`] if another instance of this user holds a conflicting address, or locks it at the
/// same time.
pub fn lock(listen: &[Listen]) -> Result<Vec<Lock>, Error> {
    let ticket = Ticket::new();
    let wanted = names(listen);
    let starting = publish(&wanted, Phase::Starting, ticket)?;
    let until = clock::now() + CONFLICT_TIMEOUT;
    while let Some((conflict, holder)) = find_conflict(&wanted, ticket)? {
        let yields = conflict.phase == Phase::Starting && conflict.ticket > ticket;
        if !yields || clock::now() >= until {
            let wanted = wanted.iter().find(|one| conflicts(**one, conflict.address));
            return Err(Error::Held {
                wanted: wanted.unwrap_or(&conflict.address).to_string(),
                holder,
            });
        }
        // The wait is only for time; an interruption shortens it.
        let _ = poll(&mut [], CHECK_INTERVAL_MS);
    }
    let running = publish(&wanted, Phase::Running, ticket)?;
    // Only now, so that a claim exists at every moment.
    drop(starting);
    Ok(running)
}

/// Takes the locks for addresses that the kernel has just chosen for this instance alone.
///
/// # Errors
/// A lock cannot be created.
pub fn lock_bound(listen: &[Listen]) -> Result<Vec<Lock>, Error> {
    publish(&names(listen), Phase::Running, Ticket::new())
}

/// A dual-stack address is claimed for both families. (The kernel's list of listeners does not
/// distinguish an IPv6 socket that also serves IPv4 from one that does not. The claims do.)
fn names(listen: &[Listen]) -> BTreeSet<SocketAddr> {
    let both = listen.iter().filter(|one| one.dual_stack);
    let both = both.map(|one| SocketAddr::from((Ipv4Addr::UNSPECIFIED, one.addr.port())));
    listen.iter().map(|one| one.addr).chain(both).collect()
}

fn publish(
    wanted: &BTreeSet<SocketAddr>,
    phase: Phase,
    ticket: Ticket,
) -> Result<Vec<Lock>, Error> {
    let publish_one = |&address: &SocketAddr| {
        let claim = Claim {
            address,
            phase,
            ticket,
        };
        let bind = || {
            let name = unix::SocketAddr::from_abstract_name(claim.name())?;
            let listener = unix::UnixListener::bind_addr(&name)?;
            listener.set_nonblocking(true)?;
            Ok(Lock(listener))
        };
        bind().map_err(|source| Error::Lock {
            address: address.to_string(),
            source,
        })
    };
    wanted.iter().map(publish_one).collect()
}

/// Returns a conflicting instance of this user, preferably one that does not give up.
fn find_conflict(
    wanted: &BTreeSet<SocketAddr>,
    ticket: Ticket,
) -> Result<Option<(Claim, Holder)>, Error> {
    let until = clock::now() + CONFLICT_TIMEOUT;
    loop {
        let mut conflicts_found: Vec<Published> = published()
            .into_iter()
            .filter(|one| one.claim.ticket != ticket)
            .filter(|one| wanted.iter().any(|own| conflicts(*own, one.claim.address)))
            .collect();
        conflicts_found.sort_by_key(|one| (one.claim.phase == Phase::Starting, one.claim.ticket));
        let mut has_changed = false;
        for conflict in conflicts_found {
            let address = conflict.claim.address.to_string();
            let creator =
                creator_of(&conflict).map_err(|source| Error::Lock { address, source })?;
            match creator {
                Creator::Own(holder) => return Ok(Some((conflict.claim, holder))),
                Creator::OtherUser => {}
                // It may run by now, under a name not yet in this list.
                Creator::Exited => has_changed |= conflict.claim.phase == Phase::Starting,
            }
        }
        // Another user's changing names can only delay a start.
        if !has_changed || clock::now() >= until {
            return Ok(None);
        }
    }
}

/// Returns every claim in this network namespace, of any creator. The list is read twice: a claim
/// that changes from starting to running meanwhile, or is skipped because another one disappears,
/// is in the second.
fn published() -> Vec<Published> {
    // Without a readable /proc nothing is found; a conflict is then reported by the bind.
    let read = || fs::read("/proc/net/unix").unwrap_or_default();
    let lists = [read(), read()];
    let lines = lists.iter().flat_map(|list| list.split(|&b| b == b'\n'));
    lines.filter_map(Published::parse).collect()
}

/// Returns whether different instances cannot listen on both.
fn conflicts(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (everywhere || one.ip() == other.ip())
}

/// Returns the creator of a claim, as the kernel records it.
fn creator_of(of: &Published) -> io::Result<Creator> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client: OwnedFd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let name = UnixAddr::new_abstract(of.claim.name().as_bytes())?;
    let pid = match socket::connect(client.as_raw_fd(), &name) {
        // The kernel records the creator of the listener.
        Ok(()) => {
            let creator = getsockopt(&client, sockopt::PeerCredentials)?;
            if creator.uid() != geteuid().as_raw() {
                return Ok(Creator::OtherUser);
            }
            // Not positive for a process outside this PID namespace.
            Some(creator.pid()).filter(|&pid| pid > 0)
        }
        // Its queue is full of connections that it has not closed yet.
        Err(Errno::EAGAIN) => {
            let found = owners_of(&BTreeSet::from([of.inode])).remove(&of.inode);
            let ours = |pid: &i32| {
                fs::metadata(format!("/proc/{pid}"))
                    .is_ok_and(|process| process.uid() == geteuid().as_raw())
            };
            let Some(pid) = found.map(|(pid, _)| pid).filter(ours) else {
                return Ok(Creator::OtherUser);
            };
            Some(pid)
        }
        Err(Errno::ECONNREFUSED) => return Ok(Creator::Exited),
        Err(errno) => return Err(errno.into()),
    };
    Ok(Creator::Own(Holder {
        pid,
        program: pid.and_then(|pid| Some(Process::new(pid).ok()?.stat().ok()?.comm)),
        address: of.claim.address.to_string(),
    }))
}

impl Ticket {
    fn new() -> Self {
        Self {
            at: clock::now(),
            salt: fastrand::u64(..),
        }
    }
}

impl Claim {
    fn name(&self) -> String {
        let Ticket { at, salt } = self.ticket;
        let phase = match self.phase {
            Phase::Starting => 's',
            Phase::Running => 'r',
        };
        let (address, at) = (self.address, at.as_nanos());
        format!("{PREFIX}{address}/{at:x}/{salt:x}/{phase}")
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.split('/');
        let address = parts.next()?.parse().ok()?;
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let ticket = Ticket {
            at: Tick::from_nanos(number()?),
            salt: number()?,
        };
        let phase = match parts.next()? {
            "s" => Phase::Starting,
            "r" => Phase::Running,
            _ => return None,
        };
        let claim = Self {
            address,
            phase,
            ticket,
        };
        // The name derived here is the one to query.
        (claim.name() == name).then_some(claim)
    }
}

impl Published {
    /// Parses a line of `/proc/net/unix` about a listening socket: seven fields, the fourth the
    /// flags and the last one the inode, and the name, in which `@` stands for the leading zero
    /// byte of an abstract one.
    fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split_ascii_whitespace();
        // __SO_ACCEPTCON, without which a socket refuses connections.
        (fields.nth(3)? == "00010000").then_some(())?;
        let inode = fields.nth(2)?.parse().ok()?;
        let claim = Claim::parse(fields.next()?.strip_prefix('@')?)?;
        Some(Self { claim, inode })
    }
}

#[cfg(test)]
mod tests;
