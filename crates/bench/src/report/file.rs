//! Reads outcomes from files: the only input of a report.
//!
//! Invariants: a file that is not an outcome or has a newer format causes one clear error that
//! names it; an unknown field is skipped; at most [`FILE_MAX_BYTES`] of a file are read. It must
//! not repair anything.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::outcome::{FORMAT, Outcome};

/// Maximum size of a file in bytes. An outcome has a few hundred kilobytes.
pub const FILE_MAX_BYTES: u64 = 64 << 20;

/// The reason why a file cannot be used as an outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {}: {why}; check the path", path.display())]
    Read {
        /// The path as given.
        path: PathBuf,
        /// The system's error.
        #[source]
        why: io::Error,
    },

    /// It exceeds [`FILE_MAX_BYTES`].
    #[error("cannot use {}: it is larger than {FILE_MAX_BYTES} bytes; check the path", path.display())]
    TooLarge {
        /// The path as given.
        path: PathBuf,
    },

    /// It is not output of `--json`.
    #[error(
        "cannot read {}: it is not an output of `uppercased bench --json FILE` or --report FILE: {}",
        path.display(), why
    )]
    NotAnOutcome {
        /// The path as given.
        path: PathBuf,
        /// The error.
        why: String,
    },

    /// It was written by a newer program.
    #[error(
        "cannot read {}: it has format {found}, and this program reads up to {FORMAT}; use the \
         program that wrote it", path.display()
    )]
    FromTheFuture {
        /// The path as given.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// The tag before the JSON in a page; the JSON has no `<`.
pub(super) const DATA: &str = "<script type=\"application/json\" id=\"data\">";

/// Returns the JSON of a page, or `text` if it is none.
fn data(text: &[u8]) -> &[u8] {
    let page = std::str::from_utf8(text).ok();
    let rest = page.and_then(|page| page.split_once(DATA));
    match rest.and_then(|(_, rest)| rest.split_once('<')) {
        Some((json, _)) => json.as_bytes(),
        None => text,
    }
}

/// Reads an outcome from a file, or from a page that contains it.
///
/// # Errors
///
/// The first error in the file.
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

/// Parses an outcome; `path` names its file in errors.
///
/// # Errors
///
/// The first error in the text.
pub fn parse(text: &[u8], path: &Path) -> Result<Outcome, Error> {
    let path = || path.to_owned();
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(Error::TooLarge { path: path() });
    }
    let text = data(text);
    let not_one = |why: String| Error::NotAnOutcome { path: path(), why };
    // The format comes first: a newer format may change a field's type.
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

/// The part common to all formats.
#[derive(serde::Deserialize)]
struct Format {
    format: Option<u32>,
}
