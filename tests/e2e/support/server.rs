//! The server under test: started on ports chosen by the kernel, observed, and killed with all its
//! descendants when the test ends.

#![expect(
    unsafe_code,
    reason = "sockets are put in their places between fork and exec"
)]

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
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

use super::give_children_default_signals;
use super::lines::Lines;
use super::netns::Namespace;
use super::process::{DEADLINE, Watched, children, marked, sweep};
use super::service_manager::Named;

/// Time limit of a graceful stop: well above the server's own limit with default settings (32 s),
/// so that a stop at that limit shows in the exit code and not as a late test.
const STOP_DEADLINE: Duration = Duration::from_secs(90);

/// The line on standard output, for each address, once the server serves.
const READY: &str = "listening on ";

/// Time limit of a command: it waits for its operation, which replaces every worker, each with its
/// own deadlines.
const COMMAND_DEADLINE: Duration = Duration::from_secs(180);

/// The variable for the control socket: arguments of a test do not affect it, but a flag overrides
/// it.
const CONTROL: &str = "UPPERCASED_CONTROL";

/// Tests stop workers, on a busy machine for longer than the default allows; a test of this timeout
/// sets the flag, which overrides it.
const HANG_TIMEOUT: (&str, &str) = ("UPPERCASED_HANG_TIMEOUT", "1h");

/// Tests that kill the supervisor expect its workers to stop; a test of this timeout sets the flag,
/// which overrides it.
const ORPHAN_TIMEOUT: (&str, &str) = ("UPPERCASED_ORPHAN_TIMEOUT", "0s");

/// The environment variable that marks all descendants of one server.
const MARK: &str = "E2E_SERVER";

