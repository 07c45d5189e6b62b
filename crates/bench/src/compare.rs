//! `bench compare`: collects the named files and compares their outcomes; the flags and outputs of
//! every comparison.
//!
//! Invariants: a file that cannot be read or is not an outcome is an error before anything is
//! printed; warnings are part of the report and fail nothing. It must not judge an outcome
//! (`report` does).

use std::io;
use std::path::PathBuf;
use std::str::FromStr as _;

use clap::builder::PathBufValueParser;
use clap::{Arg, ArgAction, ArgMatches};

use super::criterion::ComparisonCriterion;
use super::interrupt::Interrupt;
use super::options::Format;
use super::output::Outputs;
use super::report::{self, Run};

/// Name of the command, below `bench`.
pub(super) const COMPARE: &str = "compare";

const A: &str = "a";
const B: &str = "b";
const LABEL: &str = "label";
const FAIL_IF: &str = "fail-if";
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
#[derive(Clone, Debug)]
pub(super) struct Compare {
    /// Runs of side A.
    a: Vec<PathBuf>,
    /// Runs of side B.
    b: Vec<PathBuf>,
    /// Names of the sides, in their order.
    labels: Vec<String>,
    /// What to make of the comparison.
    pub results: Results,
}

/// The conditions and the outputs of a comparison.
#[derive(Clone, Debug)]
pub(super) struct Results {
    /// Conditions under which it fails.
    pub criteria: Vec<ComparisonCriterion>,
    /// The files to write, each with its format.
    pub files: Vec<(Format, PathBuf)>,
}

impl Results {
    /// Returns the flags of every comparison.
    pub(super) fn flags() -> Vec<Arg> {
        let files = FILES.map(|(_, name, help)| {
            Arg::new(name)
                .long(name)
                .value_name("FILE")
                .value_parser(PathBufValueParser::new())
                .help(help)
        });
        let criteria = Arg::new(FAIL_IF)
            .long(FAIL_IF)
            .value_name("CONDITION")
            .value_parser(ComparisonCriterion::from_str)
            .action(ArgAction::Append)
            .help("Fail if this holds: slower, 'p99 > 1.05'; may be repeated");
        files.into_iter().chain([criteria]).collect()
    }

    /// Returns the values of these flags.
    pub(super) fn typed(typed: &ArgMatches) -> Self {
        let file = |(format, name, _)| Some((format, typed.get_one::<PathBuf>(name)?.clone()));
        let criteria = typed.get_many(FAIL_IF).into_iter().flatten();
        Self {
            criteria: criteria.cloned().collect(),
            files: FILES.into_iter().filter_map(file).collect(),
        }
    }

    /// Compares the runs and writes every output; returns whether all were written, and the number
    /// of failed criteria.
    pub(super) fn write(
        &self,
        [a, b]: &[Vec<Run>; 2],
        outputs: &Outputs,
        interrupt: &Interrupt,
    ) -> (bool, usize) {
        let mut comparison = report::compare(a, b);
        let criteria = self.criteria.iter();
        comparison.criteria = criteria.map(|one| one.check(&comparison, a, b)).collect();
        let render = |format| match format {
            Format::Report => Ok(report::comparison_html(&comparison, comparison.json(a, b))),
            Format::Markdown => Ok(comparison.markdown()),
            _ => comparison.json(a, b).map_err(io::Error::from),
        };
        let is_written = outputs.write(&comparison.to_string(), render, interrupt);
        (is_written, comparison.failed_criteria())
    }
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
             bench compare before-*.json -- after-*.json\n  uppercased bench compare \
             --fail-if slower before-*.json -- after-*.json",
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
        .args(Results::flags())
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
        results: Results::typed(typed),
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

/// Returns the runs of both sides.
///
/// # Errors
/// A file cannot be read, or is not an outcome.
pub(super) fn load(compare: &Compare) -> Result<[Vec<Run>; 2], report::Error> {
    let mut sides = [side(&compare.a)?, side(&compare.b)?];
    for (side, label) in sides.iter_mut().zip(&compare.labels) {
        for run in side {
            run.outcome.label.clone_from(label);
        }
    }
    Ok(sides)
}

fn side(files: &[PathBuf]) -> Result<Vec<Run>, report::Error> {
    let runs = files.iter().map(|path| {
        Ok(Run {
            name: path.display().to_string(),
            outcome: report::load(path)?,
        })
    });
    runs.collect()
}
