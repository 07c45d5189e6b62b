//! `bench compare`: collects the named files and compares their outcomes; the outputs of every
//! comparison.
//!
//! Invariants: a file that cannot be read or is not an outcome causes one line on standard error
//! and exit code [`BAD_INPUT`], before anything is printed; warnings are part of the report and
//! change no exit code. It must not judge an outcome (`report` does).

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PathBufValueParser;
use clap::{Arg, ArgAction, ArgMatches};

use super::interrupt::Interrupt;
use super::options::Format;
use super::output::{self, Outputs};
use super::report::{self, Run};
use uppercased_ctl::stderr::write_error;

/// Exit code for bad usage, or a file that is not a measurement.
const BAD_INPUT: u8 = 2;

/// Name of the command, below `bench`.
pub(super) const COMPARE: &str = "compare";

const A: &str = "a";
const B: &str = "b";
const LABEL: &str = "label";
const FILES: [(Format, &str, &str); 3] = [
    (
        Format::Json,
        "json",
        "Write the comparison and its runs as JSON",
    ),
    (
        Format::Report,
        "report",
        "Write the comparison as an HTML report",
    ),
    (
        Format::Markdown,
        "markdown",
        "Write the comparison as a Markdown table",
    ),
];

/// The files to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compare {
    /// Runs of side A.
    a: Vec<PathBuf>,
    /// Runs of side B.
    b: Vec<PathBuf>,
    /// Names of the sides, in their order.
    labels: Vec<String>,
    /// The files to write, each with its format.
    files: Vec<(Format, PathBuf)>,
}

/// Returns the flags for the outputs of a comparison.
pub(super) fn output_flags() -> [Arg; 3] {
    FILES.map(|(_, name, help)| {
        Arg::new(name)
            .long(name)
            .value_name("FILE")
            .value_parser(PathBufValueParser::new())
            .help(help)
    })
}

/// Returns the outputs named on the command line.
pub(super) fn output_files(typed: &ArgMatches) -> Vec<(Format, PathBuf)> {
    let file = |(format, name, _)| Some((format, typed.get_one::<PathBuf>(name)?.clone()));
    FILES.into_iter().filter_map(file).collect()
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
                .help("Output of --json or --report; two files are A and B"),
        )
        .arg(
            files(B)
                .value_name("B.json")
                .last(true)
                .help("Files of side B, if a side has several"),
        )
        .arg(
            Arg::new(LABEL)
                .long(LABEL)
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("Name of a side; first that of A, then that of B"),
        )
        .args(output_flags())
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
    let labels = typed.get_many::<String>(LABEL).into_iter().flatten();
    let labels: Vec<String> = labels.cloned().collect();
    if labels.len() > 2 {
        return Err("cannot use more than two labels; name A, then B".to_owned());
    }
    let sides = |a, b| Compare {
        a,
        b,
        labels,
        files: output_files(typed),
    };
    let (a, b) = (files(A), files(B));
    if !b.is_empty() {
        return Ok(sides(a, b));
    }
    match <[PathBuf; 2]>::try_from(a) {
        Ok([a, b]) => Ok(sides(vec![a], vec![b])),
        Err(files) => Err(match files.len() {
            1 => "cannot compare a single file; name a second one".to_owned(),
            many => format!(
                "cannot tell which of {many} files are A and which are B; separate them with \
                     `--`"
            ),
        }),
    }
}

/// Prints the comparison, and writes every output.
pub(super) fn run(compare: &Compare) -> ExitCode {
    let loaded = load(&compare.a).and_then(|a| Ok([a, load(&compare.b)?]));
    let mut runs = match loaded {
        Ok(runs) => runs,
        Err(error) => {
            write_error(&error.to_string());
            return ExitCode::from(BAD_INPUT);
        }
    };
    for (side, label) in runs.iter_mut().zip(&compare.labels) {
        for run in side {
            run.outcome.label.clone_from(label);
        }
    }
    let outputs = match Outputs::open(&compare.files) {
        Ok(outputs) => outputs,
        Err(error) => {
            write_error(&error.to_string());
            let is_usage = output::Error::is_usage(&error);
            return if is_usage {
                ExitCode::from(BAD_INPUT)
            } else {
                ExitCode::FAILURE
            };
        }
    };
    match write(&runs, &outputs, &Interrupt::default()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Writes the comparison of these runs; returns whether every output was written.
pub(super) fn write([a, b]: &[Vec<Run>; 2], outputs: &Outputs, interrupt: &Interrupt) -> bool {
    let comparison = report::compare(a, b);
    let render = |format| match format {
        Format::Report => Ok(report::comparison_html(&comparison, comparison.json(a, b))),
        Format::Markdown => Ok(comparison.markdown()),
        _ => comparison.json(a, b).map_err(io::Error::from),
    };
    outputs.write(&comparison.to_string(), render, interrupt)
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
