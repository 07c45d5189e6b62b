//! The program of a reload or an upgrade: the preflight child, and the exec in place.
//!
//! The new binary is opened once; as a child it reads the state that it would take over, and starts
//! up as far as a worker does; only the file that passed is executed. The state is passed on in a
//! memfd, and descriptors by their numbers.
//!
//! Invariant: a failure before the exec leaves everything as it was.

mod earlier;
mod program;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use mio::Registry;
use serde::{Deserialize, Serialize};

use crate::channel::{self, Channel};
use crate::config::{Config, path_bytes, verify};
use crate::fault;
use crate::sys::image::Image;
use crate::wire::{Envelope, FromPreflight, ToPreflight};
use uppercased_ctl::identity::RequestId;

use super::machine::ExitStatus;
use super::subprocess::{Ended, Subprocess};
use super::tokens::Source;

pub(crate) use earlier::EarlierBinary;
pub use earlier::is_resuming;

#[derive(Debug)]
pub(crate) struct Upgrade {
    /// The path at which a reload or an upgrade finds the program.
    program: PathBuf,
    /// The arguments of this server, the program's own name first.
    args: Vec<OsString>,
    stage: Stage,
}

/// The program in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    #[serde(with = "path_bytes")]
    program: PathBuf,
}

/// The stage of the child of a reload or an upgrade.
#[derive(Debug)]
enum Stage {
    /// There is no child.
    Idle,
    /// A child runs and has not answered.
    Running { task: Task, child: Child },
    /// The new binary could take over; this file is executed next, with the configuration that it
    /// has read.
    Passed(Passed),
}

#[derive(Debug)]
enum Task {
    /// Reads the configuration for a reload.
    Resolve { request: RequestId },
    /// Checks that this program can take over.
    TakeOver { image: Image },
}

type Child = Subprocess<Channel<ToPreflight, FromPreflight>>;

/// A program that can take over, and the configuration that it has read.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) image: Image,
    pub(crate) config: serde_json::Value,
}

/// The result of a child.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "an event is handled as soon as it is returned"
)]
pub(crate) enum Event {
    /// The configuration of a reload, or the cause of its failure.
    Resolved {
        request: RequestId,
        config: Result<Config, String>,
    },
    /// The new binary can take over.
    Passed,
    /// It cannot, for this cause.
    Failed(String),
}

impl Upgrade {
    /// # Errors
    /// `/proc/self/exe` cannot be read.
    pub(crate) fn new(args: Vec<OsString>) -> io::Result<Self> {
        let name = args.first().map(OsString::as_os_str);
        let program = program::path_of_this(name)?;
        Ok(Self::over(program, args))
    }

    const fn over(program: PathBuf, args: Vec<OsString>) -> Self {
        Self {
            program,
            args,
            stage: Stage::Idle,
        }
    }

    /// Opens the new binary.
    ///
    /// # Errors
    /// The cause.
    pub(crate) fn open_program(&self) -> Result<Image, String> {
        Image::open(&self.program).map_err(|error| {
            let program = self.program.display();
            format!("cannot open the binary {program}: {error}; install it")
        })
    }

    /// Starts a child that reads the configuration for a reload. [`Self::end`] is needed even if
    /// this fails.
    ///
    /// # Errors
    /// The cause.
    pub(crate) fn begin_resolution(
        &mut self,
        request: RequestId,
        registry: &Registry,
    ) -> Result<(), String> {
        let image = Image::of_this_process().map_err(|error| error.to_string())?;
        let child = self.start(&image, ToPreflight::Resolve, &[]);
        let child = child.map_err(|error| error.to_string())?;
        self.watch(Task::Resolve { request }, child, registry)?;
        fault::point("supervisor.resolving");
        Ok(())
    }

    /// Starts a preflight of the new binary with `state`. [`Self::end`] is needed even if this
    /// fails.
    ///
    /// # Errors
    /// The cause.
    pub(crate) fn begin_preflight(
        &mut self,
        state: &OwnedFd,
        registry: &Registry,
    ) -> Result<(), String> {
        let image = self.open_program()?;
        let child = self.start(&image, ToPreflight::TakeOver, &[state.as_fd()]);
        let child = child.map_err(|error| {
            let program = self.program.display();
            format!("cannot check the binary {program}: {error}")
        })?;
        self.watch(Task::TakeOver { image }, child, registry)?;
        fault::point("supervisor.preflight");
        Ok(())
    }

