//! The options after `--` in `cargo bench --bench peers -- ...`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, Command, value_parser};

use super::pattern::{self, Pattern};
use super::server::Server;

/// Runs of each server beside the reference, in a full bench and in a quick one.
const PAIRS: u32 = 8;
const QUICK_PAIRS: u32 = 2;
/// Seconds measured per run, likewise.
const SECONDS: f64 = 1.0;
const QUICK_SECONDS: f64 = 0.5;

/// All options.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) pairs: u32,
    pub(crate) span: Duration,
    pub(crate) patterns: Vec<Pattern>,
    pub(crate) servers: Vec<Server>,
    pub(crate) server_cpus: usize,
    pub(crate) keep_disturbed: bool,
    pub(crate) program: PathBuf,
    pub(crate) json: Option<PathBuf>,
}

fn names<T>(all: &[T], name: impl Fn(&T) -> &'static str) -> Vec<&'static str> {
    all.iter().map(name).collect()
}

fn list(id: &'static str, names: Vec<&'static str>, help: &'static str) -> Arg {
    Arg::new(id)
        .long(id)
        .value_name("NAME,...")
        .value_delimiter(',')
        .value_parser(names)
        .action(ArgAction::Append)
        .help(help)
}

fn command() -> Command {
    Command::new("peers")
        .about("Measures this server beside others of its kind, in one run on one machine")
        .arg(
            Arg::new("pairs")
                .long("pairs")
                .value_name("N")
                .value_parser(value_parser!(u32).range(1..=1000))
                .help("Undisturbed runs of each server beside the floor [default: 8]"),
        )
        .arg(
            Arg::new("seconds")
                .long("seconds")
                .value_name("S")
                .value_parser(value_parser!(f64))
                .help("Seconds measured in each run [default: 1]"),
        )
        .arg(list(
            "only",
            names(&pattern::ALL, |pattern| pattern.name),
            "Patterns to measure [default: all]",
        ))
        .arg(list(
            "peers",
            names(&Server::ALL, |server| server.name()),
            "Servers to measure [default: all]; the first is what the others are compared with",
        ))
        .arg(
            Arg::new("server-cpus")
                .long("server-cpus")
                .value_name("N")
                .value_parser(value_parser!(u16).range(1..))
                .help(
                    "CPUs for the server, one process on each; the load gets the rest [default: 1]",
                ),
        )
        .arg(
            Arg::new("quick")
                .long("quick")
                .action(ArgAction::SetTrue)
                .help("2 pairs of 0.5 s, disturbed or not: shows that it works, measures nothing"),
        )
        .arg(
            Arg::new("keep-disturbed")
                .long("keep-disturbed")
                .action(ArgAction::SetTrue)
                .help("Count runs that other work or stolen time disturbed"),
        )
        .arg(
            Arg::new("program")
                .long("program")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .default_value(env!("CARGO_BIN_EXE_uppercased"))
                .hide_default_value(true)
                .help("Measure this build of our server [default: the one built with the bench]"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Write every run to this file"),
        )
        // Cargo passes this flag to every bench.
        .arg(
            Arg::new("bench")
                .long("bench")
                .action(ArgAction::SetTrue)
                .hide(true),
        )
}

impl Options {
    /// Parses the command line, starting with the program's name.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, clap::Error> {
        let matches = command().try_get_matches_from(arguments)?;
        let quick = matches.get_flag("quick");
        let chosen = |id: &str, name: &str| {
            let mut names = matches.get_many::<String>(id)?;
            Some(names.any(|chosen| chosen == name))
        };
        let seconds = matches.get_one::<f64>("seconds").copied();
        let seconds = seconds.unwrap_or(if quick { QUICK_SECONDS } else { SECONDS });
        let pairs = matches.get_one::<u32>("pairs").copied();
        Ok(Self {
            pairs: pairs.unwrap_or(if quick { QUICK_PAIRS } else { PAIRS }),
            span: Duration::try_from_secs_f64(seconds).map_err(|error| {
                command().error(
                    clap::error::ErrorKind::ValueValidation,
                    format!("--seconds: {error}"),
                )
            })?,
            patterns: pattern::ALL
                .into_iter()
                .filter(|pattern| chosen("only", pattern.name).unwrap_or(true))
                .collect(),
            servers: Server::ALL
                .into_iter()
                .filter(|server| chosen("peers", server.name()).unwrap_or(true))
                .collect(),
            server_cpus: matches
                .get_one::<u16>("server-cpus")
                .map_or(1, |&n| n.into()),
            keep_disturbed: quick || matches.get_flag("keep-disturbed"),
            program: matches
                .get_one::<PathBuf>("program")
                .cloned()
                .unwrap_or_default(),
            json: matches.get_one::<PathBuf>("json").cloned(),
        })
    }
}
