//! Compares uppercased with similar servers, under the same load on the same machine, in adjacent
//! runs.
//!
//! `cargo bench --bench peers` compares `uppercased` with a minimal epoll server in C (the *floor*:
//! the cost of the kernel alone), and with servers on blocking threads, on tokio, on libuv and on
//! `io_uring`, each written as well as we can. `-- --help` lists patterns, servers and options.
//!
//! The method:
//! - every server has the same number of processes (or threads), each bound to its own CPU, and the
//!   load, which is the load generator's engine, runs on the other CPUs; one pattern, and
//!   `--shared`, runs both on the same CPUs;
//! - the figure is the server's CPU time per message, read from the kernel's clocks at the bounds
//!   of the interval in which messages are counted: the most stable figure on a shared machine;
//! - every run of a server is between two runs of the floor, and only ratios to these two
//!   neighbours are compared; medians with quartiles are shown;
//! - runs disturbed by other load or stolen time are discarded and counted;
//! - the client checks every byte of every reply.
//!
//! The bench must not run a server inside its own process, nor keep state between runs.

mod child;
mod listener;
mod measure;
mod options;
mod pattern;
mod peer_threads;
mod peer_tokio;
mod peer_uring;
mod proc;
mod report;
mod role;
mod server;
mod session;
mod stats;

use std::fs;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use measure::Bench;
use options::Options;
use server::Server;
use uppercased_bench::team::{PART, run_part};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match arguments.get(1).map(String::as_str) {
        Some(PART) => return run_part(),
        Some(role::ROLE) => role::play(&arguments[2..]).map(|()| ExitCode::SUCCESS),
        _ => match Options::parse(&arguments) {
            Ok(options) => compare(&options),
            Err(error) => {
                // Fails only if the output is closed.
                let _ = error.print();
                return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
            }
        },
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("peers: {error}");
        ExitCode::FAILURE
    })
}

/// Measures and reports; also fails if a pattern or this program could not be measured.
fn compare(options: &Options) -> io::Result<ExitCode> {
    let folder = tempfile::tempdir()?;
    let bench = place(options, folder.path())?;
    let mut servers = options.servers.clone();
    servers.retain(|server| match server.build(folder.path()) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("{} is skipped: {error}", server.title());
            false
        }
    });
    announce(&bench, options, &servers);
    let machine = machine();
    println!("{machine}\n");
    let mut all = Vec::new();
    let mut complete = true;
    for pattern in &options.patterns {
        eprint!("{} ", pattern.title);
        match session::measure(&bench, options, &servers, pattern) {
            Ok(measured) => {
                println!("{}", report::table(&measured, &servers));
                all.push(measured);
            }
            Err(error) => {
                eprintln!("could not be measured: {error}");
                complete = false;
            }
        }
    }
    println!("{}", report::summary(&all, &servers));
    if let Some(file) = &options.json {
        fs::write(file, report::json(&all, options, &machine).to_string())?;
    }
    complete &= all
        .iter()
        .all(|one| !one.failed.keys().any(|server| server.is_ours()));
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Assigns the CPUs: the last ones to the server, since interrupts go to the first.
fn place(options: &Options, folder: &std::path::Path) -> io::Result<Bench> {
    let mut load_cpus = role::cpus()?;
    let apart = load_cpus.len().checked_sub(options.server_cpus);
    let apart = apart.ok_or_else(|| io::Error::other("the machine has fewer CPUs"))?;
    let server_cpus = load_cpus.split_off(apart);
    if options.shared {
        load_cpus.clone_from(&server_cpus);
    }
    if load_cpus.is_empty() {
        let why = "server and load need CPUs of their own; use --shared";
        return Err(io::Error::other(why));
    }
    // This process also stays off the server's CPUs.
    role::bind(&load_cpus)?;
    Ok(Bench {
        server_cpus,
        load_cpus,
        span: options.span,
        folder: folder.to_owned(),
    })
}

fn announce(bench: &Bench, options: &Options, servers: &[Server]) {
    let runs_a_pattern = (2 * servers.len()).saturating_sub(1) as u32 * options.pairs;
    let times = options
        .patterns
        .iter()
        .map(|pattern| bench.run_time(pattern));
    let minutes = (times.sum::<Duration>() * runs_a_pattern).as_secs_f64() / 60.0;
    eprintln!(
        "{} patterns, {} servers, {} pairs of {:.1} s: about {minutes:.0} min, more if runs are \
         discarded. Server on CPU {:?}, load on {:?}.",
        options.patterns.len(),
        servers.len(),
        options.pairs,
        options.span.as_secs_f64(),
        bench.server_cpus,
        bench.load_cpus,
    );
}

/// Describes the machine in one line.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let count = processors.matches("processor\t").count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{count} CPUs ({model}), Linux {}, loopback", kernel.trim())
}
