//! The server under test: started on ports of the kernel's choice, watched, and gone with
//! everything it forked when the test ends.

#![expect(
    unsafe_code,
    reason = "sockets are put in their places between fork and exec"
)]

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::dup2_raw;
use rustix::io::fcntl_dupfd_cloexec;

use tempfile::TempDir;

use super::lines::Lines;
use super::netns::Namespace;
use super::process::{DEADLINE, Watched, children, marked, sweep};
use super::service_manager::Named;

/// How long an orderly stop may take: well past the server's own limit with default settings (32 s),
/// so that a stop which ends by that limit is told by its exit code and not by a test gone late.
const STOP_DEADLINE: Duration = Duration::from_secs(90);

/// What the server prints on standard output for each address once it serves.
const READY: &str = "listening on ";

/// How long an order on the control socket may take: it waits for what it asks for, which is the
/// renewal of every worker, each under deadlines of its own.
const ORDER_DEADLINE: Duration = Duration::from_secs(180);

/// How a server is told where to take orders. By the environment, which no argument of a test can
/// get in the way of; a flag wins over it.
const CONTROL: &str = "UPPERCASED_CONTROL";

/// Tests have workers stand still, and on a busy machine for longer than the default allows; one that
/// is about this says so by a flag, which wins.
const HANG_TIMEOUT: (&str, &str) = ("UPPERCASED_HANG_TIMEOUT", "1h");

/// The environment entry by which everything that descends from one server is found again.
const MARK: &str = "E2E_SERVER";

/// What is set before a server starts.
#[derive(Debug)]
pub struct ServerBuilder {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    listeners: Option<usize>,
    namespace: Option<Namespace>,
    handed_over: Vec<Named>,
}

/// What came of an order on a server's control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The exit code of the command that gave it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it had to complain about.
    pub stderr: String,
}

/// A running server. Dropping it kills the supervisor and all that came from it.
#[derive(Debug)]
pub struct Server {
    running: Running,
    addrs: Vec<SocketAddr>,
}

/// A process of the program and what it prints.
#[derive(Debug)]
struct Running {
    /// Reaped on drop and not before, so that its number is its own until then.
    child: Child,
    supervisor: Watched,
    stdout: Lines,
    stderr: Lines,
    mark: String,
    /// What is its own, such as its control socket; goes with it.
    folder: TempDir,
    /// Every child that was ever seen. The mark finds them too, unless they cleared their
    /// environment or may not be looked into.
    seen: Mutex<Vec<Watched>>,
}

