//! The header in which a proxy identifies its client, sent before the client's bytes: the PROXY
//! protocol, versions 1 (a line of text) and 2 (binary), after HAProxy's `proxy-protocol.txt`.
//!
//! [`decode`] parses a header at the beginning of the bytes received; [`encode`] builds one, for
//! tests and load generators. The additional fields (TLVs) of version 2 are skipped, except the
//! checksum, which is verified if present.
//!
//! Invariants: decoding is total and allocates nothing; once it has returned a header or an
//! [`Error`], more bytes do not change the result; it never needs more than
//! [`PROXY_HEADER_MAX_BYTES`].
//!
//! Pure. It must not decide which peers may send a header: the caller does.

use crate::words;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::limits::{PROXY_HEADER_MAX_BYTES, PROXY_LINE_MAX_BYTES};

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its length in bytes; the client's bytes follow.
    pub length: usize,
    /// The client; `None` for the proxy's own connection, as for a health check (LOCAL), or an
    /// unknown client (UNKNOWN, or a family other than IPv4 and IPv6).
    pub source: Option<SocketAddr>,
}

/// The reason why bytes do not begin with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// They do not begin with a header's signature.
    #[error("there is no PROXY header")]
    Missing,
    /// They begin with a header's signature but are malformed.
    #[error("cannot read the PROXY header: {0}")]
    Malformed(&'static str),
    /// It exceeds the limit of its version or of this program.
    #[error("the PROXY header is longer than {most} bytes")]
    TooLong {
        /// The limit in bytes.
        most: usize,
    },
}

words! {
    /// A version of the protocol.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Version {
        /// A line of text.
        V1 = "v1",
        /// Binary.
        V2 = "v2",
    }
}

const LINE_BEGIN: &[u8] = b"PROXY ";
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a header of version 2 before its addresses.
const FIXED_BYTES: usize = 16;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// The additional field with the checksum of the whole header, computed with the field as zero.
const CHECKSUM_TYPE: u8 = 0x03;
const CHECKSUM_BYTES: usize = 4;

/// Decodes the header at the beginning of `bytes`; `None` if more bytes are needed.
///
/// # Errors
/// The bytes are not a header, whatever follows.
pub fn decode(bytes: &[u8]) -> Result<Option<Header>, Error> {
    if begins_like(bytes, SIGNATURE) {
        decode_binary(bytes)
    } else if begins_like(bytes, LINE_BEGIN) {
        decode_line(bytes)
    } else {
        Err(Error::Missing)
    }
}

/// Returns whether `bytes` and `beginning` agree up to the end of the shorter one.
fn begins_like(bytes: &[u8], beginning: &[u8]) -> bool {
    bytes.iter().zip(beginning).all(|(one, other)| one == other)
}

fn decode_line(bytes: &[u8]) -> Result<Option<Header>, Error> {
    let seen = &bytes[..bytes.len().min(PROXY_LINE_MAX_BYTES)];
    let Some(end) = seen.iter().position(|&byte| byte == b'\n') else {
        let most = PROXY_LINE_MAX_BYTES;
        return if seen.len() < most {
            Ok(None)
        } else {
            Err(Error::TooLong { most })
        };
    };
    let text = seen[..end].strip_suffix(b"\r");
    let text = text.ok_or(Error::Malformed("its line does not end in CR LF"))?;
    // Until the first word is complete there is nothing more to parse.
    let rest = text.get(LINE_BEGIN.len()..).unwrap_or_default();
    Ok(Some(Header {
        length: end + 1,
        source: source_in(rest)?,
    }))
}

/// Returns the source in a line, given without its first word.
fn source_in(line: &[u8]) -> Result<Option<SocketAddr>, Error> {
    if line.split(|&byte| byte == b' ').next() == Some(b"UNKNOWN") {
        // By the specification the rest of an UNKNOWN line is ignored.
        return Ok(None);
    }
    let text = str::from_utf8(line).map_err(|_| Error::Malformed("its line is not text"))?;
    let mut words = text.split(' ');
    let family = words.next().unwrap_or_default();
    let mut word = || words.next().unwrap_or_default();
    let (source, destination, ports) = (word(), word(), [word(), word()]);
    let address = |text: &str| match family {
        "TCP4" => text.parse().map(IpAddr::V4).ok(),
        "TCP6" => text.parse().map(IpAddr::V6).ok(),
        _ => None,
    };
    if !matches!(family, "TCP4" | "TCP6") {
        return Err(Error::Malformed(
            "its protocol is none of TCP4, TCP6 and UNKNOWN",
        ));
    }
    let (Some(source), Some(_)) = (address(source), address(destination)) else {
        return Err(Error::Malformed("an address is none of its family"));
    };
    let [Some(port), Some(_)] = ports.map(port) else {
        return Err(Error::Malformed("a port is none"));
    };
    if words.next().is_some() {
        return Err(Error::Malformed("there are words behind the ports"));
    }
    Ok(Some(SocketAddr::new(source.to_canonical(), port)))
}

/// Parses a port in the protocol's form: digits, without leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| plain)
}

