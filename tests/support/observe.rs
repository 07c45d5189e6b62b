//! A running server seen from outside: its counters, its workers' memory and time, and its sockets
//! as the kernel counts them.
//!
//! Everything here only looks; nothing disturbs what is looked at.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use uppercased::memory;
use uppercased::metrics::Counter;
use uppercased::sys::shared::SharedMemory;

use super::process::{DEADLINE, Deadline};
use super::server::Server;

/// How long to look away between two looks at something that the kernel tells nobody about.
const LOOK_AGAIN_MS: u16 = 5;

/// Waits until `done`, for what no descriptor reports: it is looked at again and again until the
/// [`DEADLINE`], which fails the test.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Deadline::after(DEADLINE);
    while !done() {
        assert!(!deadline.left().is_zero(), "not in time: {what}");
        // Of nothing: it only passes time.
        let _ = poll(&mut [], PollTimeout::from(LOOK_AGAIN_MS));
    }
}

/// The counters of every slot of a server, read from the memory that its workers write.
#[derive(Debug)]
pub struct Counters {
    /// In the order of the slots.
    slots: Vec<SharedMemory>,
}

impl Counters {
    /// The counters of `server`. They stay readable after its end.
    #[track_caller]
    pub fn of(server: &Server) -> Self {
        let pid = server.pid();
        let mut found: Vec<(i32, PathBuf)> = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("the supervisor's descriptors")
            .flatten()
            .filter(|entry| is_slot_memory(&entry.path()))
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .collect();
        assert!(!found.is_empty(), "process {pid} has no slot's memory");
        // Made in the order of the slots, so numbered in that order.
        found.sort_unstable();
        let open = |path: &PathBuf| {
            let file = File::options().read(true).write(true).open(path);
            SharedMemory::map(file.expect("a slot's memory").into()).expect("map a slot's memory")
        };
        Self {
            slots: found.iter().map(|(_, path)| open(path)).collect(),
        }
    }

    /// One counter, over all slots.
    pub fn count(&self, counter: Counter) -> u64 {
        self.by_slot(counter).into_iter().sum()
    }

    /// One counter, slot by slot.
    pub fn by_slot(&self, counter: Counter) -> Vec<u64> {
        let of = |memory| memory::counter(memory, counter);
        self.slots.iter().map(of).collect()
    }

    /// Connections open now, over all slots.
    pub fn open(&self) -> u64 {
        self.slots.iter().map(memory::open_connections).sum()
    }

    /// Waits until a counter is at least `count`.
    #[track_caller]
    pub fn wait(&self, counter: Counter, count: u64) {
        wait_until(&format!("{counter:?} at {count}"), || {
            self.count(counter) >= count
        });
    }

    /// Waits until exactly `count` connections are open.
    #[track_caller]
    pub fn wait_open(&self, count: u64) {
        wait_until(&format!("{count} connections open"), || {
            self.open() == count
        });
    }
}

fn is_slot_memory(path: &std::path::Path) -> bool {
    fs::read_link(path).is_ok_and(|target| {
        let target: &OsStr = target.as_os_str();
        target.as_bytes().starts_with(b"/memfd:uppercased-slot")
    })
}

/// Memory that a process has of its own or in working memory, in bytes: pages of program files
/// are left out.
///
/// Counted page by page (the kernel's own sums may be stale by megabytes).
#[track_caller]
pub fn resident_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("a living process's memory");
    let mut counts = false;
    let mut kib = 0;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Rss:") if counts => {
                let value = words.next().and_then(|value| value.parse().ok());
                kib += value.unwrap_or(0_u64);
            }
            // The line that begins a mapping: range, rights, offset, device, inode, file.
            Some(first) if !first.ends_with(':') => {
                let file = words.nth(4).unwrap_or("");
                counts = !file.starts_with('/') || file.starts_with("/memfd:");
            }
            _ => {}
        }
    }
    kib * 1024
}

/// CPU time that a process has used.
#[track_caller]
pub fn cpu_time(pid: u32) -> Duration {
    // USER_HZ, in which the kernel tells it, is 100 on every Linux that this runs on.
    const TICK_MS: u64 = 10;
    let fields = stat_fields(pid).expect("a living process's times");
    let ticks = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = ticks
        .map(|field| field.parse::<u64>().expect("ticks"))
        .sum();
    Duration::from_millis(ticks * TICK_MS)
}

/// The letter for what a process is doing: `R`, `S`, `T` for stopped, `Z` and so on.
pub fn state(pid: u32) -> Option<char> {
    stat_fields(pid)?.chars().next()
}

