//! The peer on `io_uring`: completions instead of readiness, one thread.
//!
//! One accept, and one receive per connection, stay armed (multishot). The kernel takes receive
//! buffers from a ring filled by this process; bytes are upper-cased in place and sent from there.
//! A message therefore costs two completions and a share of one system call, which also submits the
//! requests that follow from the previous completions.
//!
//! Invariants:
//! - at most one send per connection is in flight, so bytes keep their order;
//! - a connection is closed only when none of its receives or sends can still complete, so a
//!   completion never applies to another connection with the same number;
//! - a buffer belongs to the kernel or to exactly one connection's queue.
#![expect(
    unsafe_code,
    reason = "submissions and the buffer ring hand memory to the kernel"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};
use memmap2::MmapMut;

use super::listener;

/// Capacity of the submission queue.
const SUBMISSIONS: u32 = 4096;
/// Capacity of the completion queue: a burst from every connection of the largest pattern.
const COMPLETIONS: u32 = 32 << 10;
/// Number of receive buffers. One iteration uses a few dozen at most.
const BUFFERS: u16 = 256;
/// Bytes per buffer, as in the other servers.
const BUFFER_BYTES: usize = 64 << 10;
/// Identifier of the only buffer group.
const GROUP: u16 = 0;
/// The size of the kernel's `struct io_uring_buf`: address, length, number, and two bytes that hold
/// the ring's tail in the first entry.
const RING_ENTRY_BYTES: usize = 16;
const RING_TAIL_AT: usize = 14;
/// `MSG_NOSIGNAL`.
const NO_SIGNAL: i32 = 0x4000;

/// Kind of a completion, in the upper half of its user data; the descriptor is in the lower half.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Accept = 1,
    Receive = 2,
    Send = 3,
    Close = 4,
}

const fn tag(kind: Kind, fd: RawFd) -> u64 {
    ((kind as u64) << 32) | fd as u64
}

/// Serves `port` until the process is killed.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = listener::listen(port)?;
    let mut server = Server::new()?;
    let listening = listener.as_raw_fd();
    server.submit(opcode::AcceptMulti::new(types::Fd(listening)).build(), {
        tag(Kind::Accept, listening)
    })?;
    listener::ready()?;
    server.run()
}

/// The part of a buffer still to be sent.
struct Part {
    buffer: u16,
    at: u32,
    end: u32,
}

/// A connection, by descriptor number.
#[derive(Default)]
struct Connection {
    /// Output queue; its first entry is in flight if `sending`.
    queue: VecDeque<Part>,
    sending: bool,
    receiving: bool,
    failed: bool,
}

struct Server {
    ring: IoUring,
    buffers: Buffers,
    connections: Vec<Connection>,
    /// Connections whose receive ended for lack of a buffer.
    starved: Vec<RawFd>,
}

impl Server {
    fn new() -> io::Result<Self> {
        // Completion work runs only in this thread, inside its own calls.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let buffers = Buffers::register(&ring)?;
        Ok(Self {
            ring,
            buffers,
            connections: Vec::new(),
            starved: Vec::new(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut done: Vec<cqueue::Entry> = Vec::new();
        loop {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            done.extend(self.ring.completion());
            for completion in done.drain(..) {
                self.complete(&completion)?;
            }
            for fd in std::mem::take(&mut self.starved) {
                self.receive(fd)?;
            }
        }
    }

    fn complete(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let fd = completion.user_data() as u32 as RawFd;
        let result = completion.result();
        match completion.user_data() >> 32 {
            kind if kind == Kind::Accept as u64 => self.accepted(fd, result, completion.flags()),
            kind if kind == Kind::Receive as u64 => self.received(fd, result, completion.flags()),
            kind if kind == Kind::Send as u64 => self.sent(fd, result),
            _ => Ok(()),
        }
    }

    fn accepted(&mut self, listening: RawFd, result: i32, flags: u32) -> io::Result<()> {
        if !cqueue::more(flags) {
            let again = opcode::AcceptMulti::new(types::Fd(listening)).build();
            self.submit(again, tag(Kind::Accept, listening))?;
        }
        if result < 0 {
            return Ok(());
        }
        let index = result as usize;
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, Connection::default);
        }
        self.connections[index] = Connection::default();
        self.receive(result)
    }

    fn receive(&mut self, fd: RawFd) -> io::Result<()> {
        self.connections[fd as usize].receiving = true;
        let receive = opcode::RecvMulti::new(types::Fd(fd), GROUP).build();
        self.submit(receive, tag(Kind::Receive, fd))
    }

    fn received(&mut self, fd: RawFd, result: i32, flags: u32) -> io::Result<()> {
        let connection = &mut self.connections[fd as usize];
        if !cqueue::more(flags) {
            connection.receiving = false;
            if result == -(nix::errno::Errno::ENOBUFS as i32) {
                self.starved.push(fd);
                return Ok(());
            }
        }
        if let Some(buffer) = cqueue::buffer_select(flags) {
            if result > 0 && !connection.failed {
                self.buffers.bytes(buffer)[..result as usize].make_ascii_uppercase();
                connection.queue.push_back(Part {
                    buffer,
                    at: 0,
                    end: result as u32,
                });
            } else {
                self.buffers.give(buffer);
            }
        }
        if result > 0 && !connection.receiving {
            // The kernel ended the multishot on its own; the stream continues.
            self.receive(fd)?;
        }
        self.go_on(fd)
    }

    fn sent(&mut self, fd: RawFd, result: i32) -> io::Result<()> {
        let connection = &mut self.connections[fd as usize];
        connection.sending = false;
        if result < 0 {
            connection.failed = true;
            for part in connection.queue.drain(..) {
                self.buffers.give(part.buffer);
            }
            // Ends the receive that is still armed; fails only if it has already ended.
            let _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both);
        } else if let Some(first) = connection.queue.front_mut() {
            first.at += result as u32;
            if first.at == first.end {
                let buffer = first.buffer;
                connection.queue.pop_front();
                self.buffers.give(buffer);
            }
        }
        self.go_on(fd)
    }

