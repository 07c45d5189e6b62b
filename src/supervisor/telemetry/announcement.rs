//! The addresses on standard output, for scripts that wait for them.
//!
//! Invariant: a stalled reader delays only this output, which is written when it reads.
//!
//! It must not set a flag on the open file, which other processes share.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use mio::unix::SourceFd;
use mio::{Interest, Registry};

use crate::supervisor::tokens::Source;
use uppercased_ctl::writer::{Sink, without_ttou};

/// Lines that standard output has not accepted yet.
#[derive(Debug)]
pub(crate) struct Announcement {
    sink: Sink,
    rest: Vec<u8>,
}

impl Announcement {
    /// Writes `lines`; returns the unwritten rest, whose descriptor is then watched.
    ///
    /// # Errors
    /// Standard output cannot be opened, written or watched.
    pub(crate) fn write(lines: Vec<u8>, registry: &Registry) -> io::Result<Option<Self>> {
        if lines.is_empty() {
            return Ok(None);
        }
        let sink = Sink::open(rustix::stdio::stdout())?;
        let mut announcement = Self { sink, rest: lines };
        if announcement.write_rest()? {
            return Ok(None);
        }
        let number = announcement.sink.as_fd().as_raw_fd();
        let token = Source::Announcement.token();
        registry.register(&mut SourceFd(&number), token, Interest::WRITABLE)?;
        Ok(Some(announcement))
    }

    pub(crate) fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Writes the rest; returns whether all of it was written.
    ///
    /// # Errors
    /// The error of the kernel.
    pub(crate) fn write_rest(&mut self) -> io::Result<bool> {
        while !self.rest.is_empty() {
            match without_ttou(|| self.sink.write(&self.rest)) {
                Ok(count) => drop(self.rest.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
