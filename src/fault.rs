//! Fault injection, for tests in which a process exits or stalls at a given point. Debug builds
//! only: in a release build every function here is empty.
//!
//! A plan is a list of `point=action` separated by `;`. It comes from the environment variable
//! [`VARIABLE`] (then every process of a server has it) and from a trailer appended to the
//! program's own file (then only processes that run that file have it, which lets a test make
//! "the new version" misbehave): the last [`TRAILER_MAX_BYTES`] of the file are searched for
//! [`TRAILER_MARK`]; what follows it is the plan.
//!
//! Actions at a [`point`]: `kill` (SIGKILL to itself), `panic`, `kill_first` and `panic_first` (the
//! same, but not in a process that continues a dead worker), `stop` (SIGSTOP to itself), `exit`,
//! `hold:PATH` (waits until the FIFO at the path, if there is one, is opened for writing),
//! `dumpable` (processes of the same user may inspect this one, as tests do), and `violate:` with
//! one of `open`, `connect`, `bind`, `exec`, `setuid`, `signal`, `unlisten`, `unlisten_all`,
//! `steer`, `fill`, `punch`, `map`, `overwrite`, which the sandbox of a worker is to prevent, or
//! `end_clients`, `drop_input`, which the proofs are to notice.
//!
//! Actions where a call may [`fail`]: `fail`, and `fail_alternately` (every second time). Anything
//! else is a value that [`value`] returns: it replaces a version, as `version=9.9.9`, or selects
//! what a compromised worker does. It must not steer any other branch of the program.
//!
//! `store=N` and `rescue.store=N` kill a worker's process after the N-th store to its working memory:
//! in its first life, once it has reported Ready, and in its second one, from the first store of its
//! rescue on. `store.death` is how: `kill`, `panic`, `abort`, `violate`, or `loop`, an endless loop, of
//! which the supervisor kills it; `kill` without it.
//!
//! A plan must not be consulted on the serving path: a worker passes a point a few times in all.

/// The environment variable with a plan.
pub const VARIABLE: &str = "FAULT_POINTS";
/// Marks the plan at the end of a program's file.
pub const TRAILER_MARK: &[u8] = b"\nfault points: ";
/// Bytes at the end of the file that are searched for the mark.
pub const TRAILER_MAX_BYTES: u64 = 1024;

#[cfg(not(debug_assertions))]
mod plan {
    #[inline(always)]
    pub(crate) fn point(_: &str) {}

    #[inline(always)]
    pub(crate) fn fails(_: &str) -> bool {
        false
    }

    #[inline(always)]
    pub(crate) fn count_stores(_: &str) {}

    #[inline(always)]
    pub(crate) fn stored() {}

    #[inline(always)]
    pub(crate) fn begin_rescue() {}

    #[inline(always)]
    pub(crate) fn value(_: &str) -> Option<&'static str> {
        None
    }
}

