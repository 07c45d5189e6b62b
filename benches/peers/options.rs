//! The options after `--` in `cargo bench --bench peers -- ...`.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, value_parser};
use uppercased_bench::options::Pattern as Kind;

use super::pattern::{self, Pattern};
use super::server::Server;

/// Runs of each server paired with the reference, in a full bench and in a quick one.
const PAIRS: u32 = 8;
const QUICK_PAIRS: u32 = 2;
/// Seconds measured per run, in a full bench and in a quick one.
const SECONDS: f64 = 1.0;
const QUICK_SECONDS: f64 = 0.5;

const LONG_HELP: &str = "\
Patterns (* only if named):
{patterns}

Servers (* only if named):
{servers}

Examples:
  the table:            (no options)
  two builds:           --server k1=./k1 --server k16=./k16 --peers c --only 64x50,64x1000
  a setting:            --server '1m=./uppercased --bytes-per-turn 1MiB' --only stream,beside-4
  tails, shared CPUs:   --shared --server-cpus 2 --only 64x50,rate --peers c,uppercased,tokio";

/// All options.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) pairs: u32,
    pub(crate) span: Duration,
    pub(crate) patterns: Vec<Pattern>,
    pub(crate) servers: Vec<Server>,
    pub(crate) server_cpus: usize,
    /// Whether the load runs on the server's CPUs.
    pub(crate) shared: bool,
    pub(crate) keep_disturbed: bool,
    pub(crate) json: Option<PathBuf>,
}

fn list(id: &'static str, names: Vec<&'static str>, help: &'static str) -> Arg {
    Arg::new(id)
        .long(id)
        .value_name("NAME,...")
        .value_delimiter(',')
        .value_parser(names)
        .hide_possible_values(true)
        .action(ArgAction::Append)
        .help(help)
}

fn long_help() -> String {
    let line = |name: &str, is_extra: bool, title: &str| {
        let mark = if is_extra { "*" } else { " " };
        format!("  {name:<15}{mark} {title}")
    };
    let patterns = pattern::ALL.map(|it| line(it.name, it.extra, it.title));
    let servers = Server::PEERS.map(|it| line(it.name(), it.is_extra(), it.title()));
    LONG_HELP
        .replace("{patterns}", &patterns.join("\n"))
        .replace("{servers}", &servers.join("\n"))
}

fn command() -> Command {
    Command::new("peers")
        .about("Measure this server beside others of its kind, in one run on one machine")
        .after_help(long_help())
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
            pattern::ALL.map(|pattern| pattern.name).to_vec(),
            "Patterns to measure",
        ))
        .arg(list(
            "peers",
            Server::PEERS.iter().map(Server::static_name).collect(),
            "Servers to measure; the first of the list below is the reference",
        ))
        .arg(
            Arg::new("server")
                .long("server")
                .value_name("NAME=FILE [ARGUMENT...]")
                .value_parser(Server::build_of)
                .action(ArgAction::Append)
                .help("Also measure this build of our server; may be repeated"),
        )
        .arg(
            Arg::new("server-cpus")
                .long("server-cpus")
                .value_name("N")
                .value_parser(value_parser!(u16).range(1..))
                .help("CPUs for the server, one process on each [default: 1]"),
        )
        .arg(
            Arg::new("shared")
                .long("shared")
                .action(ArgAction::SetTrue)
                .help("Run the load on the server's CPUs [default: on the others]"),
        )
        .arg(
            Arg::new("rate")
                .long("rate")
                .value_name("N")
                .value_parser(value_parser!(f64))
                .help("Messages per second of `rate` [default: half of the floor's maximum]"),
        )
        .arg(
            Arg::new("quick")
                .long("quick")
                .action(ArgAction::SetTrue)
                .help("Smoke test: 2 pairs of 0.5 s, disturbed or not"),
        )
        .arg(
            Arg::new("keep-disturbed")
                .long("keep-disturbed")
                .action(ArgAction::SetTrue)
                .help("Count runs that other work or stolen time disturbed"),
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
        let is_chosen = |id: &str, name: &str, is_extra: bool| {
            let named = matches.get_many::<String>(id);
            named.map_or(!is_extra, |mut names| names.any(|chosen| chosen == name))
        };
        let seconds = matches.get_one::<f64>("seconds").copied();
        let seconds = seconds.unwrap_or(if quick { QUICK_SECONDS } else { SECONDS });
        let span = Duration::try_from_secs_f64(seconds).map_err(|error| {
            command().error(ErrorKind::ValueValidation, format!("--seconds: {error}"))
        })?;
        let pairs = matches.get_one::<u32>("pairs").copied();
        let rate = matches.get_one::<f64>("rate").copied();
        let mut patterns = pattern::ALL.to_vec();
        patterns.retain(|pattern| is_chosen("only", pattern.name, pattern.extra));
        for pattern in patterns.iter_mut().filter(|it| it.kind == Kind::Rate) {
            if pattern.beside.is_none() {
                pattern.per_second = rate.unwrap_or(pattern.per_second);
            }
        }
        let mut servers = Server::PEERS.to_vec();
        servers.retain(|server| is_chosen("peers", server.name(), server.is_extra()));
        let builds = matches.get_many::<Server>("server");
        servers.extend(builds.into_iter().flatten().cloned());
        Ok(Self {
            pairs: pairs.unwrap_or(if quick { QUICK_PAIRS } else { PAIRS }),
            span,
            patterns,
            servers,
            server_cpus: matches
                .get_one::<u16>("server-cpus")
                .map_or(1, |&n| n.into()),
            shared: matches.get_flag("shared"),
            keep_disturbed: quick || matches.get_flag("keep-disturbed"),
            json: matches.get_one::<PathBuf>("json").cloned(),
        })
    }
}
