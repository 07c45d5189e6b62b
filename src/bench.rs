//! `uppercased bench`: a load generator that tells the truth about a TCP server which answers every
//! byte with its upper-case, or with itself.
//!
//! ```text
//!   plan (pure) ── what is to be done, every limit decided
//!     |
//!   run ── own_server?  team ── threads, or processes of threads
//!     |                   `── engine ── an event loop over slots
//!     |                          slot ── pattern, schedule     connection, truth (pure) ── checked
//!     |                          record (pure) ── histograms, pieces of the series
//!     |── observe, during ── the server's CPU and memory; commands that disturb it
//!     v
//!   findings (pure) ── outcome ── JSON, summary, page
//! ```
//!
//! Invariants: the exit code is 0 only if nothing failed, every byte that came back included; what
//! the client itself spoils is told with the figures.
//! It must not share code with the server's transformation or its loop, which it is a check on.

pub mod connection;
mod during;
mod engine;
pub mod failure;
pub mod findings;
pub mod histogram;
mod judge;
mod observe;
pub mod options;
pub mod outcome;
mod own_server;
pub mod plan;
mod progress;
pub mod record;
pub mod report;
mod run;
pub mod size;
mod slot;
mod socket;
mod team;
pub mod truth;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::{log, output};

pub use self::options::Options;
use self::outcome::Outcome;
pub use self::team::{PART, be_part};

/// Typed instead of a file's name, it means standard output; then no summary is in the way there.
const STDOUT: &str = "-";

/// Exit code for a plan that makes no sense.
const BAD_INPUT: u8 = 2;

/// Why there is no outcome, or nowhere to put it.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Run(#[from] run::Error),
    #[error("cannot write {}: {source}; check the path and its permissions", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write the outcome: {0}")]
    Json(#[from] serde_json::Error),
}

/// Measures, and tells what was found. The code is 0 if nothing failed, 2 if the plan makes no
/// sense, and 1 otherwise.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    match measured(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            log::complain(&error.to_string());
            match error {
                Error::Run(run::Error::Plan(_)) => ExitCode::from(BAD_INPUT),
                Error::Run(_) | Error::Write { .. } | Error::Json(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// Whether nothing failed.
fn measured(options: &Options) -> Result<bool, Error> {
    // A file that cannot be written is found out before the measurement, not after.
    for path in [&options.json, &options.report].into_iter().flatten() {
        try_to_write(path)?;
    }
    let outcome = run::measure(options)?;
    tell(&outcome, options)?;
    Ok(outcome.failures.is_empty())
}

fn tell(outcome: &Outcome, options: &Options) -> Result<(), Error> {
    if let Some(path) = &options.json {
        write(path, &(serde_json::to_string_pretty(outcome)? + "\n"))?;
    }
    if let Some(path) = &options.report {
        write(path, &report::html(outcome))?;
    }
    let machine_reads = [&options.json, &options.report]
        .into_iter()
        .flatten()
        .any(|path| path == Path::new(STDOUT));
    if !machine_reads {
        // A reader that goes away early is no error.
        let _ = output::write(report::summary(outcome).as_bytes());
    }
    Ok(())
}

/// Whether the file can be written. What it has stays until there is something better.
fn try_to_write(path: &Path) -> Result<(), Error> {
    if path == Path::new(STDOUT) {
        return Ok(());
    }
    let opened = File::options().append(true).create(true).open(path);
    opened.map(drop).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    let written = if path == Path::new(STDOUT) {
        output::write(text.as_bytes())
    } else {
        fs::write(path, text)
    };
    written.map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}
