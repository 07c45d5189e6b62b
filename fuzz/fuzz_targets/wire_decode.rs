//! Any bytes decode to a message or are refused; a decoded message survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fmt::Debug;

use uppercased::wire::{
    Envelope, FromAdmin, FromPreflight, FromWorker, Message, ToAdmin, ToPreflight, ToWorker,
};

fuzz_target!(|frame: &[u8]| {
    decode::<ToWorker>(frame);
    decode::<FromWorker>(frame);
    decode::<ToAdmin>(frame);
    decode::<FromAdmin>(frame);
    decode::<ToPreflight>(frame);
    decode::<FromPreflight>(frame);
});

fn decode<M: Message + Debug + PartialEq>(frame: &[u8]) {
    if let Ok((envelope, descriptors)) = Envelope::<M>::decode(frame) {
        let again = envelope
            .encode(descriptors)
            .expect("a decoded message can be encoded");
        let (same, count) = Envelope::decode(&again).expect("an encoded message can be decoded");
        assert_eq!((same, count), (envelope, descriptors));
    }
}
