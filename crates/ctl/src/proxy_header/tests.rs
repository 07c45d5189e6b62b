//! Unit tests of `proxy_header.rs`.

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Returns a header of version 2 with the given bytes.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    [SIGNATURE.as_slice(), &[command, family], &length, body].concat()
}

const BLOCK: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x0f, 0xa0, 0x27, 0x0f];

#[test]
fn version_1_lines_are_decoded() {
    for (line, source) in [
        (
            "PROXY TCP4 192.0.2.7 10.0.0.1 4000 9999\r\n",
            Some("192.0.2.7:4000"),
        ),
        (
            "PROXY TCP6 2001:db8::7 ::1 4000 9999\r\n",
            Some("[2001:db8::7]:4000"),
        ),
        (
            "PROXY TCP6 ::ffff:192.0.2.7 ::1 0 9999\r\n",
            Some("192.0.2.7:0"),
        ),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff:f...f:ffff what ever\r\n", None),
    ] {
        let header = decode(line.as_bytes()).unwrap().expect(line);
        assert_eq!(header.length, line.len(), "{line}");
        assert_eq!(header.source, source.map(addr), "{line}");
    }
    let binary = b"PROXY UNKNOWN \xff\xfe\0\r\n";
    let length = binary.len();
    let ignored = Header {
        length,
        source: None,
    };
    assert_eq!(decode(binary), Ok(Some(ignored)));
}

#[test]
fn invalid_version_1_lines_are_refused() {
    for line in [
        "PROXY TCP4 192.0.2.7 10.0.0.1 4000 9999\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 4000\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 4000 9999 \r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 04000 9999\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 +4000 9999\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 65536 9999\r\n",
        "PROXY TCP4 192.0.2.007 10.0.0.1 4000 9999\r\n",
        "PROXY TCP4 ::1 ::1 4000 9999\r\n",
        "PROXY TCP6 192.0.2.7 10.0.0.1 4000 9999\r\n",
        "PROXY  TCP4 192.0.2.7 10.0.0.1 4000 9999\r\n",
        "PROXY UDP4 192.0.2.7 10.0.0.1 4000 9999\r\n",
        "PROXY \r\n",
        "PROXY\r\n",
        "PROXY \n",
        "PROXY UNKNOWNS\r\n",
    ] {
        let refused = decode(line.as_bytes());
        assert!(
            matches!(refused, Err(Error::Malformed(_) | Error::Missing)),
            "{line:?}"
        );
    }
    let most = PROXY_LINE_MAX_BYTES;
    let mut line = b"PROXY UNKNOWN ".to_vec();
    line.resize(most - 1, b'x');
    assert_eq!(decode(&line), Ok(None));
    line.push(b'x');
    assert_eq!(decode(&line), Err(Error::TooLong { most }));
    for other in [&b"hello\n"[..], b"proxy TCP4", b"\r\nx", b"\n"] {
        assert_eq!(decode(other), Err(Error::Missing), "{other:?}");
    }
}

#[test]
fn version_2_headers_are_decoded() {
    let client = Some(addr("192.0.2.7:4000"));
    let unix = [b'/'; 216];
    let with_fields = [&BLOCK[..], b"\x01\0\x02h2", b"\x04\0\0"].concat();
    for (bytes, source) in [
        (v2(PROXY, TCP4, &BLOCK), client),
        (v2(PROXY, TCP4, &with_fields), client),
        (v2(LOCAL, TCP4, &BLOCK), None),
        (v2(LOCAL, TCP6, &BLOCK), None),
        (v2(LOCAL, 0, &[]), None),
        (v2(LOCAL, 0x77, b"what ever"), None),
        (v2(PROXY, 0, b"what ever"), None),
        (v2(PROXY, 0x31, &unix), None),
    ] {
        let header = decode(&bytes).unwrap().expect("it is whole");
        assert_eq!((header.length, header.source), (bytes.len(), source));
    }
}

#[test]
fn invalid_version_2_headers_are_refused() {
    let cut = [&BLOCK[..], b"\x01\0\x03h2"].concat();
    let four = [&BLOCK[..], b"\x03\0\x02ab"].concat();
    for bytes in [
        v2(0x11, TCP4, &BLOCK),
        v2(0x22, TCP4, &BLOCK),
        v2(PROXY, TCP4, &BLOCK[..11]),
        v2(PROXY, TCP6, &BLOCK),
        v2(PROXY, 0x12, &BLOCK),
        v2(PROXY, 0x10, &BLOCK),
        v2(PROXY, 0x41, &BLOCK),
        v2(PROXY, TCP4, &cut),
        v2(PROXY, TCP4, &four),
    ] {
        assert!(
            matches!(decode(&bytes), Err(Error::Malformed(_))),
            "{bytes:?}"
        );
    }
    let most = PROXY_HEADER_MAX_BYTES;
    let long = v2(PROXY, 0, &vec![0; most - FIXED_BYTES + 1]);
    assert_eq!(decode(&long[..FIXED_BYTES]), Err(Error::TooLong { most }));
    let longest = v2(PROXY, 0, &vec![0; most - FIXED_BYTES]);
    assert!(matches!(decode(&longest), Ok(Some(_))));
}

#[test]
fn checksum_is_verified_if_present() {
    let mut known = Crc32c(u32::MAX);
    known.take(b"123456789");
    assert_eq!(!known.0, 0xE306_9283, "the check value of CRC-32C");
    let fields = [&BLOCK[..], b"\x01\0\x02h2", b"\x03\0\x04\0\0\0\0"].concat();
    let mut bytes = v2(PROXY, TCP4, &fields);
    let mut sum = Crc32c(u32::MAX);
    sum.take(&bytes);
    let at = bytes.len() - CHECKSUM_BYTES;
    bytes[at..].copy_from_slice(&(!sum.0).to_be_bytes());
    assert_eq!(
        decode(&bytes).unwrap().unwrap().source,
        Some(addr("192.0.2.7:4000"))
    );
    for changed in [FIXED_BYTES, at - 5, at] {
        let mut wrong = bytes.clone();
        wrong[changed] ^= 1;
        let why = decode(&wrong);
        assert_eq!(
            why,
            Err(Error::Malformed("its checksum is wrong")),
            "{changed}"
        );
    }
}