#[cfg(debug_assertions)]
mod plan {
    use std::fs::File;
    use std::io::{self, IoSlice, Read as _, Seek as _, SeekFrom};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;
    use std::process::Command;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use memmap2::MmapOptions;
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::sys::signal::{Signal, kill, raise};
    use nix::sys::socket::{
        MsgFlags, Shutdown, SockaddrStorage, getpeername, getsockopt, recv, shutdown, sockopt,
    };
    use nix::unistd::{Pid, Uid, getppid};
    use rustix::io::{ReadWriteFlags, pwritev2};
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};

    use super::{TRAILER_MARK, TRAILER_MAX_BYTES, VARIABLE};
    use crate::sys::fd::{CHANNEL_NUMBER, duplicate_inherited};
    use crate::sys::steering;

    /// Descriptors searched for sockets of clients.
    const DESCRIPTORS: i32 = 4096;

    static PLAN: OnceLock<Vec<(String, String)>> = OnceLock::new();

    pub(crate) fn point(name: &str) {
        let Some(action) = value(name) else {
            return;
        };
        match action {
            "kill" => kill_process(),
            "kill_first" | "panic_first" if IS_RESCUED.load(Ordering::Relaxed) => {}
            "kill_first" => kill_process(),
            "panic_first" => panic!("fault point {name}"),
            // It does not return; if it were refused, the requesting test would fail.
            "stop" => drop(raise(Signal::SIGSTOP)),
            "panic" => panic!("fault point {name}"),
            "exit" => exit_now(),
            // Fails for no valid argument.
            "dumpable" => drop(set_dumpable_behavior(DumpableBehavior::Dumpable)),
            other => {
                if let Some(what) = other.strip_prefix("violate:") {
                    violate(what);
                } else if let Some(path) = other.strip_prefix("hold:") {
                    drop(File::open(path));
                }
            }
        }
    }

    /// Kills this process. The C library may send the signal to the process that this one is a clone
    /// of, which has ended; the second way is forbidden in a sandbox, which then kills it.
    fn kill_process() {
        let _ = raise(Signal::SIGKILL);
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }

    /// Whether this process continues a dead worker.
    static IS_RESCUED: AtomicBool = AtomicBool::new(false);

    /// Stores until the process is killed; 0: never.
    static STORES_LEFT: AtomicU64 = AtomicU64::new(0);

    pub(crate) fn count_stores(name: &str) {
        let left = value(name).and_then(|number| number.parse().ok());
        STORES_LEFT.store(left.unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn begin_rescue() {
        // Every process is a copy of the one before.
        if IS_RESCUED.swap(true, Ordering::Relaxed) {
            STORES_LEFT.store(0, Ordering::Relaxed);
        } else {
            count_stores("rescue.store");
        }
    }

    pub(crate) fn stored() {
        let left = STORES_LEFT.load(Ordering::Relaxed);
        if left > 0 {
            STORES_LEFT.store(left - 1, Ordering::Relaxed);
            if left == 1 {
                match value("store.death") {
                    Some("panic") => panic!("fault point store"),
                    Some("abort") => std::process::abort(),
                    Some("violate") => violate("open"),
                    Some("loop") => loop {
                        std::hint::spin_loop();
                    },
                    _ => kill_process(),
                }
            }
        }
    }

    /// Returns whether the plan has the call at the point `name` fail this time.
    pub(crate) fn fails(name: &str) -> bool {
        static ALTERNATE: AtomicBool = AtomicBool::new(false);
        match value(name) {
            Some("fail") => true,
            Some("fail_alternately") => !ALTERNATE.fetch_xor(true, Ordering::Relaxed),
            _ => false,
        }
    }

    /// Performs an action that a worker must not perform, and logs the result.
    fn violate(what: &str) {
        let done = match what {
            "open" => File::open("/etc/passwd").map(drop),
            "connect" => TcpStream::connect((Ipv4Addr::LOCALHOST, 1)).map(drop),
            "bind" => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop),
            "exec" => Command::new("/proc/self/exe")
                .arg("--version")
                .status()
                .map(drop),
            "setuid" => nix::unistd::setuid(Uid::from_raw(1)).map_err(io::Error::from),
            "signal" => kill(getppid(), None).map_err(io::Error::from),
            // Of a socket shared with other processes; the filter does not distinguish them.
            "unlisten" => shutdown(CHANNEL_NUMBER, Shutdown::Both).map_err(io::Error::from),
            "unlisten_all" => (0..1024).try_for_each(|number| {
                let Ok(socket) = duplicate_inherited(number) else {
                    return Ok(());
                };
                if getsockopt(&socket, sockopt::AcceptConn) == Ok(true) {
                    shutdown(socket.as_raw_fd(), Shutdown::Both)?;
                }
                Ok(())
            }),
            "steer" => duplicate_inherited(CHANNEL_NUMBER)
                .and_then(|socket| steering::steer_to_first(&socket, 1)),
            "fill" => {
                fallocate(io::stderr(), FallocateFlags::empty(), 0, 1).map_err(io::Error::from)
            }
            "punch" => {
                let hole =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(io::stderr(), hole, 0, 1).map_err(io::Error::from)
            }
            "map" => MmapOptions::new().len(1).map_raw(&io::stderr()).map(drop),
            "overwrite" => {
                let words = [IoSlice::new(b"nothing happened here")];
                let written = pwritev2(io::stderr(), &words, 0, ReadWriteFlags::NOWAIT);
                written.map(drop).map_err(io::Error::from)
            }
            "end_clients" => clients()
                .try_for_each(|client| shutdown(client, Shutdown::Write))
                .map_err(io::Error::from),
            "drop_input" => clients().try_for_each(|client| {
                match recv(client, &mut vec![0; 64 * 1024], MsgFlags::MSG_DONTWAIT) {
                    Ok(_) | Err(Errno::EAGAIN) => Ok(()),
                    Err(errno) => Err(errno.into()),
                }
            }),
            _ => return,
        };
        match done {
            Ok(()) => tracing::error!(what, "a violation went through"),
            Err(error) => tracing::warn!(what, %error, "a violation was refused"),
        }
    }

    /// Returns the descriptors of the connected TCP sockets.
    fn clients() -> impl Iterator<Item = i32> {
        (0..DESCRIPTORS).filter(|&number| {
            getpeername::<SockaddrStorage>(number).is_ok_and(|peer| {
                peer.as_sockaddr_in().is_some() || peer.as_sockaddr_in6().is_some()
            })
        })
    }

    pub(crate) fn value(name: &str) -> Option<&'static str> {
        let plan = PLAN.get_or_init(read);
        plan.iter()
            .find(|(point, _)| point == name)
            .map(|(_, action)| action.as_str())
    }

    #[expect(
        clippy::exit,
        clippy::disallowed_methods,
        reason = "the test wants an exit without clean-up"
    )]
    fn exit_now() -> ! {
        std::process::exit(3)
    }

    fn read() -> Vec<(String, String)> {
        let mut text = std::env::var(VARIABLE).unwrap_or_default();
        if let Some(trailer) = trailer() {
            text.push(';');
            text.push_str(&trailer);
        }
        parse(&text)
    }

    pub(super) fn parse(text: &str) -> Vec<(String, String)> {
        text.split(';')
            .filter_map(|entry| entry.trim().split_once('='))
            .map(|(point, action)| (point.to_owned(), action.to_owned()))
            .collect()
    }

    /// Returns the plan that a test appended to the program's file, if any.
    fn trailer() -> Option<String> {
        let mut file = File::open("/proc/self/exe").ok()?;
        let length = file.metadata().ok()?.len();
        let from = length.saturating_sub(TRAILER_MAX_BYTES);
        file.seek(SeekFrom::Start(from)).ok()?;
        let mut end = Vec::new();
        file.read_to_end(&mut end).ok()?;
        let at = end
            .windows(TRAILER_MARK.len())
            .rposition(|window| window == TRAILER_MARK)?;
        String::from_utf8(end.split_off(at + TRAILER_MARK.len())).ok()
    }
}

