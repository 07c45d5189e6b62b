//! A child process: its output, with a deadline for each wait, and its exit.
//!
//! Invariant: a child does not outlive its value; it is killed by its PID, and reaped.

use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child as Process, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Time limit for a server to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// The child process.
#[derive(Debug)]
pub(crate) struct Child {
    process: Process,
    lines: BufReader<ChildStdout>,
}

impl Child {
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self {
            process,
            lines: BufReader::new(lines),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns whether it is still running.
    pub(crate) fn runs(&mut self) -> io::Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }

    /// Returns the next line of its output.
    pub(crate) fn line(&mut self) -> io::Result<String> {
        if self.lines.buffer().is_empty() {
            let timeout = PollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
            let mut wait = [PollFd::new(self.lines.get_ref().as_fd(), PollFlags::POLLIN)];
            if poll(&mut wait, timeout)? == 0 {
                return Err(io::Error::other("it printed nothing in time"));
            }
        }
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(io::Error::other("it exited"));
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Fails only if it has already exited.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