    /// Receives the result of the child, from its message or its exit; the child must then be
    /// killed. `None` while there is no result.
    pub(crate) fn on_ready(&mut self) -> Option<(Event, Ended)> {
        let Stage::Running { child, .. } = &mut self.stage else {
            return None;
        };
        // Before its channel is read: what a process has sent is there once it has exited.
        let exit = child.reap();
        let result = match child.channel.receive() {
            Ok(Some(received)) => match received.envelope.message {
                FromPreflight::Resolved { config } => Ok(config),
                FromPreflight::Failed { cause } => Err(cause),
                FromPreflight::Answered { .. } => Err("it answered another question".to_owned()),
            },
            // After closing its channel it exits; its pidfd reports the status.
            Ok(None) | Err(channel::Error::Closed) => Err(ended_early(exit?)),
            Err(error) => Err(error.to_string()),
        };
        let Stage::Running { task, child } = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return None;
        };
        let event = match task {
            Task::Resolve { request } => Event::Resolved {
                request,
                config: result.and_then(checked),
            },
            Task::TakeOver { image } => match result {
                Ok(config) => {
                    self.stage = Stage::Passed(Passed { image, config });
                    Event::Passed
                }
                Err(cause) => {
                    let program = self.program.display();
                    Event::Failed(format!("cannot upgrade to {program}: {cause}"))
                }
            },
        };
        Some((event, child.into_ended()))
    }

    /// Discards the child and its result. The child must be killed.
    pub(crate) fn end(&mut self) -> Option<Ended> {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle | Stage::Passed(_) => None,
            Stage::Running { child, .. } => Some(child.into_ended()),
        }
    }

    /// Returns the configuration of the checked program. `None` without one, or if only the new
    /// program can read it.
    pub(crate) fn passed_config(&self) -> Option<Config> {
        match &self.stage {
            Stage::Passed(passed) => checked(passed.config.clone()).ok(),
            Stage::Idle | Stage::Running { .. } => None,
        }
    }

    /// Removes and returns the checked program.
    pub(crate) fn take_passed(&mut self) -> Option<Passed> {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Passed(passed) => Some(passed),
            Stage::Idle | Stage::Running { .. } => None,
        }
    }

    /// Execs `image`, which finds the state in the descriptor that `state` names. Returns the
    /// error; nothing has changed then.
    pub(crate) fn exec(&self, image: &Image, state: &str, kept: &[BorrowedFd<'_>]) -> String {
        let error = image.replace_this_process(&self.args, state, kept);
        format!("cannot execute {}: {error}", self.program.display())
    }

    /// Returns the process number of the child, while there is one.
    pub(crate) const fn pid(&self) -> Option<i32> {
        match &self.stage {
            Stage::Running { child, .. } => Some(child.pid()),
            Stage::Idle | Stage::Passed(_) => None,
        }
    }

    pub(crate) fn save(&self) -> Saved {
        Saved {
            program: self.program.clone(),
        }
    }

    /// Restores the state saved by the earlier binary of this process.
    pub(crate) fn restore(saved: Saved, args: Vec<OsString>) -> Self {
        Self::over(saved.program, args)
    }

    /// Starts a child that runs `image` with the arguments of this server and receives its task.
    fn start(
        &self,
        image: &Image,
        task: ToPreflight,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<Child> {
        let fixed = ["uppercased: preflight", "preflight", "--"].map(OsStr::new);
        let own = self.args.iter().skip(1).map(OsString::as_os_str);
        let arguments = fixed.into_iter().chain(own);
        let task = Envelope::without_worker(task);
        Subprocess::start(image, arguments, &task, descriptors, |cause| {
            FromPreflight::Failed { cause }
        })
    }

    fn watch(&mut self, task: Task, child: Child, registry: &Registry) -> Result<(), String> {
        let watched = child.watch(registry, Source::PreflightChannel, Source::PreflightProcess);
        self.stage = Stage::Running { task, child };
        watched.map_err(|error| format!("cannot watch it: {error}"))
    }
}

/// Parses a configuration that this same program has sent as data.
fn checked(config: serde_json::Value) -> Result<Config, String> {
    let failed = |cause: String| format!("cannot decode the configuration: {cause}");
    let config = serde_json::from_value(config).map_err(|error| failed(error.to_string()))?;
    verify(&config).map_err(|error| failed(error.to_string()))?;
    Ok(config)
}

fn ended_early(exit: ExitStatus) -> String {
    format!("it exited before the preflight completed: {exit}")
}