impl ServerBuilder {
    /// Adds arguments.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.args.extend(args);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let entry = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.env.push(entry);
        self
    }

    /// Sets its working directory.
    pub fn cwd(mut self, path: impl Into<PathBuf>) -> Self {
        self.cwd = Some(path.into());
        self
    }

    /// Runs another file than the program as built, such as a copy that a test will replace.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = path.into();
        self
    }

    /// Starts it in another network namespace than that of the caller.
    pub fn namespace(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// Hands sockets over to it, as a service manager does.
    pub fn hand_over(mut self, sockets: Vec<Named>) -> Self {
        self.handed_over.extend(sockets);
        self
    }

    /// How many addresses it will announce; needed only if they are not given by `--listen`.
    pub fn listeners(mut self, count: usize) -> Self {
        self.listeners = Some(count);
        self
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Server {
        let wanted = self.listeners.unwrap_or_else(|| self.count_listen());
        let running = self.spawn();
        let mut addrs = Vec::new();
        let ready = running.stdout.find_from(0, DEADLINE, |line| {
            addrs.extend(line.strip_prefix(READY).map(reachable));
            addrs.len() == wanted
        });
        // Dropping `running` in the panic prints the log.
        assert!(
            ready.is_some(),
            "no server on {wanted} addresses; announced: {addrs:?}"
        );
        running.note_children();
        Server { running, addrs }
    }

    /// Starts it and waits until it has ended by itself: its exit code and what it wrote to
    /// standard error.
    #[track_caller]
    pub fn expect_failure(self) -> (i32, String) {
        let running = self.spawn();
        let status = running.wait_exit(DEADLINE);
        assert!(running.stderr.wait_end(DEADLINE), "somebody holds its log");
        let code = status.code();
        assert!(code != Some(0), "it should have failed, but ended with 0");
        let code = code.unwrap_or_else(|| panic!("it should have failed by itself: {status}"));
        (code, running.stderr.text())
    }

    #[track_caller]
    fn spawn(mut self) -> Running {
        self.let_tests_look_in();
        // Unique among all tests of all files that run at once.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", std::process::id());

        let folder = tempfile::tempdir().expect("a folder of its own");
        let mut command = if self.handed_over.is_empty() {
            Command::new(&self.program)
        } else {
            handing_over(&self.program, std::mem::take(&mut self.handed_over))
        };
        forget_settings(&mut command);
        command
            .args(&self.args)
            .env(CONTROL, control_path(&folder))
            .env(HANG_TIMEOUT.0, HANG_TIMEOUT.1)
            .envs(self.env)
            .env(MARK, &id)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(cwd) = self.cwd {
            command.current_dir(cwd);
        }
        // A child starts in the namespace of the thread that starts it.
        let child = match &self.namespace {
            Some(namespace) => namespace.run(|| command.spawn()),
            None => command.spawn(),
        };
        let mut child =
            child.unwrap_or_else(|error| panic!("start {}: {error}", self.program.display()));
        let stdout = Lines::follow(child.stdout.take().expect("a pipe was asked for"));
        let stderr = child.stderr.take().expect("a pipe was asked for");
        make_room(&stderr);
        let stderr = Lines::follow(stderr);
        let supervisor = Watched::open(child.id()).expect("a child that was not reaped");
        Running {
            child,
            supervisor,
            stdout,
            stderr,
            mark: format!("{MARK}={id}"),
            folder,
            seen: Mutex::default(),
        }
    }

    /// Who is not root cannot look into a worker that has locked itself in, and tests do.
    fn let_tests_look_in(&mut self) {
        if nix::unistd::geteuid().is_root() {
            return;
        }
        let plans = self.env.iter_mut();
        let mut plans = plans.filter(|(name, _)| name == uppercased::fault::VARIABLE);
        match plans.next() {
            Some((_, plan)) => plan.push(";worker.dumpable=yes"),
            None => {
                let entry = (
                    uppercased::fault::VARIABLE.into(),
                    "worker.dumpable=yes".into(),
                );
                self.env.push(entry);
            }
        }
    }

    /// The addresses on the command line; with none there is the default one.
    fn count_listen(&self) -> usize {
        let is_listen = |arg: &&OsString| {
            let arg = arg.as_encoded_bytes();
            arg == b"--listen" || arg.starts_with(b"--listen=")
        };
        self.args.iter().filter(is_listen).count().max(1)
    }
}

impl Server {
    /// Starts a server with `args` and waits until it serves.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        Self::builder().args(args).start()
    }

    /// For what [`Self::start`] does not set.
    pub fn builder() -> ServerBuilder {
        ServerBuilder {
            program: env!("CARGO_BIN_EXE_uppercased").into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            listeners: None,
            namespace: None,
            handed_over: Vec::new(),
        }
    }

    /// Runs the program with `args`, which it should refuse: its exit code and standard error.
    #[track_caller]
    pub fn expect_failure(args: &[&str]) -> (i32, String) {
        Self::builder().args(args).expect_failure()
    }

    /// The first address it serves, as a client reaches it.
    pub fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    /// All addresses it serves, in the order of its announcement.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// The supervisor's process number.
    pub fn pid(&self) -> u32 {
        self.running.supervisor.pid()
    }

    /// The living workers' process numbers, in order.
    pub fn worker_pids(&self) -> Vec<u32> {
        let children = self.running.note_children();
        children.into_iter().filter(|pid| is_worker(*pid)).collect()
    }

    /// The numbers of all living processes that descend from this server, itself included,
    /// whoever their parents are now.
    pub fn processes(&self) -> Vec<u32> {
        let family = marked(&self.running.mark);
        let mut pids: Vec<u32> = family.iter().map(Watched::pid).collect();
        pids.sort_unstable();
        pids
    }

    /// Where it takes orders, unless it was told otherwise.
    pub fn control(&self) -> PathBuf {
        control_path(&self.running.folder)
    }

    /// A folder that lives as long as this.
    pub fn folder(&self) -> &Path {
        self.running.folder.path()
    }

    /// `uppercased reload`: renews every worker with the configuration as it is now.
    #[track_caller]
    pub fn reload(&self) -> Answered {
        self.order(&["reload"])
    }

    /// `uppercased upgrade`: replaces the program by the one on disk.
    #[track_caller]
    pub fn upgrade(&self) -> Answered {
        self.order(&["upgrade"])
    }

    /// `uppercased scale`: more or fewer workers.
    #[track_caller]
    pub fn scale(&self, workers: u16) -> Answered {
        self.order(&["scale", &workers.to_string()])
    }

    /// `uppercased status --json`, parsed; it must succeed.
    #[track_caller]
    pub fn status_json(&self) -> serde_json::Value {
        let answered = self.order(&["status", "--json"]).expect_success();
        serde_json::from_str(&answered.stdout)
            .unwrap_or_else(|error| panic!("no JSON: {error}: {answered:?}"))
    }

    /// Runs a command of the program against this server and waits until it has ended.
    #[track_caller]
    pub fn order(&self, command: &[&str]) -> Answered {
        let running = self.send_order(command);
        running.wait()
    }

    /// The same without waiting, for orders at once or a server that will be gone.
    #[track_caller]
    pub fn send_order(&self, command: &[&str]) -> Order {
        // The program as built and not the one that the server runs, which may be broken: who
        // gives an order has a program of his own.
        let mut process = Command::new(env!("CARGO_BIN_EXE_uppercased"));
        forget_settings(&mut process);
        process.args(command).arg("--control").arg(self.control());
        Order::start(process)
    }

    /// Sends `signal` to the supervisor.
    pub fn signal(&self, signal: Signal) {
        self.running.note_children();
        self.running.supervisor.signal(signal);
    }

    /// Asks it to stop and waits until it has; how it ended.
    #[track_caller]
    pub fn stop(&self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit(STOP_DEADLINE)
    }

    /// Kills the supervisor, and only it, and waits until it is gone: its workers are then on
    /// their own until this is dropped.
    #[track_caller]
    pub fn kill(&self) {
        // Stopped first, so that it cannot fork one that would not be noticed.
        self.running.supervisor.signal(Signal::SIGSTOP);
        self.running.note_children();
        self.running.supervisor.signal(Signal::SIGKILL);
        self.wait_exit(DEADLINE);
    }

    /// Waits until the supervisor has ended; how it did.
    #[track_caller]
    pub fn wait_exit(&self, within: Duration) -> ExitStatus {
        self.running.wait_exit(within)
    }

    /// Whether the supervisor is there.
    pub fn is_running(&self) -> bool {
        !self.running.supervisor.is_gone()
    }

    /// The first line of the log that `wanted` accepts, old or yet to come.
    #[track_caller]
    pub fn wait_log(&self, wanted: impl FnMut(&str) -> bool) -> String {
        self.wait_log_from(0, wanted)
    }

    /// The same, from line number `start` on, which [`Self::log_len`] gave before.
    #[track_caller]
    pub fn wait_log_from(&self, start: usize, wanted: impl FnMut(&str) -> bool) -> String {
        self.running
            .stderr
            .find_from(start, DEADLINE, wanted)
            .unwrap_or_else(|| panic!("no such line in the log from line {start} on"))
    }

    /// The number of lines in the log.
    pub fn log_len(&self) -> usize {
        self.running.stderr.len()
    }

    /// The log so far.
    pub fn log(&self) -> Vec<String> {
        self.running.stderr.all()
    }

    /// The log up to its end, which comes when the last process that writes it has ended.
    #[track_caller]
    pub fn whole_log(&self) -> Vec<String> {
        let ended = self.running.stderr.wait_end(DEADLINE);
        assert!(ended, "a process that holds the log is still there");
        self.log()
    }

    /// What it printed to standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.running.stdout.all()
    }
}

