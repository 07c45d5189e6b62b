//! Who holds a port: the lock that keeps a second instance out, and the kernel's list of listeners.
//!
//! `SO_REUSEPORT` lets a second server started by mistake join the group without a word and take
//! its share of the clients. So an instance takes a lock for each address (an abstract Unix socket
//! named after it: it belongs to the network namespace, as the port does, and dies with its
//! holder), and looks for listeners that overlap, whoever they are, before it binds anything.
//!
//! It must not bind, or touch, a TCP socket: looking must never disturb what is served.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, sockopt};
use procfs::net::TcpState;
use procfs::process::{FDTarget, Process, all_processes};

use crate::wire::Listen;

/// Keeps other instances off one address for as long as it lives.
#[derive(Debug)]
pub struct Lock(unix::UnixListener);

/// A process that has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number; `None` if it is another user's and this one may not look.
    pub pid: Option<i32>,
    /// Its name, if known.
    pub program: Option<String>,
    /// The address it listens on.
    pub address: String,
}

/// Why an address cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody listens there.
    #[error(
        "cannot listen on {wanted}: {holder}; stop it, choose another address with --listen, or \
         share the port on purpose with --share-port"
    )]
    Held {
        /// What was asked for.
        wanted: String,
        /// Who has it.
        holder: Holder,
    },
    /// The lock could not be asked for.
    #[error("cannot take the lock for {address}: {source}")]
    Lock {
        /// Of which address.
        address: String,
        /// Why.
        source: io::Error,
    },
}

/// Takes the locks for an address. A dual-stack one is locked for both families; a specific one
/// needs that nobody has the lock of its family's unspecified address. (The kernel's list does not
/// tell an IPv6 listener that serves IPv4, too, from one that does not. The locks do.)
///
/// # Errors
/// [`Error::Held`] with the holder's pid if another instance has one of them.
pub fn lock(listen: &Listen) -> Result<Vec<Lock>, Error> {
    let everywhere = unspecified(listen.addr);
    if listen.addr != everywhere
        && let Some(holder) = ask(everywhere).map_err(failed(listen.addr))?
    {
        let wanted = listen.addr.to_string();
        return Err(Error::Held { wanted, holder });
    }
    let mut names = vec![listen.addr];
    if listen.dual_stack {
        names.push(SocketAddr::from((
            Ipv4Addr::UNSPECIFIED,
            listen.addr.port(),
        )));
    }
    names.into_iter().map(lock_one).collect()
}

/// A listener that would get the clients of `listen`, or share them; not one of `own`, which are
/// sockets by their inodes.
#[must_use]
pub fn holder(listen: &Listen, own: &[u64]) -> Option<Holder> {
    // Without a readable /proc nothing can be found; binding will then say what it can.
    let entries = [procfs::net::tcp(), procfs::net::tcp6()]
        .into_iter()
        .flatten()
        .flatten();
    let mut listeners =
        entries.filter(|entry| entry.state == TcpState::Listen && !own.contains(&entry.inode));
    let entry = listeners.find(|entry| overlaps(listen, entry.local_address))?;
    let (pid, program) = owner_of(entry.inode).unzip();
    Some(Holder {
        pid,
        program,
        address: entry.local_address.to_string(),
    })
}

impl Lock {
    /// Lets go of whoever asked for the lock meanwhile; the asking alone told them what they
    /// wanted to know. To be called when the lock is readable, so that its queue never fills.
    pub fn dismiss_askers(&self) {
        while self.0.accept().is_ok() {}
    }
}

impl From<OwnedFd> for Lock {
    /// A lock that this process's earlier program took.
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
            (Some(pid), None) => write!(out, "pid {pid} has {}", self.address),
            (None, _) => write!(out, "another user's process listens on {}", self.address),
        }
    }
}