/// What `/proc` tells of a process from its state on.
fn stat_fields(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it, in parentheses, may contain some itself.
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

/// A TCP socket as the kernel's socket diagnosis shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Whether it listens.
    pub listens: bool,
    /// Bytes not yet read; of a listener the connections in its queue.
    pub receive_queue: u32,
    /// Bytes not yet acknowledged; of a listener the longest its queue may be.
    pub send_queue: u32,
    /// All the memory that the kernel holds for it, in bytes.
    pub memory_bytes: u64,
}

/// The TCP sockets of this network namespace whose own port is `port`: a server's side of its
/// connections, and its listeners.
#[track_caller]
pub fn tcp_sockets(port: u16) -> Vec<TcpSocket> {
    // linux/socket.h.
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    [AF_INET, AF_INET6]
        .into_iter()
        .flat_map(|family| dump(family, port))
        .collect()
}

/// Connections that wait in the accept queues of `port`.
#[track_caller]
pub fn queued(port: u16) -> u32 {
    let listeners = tcp_sockets(port).into_iter().filter(|one| one.listens);
    listeners.map(|one| one.receive_queue).sum()
}

/// Bytes that clients of `port` have sent and the server has not read.
#[track_caller]
pub fn unread(port: u16) -> u32 {
    let connections = tcp_sockets(port).into_iter().filter(|one| !one.listens);
    connections.map(|one| one.receive_queue).sum()
}

/// One dump by netlink (linux/sock_diag.h, linux/inet_diag.h), in bytes: it needs no unsafe code.
#[track_caller]
fn dump(family: u8, port: u16) -> Vec<TcpSocket> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST_DUMP: u16 = 0x001 | 0x300;
    const IPPROTO_TCP: u8 = 6;
    const INET_DIAG_SKMEMINFO: u8 = 7;
    const ALL_STATES: u32 = u32::MAX;
    const REQUEST_BYTES: usize = 72;

    let flags = SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkSockDiag;
    let diag = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol);
    let diag = diag.expect("a netlink socket");
    let mut request = Vec::with_capacity(REQUEST_BYTES);
    // struct nlmsghdr: length of the whole, type, flags, sequence, port.
    request.extend_from_slice(&(REQUEST_BYTES as u32).to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states, socket.
    request.extend_from_slice(&[family, IPPROTO_TCP, 1 << (INET_DIAG_SKMEMINFO - 1), 0]);
    request.extend_from_slice(&ALL_STATES.to_ne_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    request.resize(REQUEST_BYTES, 0);
    send(diag.as_raw_fd(), &request, MsgFlags::empty()).expect("ask for the sockets");

    let mut sockets = Vec::new();
    let mut answer = vec![0; 64 * 1024];
    loop {
        // The kernel makes each part of the answer in the call that takes it: no wait.
        let len = recv(diag.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("the sockets");
        if !read_messages(&answer[..len], port, &mut sockets) {
            return sockets;
        }
    }
}

/// Reads one part of a dump; whether there is more to come.
#[track_caller]
fn read_messages(mut part: &[u8], port: u16, sockets: &mut Vec<TcpSocket>) -> bool {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    const HEADER_BYTES: usize = 16;
    const BODY_BYTES: usize = 72;
    const TCP_LISTEN: u8 = 10;
    while part.len() >= HEADER_BYTES {
        let (len, kind) = (word(part, 0) as usize, half(part, 4));
        assert_ne!(kind, NLMSG_ERROR, "the socket diagnosis refuses");
        if kind == NLMSG_DONE {
            return false;
        }
        let message = &part[HEADER_BYTES..len];
        // struct inet_diag_msg: four bytes, of which the second is the state; the socket, whose
        // port comes first; expiry; both queues; owner; inode. Then attributes.
        if u16::from_be_bytes([message[4], message[5]]) == port {
            sockets.push(TcpSocket {
                listens: message[1] == TCP_LISTEN,
                receive_queue: word(message, 56),
                send_queue: word(message, 60),
                memory_bytes: memory_bytes(&message[BODY_BYTES..]),
            });
        }
        part = &part[len.next_multiple_of(4).min(part.len())..];
    }
    true
}

/// What the attribute with a socket's memory adds up to.
fn memory_bytes(mut attributes: &[u8]) -> u64 {
    const INET_DIAG_SKMEMINFO: u16 = 7;
    // Words of it (linux/sock_diag.h): received, its bound, sent, its bound, reserved, to send,
    // options, backlog. What is sent is a part of what is to send.
    const COUNTED: [usize; 5] = [0, 4, 5, 6, 7];
    while attributes.len() >= 4 {
        let (len, kind) = (half(attributes, 0) as usize, half(attributes, 2));
        if kind == INET_DIAG_SKMEMINFO {
            let words = &attributes[4..len];
            return COUNTED
                .map(|at| u64::from(word(words, 4 * at)))
                .iter()
                .sum();
        }
        attributes = &attributes[len.max(4).next_multiple_of(4).min(attributes.len())..];
    }
    0
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
