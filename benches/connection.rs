//! The connection core in memory: the user-space cost of one message, without the kernel.
//!
//! A scripted stream replaces the socket: it copies bytes in, as `recv` does, and accepts all or
//! half of the bytes sent. Each row runs the product's `drive` over a real working memory, and
//! beside it `bare`: the same receive, upper-casing and send over a private buffer, without
//! records, store rules, counters and limits. The difference is the price of all those together;
//! compare it with the five microseconds that the kernel needs for the same message.

use std::hint::black_box;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use uppercased::connection::{Outcome, Rules, Stream, drive};
use uppercased::memory::layout::{Flags, Layout, SCRATCH_BYTES, State};
use uppercased::memory::{Memory, create};
use uppercased::uppercase::make_uppercase;
use uppercased_ctl::clock::Tick;

const LAYOUT: Layout = Layout {
    descriptors: 16,
    buffers: 4,
    buffer_bytes: SCRATCH_BYTES as u32,
};

const RULES: Rules = Rules {
    bytes_per_turn: 256 << 10,
    idle_timeout: None,
    write_stall_timeout: Some(Duration::from_secs(60)),
    header_timeout: Duration::from_secs(5),
    first_byte_timeout: Duration::ZERO,
    linger_timeout: Duration::from_secs(5),
};

/// Descriptor number of the only connection.
const FD: u32 = 7;

/// A socket with one message at a time.
struct Scripted {
    message: Vec<u8>,
    waiting: bool,
    /// Maximum bytes per send.
    room: usize,
}

impl Scripted {
    fn new(length: usize, room: usize) -> Self {
        Self {
            message: (b'a'..=b'z').cycle().take(length).collect(),
            waiting: false,
            room,
        }
    }
}

impl Stream for Scripted {
    #[inline]
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !std::mem::take(&mut self.waiting) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        into[..self.message.len()].copy_from_slice(&self.message);
        Ok(self.message.len())
    }

    #[inline]
    fn send(&mut self, from: &[u8]) -> io::Result<usize> {
        black_box(from);
        Ok(from.len().min(self.room))
    }

    fn end_output(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends one message through the product: a readiness report, and the turn that answers it.
fn served(memory: &mut Memory, stream: &mut Scripted, now: Tick) {
    stream.waiting = true;
    let record = &mut memory.record_mut(FD);
    let ready = Flags::READABLE.with(Flags::WRITABLE);
    record.set_flags(record.flags().with(ready));
    let outcome = drive(record, stream, &RULES, now);
    assert_eq!(outcome, Outcome::Waiting, "one message is one turn");
    // The next report sends the remainder of a short send.
    if record.pending().is_some() {
        stream.room = usize::MAX;
        record.set_flags(record.flags().with(Flags::WRITABLE));
        assert_eq!(drive(record, stream, &RULES, now), Outcome::Waiting);
        stream.room = stream.message.len() / 2;
    }
}

/// Sends the same message through the three steps alone.
fn bare(scratch: &mut [u8], stream: &mut Scripted) {
    stream.waiting = true;
    let Ok(received) = stream.recv(scratch) else {
        return;
    };
    let message = &mut scratch[..received];
    make_uppercase(message);
    let mut rest = &message[..];
    while let Ok(sent) = stream.send(rest) {
        rest = &rest[sent..];
        if rest.is_empty() {
            break;
        }
    }
}

fn memory() -> Memory {
    let file = create(LAYOUT).expect("a memfd");
    let mut memory = Memory::adopt(file, LAYOUT).expect("it fits its layout");
    memory.begin_accept();
    memory.open(
        FD,
        1,
        SocketAddr::from(([127, 0, 0, 1], 4000)),
        Tick::ZERO,
        State::Open,
    );
    memory.end_accept();
    memory
}

fn messages(criterion: &mut Criterion) {
    let whole = usize::MAX;
    let rows = [
        ("64 B", 64, whole),
        ("16 pipelined of 64 B", 16 * 64, whole),
        ("16 KiB", 16 << 10, whole),
        ("16 KiB, sent in halves", 16 << 10, 8 << 10),
    ];
    for (name, length, room) in rows {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(length as u64));
        group.warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(2));
        let (mut memory, mut stream) = (memory(), Scripted::new(length, room));
        let mut now = 0;
        group.bench_function("served", |bencher| {
            bencher.iter(|| {
                now += 1;
                served(&mut memory, &mut stream, Tick::from_nanos(now));
            });
        });
        let (mut scratch, mut stream) = (vec![0; SCRATCH_BYTES], Scripted::new(length, room));
        group.bench_function("bare", |bencher| {
            bencher.iter(|| bare(&mut scratch, &mut stream));
        });
        group.finish();
    }
}

criterion_group!(benches, messages);
criterion_main!(benches);
