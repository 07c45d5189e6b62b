//! Connection requests from nonexistent sources, sent through a raw socket: the kernel's replies
//! reach no host, and it keeps a half-open connection until it gives up.
//!
//! Use it only inside [`super::netns::isolated`]: packets and replies stay in that namespace.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;

use socket2::{Domain, Protocol, Socket, Type};

/// The network of the sources. No host has such an address.
const NETWORK: [u8; 2] = [10, 99];

/// A sender of connection requests.
#[derive(Debug)]
pub struct SynFlood {
    socket: Socket,
    target: SocketAddrV4,
    sent: u32,
}

impl SynFlood {
    /// Creates one against `target`.
    ///
    /// # Errors
    ///
    /// The reason why none can be created, for [`super::adversity::skipped`].
    pub fn new(target: SocketAddr) -> Result<Self, String> {
        let SocketAddr::V4(target) = target else {
            return Err("only IPv4 is flooded".to_owned());
        };
        // Without a route back the kernel would drop them.
        let network = format!("{}.{}.0.0/16", NETWORK[0], NETWORK[1]);
        let mut route = Command::new("ip");
        let route = route.args(["route", "add", &network, "dev", "lo"]).output();
        let route = route.map_err(|error| format!("the command ip: {error}"))?;
        if !route.status.success() {
            let reported = String::from_utf8_lossy(&route.stderr).into_owned();
            return Err(format!("no route to nowhere: {}", reported.trim()));
        }
        // IPPROTO_RAW: the caller supplies the header.
        let raw = Some(Protocol::from(255));
        let socket = Socket::new(Domain::IPV4, Type::RAW, raw);
        let socket = socket.map_err(|error| format!("a raw socket: {error}"))?;
        Ok(Self {
            socket,
            target,
            sent: 0,
        })
    }

    /// Sends `count` requests, each from another source.
    #[track_caller]
    pub fn send(&mut self, count: u32) {
        for _ in 0..count {
            self.sent += 1;
            let [.., high, low] = self.sent.to_be_bytes();
            let source = Ipv4Addr::new(NETWORK[0], NETWORK[1], high, low);
            let source = SocketAddrV4::new(source, 1024 + (self.sent % 60_000) as u16);
            let packet = request(source, self.target, self.sent);
            let sent = self.socket.send_to(&packet, &self.target.into());
            assert_eq!(sent.expect("send a request"), packet.len());
        }
    }
}

/// Sets an IPv4 sysctl of this namespace.
#[track_caller]
pub fn set_ipv4(name: &str, value: u32) {
    let path = format!("/proc/sys/net/ipv4/{name}");
    fs::write(&path, value.to_string()).unwrap_or_else(|error| panic!("write {path}: {error}"));
}

/// Returns an IPv4 packet with a TCP SYN segment.
fn request(source: SocketAddrV4, target: SocketAddrV4, sequence: u32) -> Vec<u8> {
    const HEADER_BYTES: u16 = 20;
    const TIME_TO_LIVE: u8 = 64;
    const TCP: u8 = 6;
    const SYN: u8 = 0x02;
    const WINDOW: u16 = 64_240;
    let mut segment = Vec::new();
    segment.extend(source.port().to_be_bytes());
    segment.extend(target.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    // No acknowledgement; the header has five words.
    segment.extend([0, 0, 0, 0, 5 << 4, SYN]);
    segment.extend(WINDOW.to_be_bytes());
    // Checksum, filled in below; no urgent pointer.
    segment.extend([0; 4]);
    let addresses = [source.ip().octets(), target.ip().octets()].concat();
    let pseudo = [&addresses[..], &[0, TCP], &HEADER_BYTES.to_be_bytes()].concat();
    let sum = checksum(&[&pseudo[..], &segment[..]].concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());

    let mut packet = vec![0x45, 0];
    packet.extend((2 * HEADER_BYTES).to_be_bytes());
    // The kernel fills in identification and checksum.
    packet.extend([0, 0, 0, 0, TIME_TO_LIVE, TCP, 0, 0]);
    packet.extend(addresses);
    packet.extend(segment);
    packet
}

/// Returns the internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let sum: u32 = words
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