/// Options of a server before it starts.
#[derive(Debug)]
pub struct ServerBuilder {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    listeners: Option<usize>,
    namespace: Option<Namespace>,
    handed_over: Vec<Named>,
    control: Option<PathBuf>,
    user: Option<u32>,
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOutput {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A running server. Dropping it kills the supervisor and all its descendants.
#[derive(Debug)]
pub struct Server {
    running: Running,
    addrs: Vec<SocketAddr>,
}

/// A process of the program and its output.
#[derive(Debug)]
struct Running {
    /// Reaped only on drop, so that its PID stays reserved until then.
    child: Child,
    supervisor: Watched,
    stdout: Lines,
    stderr: Lines,
    mark: String,
    /// Its own directory, with the control socket; removed on drop.
    folder: TempDir,
    control: PathBuf,
    /// Every child found so far. The mark finds them, too, unless their environment is cleared or
    /// unreadable.
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

    /// Runs another file than the program as built, such as a copy that the test replaces.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = path.into();
        self
    }

    /// Starts it in `namespace` instead of the caller's.
    pub fn namespace(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// Passes sockets to it, as a service manager does.
    pub fn hand_over(mut self, sockets: Vec<Named>) -> Self {
        self.handed_over.extend(sockets);
        self
    }

    /// Gives it the control socket of another server, and so the directory of its workers.
    pub fn control_of(mut self, other: &Server) -> Self {
        self.control = Some(other.control());
        self
    }

    /// Runs it as this user, which owns its directory. Only root can.
    pub fn user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    /// Sets the number of addresses that it will announce, if `--listen` does not give them.
    pub fn listeners(mut self, count: usize) -> Self {
        self.listeners = Some(count);
        self
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Server {
        self.try_start().unwrap_or_else(|running| {
            // Dropping it in the panic prints the log.
            let _running = running;
            panic!("the server does not serve on all addresses")
        })
    }

    /// Starts it and waits until it serves, or fails on its own with this exit code and standard
    /// error.
    ///
    /// # Errors
    /// It has failed.
    #[track_caller]
    pub fn start_or_fail(self) -> Result<Server, (i32, String)> {
        self.try_start().map_err(|running| running.failure())
    }

    #[track_caller]
    fn try_start(self) -> Result<Server, Box<Running>> {
        let wanted = self.listeners.unwrap_or_else(|| self.count_listen());
        let running = self.spawn();
        let mut addrs = Vec::new();
        let ready = running.stdout.find_from(0, DEADLINE, |line| {
            addrs.extend(line.strip_prefix(READY).map(reachable));
            addrs.len() == wanted
        });
        if ready.is_none() {
            return Err(Box::new(running));
        }
        running.note_children();
        Ok(Server { running, addrs })
    }

    /// Starts it and waits until it fails on its own; returns its exit code and standard error.
    #[track_caller]
    pub fn expect_failure(self) -> (i32, String) {
        self.spawn().failure()
    }

    #[track_caller]
    fn spawn(mut self) -> Running {
        self.allow_inspection();
        // Unique among all concurrent tests.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", std::process::id());

        let folder = tempfile::tempdir().expect("a folder of its own");
        let control = self.control.take().unwrap_or_else(|| control_path(&folder));
        let mut command = if self.handed_over.is_empty() {
            Command::new(&self.program)
        } else {
            handing_over(&self.program, std::mem::take(&mut self.handed_over))
        };
        remove_settings(&mut command);
        command
            .args(&self.args)
            .env(CONTROL, &control)
            .env(HANG_TIMEOUT.0, HANG_TIMEOUT.1)
            .env(ORPHAN_TIMEOUT.0, ORPHAN_TIMEOUT.1)
            .envs(self.env)
            .env(MARK, &id)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(id) = self.user {
            chown(folder.path(), Some(id), Some(id)).expect("give away an own directory");
            command.uid(id).gid(id);
        }
        if let Some(cwd) = self.cwd {
            command.current_dir(cwd);
        }
        give_children_default_signals();
        // A child starts in the namespace of the thread that starts it.
        let child = match &self.namespace {
            Some(namespace) => namespace.run(|| command.spawn()),
            None => command.spawn(),
        };
        let mut child =
            child.unwrap_or_else(|error| panic!("start {}: {error}", self.program.display()));
        let stdout = Lines::follow(child.stdout.take().expect("a pipe was asked for"));
        let stderr = child.stderr.take().expect("a pipe was asked for");
        enlarge_pipe(&stderr);
        let stderr = Lines::follow(stderr);
        let supervisor = Watched::open(child.id()).expect("a child that was not reaped");
        Running {
            child,
            supervisor,
            stdout,
            stderr,
            mark: format!("{MARK}={id}"),
            folder,
            control,
            seen: Mutex::default(),
        }
    }

    /// Keeps sandboxed workers readable for tests that do not run as root.
    fn allow_inspection(&mut self) {
        if nix::unistd::geteuid().is_root() {
            return;
        }
        let plans = self.env.iter_mut();
        let mut plans = plans.filter(|(name, _)| name == uppercased::fault::VARIABLE);
        match plans.next() {
            Some((_, plan)) => plan.push(";sandbox.begun=dumpable"),
            None => {
                let entry = (
                    uppercased::fault::VARIABLE.into(),
                    "sandbox.begun=dumpable".into(),
                );
                self.env.push(entry);
            }
        }
    }

    /// Returns the number of addresses on the command line; without any, the default address
    /// counts.
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
        // Two tests on the default port would refuse each other.
        let own = |arg: &&str| arg.starts_with("--listen") || arg.starts_with("--config");
        assert!(
            args.iter().any(own),
            "a test names its port: --listen=127.0.0.1:0"
        );
        Self::builder().args(args).start()
    }

    /// Returns a builder, for options beyond [`Self::start`].
    pub fn builder() -> ServerBuilder {
        ServerBuilder {
            program: env!("CARGO_BIN_EXE_uppercased").into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            listeners: None,
            namespace: None,
            control: None,
            user: None,
            handed_over: Vec::new(),
        }
    }

    /// Runs the program with `args` that it must reject; returns its exit code and standard error.
    #[track_caller]
    pub fn expect_failure(args: &[&str]) -> (i32, String) {
        Self::builder().args(args).expect_failure()
    }

    /// Returns its first address in a form usable by clients.
    pub fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    /// Returns all its addresses, in announced order.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Returns the PID of the supervisor.
    pub fn pid(&self) -> u32 {
        self.running.supervisor.pid()
    }

    /// Returns the PIDs of the running workers, in order.
    pub fn worker_pids(&self) -> Vec<u32> {
        let mut children = self.running.note_children();
        children.retain(|pid| is_worker(*pid) && !is_keeper(*pid));
        children
    }

    /// Returns the PIDs of the workers' keepers, in order.
    pub fn keeper_pids(&self) -> Vec<u32> {
        let mut children = self.running.note_children();
        children.retain(|pid| is_keeper(*pid));
        children
    }

    /// Returns the PIDs of the workers whose supervisor has exited.
    pub fn orphan_pids(&self) -> Vec<u32> {
        let mut processes = self.processes();
        processes.retain(|pid| is_worker(*pid) && !is_keeper(*pid));
        processes
    }

    /// Returns the PIDs of those workers' keepers.
    pub fn orphan_keeper_pids(&self) -> Vec<u32> {
        let mut processes = self.processes();
        processes.retain(|pid| is_keeper(*pid));
        processes
    }

    /// Returns the PIDs of the server and all its running descendants, including orphans.
    pub fn processes(&self) -> Vec<u32> {
        let family = marked(&self.running.mark);
        let mut pids: Vec<u32> = family.iter().map(Watched::pid).collect();
        pids.sort_unstable();
        pids
    }

    /// Returns the path of its control socket, unless the test sets another.
    pub fn control(&self) -> PathBuf {
        self.running.control.clone()
    }

    /// Returns a directory that is removed with this.
    pub fn folder(&self) -> &Path {
        self.running.folder.path()
    }

    /// Runs `uppercased reload`.
    #[track_caller]
    pub fn reload(&self) -> CommandOutput {
        self.command(&["reload"])
    }

    /// Runs `uppercased upgrade`.
    #[track_caller]
    pub fn upgrade(&self) -> CommandOutput {
        self.command(&["upgrade"])
    }

    /// Runs `uppercased scale`.
    #[track_caller]
    pub fn scale(&self, workers: u16) -> CommandOutput {
        self.command(&["scale", &workers.to_string()])
    }

    /// Runs `uppercased status --json`, which must succeed, and parses the output.
    #[track_caller]
    pub fn status_json(&self) -> serde_json::Value {
        let answered = self.command(&["status", "--json"]).expect_success();
        serde_json::from_str(&answered.stdout)
            .unwrap_or_else(|error| panic!("no JSON: {error}: {answered:?}"))
    }

    /// Runs a command of the program against this server and waits for its result.
    #[track_caller]
    pub fn command(&self, command: &[&str]) -> CommandOutput {
        let running = self.start_command(command);
        running.wait()
    }

    /// Starts a command without waiting for its result.
    #[track_caller]
    pub fn start_command(&self, command: &[&str]) -> RunningCommand {
        // The program as built, not the one run by the server, which may be broken.
        let mut process = Command::new(env!("CARGO_BIN_EXE_uppercased"));
        remove_settings(&mut process);
        process.args(command).arg("--control").arg(self.control());
        RunningCommand::start(process)
    }

    /// Sends `signal` to the supervisor.
    pub fn signal(&self, signal: Signal) {
        self.running.note_children();
        self.running.supervisor.signal(signal);
    }

    /// Stops it with SIGTERM and waits; returns its exit status.
    #[track_caller]
    pub fn stop(&self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit(STOP_DEADLINE)
    }

    /// Kills only the supervisor and waits until it is gone; its workers continue until this is
    /// dropped.
    #[track_caller]
    pub fn kill(&self) {
        // Stopped first, so that it cannot fork an unnoticed child.
        self.running.supervisor.signal(Signal::SIGSTOP);
        self.running.note_children();
        self.running.supervisor.signal(Signal::SIGKILL);
        self.wait_exit(DEADLINE);
    }

    /// Waits until the supervisor has exited; returns its exit status.
    #[track_caller]
    pub fn wait_exit(&self, within: Duration) -> ExitStatus {
        self.running.wait_exit(within)
    }

    /// Returns whether the supervisor is running.
    pub fn is_running(&self) -> bool {
        !self.running.supervisor.is_gone()
    }

    /// Waits for the first line of the log that `wanted` accepts, and returns it.
    #[track_caller]
    pub fn wait_log(&self, wanted: impl FnMut(&str) -> bool) -> String {
        self.wait_log_from(0, wanted)
    }

    /// Like [`Self::wait_log`], from line number `start` on, a result of [`Self::log_len`].
    #[track_caller]
    pub fn wait_log_from(&self, start: usize, wanted: impl FnMut(&str) -> bool) -> String {
        self.running
            .stderr
            .find_from(start, DEADLINE, wanted)
            .unwrap_or_else(|| panic!("no such line in the log from line {start} on"))
    }

    /// Waits, from line `start` of the log on, for a line that `wanted` accepts; returns whether there
    /// was one in time.
    pub fn logs_within(
        &self,
        start: usize,
        within: Duration,
        wanted: impl FnMut(&str) -> bool,
    ) -> bool {
        let stderr = &self.running.stderr;
        stderr.find_from(start, within, wanted).is_some()
    }

    /// Returns the number of lines in the log.
    pub fn log_len(&self) -> usize {
        self.running.stderr.len()
    }

    /// Returns the log so far.
    pub fn log(&self) -> Vec<String> {
        self.running.stderr.all()
    }

    /// Waits until the last process that writes the log has exited; returns the whole log.
    #[track_caller]
    pub fn whole_log(&self) -> Vec<String> {
        let ended = self.running.stderr.wait_end(DEADLINE);
        assert!(ended, "a process that holds the log is still there");
        self.log()
    }

    /// Returns its standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.running.stdout.all()
    }
}

/// A command in progress. Dropping it kills only the command.
#[derive(Debug)]
pub struct RunningCommand {
    child: Child,
    process: Watched,
    stdout: Lines,
    stderr: Lines,
}

impl RunningCommand {
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