/// Carries out the plan's action for the point `name`, if it has one.
#[inline]
pub fn point(name: &str) {
    plan::point(name);
}

/// Counts stores to the working memory from now on, up to the number that the plan has for `name`.
#[inline]
pub fn count_stores(name: &str) {
    plan::count_stores(name);
}

/// Notes that this process continues a dead worker, and counts the stores of the worker's first
/// rescue.
#[inline]
pub fn begin_rescue() {
    plan::begin_rescue();
}

/// Counts a store to the working memory; the process ends with the last one of the plan.
#[inline(always)]
pub fn stored() {
    plan::stored();
}

/// Fails if the plan lets the call at the point `name` fail: to test the recovery from it.
///
/// # Errors
/// The plan has `fail` or `fail_alternately` for the point.
#[inline]
pub fn fail(name: &str) -> std::io::Result<()> {
    if plan::fails(name) {
        let error = format!("fault point {name}");
        return Err(std::io::Error::other(error));
    }
    Ok(())
}

/// Returns the plan's value for `name`.
#[inline]
#[must_use]
pub fn value(name: &str) -> Option<&'static str> {
    plan::value(name)
}

/// Returns the version of this program; a test may give a copy another one.
#[must_use]
pub fn program_version() -> &'static str {
    value("version").unwrap_or(env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(debug_assertions)]
    fn plan_lists_points_and_actions() {
        let plan = super::plan::parse("a.b=kill; c=9.9 ;nonsense;");
        let expected = [("a.b", "kill"), ("c", "9.9")];
        assert_eq!(plan.len(), 2);
        for ((point, action), (name, what)) in plan.iter().zip(expected) {
            assert_eq!((point.as_str(), action.as_str()), (name, what));
        }
    }

    #[test]
    fn missing_plan_changes_nothing() {
        super::point("no such point");
        assert_eq!(super::program_version(), env!("CARGO_PKG_VERSION"));
    }
}
