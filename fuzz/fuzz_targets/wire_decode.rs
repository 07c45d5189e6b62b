//! Any bytes are a message or are refused; what is a message survives being sent again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uppercased::wire::Envelope;

fuzz_target!(|frame: &[u8]| {
    if let Ok((envelope, descriptors)) = Envelope::decode(frame) {
        let again = envelope.encode(descriptors).expect("what was decoded can be encoded");
        let (same, count) = Envelope::decode(&again).expect("what was encoded can be decoded");
        assert_eq!((same, count), (envelope, descriptors));
    }
});
