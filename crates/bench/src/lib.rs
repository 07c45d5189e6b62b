//! `uppercased bench`: a load generator for TCP servers that answer every byte with its upper case,
//! or with itself.
//!
//! ```text
//!   capacity, versus ── which measurements to make   criterion (pure) ── when one fails
//!     |
//!   plan (pure) ── what is to be done, every limit decided
//!     |
//!   run ── own_server?  team ── threads, or processes of threads
//!     |                   `── engine ── an event loop over slots
//!     |                          slot ── pattern, schedule     connection, truth (pure) ── checked
//!     |                          record (pure) ── histograms, pieces of the series
//!     |── observe, during ── the server's CPU and memory; commands that disturb it
//!     v
//!   findings, judge (pure) ── outcome ── report (pure) ── output ── summary, page, JSON, CSV, ...
//! ```
//!
//! Invariants: the exit code is 0 only if nothing failed, every byte received was correct, the plan
//! was completed and every output was written; distortions by the client itself are reported with
//! the figures; however it ends, its children and files are removed. It must not share code with
//! the server's transformation or event loop, which it checks.

// These macros panic if the reader closed the pipe; `output` and `stderr::write_error` do not.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod capacity;
mod command;
mod compare;
pub mod connection;
pub mod criterion;
mod during;
mod engine;
pub mod failure;
mod find;
pub mod findings;
mod folder;
pub mod histogram;
mod interrupt;
mod judge;
mod observe;
pub mod options;
pub mod outcome;
mod output;
mod own_server;
pub mod plan;
mod progress;
pub mod record;
pub mod report;
mod run;
pub mod size;
mod slot;
mod socket;
mod sys;
pub mod team;
pub mod truth;
mod versus;
mod wait;

use std::io;
use std::process::ExitCode;

use clap::ArgMatches;

use self::command::{Misuse, Task};
pub use self::command::{command, hint};
use self::compare::Compare;
use self::interrupt::Interrupt;
use self::options::{Format, Options};
use self::outcome::Outcome;
use self::output::Outputs;
use self::run::Stand;
pub use self::team::{PART, run_part};
use self::versus::Duel;
use uppercased_ctl::stderr;

/// Exit code for an invalid plan, or a file that is not a measurement.
const BAD_INPUT: u8 = 2;
/// Exit code for a measurement or comparison that failed only by its criteria.
pub const CRITERION_FAILED: u8 = 3;

/// The reason why an outcome, or its output, is missing.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot prepare for signals: {0}")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Output(#[from] output::Error),
    #[error(transparent)]
    Run(#[from] run::Error),
    #[error(transparent)]
    Read(#[from] report::Error),
}

impl Error {
    fn exit_code(&self) -> ExitCode {
        let is_usage = match self {
            Self::Signals(_) => false,
            Self::Output(error) => error.is_usage(),
            Self::Run(error) => error.is_usage(),
            Self::Read(_) => true,
        };
        if is_usage {
            ExitCode::from(BAD_INPUT)
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Runs the command: measures, or compares measurements.
///
/// The exit code is 0 if nothing failed and the plan was completed and written, 2 if the plan is
/// invalid, 3 if only a criterion failed, and 1 otherwise.
#[must_use]
pub fn run(typed: &ArgMatches) -> ExitCode {
    let task = match command::task(typed, command::line(std::env::args_os())) {
        Ok(task) => task,
        Err(Misuse { why, command }) => {
            stderr::write_error(&format!("{why}; see `uppercased {command} --help`"));
            return ExitCode::from(BAD_INPUT);
        }
    };
    let done = match &task {
        Task::Compare(files) => compared(files),
        Task::Measure(options) => measured(options, |interrupt| {
            Stand::prepare(options, interrupt)?.measure(options, interrupt)
        }),
        Task::Capacity(quest) => measured(&quest.options, |interrupt| {
            capacity::measure(quest, interrupt)
        }),
        Task::Versus(duel) => versus(duel),
    };
    done.unwrap_or_else(|error| {
        stderr::write_error(&error.to_string());
        error.exit_code()
    })
}

/// Measures, and writes every output.
fn measured(
    options: &Options,
    measure: impl FnOnce(&Interrupt) -> Result<Outcome, run::Error>,
) -> Result<ExitCode, Error> {
    let interrupt = Interrupt::watch().map_err(Error::Signals)?;
    // Detects an unwritable file before the measurement, not after it.
    let outputs = Outputs::open(&options.files)?;
    let outcome = measure(&interrupt)?;
    let render = |format| match format {
        Format::Json => report::json(&outcome).map_err(io::Error::from),
        Format::Report => Ok(report::html(&outcome)),
        Format::Csv => Ok(report::csv(&outcome)),
        Format::Markdown => Ok(report::markdown(&outcome)),
        Format::Hgrm => Ok(report::hgrm(&outcome)),
    };
    let is_written = outputs.write(&report::summary(&outcome), render, &interrupt);
    let is_done = is_written && outcome.is_clean();
    Ok(exit_code(is_done, outcome.failed_criteria()))
}

/// Measures two servers, and writes every output of their comparison.
fn versus(duel: &Duel) -> Result<ExitCode, Error> {
    let interrupt = Interrupt::watch().map_err(Error::Signals)?;
    let outputs = Outputs::open(&duel.results.files)?;
    let runs = versus::measure(duel, &interrupt)?;
    let (is_written, failed) = duel.results.write(&runs, &outputs, &interrupt);
    let is_complete = runs.iter().all(|side| side.len() == usize::from(duel.runs));
    let is_clean = runs.iter().flatten().all(|run| run.outcome.is_clean());
    Ok(exit_code(is_written && is_complete && is_clean, failed))
}

/// Compares earlier measurements, and writes every output.
fn compared(compare: &Compare) -> Result<ExitCode, Error> {
    let runs = compare::load(compare)?;
    let outputs = Outputs::open(&compare.results.files)?;
    let results = &compare.results;
    let (is_written, failed) = results.write(&runs, &outputs, &Interrupt::default());
    Ok(exit_code(is_written, failed))
}

fn exit_code(is_done: bool, failed_criteria: usize) -> ExitCode {
    match (is_done, failed_criteria) {
        (false, _) => ExitCode::FAILURE,
        (true, 0) => ExitCode::SUCCESS,
        (true, _) => ExitCode::from(CRITERION_FAILED),
    }
}
