//! The program run bare: not waited for until it serves, its standard error perhaps not read.

use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::lines::Lines;
use super::process::{DEADLINE, Watched, sweep};

/// The environment entry by which its descendants are found.
const MARK: &str = "E2E_BARE";

/// A process of the program. Dropping it kills it and everything that came from it.
#[derive(Debug)]
pub struct Bare {
    child: Child,
    process: Watched,
    stdout: Lines,
    stderr: Option<ChildStderr>,
    mark: String,
}

impl Bare {
    /// Starts the program with `args` and waits for nothing.
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
        // The settings of whoever runs the tests are not what is tested.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"UPPERCASED_") {
                command.env_remove(name);
            }
        }
        // Nobody gives it orders, and one that is killed would leave its socket in a folder of all.
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

    /// The process.
    pub fn process(&self) -> &Watched {
        &self.process
    }

    /// What it prints to standard output.
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// The reading end of its standard error, which nobody reads; to be asked for once.
    #[track_caller]
    pub fn take_stderr(&mut self) -> ChildStderr {
        self.stderr.take().expect("taken once")
    }

    /// Waits until it has ended; how it did.
    #[track_caller]
    pub fn wait_exit(&self, within: Duration) -> ExitStatus {
        let status = self.process.exit_status(within);
        status.unwrap_or_else(|| panic!("the program is still there after {within:?}"))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let swept = sweep(&self.mark);
        // Of those that it found there is none left; this one it finds unless it is a zombie.
        let gone = self.process.wait_gone(DEADLINE);
        let reaped = self.child.wait();
        if !std::thread::panicking() {
            swept.expect("end everything that it started");
            assert!(gone, "it survives SIGKILL");
            reaped.expect("reap it");
        }
    }
}