    /// Returns its standard output so far.
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// Waits for its result.
    #[track_caller]
    pub fn wait(self) -> CommandOutput {
        let status = self.process.exit_status(COMMAND_DEADLINE);
        let reported = || format!("{}{}", self.stdout.text(), self.stderr.text());
        let status = status.unwrap_or_else(|| {
            panic!(
                "no answer within {COMMAND_DEADLINE:?}; so far: {}",
                reported()
            )
        });
        let complete = self.stdout.wait_end(DEADLINE) && self.stderr.wait_end(DEADLINE);
        assert!(complete, "a process still holds the output of the command");
        let code = status.code();
        CommandOutput {
            code: code.unwrap_or_else(|| panic!("the command ended by {status}: {}", reported())),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        self.process.signal(Signal::SIGKILL);
        // It has exited or was killed, so this does not block; at worst a zombie remains.
        drop(self.child.wait());
    }
}

impl CommandOutput {
    /// Asserts that it succeeded.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Asserts that it failed with a message that contains `cause`.
    #[track_caller]
    pub fn expect_failure(self, cause: &str) -> Self {
        let reported = format!("{}{}", self.stdout, self.stderr);
        assert!(self.code != 0 && reported.contains(cause), "{self:?}");
        self
    }
}

impl Running {
    /// Waits until it fails on its own; returns its exit code and standard error.
    #[track_caller]
    fn failure(&self) -> (i32, String) {
        let status = self.wait_exit(DEADLINE);
        assert!(
            self.stderr.wait_end(DEADLINE),
            "a process still holds its log"
        );
        let code = status.code();
        assert!(code != Some(0), "it should have failed, but ended with 0");
        let code = code.unwrap_or_else(|| panic!("it should have failed by itself: {status}"));
        (code, self.stderr.text())
    }

