//! The decoder of PROXY headers against any input: it reads every written header, whole and in
//! pieces, and refuses all other input as early as possible.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use uppercased_ctl::limits::PROXY_HEADER_MAX_BYTES;
use uppercased_ctl::proxy_header::{Error, Header, Version, decode, encode};

fn version() -> impl Strategy<Value = Version> {
    prop::sample::select(vec![Version::V1, Version::V2])
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

/// Returns bytes that are a header, or nearly one.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (
        version(),
        address(),
        address(),
        changes,
        prop::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(version, source, destination, changes, rest)| {
            let mut bytes = encode(version, source, destination);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.extend(rest);
            bytes
        })
}

/// Returns the result of a receiver after each of `sizes` more bytes.
fn in_pieces(bytes: &[u8], sizes: &[usize]) -> Result<Option<Header>, Error> {
    let mut seen = 0;
    for size in sizes.iter().copied().chain([bytes.len()]) {
        seen = (seen + size).min(bytes.len());
        match decode(&bytes[..seen]) {
            Ok(None) => {}
            settled => return settled,
        }
    }
    Ok(None)
}

proptest! {
    #[test]
    fn decoder_reads_whole_header_and_no_prefix(
        version in version(), source in address(), destination in address(),
        rest in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let mut bytes = encode(version, source, destination);
        let length = bytes.len();
        for cut in 0..length {
            prop_assert_eq!(decode(&bytes[..cut]), Ok(None), "{} of {}", cut, length);
        }
        bytes.extend(rest);
        let expected = Header { length, source: Some(source) };
        prop_assert_eq!(decode(&bytes), Ok(Some(expected)));
    }

    #[test]
    fn decoder_ignores_chunking(
        bytes in nearly(), sizes in prop::collection::vec(1usize..9, 0..300),
    ) {
        prop_assert_eq!(in_pieces(&bytes, &sizes), decode(&bytes));
    }

    #[test]
    fn decoder_accepts_or_refuses_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(Some(header)) = decode(&bytes) {
            prop_assert!(header.length <= bytes.len());
        }
    }

    #[test]
    fn decoder_waits_only_for_possible_headers(
        mut bytes in nearly(), length: u16,
    ) {
        if bytes.len() >= 16 && bytes[0] == b'\r' {
            bytes[14..16].copy_from_slice(&length.to_be_bytes());
        }
        bytes.resize(PROXY_HEADER_MAX_BYTES, 0);
        prop_assert_ne!(decode(&bytes), Ok(None), "the rest would never arrive");
    }
}