/// An order under way. Dropping it kills the command that gave it, and nothing else.
#[derive(Debug)]
pub struct Order {
    child: Child,
    process: Watched,
    stdout: Lines,
    stderr: Lines,
}

impl Order {
    #[track_caller]
    fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("start the program");
        Self {
            process: Watched::open(child.id()).expect("a child that was not reaped"),
            stdout: Lines::follow(child.stdout.take().expect("a pipe was asked for")),
            stderr: Lines::follow(child.stderr.take().expect("a pipe was asked for")),
            child,
        }
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// Waits until it has ended; what came of it.
    #[track_caller]
    pub fn wait(self) -> Answered {
        let status = self.process.exit_status(ORDER_DEADLINE);
        let said = || format!("{}{}", self.stdout.text(), self.stderr.text());
        let status = status
            .unwrap_or_else(|| panic!("no answer within {ORDER_DEADLINE:?}; so far: {}", said()));
        let complete = self.stdout.wait_end(DEADLINE) && self.stderr.wait_end(DEADLINE);
        assert!(complete, "somebody holds the output of the command");
        let code = status.code();
        Answered {
            code: code.unwrap_or_else(|| panic!("the command ended by {status}: {}", said())),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        self.process.signal(Signal::SIGKILL);
        // It has ended or was killed, so this does not wait for long; a zombie is all that could
        // be left.
        drop(self.child.wait());
    }
}

impl Answered {
    /// Asserts that it was done.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Asserts that it was not done, and that the cause which is given contains `cause`.
    #[track_caller]
    pub fn expect_failure(self, cause: &str) -> Self {
        let said = format!("{}{}", self.stdout, self.stderr);
        assert!(self.code != 0 && said.contains(cause), "{self:?}");
        self
    }
}

impl Running {
    #[track_caller]
    fn wait_exit(&self, within: Duration) -> ExitStatus {
        self.supervisor
            .exit_status(within)
            .unwrap_or_else(|| panic!("the supervisor is still there after {within:?}"))
    }