    /// Sends the next entry, or closes the connection if it is finished.
    fn go_on(&mut self, fd: RawFd) -> io::Result<()> {
        let connection = &mut self.connections[fd as usize];
        if connection.sending {
            return Ok(());
        }
        if let Some(part) = connection.queue.front() {
            let bytes = &self.buffers.bytes(part.buffer)[part.at as usize..part.end as usize];
            let send = opcode::Send::new(types::Fd(fd), bytes.as_ptr(), bytes.len() as u32);
            connection.sending = true;
            return self.submit(send.flags(NO_SIGNAL).build(), tag(Kind::Send, fd));
        }
        if !connection.receiving && !self.starved.contains(&fd) {
            self.submit(
                opcode::Close::new(types::Fd(fd)).build(),
                tag(Kind::Close, fd),
            )?;
        }
        Ok(())
    }

    fn submit(&mut self, entry: Entry, user_data: u64) -> io::Result<()> {
        let entry = entry.user_data(user_data);
        loop {
            // SAFETY: the only memory that an entry refers to is a send's buffer. It is in the
            // slab, which exists as long as the ring, and is neither written nor given to the
            // kernel again before the send's completion.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }
}

/// The buffers, and the ring that provides them to the kernel.
struct Buffers {
    slab: MmapMut,
    ring: MmapMut,
    tail: u16,
}

impl Buffers {
    fn register(ring: &IoUring) -> io::Result<Self> {
        let slab = MmapMut::map_anon(usize::from(BUFFERS) * BUFFER_BYTES)?;
        let entries = MmapMut::map_anon(usize::from(BUFFERS) * RING_ENTRY_BYTES)?;
        let address = entries.as_ptr().addr() as u64;
        let mut buffers = Self {
            slab,
            ring: entries,
            tail: 0,
        };
        // SAFETY: the mapping is page-aligned, holds BUFFERS entries, and is stored with the
        // `IoUring` in `Server`, which drops that first.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(address, BUFFERS, GROUP, 0)
        }?;
        (0..BUFFERS).for_each(|buffer| buffers.give(buffer));
        Ok(buffers)
    }

    fn bytes(&mut self, buffer: u16) -> &mut [u8] {
        let at = usize::from(buffer) * BUFFER_BYTES;
        &mut self.slab[at..at + BUFFER_BYTES]
    }

    /// Gives a buffer to the kernel. Plain stores are sufficient: with `DEFER_TASKRUN` the kernel
    /// reads the ring only inside this thread's own calls.
    fn give(&mut self, buffer: u16) {
        let address = self.bytes(buffer).as_ptr().addr() as u64;
        let at = usize::from(self.tail % BUFFERS) * RING_ENTRY_BYTES;
        let entry = &mut self.ring[at..at + RING_TAIL_AT];
        entry[..8].copy_from_slice(&address.to_ne_bytes());
        entry[8..12].copy_from_slice(&(BUFFER_BYTES as u32).to_ne_bytes());
        entry[12..].copy_from_slice(&buffer.to_ne_bytes());
        self.tail = self.tail.wrapping_add(1);
        self.ring[RING_TAIL_AT..RING_ENTRY_BYTES].copy_from_slice(&self.tail.to_ne_bytes());
    }
}
