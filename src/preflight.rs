//! The pre-flight of an upgrade: this program, as a child of the running supervisor, shows that it
//! could take its place.
//!
//! It reads the very state that it would be given and the configuration from the arguments that it
//! would be given, and comes up as far as a worker does. It binds nothing, serves nobody, and ends
//! when it has said how that went.

use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};

use crate::channel::Channel;
use crate::config::Config;
use crate::fault;
use crate::identity::WorkerId;
use crate::log;
use crate::supervisor;
use crate::sys::fd::inherited_channel;
use crate::wire::{Envelope, Failed, Message, Ready};
use crate::worker;

/// How long it waits to be given the state, which is sent before it is even started.
const ORDER_TIMEOUT_MS: u16 = 10_000;

/// Runs the pre-flight with the configuration that this program makes of the running server's
/// arguments, or why it makes none.
#[must_use]
pub fn run(config: Result<Config, String>) -> ExitCode {
    let Some(channel) = inherited_channel() else {
        log::complain("the pre-flight is the supervisor's to start; run `uppercased upgrade`");
        return ExitCode::from(2);
    };
    fault::point("preflight.starting");
    let mut channel = Channel::over(channel);
    let state = match await_state(&mut channel) {
        Ok(state) => state,
        Err(cause) => {
            log::complain(&format!("the pre-flight was given no state: {cause}"));
            return ExitCode::FAILURE;
        }
    };
    let verdict = rehearse(config, state);
    let passed = verdict.is_ok();
    let message = match verdict {
        Ok(()) => Message::Ready(Ready {
            listen: Vec::new(),
            sandbox: None,
        }),
        Err(cause) => Message::Failed(Failed { cause }),
    };
    let worker = WorkerId::default();
    let said = channel.send(&Envelope { worker, message }, &[]);
    if passed && said.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn rehearse(config: Result<Config, String>, state: OwnedFd) -> Result<(), String> {
    let config = config?;
    let start = supervisor::examine(state, config)?;
    worker::rehearse(&start).map_err(|error| format!("its workers cannot come up: {error}"))
}

fn await_state(channel: &mut Channel) -> Result<OwnedFd, String> {
    let mut readable = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    poll(&mut readable, PollTimeout::from(ORDER_TIMEOUT_MS)).map_err(|errno| errno.to_string())?;
    let received = channel.receive().map_err(|error| error.to_string())?;
    let received = received.ok_or("nothing came")?;
    match received.envelope.message {
        Message::Preflight(_) => received.descriptors.into_iter().next(),
        _ => None,
    }
    .ok_or_else(|| "something else came".to_owned())
}
