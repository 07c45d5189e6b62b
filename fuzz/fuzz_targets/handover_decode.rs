//! Any bytes decode to a packet of a handover or are refused; a packet survives being sent again,
//! and a working memory adopts or refuses it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uppercased::config::HANDOVER_MESSAGE_BYTES;
use uppercased::handover::record::{Message, Packet};
use uppercased::memory::layout::Layout;
use uppercased::memory::{Memory, create};

const LAYOUT: Layout = Layout {
    descriptors: 256,
    buffers: 4,
    buffer_bytes: 100,
};

fuzz_target!(|frame: &[u8]| {
    let Ok(packet) = Packet::decode(frame) else {
        return;
    };
    // A record without meaning is not written again.
    if let Message::Batch(records) = &packet.message
        && records.iter().any(Result::is_err)
    {
        return;
    }
    let again = packet.encode();
    assert!(again.len() <= HANDOVER_MESSAGE_BYTES);
    assert_eq!(Packet::decode(&again).as_ref(), Ok(&packet));
    let Message::Batch(connections) = packet.message else {
        return;
    };
    let file = create(LAYOUT).expect("a small memory");
    let mut memory = Memory::adopt(file, LAYOUT).expect("it fits its layout");
    for (fd, frozen) in (1..).zip(connections.iter().flatten()) {
        if memory.arrive(fd, fd, frozen).is_ok() {
            memory.record_mut(fd).take_ownership();
            assert_eq!(memory.record_mut(fd).freeze().as_ref(), Some(frozen));
        }
    }
});
