//! The program itself, pinned by descriptor, and new processes that run it.
//!
//! The supervisor pins the image it runs, so that a worker born after a crash runs the same code
//! even if the file was replaced meanwhile.
//!
//! Invariants: forking happens only while the process has one thread, so the child may run any
//! code before exec; every descriptor is close-on-exec, so the new program has exactly its three
//! standard streams and its channel.
#![expect(unsafe_code, reason = "fork and a fixed descriptor number")]

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl, open};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{ForkResult, Pid, dup2_raw, dup2_stdin, dup2_stdout, execveat, fork};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::fd::{CHANNEL_NUMBER, close_on_exec_from, own};

/// Descriptors that must survive until exec are kept at or above this number, out of the way of
/// those that the child puts in fixed places.
const HIGH_NUMBER: i32 = 10;

/// A program, held open.
#[derive(Debug)]
pub struct Image(OwnedFd);

impl Image {
    /// The image that this process runs, whatever its path names by now.
    ///
    /// # Errors
    /// What opening `/proc/self/exe` returned; it needs a mounted `/proc`.
    pub fn of_this_process() -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let low = open("/proc/self/exe", flags, Mode::empty())?;
        let number = fcntl(&low, FcntlArg::F_DUPFD_CLOEXEC(HIGH_NUMBER))?;
        let pinned = own(&[number]).pop().ok_or(io::ErrorKind::NotFound)?;
        Ok(Self(pinned))
    }

    /// Starts a process that runs the image with `arguments` (the first is its shown name) and
    /// finds `channel` at the fixed number. Standard input and output are `/dev/null`, standard
    /// error is shared. Signals stay blocked in it: orders come over the channel, and a signal
    /// to the whole group must not end a worker behind its supervisor's back.
    ///
    /// If the image cannot be executed, `failed` is called in the child to say so.
    ///
    /// # Errors
    /// What `fork` or `pidfd_open` returned; there is then no process.
    pub fn spawn(
        &self,
        arguments: &[&str],
        channel: &impl AsFd,
        failed: impl FnOnce(io::Error),
    ) -> io::Result<Process> {
        let arguments = arguments
            .iter()
            .map(|&a| CString::new(a))
            .collect::<Result<Vec<_>, _>>()?;
        let environment = std::env::vars_os().filter_map(pair).collect::<Vec<_>>();
        let blocked = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
        // SAFETY: the process has one thread (a rule of the whole program: supervisor and workers
        // are single-threaded, always), so no lock can be held by a thread that the child lacks.
        let forked = unsafe { fork() };
        match forked {
            Ok(ForkResult::Child) => {
                let Err(error) = self.become_it(&arguments, &environment, channel);
                failed(error);
                leave_copy()
            }
            Ok(ForkResult::Parent { child }) => {
                blocked.thread_set_mask()?;
                Process::of(child)
            }
            Err(errno) => {
                blocked.thread_set_mask()?;
                Err(errno.into())
            }
        }
    }

    fn become_it(
        &self,
        arguments: &[CString],
        environment: &[CString],
        channel: &impl AsFd,
    ) -> io::Result<Infallible> {
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        let high = fcntl(channel, FcntlArg::F_DUPFD_CLOEXEC(HIGH_NUMBER))?;
        let high = own(&[high]).pop().ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: whatever has the fixed number in this copy of the supervisor is not used again:
        // the next call replaces the program, or the process ends.
        let placed = unsafe { dup2_raw(&high, CHANNEL_NUMBER) }?;
        std::mem::forget(placed);
        close_on_exec_from(CHANNEL_NUMBER + 1);
        match execveat(&self.0, c"", arguments, environment, AtFlags::AT_EMPTY_PATH)? {}
    }
}

/// A child process, known by pidfd: its number cannot come to mean another process.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    /// A child that has not been waited for.
    fn of(pid: Pid) -> io::Result<Self> {
        let child = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            pid,
            pidfd: pidfd_open(child, PidfdFlags::empty())?,
        })
    }

    /// Its number, for people.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// It has been reaped already.
    pub fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, Signal::KILL)?)
    }

    /// Ends it and waits until it is gone; a killed process does not keep its parent waiting.
    pub fn destroy(self) {
        let _ = self.kill();
        let _ = nix::sys::wait::waitpid(self.pid, None);
    }

    /// How it ended; `None` while it lives. Reaps it.
    ///
    /// # Errors
    /// Somebody else reaped it.
    pub fn reap(&self) -> io::Result<Option<WaitStatus>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        match waitid(Id::PIDFd(self.pidfd.as_fd()), flags)? {
            WaitStatus::StillAlive => Ok(None),
            ended => Ok(Some(ended)),
        }
    }
}

impl AsFd for Process {
    /// Readable when the process has ended.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Ends a copy of the supervisor without destructors: what it holds is not its own.
#[expect(
    clippy::exit,
    clippy::disallowed_methods,
    reason = "the child of a fork must not return into the supervisor's loop"
)]
fn leave_copy() -> ! {
    std::process::exit(1)
}

fn pair((name, value): (OsString, OsString)) -> Option<CString> {
    let mut pair = name.into_vec();
    pair.push(b'=');
    pair.extend(value.into_vec());
    CString::new(pair).ok()
}
