//! A child of the running supervisor for blocking work, done before anything is changed.
//!
//! For a reload it runs the supervisor's own program and reads the configuration from the server's
//! arguments: host names, users and files are resolved here. For an upgrade it runs the new
//! program, reads the configuration likewise and the actual state to be passed on, and initializes
//! as far as a worker does. Either way it returns the configuration as data. It binds nothing,
//! serves no client, exits after its reply, and never outlives its supervisor. For a stop it asks the
//! service manager whether the service is to start again.

pub(crate) mod job;

use std::process::ExitCode;

use rustix::process::{Signal, set_parent_process_death_signal};
use std::os::fd::OwnedFd;

use crate::channel::Channel;
use crate::config::Config;
use crate::fault;
use crate::supervisor;
use crate::sys::fd::inherited_channel;
use crate::wire::{Envelope, FromPreflight, ToPreflight};
use crate::worker;
use uppercased_ctl::stderr;

/// The task of the child.
enum Task {
    /// Read the configuration.
    Resolve,
    /// Also show that it can take over with this state.
    TakeOver(OwnedFd),
    /// Ask the service manager why the server is being stopped.
    Ask,
}

/// Runs the child. `read` reads the configuration of the running server again; it may block.
#[must_use]
pub fn run(read: impl FnOnce() -> Result<Config, String>) -> ExitCode {
    let Some(channel) = inherited_channel() else {
        stderr::write_error(
            "cannot run the pre-flight check: only the supervisor starts it; run `uppercased \
             upgrade`",
        );
        return ExitCode::from(2);
    };
    // The following may block. Fails for no valid signal.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    fault::point("preflight.starting");
    let mut channel = Channel::over(channel);
    let task = match await_task(&mut channel) {
        Ok(task) => task,
        Err(cause) => {
            stderr::write_error(&format!(
                "cannot run the pre-flight check: no task received: {cause}"
            ));
            return ExitCode::FAILURE;
        }
    };
    let outcome = carry_out(task, read);
    let passed = outcome.is_ok();
    let message = match outcome {
        Ok(message) => message,
        Err(cause) => FromPreflight::Failed { cause },
    };
    let sent = channel.send(&Envelope::without_worker(message), &[]);
    if passed && sent.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn carry_out(
    task: Task,
    read: impl FnOnce() -> Result<Config, String>,
) -> Result<FromPreflight, String> {
    if matches!(task, Task::Ask) {
        let job = job::ask()?;
        return Ok(FromPreflight::Answered { job });
    }
    let config = read()?;
    let as_data = serde_json::to_value(&config).map_err(|error| error.to_string())?;
    if let Task::TakeOver(state) = task {
        rehearse(config, state)?;
    }
    Ok(FromPreflight::Resolved { config: as_data })
}

fn rehearse(config: Config, state: OwnedFd) -> Result<(), String> {
    let start = supervisor::examine(state, config)?;
    worker::rehearse(&start).map_err(|error| format!("its workers cannot start: {error}"))
}

fn await_task(channel: &mut Channel<FromPreflight, ToPreflight>) -> Result<Task, String> {
    let received = channel.receive_first().map_err(|error| error.to_string())?;
    match received.envelope.message {
        ToPreflight::Resolve => Ok(Task::Resolve),
        ToPreflight::Ask => Ok(Task::Ask),
        ToPreflight::TakeOver => {
            let state = received.descriptors.into_iter().next();
            Ok(Task::TakeOver(state.ok_or("no state arrived")?))
        }
    }
}