fn lock_one(address: SocketAddr) -> Result<Lock, Error> {
    let at = unix::SocketAddr::from_abstract_name(lock_name(address)).map_err(failed(address))?;
    match unix::UnixListener::bind_addr(&at) {
        Ok(listener) => {
            listener.set_nonblocking(true).map_err(failed(address))?;
            Ok(Lock(listener))
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = ask(address).map_err(failed(address))?;
            Err(Error::Held {
                wanted: address.to_string(),
                holder: holder.unwrap_or_else(|| unknown(address)),
            })
        }
        Err(error) => Err(failed(address)(error)),
    }
}

/// Who has the lock of an address, if anybody. Connecting is enough to learn it: the kernel
/// remembers who made the listener.
fn ask(address: SocketAddr) -> io::Result<Option<Holder>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asker: OwnedFd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let name = UnixAddr::new_abstract(lock_name(address).as_bytes())?;
    match socket::connect(asker.as_raw_fd(), &name) {
        Ok(()) => {}
        Err(Errno::ECONNREFUSED) => return Ok(None),
        // It is there, with more askers than it has dismissed yet.
        Err(Errno::EAGAIN) => return Ok(Some(unknown(address))),
        Err(errno) => return Err(errno.into()),
    }
    // Not positive for a process outside this one's pid namespace.
    let pid = getsockopt(&asker, sockopt::PeerCredentials)?.pid();
    let pid = Some(pid).filter(|&pid| pid > 0);
    Ok(Some(Holder {
        pid,
        program: pid.and_then(|pid| Some(Process::new(pid).ok()?.stat().ok()?.comm)),
        ..unknown(address)
    }))
}

fn lock_name(address: SocketAddr) -> String {
    format!("uppercased/{address}")
}

fn unknown(address: SocketAddr) -> Holder {
    Holder {
        pid: None,
        program: None,
        address: address.to_string(),
    }
}

fn failed(address: SocketAddr) -> impl Fn(io::Error) -> Error {
    move |source| Error::Lock {
        address: address.to_string(),
        source,
    }
}

/// The address that stands for all of its family, with the same port.
fn unspecified(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    (ip, address.port()).into()
}

/// Whether a listener at `other` gets clients that `wanted` is meant for, or the other way round.
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

/// The process that has a socket, by the socket's inode: of a family that shares it, the eldest.
fn owner_of(inode: u64) -> Option<(i32, String)> {
    let has_it = |process: &Process| {
        let mut descriptors = process.fd().into_iter().flatten().flatten();
        descriptors.any(|descriptor| descriptor.target == FDTarget::Socket(inode))
    };
    let holders: Vec<_> = all_processes()
        .ok()?
        .flatten()
        .filter(has_it)
        .filter_map(|process| process.stat().ok())
        .collect();
    let eldest = holders
        .iter()
        .find(|one| holders.iter().all(|other| other.pid != one.ppid))?;
    Some((eldest.pid, eldest.comm.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(addr: &str) -> Listen {
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
    fn overlap_is_by_port_family_and_wildcard() {
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
    fn a_listener_is_found_with_its_process() {
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

    #[test]
    fn a_second_lock_is_refused_naming_the_first_until_that_is_gone() {
        // A port this process has, so that no other test run locks the same name.
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let here = Listen {
            addr: socket.local_addr().unwrap(),
            dual_stack: false,
        };
        let held = lock(&here).unwrap();
        let refused = lock(&here).unwrap_err();
        let own_pid = std::process::id().cast_signed();
        assert!(
            matches!(&refused, Error::Held { holder, .. } if holder.pid == Some(own_pid)),
            "{refused}"
        );
        held[0].dismiss_askers();
        drop(held);
        lock(&here).unwrap();
    }

    #[test]
    fn the_lock_of_everywhere_keeps_every_address_of_its_families_but_no_other() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let try_lock = |addr: &str| lock(&listen(&format!("{addr}:{port}")));
        let six = try_lock("[::]").unwrap();
        assert!(try_lock("[::1]").is_err());
        drop(try_lock("127.0.0.1").unwrap());
        drop(six);
        let _both = try_lock("*").unwrap();
        for addr in ["*", "0.0.0.0", "127.0.0.1", "[::]", "[::1]"] {
            assert!(try_lock(addr).is_err(), "{addr}");
        }
    }
}
