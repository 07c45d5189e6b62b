//! The program without a wrapper: it is not waited for, and its standard error may remain unread.

use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::lines::Lines;
use super::process::{DEADLINE, Watched, sweep};

/// The environment variable that marks its descendants.
const MARK: &str = "E2E_BARE";

/// A process of the program. Dropping it kills it and all its descendants.
#[derive(Debug)]
pub struct Bare {
    child: Child,
    process: Watched,
    stdout: Lines,
    stderr: Option<ChildStderr>,
    mark: String,
}

impl Bare {
    /// Starts the program with `args` without waiting.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", std::process::id());
        let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
        command
            .args(args)
            .env(MARK, &id)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Settings in the caller's environment are not under test.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"UPPERCASED_") {
                command.env_remove(name);
            }
        }
        // No control socket: a killed server would leave it in a shared directory.
        command.env("UPPERCASED_CONTROL", "off");
        let mut child = command.spawn().expect("start the program");
        Self {
            process: Watched::open(child.id()).expect("a child that was not reaped"),
            stdout: Lines::follow(child.stdout.take().expect("a pipe was asked for")),
            stderr: child.stderr.take(),
            mark: format!("{MARK}={id}"),
            child,
        }
    }

    /// Returns the process.
    pub fn process(&self) -> &Watched {
        &self.process
    }

    /// Returns its standard output.
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// Returns the unread end of its standard error; may be called once.
    #[track_caller]
    pub fn take_stderr(&mut self) -> ChildStderr {
        self.stderr.take().expect("taken once")
    }

    /// Waits until it has exited; returns its exit status.
    #[track_caller]
    pub fn wait_exit(&self, within: Duration) -> ExitStatus {
        let status = self.process.exit_status(within);
        status.unwrap_or_else(|| panic!("the program is still there after {within:?}"))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let swept = sweep(&self.mark);
        // The sweep kills them all, including this process unless it is a zombie.
        let gone = self.process.wait_gone(DEADLINE);
        let reaped = self.child.wait();
        if !std::thread::panicking() {
            swept.expect("end everything that it started");
            assert!(gone, "it survives SIGKILL");
            reaped.expect("reap it");
        }
    }
}