    /// Remembers the supervisor's children of now, and returns their numbers.
    fn note_children(&self) -> Vec<u32> {
        let pids = children(self.supervisor.pid());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in &pids {
            // One that is gone but has the same number is another process.
            if !seen.iter().any(|p| p.pid() == *pid && !p.is_gone()) {
                seen.extend(Watched::open(*pid));
            }
        }
        pids
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.supervisor.signal(Signal::SIGSTOP);
        self.note_children();
        self.supervisor.signal(Signal::SIGKILL);
        let seen = self.seen.get_mut().unwrap_or_else(PoisonError::into_inner);
        for process in seen.iter() {
            process.signal(Signal::SIGKILL);
        }
        let mut failures: Vec<String> = seen
            .iter()
            .filter(|process| !process.wait_gone(DEADLINE))
            .map(|process| format!("worker {} survives SIGKILL", process.pid()))
            .collect();
        failures.extend(sweep(&self.mark).err().map(|error| error.to_string()));
        failures.extend(self.child.wait().err().map(|error| error.to_string()));
        if std::thread::panicking() {
            // Complete, now that nobody can write to it any more.
            self.stderr.wait_end(DEADLINE);
            self.stdout.wait_end(DEADLINE);
            eprintln!(
                "--- the server's standard output ---\n{}",
                self.stdout.text()
            );
            eprintln!("--- the server's log ---\n{}---", self.stderr.text());
            eprintln!("left behind: {failures:?}");
        } else {
            assert!(failures.is_empty(), "left behind: {failures:?}");
        }
    }
}

/// The server drops lines that its log has no room for, and tests wait for lines: on a busy machine the
/// thread that reads them may have no turn for longer than it takes to fill a pipe of the usual size.
fn make_room(log: &ChildStderr) {
    /// As much as a process without privileges may ask for (fs.pipe-max-size).
    const LOG_BYTES: i32 = 1 << 20;
    // A user who has too many pages in pipes is refused, and has the usual size.
    let _ = fcntl(log, FcntlArg::F_SETPIPE_SZ(LOG_BYTES));
}

/// Takes the settings of whoever runs the tests from the environment of `command`: they are not
/// what is tested.
fn forget_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"UPPERCASED_") {
            command.env_remove(name);
        }
    }
}

/// A command that executes `program` with the sockets in the places where a service manager leaves
/// them.
fn handing_over(program: &Path, sockets: Vec<Named>) -> Command {
    const FIRST: i32 = 3;
    // Out of the way of the places that are filled.
    const APART: i32 = 1000;
    let mut command = Command::new("/bin/sh");
    // The number of the process is known when there is one, and exec keeps it.
    command.arg("-c").arg("LISTEN_PID=$$ exec \"$0\" \"$@\"");
    let names: Vec<&str> = sockets.iter().map(|(name, _)| &**name).collect();
    command
        .arg(program)
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    let sockets: Vec<OwnedFd> = sockets
        .iter()
        .map(|(_, socket)| fcntl_dupfd_cloexec(socket, APART).expect("duplicate a socket"))
        .collect();
    let place = move || {
        for (socket, number) in sockets.iter().zip(FIRST..) {
            // SAFETY: between fork and exec whatever had the number is not used again.
            let placed = unsafe { dup2_raw(socket, number) }?;
            std::mem::forget(placed);
        }
        Ok(())
    };
    // SAFETY: in the child of a fork the closure makes the system call dup2 and nothing else; what
    // it has was allocated before, and an errno becomes an `io::Error` without allocating.
    unsafe { command.pre_exec(place) };
    command
}

fn control_path(folder: &TempDir) -> PathBuf {
    folder.path().join("control")
}

/// An announced address as a client can use it: `*` and the unspecified addresses mean this host.
#[track_caller]
fn reachable(announced: &str) -> SocketAddr {
    let text = announced.trim();
    let text = text.strip_prefix("*:").map_or_else(
        || text.to_owned(),
        |port| format!("{}:{port}", Ipv4Addr::LOCALHOST),
    );
    let mut addr: SocketAddr = text
        .parse()
        .unwrap_or_else(|error| panic!("announced address {announced:?}: {error}"));
    match addr.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    addr
}

/// Whether a child of the supervisor runs in the worker role: it says so in the name or the first
/// argument that it was executed with. One that was forked and not yet executed still shows the
/// supervisor's own command line, where `--workers` is an option.
fn is_worker(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.split(|byte| *byte == 0).take(2).any(|arg| {
            let arg = String::from_utf8_lossy(arg);
            let name = arg.rsplit('/').next().unwrap_or_default();
            name.contains("worker") && !name.starts_with("--workers")
        })
    })
}
