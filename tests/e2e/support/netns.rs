//! A network namespace for one test: its ports are private, and the kernel's counters count only
//! its packets.
//!
//! The namespace belongs to a whole process, because the servers started by a test must share it:
//! the test binary executes the test again, alone, in a child that first enters the namespace.

#![expect(unsafe_code, reason = "the child is moved between fork and exec")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use nix::sys::stat::Mode;
use nix::unistd::write;
use rustix::process::{getegid, geteuid};

use super::adversity::skipped;
use super::lines::Lines;
use super::process::{DEADLINE, Watched, in_background, sweep};

/// Default time limit of one isolated test: several of its waits, so that a wait that fails reports
/// first.
const BODY_DEADLINE: Duration = Duration::from_secs(600);

/// Set in the child: the test that it runs, and the process that started it.
const INSIDE: &str = "E2E_NETNS";

/// Set by the user to make a test fail instead of skip if no namespace can be created.
const REQUIRED: &str = "E2E_REQUIRE_NETNS";

/// The last line printed by the child. Without it the body did not run: a name that matches no test
/// would otherwise pass, with nothing tested.
const DONE: &str = "isolated body done";
const NOT_ALLOWED: &str = "isolated body not allowed: ";

/// The counters of connections or handshakes lost by this side.
pub const LOSSES: [&str; 9] = [
    "OutRsts",
    "EstabResets",
    "AttemptFails",
    "ListenDrops",
    "ListenOverflows",
    "TCPAbortOnClose",
    "TCPAbortOnData",
    "TCPAbortOnMemory",
    "TCPAbortOnTimeout",
];

/// Runs `body` in its own network namespace, with the loopback interface up.
///
/// The test must do nothing else, and call it in the test's own thread. If no namespace can be
/// created, it reports a skip on standard error and returns; with `E2E_REQUIRE_NETNS` set it fails
/// instead. Returns whether the body was run.
#[track_caller]
pub fn isolated(body: impl FnOnce()) -> bool {
    isolated_within(BODY_DEADLINE, body)
}

/// Like [`isolated`], for a long test that must finish within `deadline`.
#[track_caller]
pub fn isolated_within(deadline: Duration, body: impl FnOnce()) -> bool {
    let test = &own_name();
    if std::env::var(INSIDE).is_ok_and(|inside| inside.starts_with(&format!("{test}@"))) {
        match raise_loopback() {
            Ok(()) => {
                lengthen_retransmission_timeouts();
                body();
                println!("\n{DONE}");
                return true;
            }
            Err(error) => {
                println!("\n{NOT_ALLOWED}raising the loopback interface: {error}");
                return false;
            }
        }
    }

    let mut refusals = Vec::new();
    for privilege in Privilege::candidates() {
        match run_inside(test, privilege, deadline) {
            Ok(()) => return true,
            Err(Refused(why)) => refusals.push(format!("{privilege}: {why}")),
        }
    }
    let why = refusals.join("; ");
    assert!(
        std::env::var_os(REQUIRED).is_none(),
        "{test} needs a network namespace ({REQUIRED} is set): {why}"
    );
    // Not `eprintln!`: the test runner hides its output when a test passes.
    skipped(&format!("cannot create a network namespace: {why}"));
    false
}

/// Returns the full name of the running test, with its modules: the test runner gives it to the
/// test's thread.
#[track_caller]
pub fn own_name() -> String {
    let thread = std::thread::current();
    thread
        .name()
        .expect("a test's thread has its name")
        .to_owned()
}

/// A network namespace, held by descriptor: it exists as long as this, even without a process in
/// it.
///
/// A socket stays in the namespace that created it, and a child starts in that of the thread that
/// starts it. So a thread enters the namespace, does the work and ends there. No thread ever
/// returns, so a panic leaves nothing to undo.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<File>);

impl Namespace {
    /// Returns the namespace of the calling thread.
    #[track_caller]
    pub fn current() -> Self {
        let file = File::open("/proc/thread-self/ns/net").expect("open the own namespace");
        Self(Arc::new(file))
    }

    /// Creates one, with the loopback interface up; works inside [`isolated`].
    ///
    /// # Errors
    ///
    /// No namespace can be created here.
    pub fn fresh() -> io::Result<Self> {
        let made = in_background(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            raise_loopback()?;
            Ok(Self::current())
        });
        made.join().expect("it has nothing to panic about")
    }

    /// Returns its path for other programs, valid while this process holds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Moves the calling thread into it permanently.
    #[track_caller]
    pub fn enter(&self) {
        setns(&*self.0, CloneFlags::CLONE_NEWNET).expect("enter a namespace that is held");
    }

    /// Runs `body` in a thread inside it and waits for the result; a panic is propagated.
    #[track_caller]
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let ran = std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                self.enter();
                body()
            });
            there.join()
        });
        ran.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// Values of the kernel's TCP counters in this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelCounters(BTreeMap<String, i64>);

