//! All that a supervisor is, for the program that replaces it in the same process.
//!
//! Written into a memfd as JSON; descriptors are named by their numbers, which exec keeps. This file
//! only reads and checks bytes; [`mod@super::resume`] does the rest.
//!
//! Invariants: the version is looked at before anything else; a state that contradicts itself, that
//! another version wrote, or that does not go with the configuration is refused as a whole, by the
//! very function that the pre-flight uses, so that what passed there passes again.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::admin::SavedListener;
use super::fleet::relisten::Rebind;
use super::fleet::totals::{Former, Totals};
use super::machine::{Machine, Snapshot, SnapshotError};
use super::signals::terminal::Terminal;
use super::systemd::SavedSystemd;
use super::telemetry::times::Times;
use crate::config::{Config, LogFormat, LogLevel, NeedsStop, check_change, path_bytes};
use crate::fault;
use crate::sys::hangup::Senders;
use crate::wire::{self, Listen};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{ReleaseId, RequestId, WorkerId};
use uppercased_ctl::status::Rotation;
use uppercased_ctl::status::Sandboxed;

/// The format this program writes, and the only one it reads.
const STATE_VERSION: u32 = 1;

/// See the module's text.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// [`State::versions`] of the writer.
    pub(super) version: u32,
    /// What the running workers speak.
    pub(super) wire: u16,
    /// Of the program that wrote this, for the log.
    pub(super) written_by: String,
    /// Where a restart finds the program.
    #[serde(with = "path_bytes")]
    pub(super) program: PathBuf,
    pub(super) snapshot: Snapshot,
    pub(super) addresses: Vec<Listen>,
    pub(super) started: Tick,
    pub(super) in_force: ReleaseId,
    pub(super) latest: ReleaseId,
    pub(super) releases: Vec<SavedRelease>,
    pub(super) slots: Vec<SavedSlot>,
    /// What slots that are no more have counted, all of them together.
    pub(super) dropped: Totals,
    /// And each of them; not written by programs that did not tell them apart.
    #[serde(default)]
    pub(super) former: Former,
    /// Not written by programs that did not measure.
    #[serde(default)]
    pub(super) times: Times,
    pub(super) locks: Vec<RawFd>,
    pub(super) control: Option<SavedControl>,
    /// Slots that have a socket of a socket unit.
    #[serde(default)]
    pub(super) activated: u16,
    #[serde(default)]
    pub(super) admin: Option<SavedListener>,
    #[serde(default)]
    pub(super) agent: Option<SavedListener>,
    /// Of admin processes.
    #[serde(default)]
    pub(super) admin_deaths: u64,
    /// Not written by programs that forgot what they had not said yet.
    #[serde(default)]
    pub(super) systemd: SavedSystemd,
    /// Not written by programs that were always in.
    #[serde(default)]
    pub(super) rotation: Rotation,
    /// Who waits for the upgrade.
    pub(super) asking: RequestId,
    #[serde(default)]
    pub(super) terminal: Terminal,
    /// Signals that had come and were not acted upon.
    pub(super) signals: Vec<i32>,
    /// Who has sent a SIGHUP that is one of these.
    #[serde(default)]
    pub(super) hangup: Senders,
    /// Children that are killed and not reaped.
    #[serde(default)]
    pub(super) killed: Vec<SavedKilled>,
    /// Lost listeners that are not bound again yet.
    #[serde(default)]
    pub(super) rebinds: Vec<Rebind>,
    /// What standard output has not taken.
    #[serde(default)]
    pub(super) announcement: Vec<u8>,
    /// The configuration as the new program's pre-flight has read it, in that program's format; not
    /// there in the state that a pre-flight is shown.
    #[serde(default)]
    pub(super) resolved: Option<serde_json::Value>,
}

/// One release.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedRelease {
    pub(super) id: ReleaseId,
    pub(super) image: RawFd,
    pub(super) config: Config,
    pub(super) max_connections: u32,
    pub(super) descriptors: u32,
}

