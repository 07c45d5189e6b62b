//! The addresses on standard output, for scripts that wait for them.
//!
//! Invariant: a reader that does not read makes nobody wait: what it does not take now is written
//! when it does.
//! Must not: set a flag on the open file, which other processes share.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use mio::Interest;

use uppercased_ctl::writer::{Sink, without_ttou};

use crate::supervisor::Supervisor;
use crate::supervisor::tokens::Source;

/// Lines that have not been taken yet.
#[derive(Debug)]
pub(crate) struct Announcement {
    sink: Sink,
    rest: Vec<u8>,
}

impl Announcement {
    /// What is still to be written.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Whether all has been written.
    fn write(&mut self) -> io::Result<bool> {
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

impl Supervisor {
    /// Writes lines to standard output, now or when its reader takes them.
    pub(crate) fn announce(&mut self, lines: Vec<u8>) {
        if lines.is_empty() {
            return;
        }
        let sink = match Sink::open(rustix::stdio::stdout()) {
            Ok(sink) => sink,
            Err(error) => return not_taken(&error),
        };
        self.announcement = Some(Announcement { sink, rest: lines });
        if self.go_on_announcing()
            && let Some(announcement) = &self.announcement
        {
            let number = announcement.sink.as_fd().as_raw_fd();
            if let Err(error) = self.watch(number, Source::Announcement, Interest::WRITABLE) {
                self.announcement = None;
                not_taken(&error);
            }
        }
    }

    /// Writes what is left; says whether there is more.
    pub(crate) fn go_on_announcing(&mut self) -> bool {
        let Some(announcement) = &mut self.announcement else {
            return false;
        };
        let written = announcement.write();
        if let Err(error) = &written {
            not_taken(error);
        }
        let more = matches!(written, Ok(false));
        if !more {
            // Its registration ends with its descriptor.
            self.announcement = None;
        }
        more
    }
}

fn not_taken(error: &io::Error) {
    tracing::debug!(%error, "standard output does not take the addresses");
}
