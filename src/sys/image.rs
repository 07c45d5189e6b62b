//! The program's own image, pinned by descriptor, and new processes that run it.
//!
//! The supervisor pins its image, so that a worker started after a crash runs the same code even if
//! the file was replaced. An upgrade opens the path again.
//!
//! Invariants: forking happens only while the process has one thread, so the child may run any code
//! before exec; every descriptor is close-on-exec, so the new program has exactly three standard
//! streams and its channel.
#![expect(unsafe_code, reason = "fork and a fixed descriptor number")]

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, dup2_raw, dup2_stdin, dup2_stdout, execveat, getpgid};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use uppercased_ctl::process::{LISTEN_VARIABLES, NOTIFY_VARIABLES, STATE_VARIABLE};

use super::fd::{CHANNEL_NUMBER, HIGH_NUMBER, close_on_exec_from, own, pass_on};
use super::keeper::has_ended;

/// A program, pinned by an open descriptor.
#[derive(Debug)]
pub struct Image(OwnedFd);

impl Image {
    /// Opens the image of this process, even if the file was replaced.
    ///
    /// # Errors
    /// The error of opening `/proc/self/exe`; it needs a mounted `/proc`.
    pub fn of_this_process() -> io::Result<Self> {
        Self::open(Path::new("/proc/self/exe"))
    }

    /// Opens the program now at `path`.
    ///
    /// # Errors
    /// The error of opening it; `InvalidInput` if it is not a regular file. Whether it can be
    /// executed is known only at exec.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let low = open(path, flags, Mode::empty())?;
        let kind = fstat(&low)?.st_mode & SFlag::S_IFMT.bits();
        if kind != SFlag::S_IFREG.bits() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
        }
        let number = fcntl(&low, FcntlArg::F_DUPFD_CLOEXEC(HIGH_NUMBER))?;
        let pinned = own(&[number]).pop().ok_or(io::ErrorKind::NotFound)?;
        Ok(Self(pinned))
    }

    /// Starts a process that runs the image with `arguments` (the first is its displayed name),
    /// with the descriptors `passed` from the fixed number on. Standard input and output are
    /// `/dev/null`, standard error is shared. Signals stay blocked in it: requests come over the
    /// channel, and a signal to the whole group must not end a worker without its supervisor.
    ///
    /// If the image cannot be executed, the child calls `failed` with the error.
    ///
    /// # Errors
    /// The kernel's error; no process was created.
    pub fn spawn<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        channel: &impl AsFd,
        failed: impl FnOnce(io::Error),
    ) -> io::Result<Process> {
        let arguments = c_strings(arguments)?;
        let environment = environment_of_child();
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let forked = fork_with_pidfd();
        if let Ok(None) = forked {
            let Err(error) = self.exec(&arguments, &environment, channel);
            failed(error);
            exit_copy()
        }
        // It restores the previous mask.
        let _ = before.thread_set_mask();
        forked?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Replaces the program of this process by the image, with `arguments`, and with `state` in the
    /// environment as [`STATE_VARIABLE`]. The process keeps its ID, its children, its signal mask,
    /// pending signals and, of its descriptors, exactly the standard streams and `kept`.
    ///
    /// Returns only on failure; nothing has changed then.
    pub fn replace_this_process<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        state: &str,
        kept: &[BorrowedFd<'_>],
    ) -> io::Error {
        let arguments = match c_strings(arguments) {
            Ok(arguments) => arguments,
            Err(error) => return error,
        };
        let environment = environment_of_successor(state);
        if let Err(error) = pass_on(kept, true) {
            return error;
        }
        let Err(errno) = execveat(
            &self.0,
            c"",
            &arguments,
            &environment,
            AtFlags::AT_EMPTY_PATH,
        );
        // The same call just succeeded on them.
        let _ = pass_on(kept, false);
        errno.into()
    }

    fn exec(
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
        // SAFETY: the descriptor at the fixed number in this copy of the supervisor is not used
        // again: the next call replaces the program, or the process ends.
        let placed = unsafe { dup2_raw(&high, CHANNEL_NUMBER) }?;
        std::mem::forget(placed);
        close_on_exec_from(CHANNEL_NUMBER + 1);
        match execveat(&self.0, c"", arguments, environment, AtFlags::AT_EMPTY_PATH)? {}
    }
}

