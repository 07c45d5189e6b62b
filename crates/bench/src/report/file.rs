//! Outcomes read from files: the one place where a report meets the outside.
//!
//! Invariants: a file that is no outcome, or one of a format from the future, is one clear error
//! that names it; an unknown field is skipped; a file is read up to [`FILE_MAX_BYTES`] only.
//! Must not: repair anything.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::outcome::{FORMAT, Outcome};

/// The largest file that is read, in bytes. An outcome has some hundred kilobytes.
pub const FILE_MAX_BYTES: u64 = 64 << 20;

/// Why a file is no outcome that can be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {}: {why}; check the path", path.display())]
    Read {
        /// The file, as it was named.
        path: PathBuf,
        /// What the system says.
        #[source]
        why: io::Error,
    },

    /// It is absurdly large.
    #[error("cannot use {}: it is larger than {FILE_MAX_BYTES} bytes; check the path", path.display())]
    TooLarge {
        /// The file, as it was named.
        path: PathBuf,
    },

    /// It is not what `--json` writes.
    #[error(
        "cannot read {}: it is not an output of `uppercased bench --json FILE`: {}", path.display(), why
    )]
    NotAnOutcome {
        /// The file, as it was named.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// A newer program wrote it.
    #[error(
        "{} has format {found}, and this program reads up to {FORMAT}; compare with the program \
         that wrote it", path.display()
    )]
    FromTheFuture {
        /// The file, as it was named.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// Reads an outcome from a file.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub fn load(path: &Path) -> Result<Outcome, Error> {
    let failed = |why| Error::Read {
        path: path.to_owned(),
        why,
    };
    let file = File::open(path).map_err(failed)?;
    let mut text = Vec::new();
    file.take(FILE_MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    parse(&text, path)
}

/// Reads an outcome from the text of a file of that name.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub fn parse(text: &[u8], path: &Path) -> Result<Outcome, Error> {
    let path = || path.to_owned();
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(Error::TooLarge { path: path() });
    }
    let not_one = |why: String| Error::NotAnOutcome { path: path(), why };
    // The format first: fields of the future may have changed their type.
    let format = serde_json::from_slice::<Format>(text).map_err(|why| not_one(why.to_string()))?;
    match format.format {
        None | Some(0) => Err(not_one("it has no `format`".to_owned())),
        Some(found) if found > FORMAT => Err(Error::FromTheFuture {
            path: path(),
            found,
        }),
        Some(_) => serde_json::from_slice(text).map_err(|why| not_one(why.to_string())),
    }
}

/// What all formats have in common.
#[derive(serde::Deserialize)]
struct Format {
    format: Option<u32>,
}
