//! A child process: lines to and from it, each wait with a deadline, and its exit.
//!
//! Invariant: a child does not outlive its value; it is killed by its pid, and reaped.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child as Process, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Time that a child has to answer: longer than any takes to connect and warm up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The child process.
#[derive(Debug)]
pub(crate) struct Child {
    process: Process,
    orders: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Child {
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (orders, lines) = pipes.ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self {
            process,
            orders,
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

    pub(crate) fn tell(&mut self, order: &str) -> io::Result<()> {
        // In a single write, since the child reads it in one.
        self.orders.write_all(format!("{order}\n").as_bytes())
    }

    /// Returns the next line of its output.
    pub(crate) fn line(&mut self) -> io::Result<String> {
        if self.lines.buffer().is_empty() {
            let timeout = PollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
            let mut wait = [PollFd::new(self.lines.get_ref().as_fd(), PollFlags::POLLIN)];
            if poll(&mut wait, timeout)? == 0 {
                return Err(io::Error::other("no answer in time"));
            }
        }
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(io::Error::other("it ended"));
        }
        let line = line.trim_end();
        match line.strip_prefix("failed: ") {
            Some(why) => Err(io::Error::other(why.to_owned())),
            None => Ok(line.to_owned()),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Fails only if it has already exited.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
