//! Ownership of a port: the lock that excludes a second instance, and the kernel's list of
//! listeners.
//!
//! `SO_REUSEPORT` lets a second server that was started by mistake join the group silently and
//! receive a share of the clients. So an instance takes a lock for each address ([`lock()`]: an
//! abstract Unix socket belongs to the network namespace, as the port does, and is released when
//! its holder exits), and searches for overlapping listeners of any process before it binds.
//!
//! It must not bind or change a TCP socket: a check must never disturb service.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net as unix;

use procfs::net::{TcpNetEntries, TcpNetEntry};
use procfs::{FromBufReadSI as _, current_system_info};

use crate::config::LOCK_CHECKS_PER_TURN;
use crate::wire::Listen;
use uppercased_ctl::sockets::owners_of;

mod lock;

pub use lock::{lock, lock_bound};

/// A lock that excludes other instances of this user from one address until it is dropped.
#[derive(Debug)]
pub struct Lock(unix::UnixListener);

/// A process that listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process ID; `None` if the process belongs to another user and is not visible.
    pub pid: Option<i32>,
    /// Its name, if known.
    pub program: Option<String>,
    /// The address that it listens on.
    pub address: String,
}

/// Why an address cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process listens there.
    #[error(
        "cannot listen on {wanted}: {holder}; stop it, choose another address with --listen, or \
         share the port with --share-port"
    )]
    Held {
        /// The requested address.
        wanted: String,
        /// The process that listens there.
        holder: Holder,
    },
    /// The lock cannot be created.
    #[error("cannot lock {address}: {source}")]
    Lock {
        /// The address.
        address: String,
        /// The cause.
        source: io::Error,
    },
}

/// Finds a listener that would receive or share clients of `listen`; `own` are the inodes of
/// sockets to ignore.
#[must_use]
pub fn holder(listen: &Listen, own: &[u64]) -> Option<Holder> {
    let entry = overlapping(listen, own)?;
    let (pid, program) = owner_of(entry.inode).unzip();
    Some(Holder {
        pid,
        program,
        address: entry.local_address.to_string(),
    })
}

/// Returns whether there is such a listener. Costs far less than the search for its process.
#[must_use]
pub fn is_held(listen: &Listen, own: &[u64]) -> bool {
    overlapping(listen, own).is_some()
}

fn overlapping(listen: &Listen, own: &[u64]) -> Option<TcpNetEntry> {
    // Without a readable /proc nothing is found; a conflict is then reported by the bind.
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter();
    let mut listeners = tables.filter_map(listeners).flatten();
    listeners.find(|entry| !own.contains(&entry.inode) && overlaps(listen, entry.local_address))
}

/// Returns the listeners in a list of the kernel. They come first; the rest is not read, because it
/// may have hundreds of thousands of lines.
fn listeners(path: &str) -> Option<Vec<TcpNetEntry>> {
    /// `TCP_LISTEN`, in the fourth field.
    const LISTEN: &str = "0A";
    let mut lines = BufReader::new(File::open(path).ok()?).lines();
    let mut table = lines.next()?.ok()?;
    let is_listener = |line: &String| line.split_ascii_whitespace().nth(3) == Some(LISTEN);
    for line in lines.map_while(Result::ok).take_while(is_listener) {
        table.push('\n');
        table.push_str(&line);
    }
    let entries = TcpNetEntries::from_buf_read(table.as_bytes(), current_system_info());
    Some(entries.ok()?.0)
}

impl Lock {
    /// Accepts and closes connections of processes that checked the lock; the connect alone
    /// answered them. Call it when the lock is readable, so that its queue never fills. Returns
    /// whether there may be more: any local user can connect at any rate.
    #[must_use]
    pub fn discard_checks(&self) -> bool {
        (0..LOCK_CHECKS_PER_TURN).all(|_| self.0.accept().is_ok())
    }
}

impl From<OwnedFd> for Lock {
    /// Wraps a lock created by the program that this process ran before an upgrade.
    fn from(socket: OwnedFd) -> Self {
        Self(socket.into())
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, &self.program) {
            (Some(pid), Some(program)) => {
                write!(out, "pid {pid} ({program}) listens on {}", self.address)
            }
            (Some(pid), None) => write!(out, "pid {pid} holds {}", self.address),
            (None, _) => write!(out, "another user's process listens on {}", self.address),
        }
    }
}

/// Returns whether a listener at `other` receives clients of `wanted`, or the reverse.
fn overlaps(wanted: &Listen, other: SocketAddr) -> bool {
    let (ours, theirs) = (wanted.addr.ip(), other.ip());
    if wanted.addr.port() != other.port() {
        return false;
    }
    if wanted.dual_stack && ours.is_unspecified() {
        return true;
    }
    ours.is_ipv4() == theirs.is_ipv4()
        && (ours == theirs || ours.is_unspecified() || theirs.is_unspecified())
}

/// Returns the process that has a socket, by the socket's inode: if several share it, the oldest.
fn owner_of(inode: u64) -> Option<(i32, String)> {
    owners_of(&BTreeSet::from([inode])).remove(&inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a port reserved for this process, so that no other test locks it.
    pub(super) fn own_port() -> (std::net::TcpListener, u16) {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    pub(super) fn listen(addr: &str) -> Listen {
        match addr.strip_prefix('*') {
            Some(port) => Listen {
                addr: format!("[::]{port}").parse().unwrap(),
                dual_stack: true,
            },
            None => Listen {
                addr: addr.parse().unwrap(),
                dual_stack: false,
            },
        }
    }

    #[test]
    fn overlap_depends_on_port_family_and_wildcard() {
        let cases = [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.2:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("[::1]:80", "0.0.0.0:80", false),
            ("*:80", "127.0.0.1:80", true),
            ("*:80", "[::1]:80", true),
        ];
        for (ours, theirs, expected) in cases {
            let found = overlaps(&listen(ours), theirs.parse().unwrap());
            assert_eq!(found, expected, "{ours} beside {theirs}");
        }
    }

    #[test]
    fn listener_is_found_with_its_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let here = Listen {
            addr: address,
            dual_stack: false,
        };
        let found = holder(&here, &[]).unwrap();
        assert_eq!(found.pid, Some(std::process::id().cast_signed()));
        assert_eq!(found.address, address.to_string());
        let inode = nix::sys::stat::fstat(&socket).unwrap().st_ino;
        assert_eq!(holder(&here, &[inode]), None, "it is our own");
    }
}