/// A child process, held by pidfd, so its ID cannot be reused.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    /// Returns a child forked by the previous program of this process, from its ID and its pidfd.
    #[must_use]
    pub const fn inherited(pid: i32, pidfd: OwnedFd) -> Self {
        Self {
            pid: Pid::from_raw(pid),
            pidfd,
        }
    }

    /// Returns the child of this process with the ID `pid`, which was not forked here.
    ///
    /// # Errors
    /// There is no such child, or it has been reaped; or the error of `pidfd_open`.
    pub fn of_child(pid: i32) -> io::Result<Self> {
        let number = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        // Fails for a process of another parent.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::PIDFd(pidfd.as_fd()), flags)?;
        Ok(Self::inherited(pid, pidfd))
    }

    /// Returns the process that sent `pidfd`, its own, in a message whose sender the kernel names as
    /// `sender`. A process can open and send any pidfd, but no message in another's name.
    ///
    /// # Errors
    /// They are not the same process, or it has ended, or `/proc` is not mounted.
    pub fn sender(sender: Option<i32>, pidfd: OwnedFd) -> io::Result<Self> {
        let number = pidfd.as_raw_fd();
        let details = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
        let named = details.lines().find_map(|line| line.strip_prefix("Pid:"));
        let named = named.and_then(|pid| pid.trim().parse().ok());
        match sender {
            Some(pid) if named == Some(pid) => Ok(Self::inherited(pid, pidfd)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Returns the process with the ID `pid`, of the process group `group`. For a process of another
    /// parent this is what the kernel tells without privileges and without `/proc`: a worker and its
    /// keepers never leave the group of the server that started them.
    ///
    /// # Errors
    /// There is no such process, or it is in another group; or the error of `pidfd_open`.
    pub fn of_group(pid: i32, group: i32) -> io::Result<Self> {
        let number = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        let process = Self::inherited(pid, pidfd);
        if process.group() == Some(group) {
            Ok(process)
        } else {
            Err(Errno::ESRCH.into())
        }
    }

    /// Returns its process group; `None` if it has been reaped.
    #[must_use]
    pub fn group(&self) -> Option<i32> {
        getpgid(Some(self.pid)).ok().map(Pid::as_raw)
    }

    /// Asks the process to stop, with SIGTERM.
    ///
    /// # Errors
    /// It has already been reaped, or this process may not.
    pub fn terminate(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, Signal::TERM)?)
    }

    /// Returns whether it has ended; it may be reaped then.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        has_ended(&self.pidfd)
    }

    /// Returns whether it has ended, even if it cannot be reaped yet: another process that traces it
    /// comes first.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let mut end = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut end, PollTimeout::ZERO), Ok(1..))
    }

    /// Returns the process ID, for display.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Kills the process.
    ///
    /// # Errors
    /// It has already been reaped.
    pub fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, Signal::KILL)?)
    }

    /// Reaps the process and returns its wait status; `None` while it runs.
    ///
    /// # Errors
    /// It has ended, and has been reaped already or is another process's child.
    pub fn reap(&self) -> io::Result<Option<WaitStatus>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        match waitid(Id::PIDFd(self.pidfd.as_fd()), flags) {
            Ok(WaitStatus::StillAlive) => Ok(None),
            Ok(ended) => Ok(Some(ended)),
            Err(Errno::ECHILD) if !self.has_ended() => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl From<OwnedFd> for Image {
    /// Wraps an image opened by the previous program of this process.
    fn from(pinned: OwnedFd) -> Self {
        Self(pinned)
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Process {
    /// Becomes readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Forks this process, which has one thread. Returns the child, owned by its pidfd from the start,
/// and `None` in the child. No process is created without a pidfd, since it could not be waited
/// for.
///
/// `clone` and not `clone3`, which container runtimes deny.
///
/// # Errors
/// The kernel's error, also if no descriptor is free; no child was created.
fn fork_with_pidfd() -> io::Result<Option<Process>> {
    let flags = libc::c_long::from(libc::CLONE_PIDFD | libc::SIGCHLD);
    let no_stack: libc::c_long = 0;
    let mut number: libc::c_int = -1;
    // SAFETY: without CLONE_VM the child has a copy of everything and continues here on its own
    // stack, as after `fork`. The process has one thread (a rule of the whole program: supervisor
    // and workers are single-threaded, always), so no lock can be held by a thread that the child
    // lacks. The kernel writes one int to `number`, in the parent. On every supported architecture
    // the flags come first, the stack second and the pidfd third.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags,
            no_stack,
            std::ptr::from_mut(&mut number),
            no_stack,
            no_stack,
        )
    };
    match i32::try_from(pid).map_err(io::Error::other)? {
        0 => Ok(None),
        pid if pid > 0 => {
            let pidfd = own(&[number]).pop().ok_or(io::ErrorKind::NotFound)?;
            Ok(Some(Process {
                pid: Pid::from_raw(pid),
                pidfd,
            }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends a forked copy of the supervisor without running destructors: it does not own its copied
/// values.
#[expect(
    clippy::exit,
    clippy::disallowed_methods,
    reason = "the child of a fork must not return into the supervisor's loop"
)]
fn exit_copy() -> ! {
    std::process::exit(1)
}

/// Returns the environment for a child: without an inherited state and without the variables that a
/// service manager set for this process alone.
fn environment_of_child() -> Vec<CString> {
    inherited_without(&[LISTEN_VARIABLES.as_slice(), &NOTIFY_VARIABLES].concat())
}

/// Returns the environment for a program that replaces this one: with the notification variables,
/// because the service manager waits for this process. The sockets are among the kept descriptors.
fn environment_of_successor(state: &str) -> Vec<CString> {
    let mut environment = inherited_without(&LISTEN_VARIABLES);
    environment.extend(pair((STATE_VARIABLE.into(), state.into())));
    environment
}

fn inherited_without(names: &[&str]) -> Vec<CString> {
    let others = std::env::vars_os()
        .filter(|(name, _)| name != STATE_VARIABLE && names.iter().all(|other| name != other));
    others.filter_map(pair).collect()
}

fn c_strings<A: AsRef<OsStr>>(texts: impl IntoIterator<Item = A>) -> io::Result<Vec<CString>> {
    let texts = texts.into_iter();
    let texts = texts.map(|text| CString::new(text.as_ref().as_bytes()));
    Ok(texts.collect::<Result<_, _>>()?)
}

fn pair((name, value): (OsString, OsString)) -> Option<CString> {
    let mut pair = name.into_vec();
    pair.push(b'=');
    pair.extend(value.into_vec());
    CString::new(pair).ok()
}
