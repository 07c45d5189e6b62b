//! Processes held by descriptor: waits without polling, and signals that never reach another
//! process with a reused PID.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use procfs::process::Process;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, WaitId, WaitIdOptions, pidfd_getfd, pidfd_open,
    pidfd_send_signal, waitid,
};
use uppercased_ctl::clock::{Tick, now};

/// Time limit of every expected event.
///
/// Only a failing test reaches it, so it also suits a machine that is ten times slower or runs
/// thirty other tests.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `body` in its own thread.
#[expect(
    clippy::disallowed_methods,
    reason = "a test is several parties at once; only the program is single-threaded"
)]
pub fn in_background<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    std::thread::spawn(body)
}

/// Makes children start with the default disposition of the signals that end a program.
///
/// A signal that this process ignores, as in the background of a script, would be ignored in them;
/// one that it handles is not.
pub fn give_children_default_signals() {
    static GIVEN: Once = Once::new();
    GIVEN.call_once(|| {
        let status = Process::myself().and_then(|process| process.status());
        let ignored = status.expect("read /proc/self/status").sigign;
        let signals = [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
        ];
        for signal in signals {
            if ignored & (1 << (signal as u64 - 1)) != 0 {
                let unread = Arc::new(AtomicBool::new(false));
                signal_hook::flag::register(signal as i32, unread).expect("handle a signal");
            }
        }
    });
}

/// A point in time by which an event must have happened.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Tick);

impl Deadline {
    /// Returns the point `span` from now.
    pub fn after(span: Duration) -> Self {
        Self(now() + span)
    }

    /// Returns the remaining time; zero once it has passed.
    pub fn left(self) -> Duration {
        self.0.since(now())
    }
}

/// Waits until `fd` is ready for one of `events` or broken; returns whether that happened in time.
pub fn poll_one(fd: impl AsFd, events: PollFlags, within: Duration) -> bool {
    let deadline = Deadline::after(within);
    loop {
        // Rounded up, so that the last millisecond does not spin.
        let left = deadline.left() + Duration::from_micros(999);
        let timeout = PollTimeout::try_from(left).expect("a test's deadline is below 24 days");
        match poll(&mut [PollFd::new(fd.as_fd(), events)], timeout) {
            Ok(ready) => return ready > 0,
            Err(Errno::EINTR) => {}
            Err(errno) => panic!("poll: {errno}"),
        }
    }
}

/// A process held by descriptor, so that its PID cannot be reused.
#[derive(Debug)]
pub struct Watched {
    pid: u32,
    pidfd: OwnedFd,
}

impl Watched {
    /// Watches the process `pid`; `None` if it does not exist.
    pub fn open(pid: u32) -> Option<Self> {
        match pidfd_open(as_pid(pid), PidfdFlags::empty()) {
            Ok(pidfd) => Some(Self { pid, pidfd }),
            // Kernels return the others for a process that has just been reaped.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {
                None
            }
            Err(errno) => panic!("pidfd_open({pid}): {errno}"),
        }
    }

    /// Returns its PID.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns a duplicate of its descriptor `number`, if permitted, as for root.
    pub fn descriptor(&self, number: i32) -> Option<OwnedFd> {
        pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty()).ok()
    }

    /// Waits until it has exited (it may still be a zombie); returns whether it did in time.
    pub fn wait_gone(&self, within: Duration) -> bool {
        poll_one(&self.pidfd, PollFlags::POLLIN, within)
    }

    /// Returns whether it has exited.
    pub fn is_gone(&self) -> bool {
        self.wait_gone(Duration::ZERO)
    }

    /// Sends `signal`; does nothing if it has exited.
    pub fn signal(&self, signal: Signal) {
        let named = rustix::process::Signal::from_named_raw(signal as i32)
            .expect("both libraries know the signals of POSIX");
        match pidfd_send_signal(&self.pidfd, named) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => panic!("{signal} to process {}: {errno}", self.pid),
        }
    }

    /// Waits for its exit status; only for a child of this process. `None` if it runs longer than
    /// `within`.
    ///
    /// It stays a zombie, so its PID stays reserved until it is reaped elsewhere.
    pub fn exit_status(&self, within: Duration) -> Option<ExitStatus> {
        if !self.wait_gone(within) {
            return None;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
            .expect("a child that was not reaped")
            .expect("a child that has ended");
        // In the kernel's encoding for wait(2): the code in the second byte or the signal in the
        // first.
        let raw = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => (code & 0xff) << 8,
            (None, Some(signal)) => signal,
            (None, None) => panic!("process {} ended in no known way", self.pid),
        };
        Some(ExitStatus::from_raw(raw))
    }
}

/// Waits until the process `pid` has exited (it may still be a zombie); returns whether it did in
/// time.
pub fn wait_gone(pid: u32, within: Duration) -> bool {
    Watched::open(pid).is_none_or(|process| process.wait_gone(within))
}

/// Returns the running children of the process `pid`, ordered by PID.
pub fn children(pid: u32) -> Vec<u32> {
    // The kernel may omit a child when another is reaped during the read (proc(5)), so read until
    // two lists agree.
    let mut listed = listed_children(pid);
    loop {
        let again = listed_children(pid);
        if again == listed {
            break;
        }
        listed = again;
    }
    listed.retain(|pid| is_alive(*pid));
    listed
}

/// Returns the children of the process `pid` that have exited and are not reaped.
pub fn zombies(pid: u32) -> Vec<u32> {
    let mut listed = listed_children(pid);
    listed.retain(|pid| !is_alive(*pid));
    listed
}

fn listed_children(pid: u32) -> Vec<u32> {
    // A child is listed under the thread that forked it.
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut pids: Vec<u32> = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// Kills every process with the entry `mark` (`NAME=value`) in its environment and waits until it
/// is gone.
///
/// This finds the descendants of a process even after their parents are gone. It repeats until none
/// is left, because one may fork during the search.
///
/// # Errors
///
/// Some still exist after the [`DEADLINE`].
pub fn sweep(mark: &str) -> io::Result<()> {
    let deadline = Deadline::after(DEADLINE);
    loop {
        let marked = marked(mark);
        if marked.is_empty() {
            return Ok(());
        }
        for process in &marked {
            process.signal(Signal::SIGKILL);
        }
        for process in &marked {
            if !process.wait_gone(deadline.left()) {
                let pid = process.pid();
                return Err(io::Error::other(format!("process {pid} survives SIGKILL")));
            }
        }
    }
}

/// Returns the running processes with the entry `mark` in their environment, except this one.
pub fn marked(mark: &str) -> Vec<Watched> {
    let has_mark = |pid: u32| {
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|entries| {
            entries
                .split(|byte| *byte == 0)
                .any(|e| e == mark.as_bytes())
        })
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id() && has_mark(*pid))
        .filter_map(Watched::open)
        // Checked again, now that the PID can no longer be reused.
        .filter(|process| has_mark(process.pid()))
        .collect()
}

/// Returns whether the process exists and is not a zombie.
fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        // The state follows the name, which is in parentheses and may contain parentheses.
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        !matches!(state, None | Some('Z' | 'X'))
    })
}

fn as_pid(pid: u32) -> Pid {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a process number is positive and below 2^22")
}
