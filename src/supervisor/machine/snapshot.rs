//! The machine's whole state as a value that survives an exec in place.
//!
//! Invariants: `restore(snapshot())` changes nothing observable, including pending actions and the
//! random generator; a snapshot of an unknown version, or one that contradicts itself, is refused
//! and never partly restored. A change of any serialised type of the machine raises
//! [`SNAPSHOT_VERSION`].

use serde::{Deserialize, Serialize};

use super::Machine;

/// The format this program writes, and the only one it reads.
pub const SNAPSHOT_VERSION: u32 = 1;

/// The reason why saved state was refused.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Written by another version of the program.
    #[error(
        "cannot read the saved state: it has version {found}, and this binary reads version {SNAPSHOT_VERSION}; restart the server instead of upgrading it"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// Not well-formed.
    #[error("cannot read the saved state: {source}; restart the server")]
    Format {
        /// The decoder's error.
        #[from]
        source: serde_json::Error,
    },
    /// Well-formed, but inconsistent.
    #[error("cannot use the saved state: {what}; restart the server")]
    Contradiction {
        /// The contradiction.
        what: String,
    },
}

/// The whole state of a machine. Created by `Machine::snapshot`, consumed by `Machine::restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`SNAPSHOT_VERSION`] of the writer.
    pub version: u32,
    pub(super) machine: Machine,
}

/// The random generator, stored as its seed.
pub(super) mod seed {
    use fastrand::Rng;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(rng: &Rng, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(rng.get_seed())
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Rng, D::Error> {
        u64::deserialize(from).map(Rng::with_seed)
    }
}

impl Snapshot {
    /// As bytes, to be read by [`Snapshot::from_json`] of this or a later program.
    ///
    /// # Errors
    /// [`SnapshotError::Format`], which no state of the machine is known to cause.
    pub fn to_json(&self) -> Result<Vec<u8>, SnapshotError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads what [`Snapshot::to_json`] wrote.
    ///
    /// # Errors
    /// [`SnapshotError::Version`] before anything else is read, so that another program's format is
    /// reported as such and not as a missing field; [`SnapshotError::Format`] otherwise.
    pub fn from_json(bytes: &[u8]) -> Result<Self, SnapshotError> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let Header { version } = serde_json::from_slice(bytes)?;
        if version != SNAPSHOT_VERSION {
            return Err(SnapshotError::Version { found: version });
        }
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests;
