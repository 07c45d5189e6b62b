//! The load generator: it measures a server of upper-case (or of plain echo) and says what it
//! found.
//!
//! What was found is an [`outcome::Outcome`]; [`report`] shows it.

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
pub mod report;
mod run;
pub mod size;
mod slot;
mod socket;
mod team;
pub mod truth;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
            // If standard error takes nothing, the exit code has to say it.
            let _ = writeln!(io::stderr(), "uppercased: {error}");
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
        write(path, "")?;
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
        let _ = io::stdout().write_all(report::summary(outcome).as_bytes());
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    let written = if path == Path::new(STDOUT) {
        io::stdout().write_all(text.as_bytes())
    } else {
        fs::write(path, text)
    };
    written.map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}