/// One slot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedSlot {
    pub(super) listeners: Vec<RawFd>,
    pub(super) children: Vec<SavedChild>,
    pub(super) left_behind: Option<RawFd>,
    pub(super) carried: Totals,
}

/// One worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedChild {
    pub(super) worker: WorkerId,
    pub(super) release: ReleaseId,
    pub(super) pid: i32,
    pub(super) process: RawFd,
    pub(super) channel: RawFd,
    pub(super) memory: RawFd,
    /// Not written by programs that had none.
    #[serde(default)]
    pub(super) sandbox: Option<Sandboxed>,
}

/// A child that is killed and not reaped.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedKilled {
    pub(super) pid: i32,
    pub(super) process: RawFd,
    pub(super) channel: RawFd,
}

/// The control socket and its clients.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedControl {
    pub(super) saved: super::control::Saved,
    pub(super) descriptors: Vec<RawFd>,
}

/// Why a program cannot go on with a state. One line each.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "the running server's state has version {found} and the new program reads version \
         {reads}; stop the server and start it anew"
    )]
    Version { found: u32, reads: u32 },
    #[error(
        "the running workers speak version {found} of the messages and the new program version \
         {reads}; stop the server and start it anew"
    )]
    Wire { found: u16, reads: u16 },
    #[error("the running server's state cannot be read ({0})")]
    Format(#[from] serde_json::Error),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the running server's state contradicts itself ({0})")]
    Contradiction(&'static str),
    #[error("the configuration as the new program reads it does not fit: {0}")]
    Config(#[from] NeedsStop),
}

impl State {
    /// The versions that this program writes and reads: of the state, and of the messages.
    pub(super) fn versions() -> (u32, u16) {
        let other = fault::value("state_version").and_then(|version| version.parse().ok());
        (other.unwrap_or(STATE_VERSION), wire::VERSION)
    }

    /// As bytes.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, Error> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads a state and checks everything about it that needs no descriptor; also the machine.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, Machine), Error> {
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
        let state: Self = serde_json::from_slice(bytes)?;
        let machine = Machine::restore(state.snapshot.clone())?;
        if machine.slots().count() != state.slots.len() {
            return Err(Error::Contradiction("slots and what they have differ"));
        }
        if state.config_in_force().is_none() {
            return Err(Error::Contradiction("the release in force is missing"));
        }
        let mut numbers = state.descriptors();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.len() != count {
            return Err(Error::Contradiction("a descriptor is named twice"));
        }
        Ok((state, machine))
    }

    /// Whether a server in this state can go on with `wanted`.
    pub(super) fn check_config(&self, wanted: &Config) -> Result<(), Error> {
        match self.config_in_force() {
            Some(running) => Ok(check_change(running, wanted)?),
            None => Err(Error::Contradiction("the release in force is missing")),
        }
    }

    /// How the log is to be.
    pub(super) fn log_settings(&self) -> (LogLevel, LogFormat) {
        let config = self.config_in_force();
        let settings = config.map(|config| (config.log_level, config.log_format));
        settings.unwrap_or((LogLevel::Info, LogFormat::Human))
    }

    /// The configuration in force.
    pub(super) fn config_in_force(&self) -> Option<&Config> {
        let in_force = self.releases.iter().find(|one| one.id == self.in_force);
        in_force.map(|release| &release.config)
    }

    /// Every descriptor that is named, in the order in which [`mod@super::resume`] takes them.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        let mut numbers = Vec::new();
        numbers.extend(self.releases.iter().map(|release| release.image));
        for slot in &self.slots {
            numbers.extend(&slot.listeners);
            for child in &slot.children {
                numbers.extend([child.process, child.channel, child.memory]);
            }
            numbers.extend(slot.left_behind);
        }
        numbers.extend(&self.locks);
        if let Some(control) = &self.control {
            numbers.extend(&control.descriptors);
        }
        let shown = [&self.admin, &self.agent].into_iter().flatten();
        numbers.extend(shown.map(|saved| saved.listener));
        for child in &self.killed {
            numbers.extend([child.process, child.channel]);
        }
        numbers
    }
}
