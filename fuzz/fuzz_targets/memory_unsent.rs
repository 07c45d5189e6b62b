//! A working memory of random bytes: reading it returns a result or a refusal, within bounds.
#![no_main]

use std::sync::atomic::Ordering;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use uppercased::memory::frozen::rescued;
use uppercased::memory::layout::{HANDS, Layout};
use uppercased::memory::{Memory, create, unsent};
use uppercased::sys::shared::SharedMemory;

const LAYOUT: Layout = Layout {
    descriptors: 8,
    buffers: 4,
    buffer_bytes: 100,
};

#[derive(Arbitrary, Debug)]
struct Nonsense {
    in_hand: [u64; HANDS],
    accepting: u64,
    records: [[u64; 8]; 8],
    owed: u64,
}

fuzz_target!(|nonsense: Nonsense| {
    let file = create(LAYOUT).expect("a small memory");
    let again = file.try_clone().expect("a second descriptor");
    let mut memory = Memory::adopt(file, LAYOUT).expect("it fits its layout");
    let writer = SharedMemory::map(again).expect("a second mapping");
    let write = |line: usize, word: usize, value: u64| {
        writer.line(line).0[word].store(value, Ordering::Relaxed);
    };
    for (word, value) in nonsense.in_hand.into_iter().enumerate() {
        let (line, word) = Layout::in_hand(word);
        write(line, word, value);
    }
    write(Layout::ACCEPTING, 0, nonsense.accepting);
    for (fd, words) in (0..).zip(nonsense.records) {
        for (word, value) in words.into_iter().enumerate() {
            write(Layout::record(fd), word, value);
        }
    }
    // Includes an index beyond the table. Small lengths are the plausible ones.
    for fd in 0..=LAYOUT.descriptors {
        for owed in [0, nonsense.owed % 128, nonsense.owed] {
            if let Ok(bytes) = unsent(&mut memory, fd, owed) {
                assert!(bytes.len() <= LAYOUT.buffer_bytes as usize);
                assert!(!bytes.iter().any(u8::is_ascii_lowercase));
            }
            let _ = rescued(&mut memory, fd, owed);
        }
    }
});