    #[track_caller]
    fn wait_exit(&self, within: Duration) -> ExitStatus {
        self.supervisor
            .exit_status(within)
            .unwrap_or_else(|| panic!("the supervisor is still there after {within:?}"))
    }

    /// Records the supervisor's current children and returns their PIDs.
    fn note_children(&self) -> Vec<u32> {
        let pids = children(self.supervisor.pid());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in &pids {
            // A recorded process that is gone no longer owns this PID.
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
            // Complete, because no process can write to it any more.
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

/// Enlarges the pipe of the log: the server drops lines that do not fit, tests wait for lines, and
/// on a busy machine the reading thread may run too late for a pipe of the default size.
fn enlarge_pipe(log: &ChildStderr) {
    /// The largest size for an unprivileged process (fs.pipe-max-size).
    const LOG_BYTES: i32 = 1 << 20;
    // Fails for a user with too many pipe pages; the pipe then keeps its default size.
    let _ = fcntl(log, FcntlArg::F_SETPIPE_SZ(LOG_BYTES));
}

/// Removes the caller's settings from the environment of `command`: they are not under test.
fn remove_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"UPPERCASED_") {
            command.env_remove(name);
        }
    }
}

/// Returns a command that executes `program` with the sockets at a service manager's descriptor
/// numbers.
fn handing_over(program: &Path, sockets: Vec<Named>) -> Command {
    const FIRST: i32 = 3;
    // Above the descriptor numbers that are filled.
    const APART: i32 = 1000;
    let mut command = Command::new("/bin/sh");
    // Only the child knows the PID, which exec keeps.
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
            // SAFETY: between fork and exec the descriptor that had the number is not used again.
            let placed = unsafe { dup2_raw(socket, number) }?;
            std::mem::forget(placed);
        }
        Ok(())
    };
    // SAFETY: in the child of a fork the closure makes only the system call dup2; its data was
    // allocated before the fork, and an errno becomes an `io::Error` without allocating.
    unsafe { command.pre_exec(place) };
    command
}

fn control_path(folder: &TempDir) -> PathBuf {
    folder.path().join("control")
}

/// Returns an announced address in a form usable by clients: `*` and the unspecified addresses
/// become loopback addresses.
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

/// Returns whether a process keeps a worker: it has the worker's arguments and a name of its own.
fn is_keeper(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == b"uppercased-keep\n")
}

/// Returns whether a child of the supervisor runs in the worker role, by its name or first
/// argument. A child before exec still has the supervisor's command line, where `--workers` is an
/// option.
fn is_worker(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.split(|byte| *byte == 0).take(2).any(|arg| {
            let arg = String::from_utf8_lossy(arg);
            let name = arg.rsplit('/').next().unwrap_or_default();
            name.contains("worker") && !name.starts_with("--workers")
        })
    })
}