impl KernelCounters {
    /// Reads them, for the namespace of the calling thread.
    #[track_caller]
    pub fn read() -> Self {
        let mut counters = BTreeMap::new();
        for (file, table) in [("snmp", "Tcp:"), ("netstat", "TcpExt:")] {
            // Those of the thread, not of the process: a thread may be in another namespace.
            let path = format!("/proc/thread-self/net/{file}");
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {path}: {e}"));
            // A line of names, then a line of values, both with the table's name in front.
            let mut rows = text.lines().filter_map(|line| line.strip_prefix(table));
            let (names, values) = rows
                .next()
                .zip(rows.next())
                .unwrap_or_else(|| panic!("no table {table} in {path}"));
            let names = names.split_ascii_whitespace().map(str::to_owned);
            let values = values.split_ascii_whitespace();
            let values = values.map(|value| value.parse().expect("counters are numbers"));
            counters.extend(names.zip(values));
        }
        Self(counters)
    }

    /// Returns one counter by the kernel's name.
    #[track_caller]
    pub fn count(&self, name: &str) -> i64 {
        let count = self.0.get(name);
        *count.unwrap_or_else(|| panic!("this kernel has no counter {name}"))
    }

    /// Returns the change of each of [`LOSSES`] since `before`.
    #[track_caller]
    pub fn delta(&self, before: &Self) -> BTreeMap<&'static str, i64> {
        LOSSES
            .into_iter()
            .map(|name| (name, self.count(name) - before.count(name)))
            .collect()
    }

    /// Asserts that none of [`LOSSES`] has changed since `before`.
    #[track_caller]
    pub fn assert_no_loss_since(&self, before: &Self) {
        self.assert_no_loss_but(0, before);
    }

    /// Like [`Self::assert_no_loss_since`], after `connections` with long replies, of which one in
    /// a thousand may have caused a reset that reached no peer: on two CPUs a pure acknowledgement
    /// can leave after the last one, when its socket is gone. A reset that reaches a peer also
    /// changes other counters.
    #[track_caller]
    pub fn assert_no_loss_in(&self, connections: u64, before: &Self) {
        let unseen = i64::try_from(connections / 1000).expect("not so many") + 1;
        self.assert_no_loss_but(unseen, before);
    }

    #[track_caller]
    fn assert_no_loss_but(&self, unseen: i64, before: &Self) {
        let mut moved = self.delta(before);
        moved.retain(|name, by| *by > if *name == "OutRsts" { unseen } else { 0 });
        assert!(moved.is_empty(), "the kernel counted losses: {moved:?}");
    }
}

/// The privilege that creates a namespace.
#[derive(Clone, Copy, Debug)]
enum Privilege {
    /// This process is root.
    Own,
    /// Root in a user namespace that is created with it.
    UserNamespace,
}

/// The reason why a namespace could not be created.
struct Refused(String);

impl Privilege {
    fn candidates() -> Vec<Self> {
        if geteuid().is_root() {
            vec![Self::Own, Self::UserNamespace]
        } else {
            vec![Self::UserNamespace]
        }
    }

    fn flags(self) -> CloneFlags {
        match self {
            Self::Own => CloneFlags::CLONE_NEWNET,
            Self::UserNamespace => CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUSER,
        }
    }

    /// Returns the files that the child writes to become root of its namespace: any other user
    /// would lose at exec the right to raise the loopback interface.
    fn identity(self) -> Vec<(CString, Vec<u8>)> {
        let file = |path: &str, text: String| {
            let path = CString::new(path).expect("no NUL in the path");
            (path, text.into_bytes())
        };
        match self {
            Self::Own => Vec::new(),
            Self::UserNamespace => vec![
                file("/proc/self/setgroups", "deny".to_owned()),
                file("/proc/self/uid_map", format!("0 {} 1", geteuid().as_raw())),
                file("/proc/self/gid_map", format!("0 {} 1", getegid().as_raw())),
            ],
        }
    }
}

impl fmt::Display for Privilege {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Own => "as root",
            Self::UserNamespace => "in a user namespace",
        })
    }
}

