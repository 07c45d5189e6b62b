//! A child process and the socket to it: a worker, the admin process or a preflight.
//!
//! Invariants: the first message waits in the channel before the process exists; the end of the
//! process is reported by its pidfd.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::sys::wait::WaitStatus;
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::channel::packets::Packets;
use crate::fault;
use crate::sys::fd::{Descriptor, Inherited, Kept};
use crate::sys::image::{Image, Process};
use crate::wire::{Envelope, Message};
use uppercased_ctl::identity::WorkerId;

use super::machine::ExitStatus;
use super::tokens::Source;

/// A child process. `S` is a [`Channel`], or its socket once the process is to be killed.
#[derive(Debug)]
pub(crate) struct Subprocess<S> {
    process: Process,
    pub(crate) channel: S,
}

/// A process that is to be killed and reaped.
pub(crate) type Ended = Subprocess<Packets>;

/// A subprocess in a saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    pid: i32,
    process: Descriptor,
    channel: Descriptor,
}

impl<Out: Message, In: Message> Subprocess<Channel<Out, In>> {
    /// Starts `image`, which receives `first` and `descriptors` over its channel. A program that
    /// cannot be executed sends the message that `failed` builds from the cause.
    ///
    /// # Errors
    /// There is no process then.
    pub(crate) fn start<A: AsRef<OsStr>>(
        image: &Image,
        arguments: impl IntoIterator<Item = A>,
        first: &Envelope<Out>,
        descriptors: &[BorrowedFd<'_>],
        failed: impl FnOnce(String) -> In,
    ) -> io::Result<Self> {
        let (mut channel, there) = Channel::pair()?;
        channel.send(first, descriptors).map_err(io::Error::other)?;
        let process = image.spawn(arguments, &there, |error| {
            let message = failed(format!("cannot execute the program: {error}"));
            send_failure(&there, first.worker, message);
        })?;
        Ok(Self { process, channel })
    }

    /// Converts it for the reaper, to be killed.
    pub(crate) fn into_ended(self) -> Ended {
        Subprocess {
            process: self.process,
            channel: self.channel.into_packets(),
        }
    }
}

impl<S: AsFd> Subprocess<S> {
    /// Returns a process with its channel.
    pub(crate) const fn new(process: Process, channel: S) -> Self {
        Self { process, channel }
    }

    /// Watches the channel and the exit of the process.
    pub(crate) fn watch(
        &self,
        registry: &Registry,
        channel: Source,
        process: Source,
    ) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        let number = self.channel.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&number), channel.token(), both)?;
        self.watch_end(registry, process)
    }

    /// Watches the exit of the process.
    pub(crate) fn watch_end(&self, registry: &Registry, source: Source) -> io::Result<()> {
        watch_process(&self.process, registry, source)
    }

    /// Stops watching the exit of the process.
    pub(crate) fn unwatch_end(&self, registry: &Registry) {
        unwatch_process(&self.process, registry);
    }

    /// Continues with another process at the other end of the channel; the former has been reaped.
    pub(crate) fn continue_as(&mut self, process: Process) {
        self.process = process;
    }

    /// Returns whether the process has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Returns whether the process has ended, even if it cannot be reaped yet.
    pub(crate) fn is_over(&self) -> bool {
        self.process.is_over()
    }

    /// Rearms the report of the channel's readiness.
    pub(crate) fn watch_channel_again(
        &self,
        registry: &Registry,
        source: Source,
    ) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        let number = self.channel.as_fd().as_raw_fd();
        registry.reregister(&mut SourceFd(&number), source.token(), both)
    }

    /// Stops watching the channel, if it is watched.
    pub(crate) fn unwatch_channel(&self, registry: &Registry) {
        let number = self.channel.as_fd().as_raw_fd();
        let _ = registry.deregister(&mut SourceFd(&number));
    }

    /// Stops watching the channel and the process, if they are watched.
    pub(crate) fn unwatch(&self, registry: &Registry) {
        self.unwatch_channel(registry);
        self.unwatch_end(registry);
    }

    pub(crate) const fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Returns a descriptor that is readable when the process has exited.
    #[cfg(test)]
    pub(crate) fn end(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Sends SIGKILL. It is no error if the process has exited.
    ///
    /// # Errors
    /// The error of the kernel.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fault::fail("process.kill")?;
        match self.process.kill() {
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
            killed => killed,
        }
    }

    /// Reaps the process; returns `None` while it runs.
    pub(crate) fn reap(&self) -> Option<ExitStatus> {
        reap_process(&self.process)
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        Saved {
            pid: self.pid(),
            process: kept.keep(&self.process),
            channel: kept.keep(&self.channel),
        }
    }

    /// # Errors
    /// A descriptor is missing.
    pub(crate) fn restore(
        saved: Saved,
        inherited: &mut Inherited,
        over: impl FnOnce(OwnedFd) -> S,
    ) -> io::Result<Self> {
        let process = Process::inherited(saved.pid, inherited.take(saved.process)?);
        let channel = over(inherited.take(saved.channel)?);
        Ok(Self { process, channel })
    }
}

/// Reaps a process; returns `None` while it runs.
pub(crate) fn reap_process(process: &Process) -> Option<ExitStatus> {
    match process.reap() {
        Ok(None) => None,
        Ok(Some(WaitStatus::Exited(_, code))) => Some(ExitStatus::Exited(code)),
        Ok(Some(WaitStatus::Signaled(_, signal, _))) => Some(ExitStatus::Signalled(signal as i32)),
        Ok(Some(_)) | Err(_) => Some(ExitStatus::Unknown),
    }
}

/// Watches the exit of a process.
pub(crate) fn watch_process(
    process: &Process,
    registry: &Registry,
    source: Source,
) -> io::Result<()> {
    let number = process.as_fd().as_raw_fd();
    registry.register(&mut SourceFd(&number), source.token(), Interest::READABLE)
}

/// Stops watching the exit of a process, if it is watched.
pub(crate) fn unwatch_process(process: &Process, registry: &Registry) {
    let number = process.as_fd().as_raw_fd();
    let _ = registry.deregister(&mut SourceFd(&number));
}

/// Sends the failure of an exec, in the child, over its end of the channel.
fn send_failure<Out: Message, In: Message>(
    there: &Channel<Out, In>,
    worker: WorkerId,
    message: Out,
) {
    if let Ok(end) = there.as_fd().try_clone_to_owned() {
        // If this fails, the exit status still reports a failure.
        let _ = Channel::<Out, In>::over(end).send(&Envelope { worker, message }, &[]);
    }
}
