//! Measures the effect of a reload, an upgrade, a change of the worker count and a killed worker on
//! the clients of several servers.
//!
//! In each round, clients of two kinds exchange messages, and every byte is checked: connections
//! that were established before the event, and new ones that are opened and closed all the time
//! (numbers in `rivals/clients.rs`). The event happens under this load, in the way that the server's
//! own manual recommends ([`Rival::settings`]); the load ends [`Rival::watch`] later.
//!
//! nginx (without a script), HAProxy, Sōzu and Envoy forward and do not answer; behind them is one
//! more process of the floor of the other benches, in C, which is not disturbed. A server that is
//! not installed, or cannot be built, is named and skipped. A wrong byte fails the bench, and so
//! does a connection that this crate's server loses, resets or refuses.
//!
//! ```text
//! cargo bench --bench rivals -- [EVENT...] [--server NAME] [--rounds N] [--json FILE]
//! ```
//!
//! Events: `reload`, `upgrade`, `more` and `fewer` (workers), `kill`. Without `--bench` among its
//! arguments, it runs one round of the servers that it can always build, as a smoke test.

#![expect(
    clippy::disallowed_methods,
    reason = "a bench reads the clock, waits, and is several parties at once"
)]

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use uppercased_bench::{PART, run_part};

use self::clients::{Clients, Seen};
use self::report::Cell;
use self::server::{Event, MORE_WORKERS, Rival, Server};

#[path = "rivals/clients.rs"]
mod clients;
#[path = "rivals/echo.rs"]
mod echo;
#[path = "rivals/envoy.rs"]
mod envoy;
#[path = "rivals/group.rs"]
mod group;
#[path = "rivals/haproxy.rs"]
mod haproxy;
#[path = "rivals/nginx.rs"]
mod nginx;
#[path = "rivals/ours.rs"]
mod ours;
#[path = "rivals/prefork.rs"]
mod prefork;
#[path = "rivals/report.rs"]
mod report;
#[path = "rivals/server.rs"]
mod server;
#[path = "rivals/sozu.rs"]
mod sozu;

/// Rounds for each server and event.
const ROUNDS: usize = 7;
/// Load before the event.
const BEFORE: Duration = Duration::from_millis(500);
/// Load after the event in a smoke test.
const SMOKE_WATCH: Duration = Duration::from_millis(300);

/// One round.
#[derive(Clone, Copy, Debug)]
struct Round {
    seen: Seen,
    /// Duration of the event, as the operator sees it.
    took: Duration,
    /// Processes from before a reload or an upgrade that still run at the end, for the clients that
    /// they serve.
    left: usize,
}

/// The arguments.
#[derive(Debug)]
struct Options {
    events: Vec<Event>,
    rivals: Vec<Rival>,
    rounds: usize,
    /// Load after the event, if not the server's own.
    watch: Option<Duration>,
    json: Option<PathBuf>,
}

impl Options {
    fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            events: Vec::new(),
            rivals: Vec::new(),
            rounds: ROUNDS,
            watch: None,
            json: None,
        };
        let mut is_bench = false;
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--bench" => is_bench = true,
                "--rounds" => {
                    let rounds = value()?
                        .parse::<usize>()
                        .map_err(|error| error.to_string())?;
                    options.rounds = rounds.max(1);
                }
                "--json" => options.json = Some(value()?.into()),
                "--server" => {
                    let name = value()?;
                    let found = Rival::ALL.into_iter().find(|rival| rival.name() == name);
                    options.rivals.push(found.ok_or_else(|| {
                        let names = Rival::ALL.map(Rival::name).join(", ");
                        format!("no server {name}; there are {names}")
                    })?);
                }
                name => {
                    let found = Event::ALL.into_iter().find(|event| event.name() == name);
                    options.events.push(found.ok_or_else(|| {
                        let names = Event::ALL.map(Event::name).join(", ");
                        format!("no event {name}; there are {names}")
                    })?);
                }
            }
        }
        if !is_bench {
            options.rivals = vec![Rival::Ours, Rival::Prefork];
            options.events = vec![Event::Reload, Event::Kill];
            options.rounds = 1;
            options.watch = Some(SMOKE_WATCH);
        }
        if options.rivals.is_empty() {
            options.rivals = Rival::ALL.to_vec();
        }
        if options.events.is_empty() {
            options.events = Event::ALL.to_vec();
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().is_some_and(|first| first == PART) {
        return run_part();
    }
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    report::head(&options);
    let mut cells = Vec::new();
    for &rival in &options.rivals {
        for cell in measure(rival, &options) {
            report::row(&cell);
            cells.push(cell);
        }
    }
    report::settings(&options.rivals);
    if let Some(file) = &options.json
        && let Err(error) = report::write_json(&cells, file)
    {
        eprintln!("error: cannot write {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    let mut ours = cells.iter().filter(|cell| cell.rival == Rival::Ours);
    if ours.any(|cell| cell.rounds.is_err() || cell.rounds().any(Round::has_failure)) {
        eprintln!("error: uppercased was not measured, or its clients saw a failure");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Measures every event with one server.
fn measure(rival: Rival, options: &Options) -> Vec<Cell> {
    let watch = options.watch.unwrap_or_else(|| rival.watch());
    let cell = |event, rounds: Result<Vec<Round>, String>| Cell {
        rival,
        event,
        rounds,
    };
    let folder = tempfile::tempdir();
    let started = folder.and_then(|folder| Ok((rival.start(folder.path())?, folder)));
    let (mut server, _folder) = match started {
        Ok(started) => started,
        Err(error) => return vec![cell(options.events[0], Err(error.to_string()))],
    };
    let mut cells = Vec::new();
    for &event in &options.events {
        let rounds = (0..options.rounds).map(|_| round(server.as_mut(), event, watch));
        match rounds.collect::<io::Result<Vec<Round>>>() {
            Ok(rounds) => cells.push(cell(event, Ok(rounds))),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                cells.push(cell(event, Err("it has no such operation".to_owned())));
            }
            // Its state is unknown.
            Err(error) => {
                cells.push(cell(event, Err(error.to_string())));
                break;
            }
        }
    }
    cells
}

fn round(server: &mut dyn Server, event: Event, watch: Duration) -> io::Result<Round> {
    let address = server.address();
    group::await_some("service", || clients::is_served(address).then_some(()))?;
    if event == Event::Fewer {
        server.scale(MORE_WORKERS)?;
    }
    let clients = Clients::start(address)?;
    std::thread::sleep(BEFORE);
    let before = server.group().pids();
    let begun = Instant::now();
    match event {
        Event::Reload => server.reload(),
        Event::Upgrade => server.upgrade(),
        Event::More => server.scale(MORE_WORKERS),
        Event::Fewer => server.scale(server::WORKERS),
        Event::Kill => server.kill(),
    }?;
    let took = begun.elapsed();
    std::thread::sleep(watch);
    let main = server.main();
    let after = server.group().pids();
    let is_old = |pid: &&u32| before.contains(pid) && Some(**pid) != main;
    let replaces = matches!(event, Event::Reload | Event::Upgrade);
    // Others keep their processes, as does a reload that starts none.
    let replaces = replaces && after.iter().any(|pid| !before.contains(pid));
    let left = after.iter().filter(is_old).count() * usize::from(replaces);
    let seen = clients.finish()?;
    server.recover()?;
    Ok(Round { seen, took, left })
}

impl Round {
    fn has_failure(&self) -> bool {
        let Seen {
            lost,
            reset,
            refused,
            ..
        } = self.seen;
        lost + reset + refused > 0
    }
}
