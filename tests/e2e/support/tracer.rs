//! A debugger of one process: it stops the process between two instructions and unblocks its
//! signals. Needs the privilege to trace a process that is not dumpable.

#![expect(unsafe_code, reason = "no library sets a tracee's mask of signals")]

use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::process::Watched;

/// A stopped process. The thread that stopped it is its tracer, and resumes it by dropping this.
#[derive(Debug)]
pub struct Traced<'a>(&'a Watched);

impl<'a> Traced<'a> {
    /// Stops `process`; `None` if it has exited.
    ///
    /// # Errors
    ///
    /// This process may not trace it.
    pub fn stop(process: &'a Watched) -> Result<Option<Self>, Errno> {
        let traced = Self(process);
        let stopped = traced
            .request(libc::PTRACE_SEIZE)
            .and_then(|()| traced.request(libc::PTRACE_INTERRUPT));
        match stopped {
            Ok(()) => Ok(traced.wait_stopped().then_some(traced)),
            Err(Errno::ESRCH) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Executes `count` instructions, each system call as one; fewer if the process exits.
    pub fn step(&self, count: u32) {
        for _ in 0..count {
            if self.request(libc::PTRACE_SINGLESTEP).is_err() || !self.wait_stopped() {
                return;
            }
        }
    }

    /// Unblocks every signal of the process.
    pub fn unblock_signals(&self) {
        let none = 0_u64;
        // It fails only if the process has exited.
        let _ = self.request_with(libc::PTRACE_SETSIGMASK, size_of_val(&none), &none);
    }

    /// Kills the process between two instructions.
    pub fn kill(self) {
        let process = self.0;
        // It is not traced any more when it dies, since its parent could not reap it until its
        // tracer has; and it executes nothing in between.
        process.signal(Signal::SIGSTOP);
        drop(self);
        process.signal(Signal::SIGKILL);
    }

    /// Waits until the process has exited, as its parent can from then on.
    pub fn reap(self) {
        while self.wait_stopped() {}
    }

    /// Waits until the process has stopped; returns false if it has exited.
    fn wait_stopped(&self) -> bool {
        match waitpid(self.pid(), Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => false,
            Ok(_) => true,
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.pid().cast_signed())
    }

    fn request(&self, request: libc::c_uint) -> Result<(), Errno> {
        self.request_with(request, 0, ptr::null())
    }

    fn request_with(
        &self,
        request: libc::c_uint,
        size: usize,
        data: *const u64,
    ) -> Result<(), Errno> {
        // SAFETY: no request of this module writes to this process, and only PTRACE_SETSIGMASK
        // reads from it: the `size` bytes of its caller's word.
        let result = unsafe { libc::ptrace(request, self.pid().as_raw(), size, data) };
        Errno::result(result).map(drop)
    }
}

impl Drop for Traced<'_> {
    fn drop(&mut self) {
        // It fails only if the process has exited.
        let _ = self.request(libc::PTRACE_DETACH);
    }
}
