//! Any bytes in place of a PROXY header are decoded safely, and a decision on a prefix still holds
//! when more bytes arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uppercased_ctl::proxy_header::decode;

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes);
    if let Ok(Some(header)) = whole {
        assert!(header.length <= bytes.len());
        assert_eq!(decode(&bytes[..header.length]), whole);
    }
    for cut in 0..bytes.len() {
        let part = decode(&bytes[..cut]);
        assert!(part == Ok(None) || part == whole, "{cut}");
    }
});