/// Runs `test` again in a child with a namespace, relays its output, and fails if it fails.
#[track_caller]
fn run_inside(test: &str, privilege: Privilege, deadline: Duration) -> Result<(), Refused> {
    let inside = format!("{test}@{}", std::process::id());
    let program = std::env::current_exe().expect("the test's own path");
    // Removed with its contents, even if the child is killed at the deadline.
    let folder = tempfile::tempdir().expect("a folder of its own");
    let mut command = Command::new(program);
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, &inside)
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    move_on_start(&mut command, privilege);
    let mut child = match command.spawn() {
        Ok(child) => child,
        // The errors of a kernel on which namespaces are forbidden, disabled or exhausted.
        Err(error)
            if matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::EPERM | Errno::EACCES | Errno::EINVAL | Errno::ENOSYS)
                    | Some(Errno::ENOSPC | Errno::EUSERS)
            ) =>
        {
            return Err(Refused(error.to_string()));
        }
        Err(error) => panic!("{test}: start it again: {error}"),
    };
    let stdout = Lines::follow(child.stdout.take().expect("a pipe was asked for"));
    let stderr = Lines::follow(child.stderr.take().expect("a pipe was asked for"));
    let process = Watched::open(child.id()).expect("a child that was not reaped");
    let status = process.exit_status(deadline);
    // Ends every process that it left behind, including the child itself after the deadline.
    let swept = sweep(&format!("{INSIDE}={inside}"));
    child.wait().expect("a child that was not reaped");
    let complete = stdout.wait_end(DEADLINE) && stderr.wait_end(DEADLINE);

    print!("{}", stdout.text());
    eprint!("{}", stderr.text());
    // Skips inside the body bypass the test runner, like those of `isolated`.
    let skips = stderr.all().into_iter();
    for skip in skips.filter(|line| line.starts_with("SKIPPED: ")) {
        drop(writeln!(io::stderr(), "{skip}"));
    }
    let status = status.unwrap_or_else(|| panic!("{test}: not done after {deadline:?}"));
    assert!(status.success(), "{test}: in its namespace: {status}");
    swept.unwrap_or_else(|error| panic!("{test}: in its namespace: {error}"));
    assert!(complete, "{test}: a process still holds its output");
    let reported = stdout.all();
    if let Some(why) = reported
        .iter()
        .find_map(|line| line.strip_prefix(NOT_ALLOWED))
    {
        return Err(Refused(why.to_owned()));
    }
    assert!(
        reported.iter().any(|line| line == DONE),
        "{test}: the body did not run: is this the name of a test?"
    );
    Ok(())
}

/// Makes `command` move into new namespaces before exec.
fn move_on_start(command: &mut Command, privilege: Privilege) {
    let flags = privilege.flags();
    let identity = privilege.identity();
    let enter = move || {
        unshare(flags)?;
        for (path, text) in &identity {
            let file = open(path.as_c_str(), OFlag::O_WRONLY, Mode::empty())?;
            write(&file, text)?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child of a fork of a process with other threads, where only
    // async-signal-safe calls are allowed. It makes only the system calls unshare, open, write and
    // close: paths and texts were allocated before the fork and are dropped in the parent (the
    // child is executed or exits without running destructors), and an errno becomes an `io::Error`
    // without allocating.
    unsafe { command.pre_exec(enter) };
}

/// Keeps the kernel of this namespace from retransmitting packets that are only late, on a busy
/// machine: a second FIN for a socket that is gone causes a reset, which would count as a loss.
/// (Handshakes have their own timeouts.)
fn lengthen_retransmission_timeouts() {
    const RTO_MIN_US: u32 = 5_000_000;
    // On loopback, tail loss probes are sent within milliseconds.
    let settings = [("tcp_early_retrans", 0), ("tcp_rto_min_us", RTO_MIN_US)];
    for (name, value) in settings {
        // The second setting exists since Linux 6.11; without it the defaults apply.
        drop(fs::write(
            format!("/proc/sys/net/ipv4/{name}"),
            value.to_string(),
        ));
    }
}

/// Raises the loopback interface, which is down in a new namespace.
///
/// Uses netlink, whose messages are plain bytes; the older ioctl needs unsafe code.
fn raise_loopback() -> io::Result<()> {
    // linux/netlink.h, linux/rtnetlink.h, linux/if.h.
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 0x01 | 0x04;
    const NLMSG_ERROR: u16 = 2;
    const IFF_UP: u32 = 1;
    /// The loopback interface is the first one of every namespace.
    const LOOPBACK_INDEX: i32 = 1;

    let route = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut request = Vec::new();
    // struct nlmsghdr: length of the whole, type, flags, sequence, port.
    request.extend_from_slice(&32_u32.to_ne_bytes());
    request.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    request.extend_from_slice(&1_u32.to_ne_bytes());
    request.extend_from_slice(&0_u32.to_ne_bytes());
    // struct ifinfomsg: family, padding and type, index, flags, which of them to change.
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    request.extend_from_slice(&IFF_UP.to_ne_bytes());
    request.extend_from_slice(&IFF_UP.to_ne_bytes());
    send(route.as_raw_fd(), &request, MsgFlags::empty())?;

    // The reply is available when `send` returns: the kernel handles a request in the call.
    let mut answer = [0; 256];
    let len = recv(route.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    // Its header is followed by the negated errno, 0 for success.
    let kind = answer[..len]
        .get(4..6)
        .map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let code = answer[..len]
        .get(16..20)
        .map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::other("an answer that is none")),
    }
}
