//! Clones a process that shares this process's descriptor table, and waits for the end of either.
//!
//! The clone has a copy of the memory as of then, shares mapped files, and is a child of this
//! process's parent. What it owns by value it owns together with the original: it must not close
//! any descriptor while the original runs, and afterwards none that the original may have closed.
#![expect(unsafe_code, reason = "the C library has no such call")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::fd::own;

/// The flags of the clone: it shares the descriptor table and the parent, and the kernel stores its
/// process ID before it runs.
pub const CLONE_FLAGS: libc::c_int =
    libc::CLONE_FILES | libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;

/// Which of the two processes returned from [`clone_process`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that made the call.
    Original,
    /// The new process.
    Clone,
}

/// Clones this process, which has one thread. The kernel stores the clone's process ID in the low
/// half of `pid` before the clone runs.
///
/// # Errors
/// The error of `clone`.
pub fn clone_process(pid: &AtomicU64) -> io::Result<Side> {
    // On a machine with the other byte order the low half comes last.
    let low_half = pid.as_ptr().cast::<[libc::pid_t; 2]>();
    let index = usize::from(cfg!(target_endian = "big"));
    // SAFETY: both halves lie inside the word.
    let low_half = unsafe { low_half.cast::<libc::pid_t>().add(index) };
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM and CLONE_SETTLS the clone has a memory, stack and thread pointer of
    // its own, equal to these; no other thread holds a lock or changes anything, since there is
    // none; the kernel writes one aligned `pid_t`, which is part of a borrowed atomic word. Every
    // architecture has these three arguments first, and the other two are not used with the flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(CLONE_FLAGS),
            none,
            low_half,
            none,
            none,
        )
    };
    match Errno::result(result)? {
        0 => Ok(Side::Clone),
        _ => Ok(Side::Original),
    }
}

/// Opens a pidfd of this process.
///
/// # Errors
/// The error of `pidfd_open`.
pub fn own_pidfd() -> io::Result<OwnedFd> {
    Ok(pidfd_open(getpid(), PidfdFlags::empty())?)
}

/// Waits until the process of `pidfd` has ended.
///
/// # Errors
/// Its end cannot be known: the descriptor is closed or another file, or the error of `poll`.
pub fn wait_for_end(pidfd: &impl AsFd) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let reported = fds[0].revents().unwrap_or(PollFlags::empty());
        // An invalid descriptor is reported, too, and is no end.
        return if reported.contains(PollFlags::POLLIN) {
            Ok(())
        } else {
            Err(Errno::EBADF.into())
        };
    }
}

/// Returns whether the process of `pidfd` has ended.
pub fn has_ended(pidfd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0]
            .revents()
            .is_some_and(|it| it.contains(PollFlags::POLLIN))
}

/// Grows the descriptor table to `descriptors` entries. Growing it once it is shared would wait for
/// every CPU (`synchronize_rcu`), for milliseconds.
///
/// # Errors
/// The error of `fcntl`.
pub fn grow_table(any: &impl AsFd, descriptors: u32) -> io::Result<()> {
    let last = i32::try_from(descriptors.saturating_sub(1)).map_err(io::Error::other)?;
    let number = fcntl(any.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(last))?;
    drop(own(&[number]));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::Ordering;

    use nix::sys::signal::{Signal, kill, raise};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, fork};

    use super::*;

    /// How the cloning process dies.
    #[derive(Clone, Copy, Debug)]
    enum Death {
        By(Signal),
        Stopped,
    }

    /// Forks a process that clones a keeper and dies; returns after the keeper has answered on the
    /// process's connection.
    fn keeper_answers_after(death: Death) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let shared = super::super::shared::create("keeper", 4096).unwrap();
        let memory = super::super::shared::SharedMemory::map(shared).unwrap();
        let word = &memory.line(0).0[0];
        // SAFETY: the child makes system calls only, and ends without unwinding.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let pidfd = own_pidfd().unwrap();
                grow_table(&server, 100).unwrap();
                match clone_process(word).unwrap() {
                    Side::Original => match death {
                        // The standard library's handler of a fault returns once.
                        Death::By(signal) => drop((raise(signal), raise(signal))),
                        Death::Stopped => drop(raise(Signal::SIGSTOP)),
                    },
                    Side::Clone => {
                        wait_for_end(&pidfd).unwrap();
                        let mut byte = [0];
                        server.read_exact(&mut byte).unwrap();
                        server.write_all(&byte).unwrap();
                    }
                }
                // SAFETY: it ends the process without running anything.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop(server);
                if matches!(death, Death::Stopped) {
                    let flags = Some(nix::sys::wait::WaitPidFlag::WUNTRACED);
                    let stopped = waitpid(child, flags).unwrap();
                    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
                    kill(child, Signal::SIGKILL).unwrap();
                }
                let ended = waitpid(child, None).unwrap();
                assert!(matches!(ended, WaitStatus::Signaled(..)), "{ended:?}");
                client.write_all(b"x").unwrap();
                client.read_exact(&mut [0]).unwrap();
                let keeper = word.load(Ordering::Relaxed);
                let keeper = Pid::from_raw(i32::try_from(keeper).unwrap());
                assert_eq!(
                    waitpid(keeper, None).unwrap(),
                    WaitStatus::Exited(keeper, 0)
                );
            }
        }
    }

    #[test]
    fn keeper_serves_connection_after_any_death() {
        keeper_answers_after(Death::By(Signal::SIGKILL));
        keeper_answers_after(Death::By(Signal::SIGSEGV));
        keeper_answers_after(Death::By(Signal::SIGABRT));
        keeper_answers_after(Death::Stopped);
    }

    #[test]
    fn other_file_reports_no_end() {
        // The reading end of a pipe without a writer reports a hang-up and no input.
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(writer);
        wait_for_end(&reader).unwrap_err();
    }

    #[test]
    fn table_grows_to_limit_only() {
        let (any, _other) = nix::unistd::pipe().unwrap();
        grow_table(&any, 200).unwrap();
        grow_table(&any, 1 << 30).unwrap_err();
    }
}
