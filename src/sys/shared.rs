//! A memfd mapped shared: cache lines of atomic words, and byte ranges between them.
//!
//! Invariants: the file is sealed against shrinking before any process maps it, so an access inside
//! the mapping never raises `SIGBUS`; every access is checked against the mapping's length. Words
//! are atomics because the supervisor reads them while the worker writes; bytes are accessible only
//! through [`SharedMemory::split_at`], which separates them from the words, and no other process
//! touches them while their owner runs.
//!
//! It must not interpret the contents: layout and meaning belong to the caller.
#![expect(
    unsafe_code,
    reason = "a shared mapping is reached through raw pointers"
)]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::{SysconfVar, sysconf};

/// Bytes in a cache line, and the alignment of every [`Line`].
pub const LINE_BYTES: usize = 64;

/// One cache line of shared words.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Line(pub [AtomicU64; LINE_BYTES / 8]);

/// A mapped memfd.
#[derive(Debug)]
pub struct SharedMemory {
    map: MmapRaw,
    file: File,
    /// Bytes in a page. Read once, because a sandboxed process may not query it.
    page: usize,
}

/// Creates a memfd of `bytes` zero bytes that can neither shrink nor grow. Close-on-exec.
///
/// Pages are sparse: a page never written takes no memory.
///
/// # Errors
/// The error of `memfd_create`, `ftruncate` or the seal.
pub fn create(name: &str, bytes: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let length = i64::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    nix::unistd::ftruncate(&fd, length)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(fd)
}

impl SharedMemory {
    /// Maps the whole of `fd`, made by [`create`] here or in another process.
    ///
    /// # Errors
    /// `InvalidData` if the file may still shrink (an access could then kill this process), else
    /// the error of `fstat` or `mmap`.
    pub fn map(fd: OwnedFd) -> io::Result<Self> {
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS)?;
        if !SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the working memory is not sealed against shrinking",
            ));
        }
        let length = usize::try_from(fstat(&fd)?.st_size)
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let map = MmapOptions::new()
            .len(length)
            .no_reserve_swap()
            .map_raw(&fd)?;
        // A core dump of a crashed worker would write every touched page; kernels without this
        // advice only take longer to dump.
        let _ = map.advise(Advice::DontDump);
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|bytes| usize::try_from(bytes).ok());
        Ok(Self {
            map,
            file: File::from(fd),
            page: page.ok_or(io::ErrorKind::Unsupported)?,
        })
    }

    /// Returns the number of bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Returns whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// Returns the cache line at `offset` bytes.
    ///
    /// # Panics
    /// As [`Words::line`].
    #[inline]
    #[must_use]
    pub fn line(&self, offset: usize) -> &Line {
        self.words().line(offset)
    }

    /// Returns the whole mapping as words.
    #[inline]
    #[must_use]
    pub fn words(&self) -> Words<'_> {
        Words {
            start: self.map.as_mut_ptr(),
            length: self.map.len() & !(LINE_BYTES - 1),
            mapping: PhantomData,
        }
    }

    /// Splits the mapping into words, below `at`, and bytes, from there on.
    ///
    /// # Panics
    /// If `at` is not a multiple of [`LINE_BYTES`] inside the mapping: the caller's layout would be
    /// wrong.
    #[inline]
    #[must_use]
    pub fn split_at(&mut self, at: usize) -> (Words<'_>, Bytes<'_>) {
        assert!(
            at.is_multiple_of(LINE_BYTES) && at <= self.map.len(),
            "a mapping is split inside, between two lines"
        );
        let words = Words {
            start: self.map.as_mut_ptr(),
            length: at,
            mapping: PhantomData,
        };
        let bytes = Bytes {
            map: &self.map,
            from: at,
            page: self.page,
        };
        (words, bytes)
    }

    /// Zeroes everything from `offset` on, and returns its pages to the system.
    ///
    /// # Errors
    /// The error of `fallocate`; the bytes are then unchanged.
    pub fn clear_from(&self, offset: usize) -> io::Result<()> {
        let length = self.map.len().saturating_sub(offset);
        let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, mode, offset, length)?;
        Ok(())
    }
}

/// The words of a mapping, or of its first part.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    start: *mut u8,
    length: usize,
    mapping: PhantomData<&'a SharedMemory>,
}

impl<'a> Words<'a> {
    /// Returns the cache line at `offset` bytes.
    ///
    /// # Panics
    /// If the line is not aligned or not wholly inside: the caller's layout would be wrong.
    #[inline]
    #[must_use]
    pub fn line(self, offset: usize) -> &'a Line {
        assert!(
            offset.is_multiple_of(LINE_BYTES) && offset < self.length,
            "a line lies inside the mapping"
        );
        // SAFETY: the offset was checked to lie inside this part of the mapping, which is one
        // allocation.
        let at = unsafe { self.start.add(offset) };
        // SAFETY: a mapping begins on a page and the offset is a multiple of 64, so `at` is
        // aligned; this part's length is a multiple of 64, so 64 bytes from `at` are mapped,
        // readable and writable, for as long as the mapping is borrowed; any bit pattern is a valid
        // `AtomicU64`; words are only accessed as atomics, here and in other processes: while
        // `Bytes` of the same mapping exist, they are behind this part.
        unsafe { &*at.cast::<Line>() }
    }
}

