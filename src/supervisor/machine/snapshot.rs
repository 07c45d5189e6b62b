//! The machine's whole state as a value that survives an exec in place.
//!
//! Invariants: `restore(snapshot())` changes nothing observable, including pending actions and the
//! random generator; a snapshot of an unknown version, or one that contradicts itself, is refused
//! and never partly restored. A change of any serialised type of the machine raises
//! [`SNAPSHOT_VERSION`].

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

#[cfg(test)]
mod tests;
