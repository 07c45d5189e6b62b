//! The TCP sockets of a server, from the kernel's socket diagnosis. Unlike `/proc/net/tcp`, it
//! reports each socket's kernel memory and each accept queue's limit.

use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// A TCP socket in the kernel's socket diagnosis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Whether this is a listener.
    pub listens: bool,
    /// Bytes not yet read; for a listener, the connections in its accept queue.
    pub receive_queue: u32,
    /// Bytes not yet acknowledged; for a listener, the limit of its accept queue.
    pub send_queue: u32,
    /// Kernel memory of the socket, in bytes.
    pub memory_bytes: u64,
}

/// Returns the TCP sockets of this network namespace with the local port `port`: a server's
/// connections and listeners.
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

/// Returns the number of connections in the accept queues of `port`.
#[track_caller]
pub fn queued(port: u16) -> u32 {
    let listeners = tcp_sockets(port).into_iter().filter(|one| one.listens);
    listeners.map(|one| one.receive_queue).sum()
}

/// Returns the number of bytes sent by clients of `port` and not read by the server.
#[track_caller]
pub fn unread(port: u16) -> u32 {
    let connections = tcp_sockets(port).into_iter().filter(|one| !one.listens);
    connections.map(|one| one.receive_queue).sum()
}

/// Returns one netlink dump (linux/sock_diag.h, linux/inet_diag.h). Requests and replies are plain
/// bytes, so no unsafe code is needed.
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
        // The kernel produces each part of the dump within the call that receives it.
        let len = recv(diag.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("the sockets");
        if !read_messages(&answer[..len], port, &mut sockets) {
            return sockets;
        }
    }
}

/// Reads one part of a dump; returns whether more follows.
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

/// Returns the sum of the memory attribute of a socket.
fn memory_bytes(mut attributes: &[u8]) -> u64 {
    const INET_DIAG_SKMEMINFO: u16 = 7;
    // Fields (linux/sock_diag.h): received, its limit, sent, its limit, reserved, to send, options,
    // backlog. Sent bytes are part of those to send.
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
