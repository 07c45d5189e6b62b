//! Speed of the transformation by size, compared with a plain copy (the memory's own limit), the
//! byte loop that is its oracle, and the standard library's `make_ascii_uppercase` compiled for the
//! target's baseline.
//!
//! Requirement on a CPU with AVX2: `dispatched` is at least 1.5 times as fast as `std` from 4 KiB
//! to 512 KiB, and no slower at 64 B. Compare ratios within one run, not figures across runs.
//!
//! The work does not depend on the bytes: only the oracle branches on them, so repeating it over
//! upper-case bytes is fair. Small messages are taken in turn from an arena of [`ARENA_BYTES`]:
//! repeating the same few bytes would measure store-to-load forwarding, which does not occur in a
//! server between a receive and a send.

use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use uppercased::uppercase::{make_uppercase, make_uppercase_scalar, selected_path};

const SIZES_BYTES: [usize; 9] = [
    64,
    256,
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
];

/// Source of small messages: half a first-level cache of 32 KiB.
const ARENA_BYTES: usize = 16 << 10;

/// Alignment of every buffer, a cache line; the row's offset is added.
const CACHE_LINE_BYTES: usize = 64;

/// Messages per iteration of the mixed group; its time divided by this is the cost of one. Large
/// enough that a branch predictor cannot learn their lengths.
const MIXED_MESSAGES: usize = 4096;

const SEED: u64 = 0x7570_7065_7263_6173;

/// Name and function of a row.
type Row = (&'static str, fn(&mut [u8]));

/// Random mixed-case letters at a known alignment, cut into messages of one size.
struct Messages {
    bytes: Vec<u8>,
    first: usize,
    len: usize,
    count: usize,
    next: usize,
}

impl Messages {
    fn new(len: usize, offset: usize) -> Self {
        let count = (ARENA_BYTES / len).max(1);
        let mut rng = fastrand::Rng::with_seed(SEED);
        let bytes: Vec<u8> = (0..count * len + 2 * CACHE_LINE_BYTES)
            .map(|_| rng.alphabetic())
            .map(|letter| u8::try_from(letter).unwrap_or(b'a'))
            .collect();
        let first = CACHE_LINE_BYTES - bytes.as_ptr().addr() % CACHE_LINE_BYTES + offset;
        Self {
            bytes,
            first,
            len,
            count,
            next: 0,
        }
    }

    fn turn(&mut self) -> Range<usize> {
        self.next += 1;
        if self.next >= self.count {
            self.next = 0;
        }
        let start = self.first + self.next * self.len;
        start..start + self.len
    }

    fn next(&mut self) -> &mut [u8] {
        let place = self.turn();
        &mut self.bytes[place]
    }
}

/// Runs one row: `path` over messages of `len` bytes, `offset` bytes after the start of a cache
/// line.
///
/// Not inlined, with an opaque slice, so that every row includes the cost of a call, as in the
/// server, and none is compiled for a known length.
fn row(group: &mut BenchmarkGroup<'_, WallTime>, (name, path): Row, len: usize, offset: usize) {
    let mut messages = Messages::new(len, offset);
    let path = black_box(path);
    group.bench_function(name, |bencher| {
        bencher.iter(|| path(black_box(messages.next())));
    });
}

fn copy_row(group: &mut BenchmarkGroup<'_, WallTime>, len: usize) {
    let mut from = Messages::new(len, 0);
    let mut to = Messages::new(len, 0);
    group.bench_function("copy", |bencher| {
        bencher.iter(|| black_box(to.next()).copy_from_slice(black_box(from.next())));
    });
}

/// Runs the standard library at the target's baseline: the speed to exceed.
fn std_uppercase(bytes: &mut [u8]) {
    bytes.make_ascii_uppercase();
}

#[cfg(target_arch = "x86_64")]
fn wide_paths() -> Vec<Row> {
    use uppercased::uppercase::Avx2;

    let mut paths: Vec<Row> = Vec::new();
    if Avx2::new().is_some() {
        paths.push(("avx2", |bytes| {
            if let Some(avx2) = Avx2::new() {
                avx2.make_uppercase(bytes);
            }
        }));
    }
    paths
}

#[cfg(not(target_arch = "x86_64"))]
fn wide_paths() -> Vec<Row> {
    Vec::new()
}

/// Sets times long enough for a stable median of such short runs; all rows together take about a
/// minute.
fn quick(group: &mut BenchmarkGroup<'_, WallTime>) {
    group
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(40);
}

fn sizes(criterion: &mut Criterion) {
    println!("path selected on this processor: {}", selected_path());
    for len in SIZES_BYTES {
        let mut group = criterion.benchmark_group(format!("uppercase/{len}"));
        quick(&mut group);
        group.throughput(Throughput::BytesDecimal(len as u64));
        copy_row(&mut group, len);
        row(&mut group, ("scalar", make_uppercase_scalar), len, 0);
        row(&mut group, ("std", std_uppercase), len, 0);
        row(&mut group, ("dispatched", make_uppercase), len, 0);
        for wide in wide_paths() {
            row(&mut group, wide, len, 0);
        }
        group.finish();
    }
}

/// Measures buffers one byte past a cache line: the cost of misalignment.
fn unaligned(criterion: &mut Criterion) {
    let len = 64 << 10;
    let mut group = criterion.benchmark_group(format!("uppercase/{len}-unaligned"));
    quick(&mut group);
    group.throughput(Throughput::BytesDecimal(len as u64));
    row(&mut group, ("std", std_uppercase), len, 1);
    row(&mut group, ("dispatched", make_uppercase), len, 1);
    group.finish();
}

/// Measures lengths from 1 to 63 in random order: the cost of choosing a path.
fn mixed(criterion: &mut Criterion) {
    let mut rng = fastrand::Rng::with_seed(SEED);
    let lens: Vec<usize> = (0..MIXED_MESSAGES).map(|_| rng.usize(1..64)).collect();
    let total: usize = lens.iter().sum();
    let mut group = criterion.benchmark_group("uppercase/1-to-63-mixed");
    quick(&mut group);
    group.throughput(Throughput::BytesDecimal(total as u64));
    let rows: [Row; 3] = [
        ("scalar", make_uppercase_scalar),
        ("std", std_uppercase),
        ("dispatched", make_uppercase),
    ];
    for (name, path) in rows {
        let mut messages = Messages::new(64, 0);
        let path = black_box(path);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for &len in &lens {
                    path(black_box(&mut messages.next()[..len]));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sizes, unaligned, mixed);
criterion_main!(benches);
