//! The state of a supervisor, for the program that replaces it in the same process.
//!
//! Written into a memfd as JSON: each part saves itself, and names its descriptors by their
//! numbers, which an exec keeps. This file writes, reads and checks bytes.
//!
//! Invariants: the version is checked before anything else; a state that is inconsistent, that
//! another version wrote, or that does not match the configuration is refused as a whole. The
//! preflight uses the same function, so a state that passed there passes again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{OwnedFd, RawFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fleet::releases::{Limits, Release};
use super::machine::{Machine, Snapshot, SnapshotError};
use super::{admin, control, fleet, locks, reaper, signals, systemd, telemetry, upgrade};
use crate::config::{Config, LogFormat, LogLevel, NeedsStop, check_change};
use crate::fault;
use crate::sys::fd::Descriptor;
use crate::sys::image::Image;
use crate::sys::limits::explain;
use crate::wire;
use uppercased_ctl::process::raise_descriptor_limit;

/// The format that this program writes and reads.
const STATE_VERSION: u32 = 1;
/// Maximum size of a state, in bytes: a thousand slots need about a hundredth of it.
const STATE_MAX_BYTES: u64 = 64 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// [`State::versions`] of the writer.
    pub(super) version: u32,
    /// The version of the messages that the running workers understand.
    pub(super) wire: u16,
    /// The program that wrote this, for the log.
    pub(super) written_by: String,
    pub(super) machine: Snapshot,
    pub(super) fleet: fleet::Saved,
    pub(super) control: control::Saved,
    pub(super) admin: admin::Saved,
    pub(super) systemd: systemd::Saved,
    /// The workers' end of the lease.
    pub(super) lease: Descriptor,
    pub(super) upgrade: upgrade::Saved,
    pub(super) telemetry: telemetry::Saved,
    pub(super) locks: locks::Saved,
    pub(super) signals: signals::Saved,
    pub(super) reaper: reaper::Saved,
    /// The configuration as the new binary's preflight has read it, in that program's format;
    /// absent in the state that a preflight reads.
    pub(super) resolved: Option<Value>,
}

/// The reason why a program cannot take over a state. One line each.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "cannot read the running server's state: it has version {found}, and the new binary reads \
         version {reads}; restart the server"
    )]
    Version { found: u32, reads: u32 },
    #[error(
        "cannot send to the running workers: they use message version {found}, and the new binary \
         uses version {reads}; restart the server"
    )]
    Wire { found: u16, reads: u16 },
    #[error("cannot read the running server's state: {0}")]
    Format(#[from] serde_json::Error),
    #[error("cannot read the running server's state: {0}")]
    System(#[from] io::Error),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("cannot use the running server's state: {0}")]
    Contradiction(&'static str),
    #[error("cannot use the configuration with the new binary: {0}")]
    Config(#[from] NeedsStop),
}

impl State {
    /// Returns the versions that this program writes and reads: of the state, and of the messages.
    pub(super) fn versions() -> (u32, u16) {
        let other = fault::value("state_version").and_then(|version| version.parse().ok());
        (other.unwrap_or(STATE_VERSION), wire::version())
    }

    /// Writes the state to a new file.
    ///
    /// # Errors
    /// The cause, in one line.
    pub(super) fn write(&self) -> Result<OwnedFd, String> {
        let failed = |error: io::Error| format!("cannot save the state: {}", explain(&error));
        let bytes = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let name = c"uppercased-state";
        let memfd = memfd_create(name, MFdFlags::MFD_CLOEXEC);
        let mut file = File::from(memfd.map_err(|errno| failed(errno.into()))?);
        file.write_all(&bytes).map_err(failed)?;
        Ok(file.into())
    }

    /// Reads a state from a file.
    ///
    /// # Errors
    /// It is not a state, or this program cannot take it over.
    pub(super) fn read(file: OwnedFd) -> Result<(Self, Machine), Error> {
        let mut file = File::from(file);
        file.rewind()?;
        let mut bytes = Vec::new();
        file.take(STATE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > STATE_MAX_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        Self::decode(&bytes)
    }

    /// Decodes a state and checks everything that needs no descriptor, including the machine.
    fn decode(bytes: &[u8]) -> Result<(Self, Machine), Error> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
            wire: u16,
        }
        let header: Header = serde_json::from_slice(bytes)?;
        let (version, wire) = Self::versions();
        if header.version != version {
            return Err(Error::Version {
                found: header.version,
                reads: version,
            });
        }
        if header.wire != wire {
            return Err(Error::Wire {
                found: header.wire,
                reads: wire,
            });
        }
        let mut numbers = BTreeSet::new();
        if !named_once(&serde_json::from_slice(bytes)?, &mut numbers) {
            return Err(Error::Contradiction("a descriptor is listed twice"));
        }
        let state: Self = serde_json::from_slice(bytes)?;
        let machine = Machine::restore(state.machine.clone())?;
        if machine.slots().count() != state.fleet.slot_count() {
            return Err(Error::Contradiction("slots and resources differ"));
        }
        state.config()?;
        Ok((state, machine))
    }

    /// Checks that a server in this state can change to `wanted`.
    ///
    /// # Errors
    /// The reason why it cannot.
    pub(super) fn check_config(&self, wanted: &Config) -> Result<(), Error> {
        Ok(check_change(self.config()?, wanted)?)
    }

    pub(super) fn log_settings(&self) -> (LogLevel, LogFormat) {
        let settings = self.config().map(|it| (it.log_level, it.log_format));
        settings.unwrap_or((LogLevel::Info, LogFormat::Human))
    }

    /// Returns the configuration in force.
    fn config(&self) -> Result<&Config, Error> {
        let missing = Error::Contradiction("the release in force is missing");
        self.fleet.config().ok_or(missing)
    }
}

/// Returns whether every descriptor named in `value`, at any depth, is named once.
fn named_once(value: &Value, numbers: &mut BTreeSet<RawFd>) -> bool {
    match value {
        Value::Object(object) => match Descriptor::deserialize(value) {
            Ok(descriptor) if object.len() == 1 => numbers.insert(descriptor.number()),
            _ => object.values().all(|value| named_once(value, numbers)),
        },
        Value::Array(array) => array.iter().all(|value| named_once(value, numbers)),
        _ => true,
    }
}

/// Checks that this program could take over the state in `written`, with `config` as it reads it:
/// the part of a preflight that concerns the supervisor. Returns the first message to a worker.
///
/// # Errors
/// The cause, in one line.
pub fn examine(written: OwnedFd, config: Config) -> Result<wire::Start, String> {
    let (state, machine) = State::read(written).map_err(|error| error.to_string())?;
    state
        .check_config(&config)
        .map_err(|error| error.to_string())?;
    let nofile = raise_descriptor_limit();
    let nofile = nofile.map_err(|error| format!("cannot raise the descriptor limit: {error}"))?;
    let workers = config.workers.max(machine.policy().workers);
    let limits = Limits::of_worker(&config, workers, nofile).map_err(|error| error.to_string())?;
    let image = Image::of_this_process();
    let image = image.map_err(|error| format!("cannot open /proc/self/exe: {error}"))?;
    let release = Release {
        image,
        config,
        limits,
    };
    Ok(release.start(state.fleet.addresses(), true, true))
}

#[cfg(test)]
mod tests;