fn decode_binary(bytes: &[u8]) -> Result<Option<Header>, Error> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return Ok(None);
    };
    let [.., command, family, high, low] = *fixed;
    let announced = usize::from(u16::from_be_bytes([high, low]));
    let length = FIXED_BYTES + announced;
    if !matches!(command, LOCAL | PROXY) {
        return Err(Error::Malformed("its version or command is unknown"));
    }
    if length > PROXY_HEADER_MAX_BYTES {
        let most = PROXY_HEADER_MAX_BYTES;
        return Err(Error::TooLong { most });
    }
    let (Some(whole), Some(body)) = (bytes.get(..length), rest.get(..announced)) else {
        return Ok(None);
    };
    let (source, fields) = match (command, family) {
        // The proxy's own connection, an unspecified family, or a Unix socket: addresses are
        // ignored.
        (LOCAL, _) | (_, 0x00 | 0x31) => (None, &[][..]),
        (_, TCP4) => v4_source(body)?,
        (_, TCP6) => v6_source(body)?,
        (_, 0x12 | 0x22 | 0x32) => return Err(Error::Malformed("it speaks of datagrams")),
        (..) => return Err(Error::Malformed("its family is unknown")),
    };
    let checksum = checksum_among(fields)?;
    if let Some(checksum) = checksum
        && checksum != crc32c_without(whole, length - fields.len(), fields)
    {
        return Err(Error::Malformed("its checksum is wrong"));
    }
    Ok(Some(Header { length, source }))
}

type Addressed<'a> = (Option<SocketAddr>, &'a [u8]);

const NO_ROOM: Error = Error::Malformed("its addresses are cut short");

/// Returns the source in a block of IPv4 addresses (source, destination, both ports), and the rest.
fn v4_source(body: &[u8]) -> Result<Addressed<'_>, Error> {
    let (block, rest) = body.split_first_chunk::<12>().ok_or(NO_ROOM)?;
    let [a, b, c, d, _, _, _, _, high, low, ..] = *block;
    let source = Ipv4Addr::new(a, b, c, d);
    let port = u16::from_be_bytes([high, low]);
    Ok((Some(SocketAddr::new(source.into(), port)), rest))
}

/// Returns the source in a block of IPv6 addresses, and the rest.
fn v6_source(body: &[u8]) -> Result<Addressed<'_>, Error> {
    let (block, rest) = body.split_first_chunk::<36>().ok_or(NO_ROOM)?;
    let source = block.first_chunk::<16>().ok_or(NO_ROOM)?;
    let source = Ipv6Addr::from(*source).to_canonical();
    let port = u16::from_be_bytes([block[32], block[33]]);
    Ok((Some(SocketAddr::new(source, port)), rest))
}

/// Walks the additional fields and returns the checksum, if present.
fn checksum_among(fields: &[u8]) -> Result<Option<u32>, Error> {
    let mut checksum = None;
    for field in Fields(fields) {
        let (kind, value) = field?;
        if kind == CHECKSUM_TYPE {
            let value = value.try_into();
            let value = value.map_err(|_| Error::Malformed("its checksum has not four bytes"))?;
            checksum = Some(u32::from_be_bytes(value));
        }
    }
    Ok(checksum)
}

/// Iterates over additional fields: one byte of type, two of length, then that many bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u8, &'a [u8]), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let left = std::mem::take(&mut self.0);
        let field = left.split_first_chunk::<3>().and_then(|(head, rest)| {
            let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
            let (value, rest) = rest.split_at_checked(length)?;
            self.0 = rest;
            Some((head[0], value))
        });
        Some(field.ok_or(Error::Malformed("an additional field is cut short")))
    }
}

/// Returns the checksum of `whole`, whose additional `fields` begin at `at`, counting checksum
/// fields as zero.
fn crc32c_without(whole: &[u8], at: usize, fields: &[u8]) -> u32 {
    let mut sum = Crc32c(u32::MAX);
    sum.take(&whole[..at]);
    for (kind, value) in Fields(fields).flatten() {
        let length = (value.len() as u16).to_be_bytes();
        sum.take(&[kind, length[0], length[1]]);
        if kind == CHECKSUM_TYPE {
            sum.take(&[0; CHECKSUM_BYTES]);
        } else {
            sum.take(value);
        }
    }
    !sum.0
}

/// CRC-32C, bit by bit: computed at most once per connection, and only if the header has a
/// checksum.
struct Crc32c(u32);

impl Crc32c {
    fn take(&mut self, bytes: &[u8]) {
        const POLYNOMIAL: u32 = 0x82F6_3B78;
        for &byte in bytes {
            self.0 ^= u32::from(byte);
            for _ in 0..u8::BITS {
                let carry = self.0 & 1 != 0;
                self.0 = (self.0 >> 1) ^ if carry { POLYNOMIAL } else { 0 };
            }
        }
    }
}

/// Returns a header for a client at `source` connected to `destination`. Addresses of different
/// families are written as IPv6.
#[must_use]
pub fn encode(version: Version, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let ports = [source.port(), destination.port()];
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => match version {
            Version::V1 => line("TCP4", [&source, &destination], ports),
            Version::V2 => binary(TCP4, [&source.octets(), &destination.octets()], ports),
        },
        (source, destination) => {
            let [source, destination] = [source, destination].map(dressed);
            match version {
                Version::V1 => line("TCP6", [&source, &destination], ports),
                Version::V2 => binary(TCP6, [&source.octets(), &destination.octets()], ports),
            }
        }
    }
}

const fn dressed(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn line(family: &str, addresses: [&dyn std::fmt::Display; 2], ports: [u16; 2]) -> Vec<u8> {
    let ([source, destination], [from, to]) = (addresses, ports);
    format!("PROXY {family} {source} {destination} {from} {to}\r\n").into_bytes()
}

fn binary(family: u8, addresses: [&[u8]; 2], ports: [u16; 2]) -> Vec<u8> {
    let ports = ports.map(u16::to_be_bytes);
    let body = [addresses[0], addresses[1], &ports[0], &ports[1]].concat();
    let length = (body.len() as u16).to_be_bytes();
    [SIGNATURE.as_slice(), &[PROXY, family], &length, &body].concat()
}

#[cfg(test)]
mod tests;