/// The bytes of a mapping from some offset on. Offsets count from the start of the mapping.
#[derive(Debug)]
pub struct Bytes<'a> {
    map: &'a MmapRaw,
    from: usize,
    page: usize,
}

impl Bytes<'_> {
    /// Returns the `length` bytes at `offset`.
    ///
    /// # Panics
    /// If they are not wholly inside this part.
    #[inline]
    #[must_use]
    pub fn range(&mut self, offset: usize, length: usize) -> &mut [u8] {
        let end = offset.checked_add(length);
        assert!(
            offset >= self.from && end.is_some_and(|end| end <= self.map.len()),
            "bytes lie inside the mapping"
        );
        // SAFETY: the offset was checked to lie inside the mapping, which is one allocation.
        let at = unsafe { self.map.as_mut_ptr().add(offset) };
        // SAFETY: `length` bytes from `at` are mapped, readable and writable, for as long as the
        // mapping is borrowed; `&mut self` makes this the only reference to them in this process,
        // since the words end where this part begins, and no other process touches byte ranges
        // while this one runs (module invariant).
        unsafe { std::slice::from_raw_parts_mut(at, length) }
    }

    /// Copies `length` bytes within this part; the ranges must not overlap.
    ///
    /// # Panics
    /// If either range is not inside, or they overlap.
    #[inline]
    pub fn copy(&mut self, from: usize, to: usize, length: usize) {
        assert!(
            from.abs_diff(to) >= length,
            "source and target do not overlap"
        );
        let (low, high) = (from.min(to), from.max(to));
        let (head, tail) = self
            .range(low, high - low + length)
            .split_at_mut(high - low);
        if from < to {
            tail.copy_from_slice(&head[..length]);
        } else {
            head[..length].copy_from_slice(&tail[..length]);
        }
    }

    /// Returns the pages wholly inside `length` bytes at `offset` to the system; they read as
    /// zeroes afterwards.
    ///
    /// It works on the mapping, not on the descriptor, so a sandboxed process cannot apply it to
    /// another file.
    ///
    /// # Errors
    /// `InvalidInput` if the bytes are not inside this part, else the error of `madvise`; the bytes
    /// are then unchanged.
    pub fn discard(&mut self, offset: usize, length: usize) -> io::Result<()> {
        let end = offset.checked_add(length);
        let Some(end) = end.filter(|end| offset >= self.from && *end <= self.map.len()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let first = offset.next_multiple_of(self.page);
        let last = end - end % self.page;
        if first >= last {
            return Ok(());
        }
        // SAFETY: the range was checked to lie inside the mapping, which is of a file, shared and
        // writable; its bytes become zeroes, which are valid for every reader, and `&mut self`
        // proves that no reference to them is alive.
        unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::Remove, first, last - first)
        }
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    fn memory(bytes: usize) -> SharedMemory {
        SharedMemory::map(create("test", bytes).unwrap()).unwrap()
    }

    fn bytes_of(memory: &mut SharedMemory) -> Bytes<'_> {
        memory.split_at(0).1
    }

    #[test]
    fn mappings_of_one_file_share_contents() {
        let mut first = memory(8192);
        let again = first.as_fd().try_clone_to_owned().unwrap();
        let mut second = SharedMemory::map(again).unwrap();
        first.line(64).0[3].store(7, Ordering::Relaxed);
        bytes_of(&mut first)
            .range(4096, 5)
            .copy_from_slice(b"hello");
        assert_eq!(second.line(64).0[3].load(Ordering::Relaxed), 7);
        assert_eq!(bytes_of(&mut second).range(4096, 5), b"hello");
    }

    #[test]
    fn copy_works_both_ways_and_discard_zeroes() {
        let mut memory = memory(3 * 4096);
        let mut memory = bytes_of(&mut memory);
        memory.range(0, 3).copy_from_slice(b"abc");
        memory.copy(0, 8192, 3);
        memory.copy(8192, 100, 3);
        assert_eq!(memory.range(100, 3), b"abc");
        memory.discard(8192, 4096).unwrap();
        assert_eq!(memory.range(8192, 3), b"\0\0\0");
        assert_eq!(memory.range(0, 3), b"abc");
    }

    #[test]
    #[should_panic(expected = "inside the mapping")]
    fn line_past_the_end_is_refused() {
        let _ = memory(4096).line(4096);
    }

    #[test]
    #[should_panic(expected = "inside the mapping")]
    fn bytes_past_end_are_refused() {
        let _ = bytes_of(&mut memory(4096)).range(4090, 7);
    }

    #[test]
    #[should_panic(expected = "inside the mapping")]
    fn words_end_where_bytes_begin() {
        let _ = memory(8192).split_at(4096).0.line(4096);
    }

    #[test]
    #[should_panic(expected = "inside the mapping")]
    fn bytes_begin_where_words_end() {
        let _ = memory(8192).split_at(4096).1.range(4032, 64);
    }

    #[test]
    fn unsealed_memory_is_refused() {
        let plain = memfd_create("plain", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING);
        let refused = SharedMemory::map(plain.unwrap()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
