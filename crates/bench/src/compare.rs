//! `bench compare`: collects the named files and compares their outcomes.
//!
//! Invariants: a file that cannot be read or is not an outcome causes one line on standard error
//! and exit code [`BAD_INPUT`], before anything is printed; warnings are part of the report and
//! change no exit code. It must not judge an outcome (`report` does).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PathBufValueParser;
use clap::{Arg, ArgMatches};

use super::BAD_INPUT;
use super::report::{self, Run};
use uppercased_ctl::output::print;
use uppercased_ctl::stderr::write_error;

/// Name of the command, below `bench`.
pub(super) const COMPARE: &str = "compare";

const A: &str = "a";
const B: &str = "b";

/// The files to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compare {
    /// Runs of side A.
    a: Vec<PathBuf>,
    /// Runs of side B.
    b: Vec<PathBuf>,
}

/// Returns the definition of the command.
pub(super) fn command() -> clap::Command {
    let files = |name: &'static str| {
        Arg::new(name)
            .value_parser(PathBufValueParser::new())
            .num_args(1..)
    };
    clap::Command::new(COMPARE)
        .about("Compare measurements: ratios B/A with their spread")
        .override_usage(
            "uppercased bench compare A.json B.json\n       \
             uppercased bench compare A.json... -- B.json...",
        )
        .after_help(
            "With the same number of files on both sides, the first of A is compared with the \
             first of B, and so on: alternate the runs, so that each pair is close together in \
             time.\n\nExamples:\n  uppercased bench compare before.json after.json\n  uppercased \
             bench compare before-*.json -- after-*.json",
        )
        .arg(
            files(A)
                .value_name("A.json")
                .required(true)
                .help("Output of `bench --json FILE`; two files are A and B"),
        )
        .arg(
            files(B)
                .value_name("B.json")
                .last(true)
                .help("Files of side B, if a side has several"),
        )
}

/// Returns the files named on the command line.
///
/// # Errors
///
/// It is ambiguous which files belong to which side.
pub(super) fn typed(typed: &ArgMatches) -> Result<Compare, String> {
    let files = |name| -> Vec<PathBuf> {
        let named = typed.get_many::<PathBuf>(name).into_iter();
        named.flatten().cloned().collect()
    };
    let (a, b) = (files(A), files(B));
    if !b.is_empty() {
        return Ok(Compare { a, b });
    }
    match <[PathBuf; 2]>::try_from(a) {
        Ok([a, b]) => Ok(Compare {
            a: vec![a],
            b: vec![b],
        }),
        Err(files) => Err(match files.len() {
            1 => "cannot compare a single file; name a second one".to_owned(),
            many => format!(
                "cannot tell which of {many} files are A and which are B; separate them with \
                     `--`"
            ),
        }),
    }
}

/// Prints the comparison.
pub(super) fn run(compare: &Compare) -> ExitCode {
    match load(&compare.a).and_then(|a| Ok((a, load(&compare.b)?))) {
        Ok((a, b)) => print(&report::compare(&a, &b).to_string()),
        Err(error) => {
            write_error(&error.to_string());
            ExitCode::from(BAD_INPUT)
        }
    }
}

fn load(files: &[PathBuf]) -> Result<Vec<Run>, report::Error> {
    let runs = files.iter().map(|path| {
        Ok(Run {
            name: path.display().to_string(),
            outcome: report::load(path)?,
        })
    });
    runs.collect()
}
