//! Counts user instructions of the serving path per message and compares them with recorded
//! figures, to detect regressions without an idle machine.
//!
//! Callgrind counts one event loop iteration over real sockets, and the connection core over an
//! in-memory socket (`benches/turn/loads.rs`). The same thread serves the clients' ends between the
//! iterations, so every run is the same. The kernel's instructions do not count.
//!
//! `cargo bench --profile turn --package uppercased-turn` prints a line for each load and fails if
//! a figure exceeds the recorded one by more than [`TOLERANCE`]. With `UPDATE_TURN=1` in the
//! environment it records the figures in `benches/turn/recorded.toml`. Figures apply to one build:
//! compiler, target, path of the transformation, and profile. For any other build nothing is
//! compared, and the last line is `SKIPPED: CAUSE`.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use loads::{LOADS, Load};
use serde::Deserialize;
use uppercased::uppercase::selected_path;

mod loads;

/// Maximum excess over the recorded figure, as a share of it.
const TOLERANCE: f64 = 0.03;
/// Argument of the process in which the instructions are counted.
const ROLE: &str = "run-loads";
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/recorded.toml");
/// Prefix of the profile's parts.
const PROFILE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/turn.callgrind");
const UPDATE: &str = "UPDATE_TURN=1 cargo bench --profile turn --package uppercased-turn";

/// The contents of [`RECORDED`].
#[derive(Deserialize)]
struct Recorded {
    build: String,
    instructions: BTreeMap<String, f64>,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(ROLE) {
        LOADS.iter().for_each(Load::run);
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: turn: valgrind is not installed");
        return ExitCode::SUCCESS;
    }
    let figures = count();
    let build = build();
    if std::env::var_os("UPDATE_TURN").is_some() {
        record(&build, &figures);
    }
    compare(&build, &figures)
}

/// Returns each load's instructions per message.
fn count() -> Vec<f64> {
    let program = std::env::current_exe().unwrap();
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={PROFILE}"))
        .args([
            "--dump-before=*turn_boundary*",
            "--toggle-collect=*counted_*",
        ])
        .arg(program)
        .arg(ROLE)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "callgrind: {}: {errors}", run.status);
    let figure = |(index, load): (usize, &Load)| total(part(index)) / load.counted() as f64;
    LOADS.iter().enumerate().map(figure).collect()
}

/// Returns the file with the profile of a load. A part ends at each boundary; the first is the
/// warm-up.
fn part(load: usize) -> String {
    format!("{PROFILE}.{}", 2 * load + 2)
}

fn total(profile: String) -> f64 {
    let text = fs::read_to_string(profile).unwrap();
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total.unwrap().parse().unwrap()
}

/// Returns the compiler's release and target, the path of the transformation, and the folder of the
/// profile.
fn build() -> String {
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let value = |key| version.lines().find_map(|line| line.strip_prefix(key));
    let (release, host) = (value("release: ").unwrap(), value("host: ").unwrap());
    let program = std::env::current_exe().unwrap();
    let profile = program
        .ancestors()
        .nth(2)
        .and_then(Path::file_name)
        .unwrap();
    let (path, profile) = (selected_path(), profile.display());
    format!("rustc {release}, {host}, {path}, {profile}")
}

fn record(build: &str, figures: &[f64]) {
    let mut text = format!(
        "# User instructions per message, written by `{UPDATE}`.\n\
         build = \"{build}\"\n\n[instructions]\n"
    );
    for (load, figure) in LOADS.iter().zip(figures) {
        writeln!(text, "{:?} = {figure:.1}", load.name).unwrap();
    }
    fs::write(RECORDED, text).unwrap();
}

/// Prints the figures; fails if one exceeds its limit.
fn compare(build: &str, figures: &[f64]) -> ExitCode {
    let recorded: Recorded = toml::from_str(&fs::read_to_string(RECORDED).unwrap()).unwrap();
    let mut exit = ExitCode::SUCCESS;
    println!(
        "{:32} {:>12} {:>9} {:>6}",
        "load", "instructions", "recorded", "ratio"
    );
    let mut remarks = String::new();
    for (index, (load, figure)) in LOADS.iter().zip(figures).enumerate() {
        let name = load.name;
        let was = recorded.instructions.get(name).copied().unwrap_or(f64::NAN);
        let ratio = figure / was;
        println!("{name:32} {figure:12.1} {was:9.1} {ratio:6.3}");
        if recorded.build != build || (ratio - 1.0).abs() <= TOLERANCE {
            continue;
        }
        if ratio < 1.0 {
            writeln!(
                remarks,
                "{name}: below the recorded figure; record it: {UPDATE}"
            )
            .unwrap();
            continue;
        }
        exit = ExitCode::FAILURE;
        let bound = was * (1.0 + TOLERANCE);
        writeln!(
            remarks,
            "error: {name}: {figure:.1} instructions per message exceed the bound {bound:.1}; \
             profile: callgrind_annotate {}; accept: {UPDATE}",
            part(index)
        )
        .unwrap();
    }
    print!("{remarks}");
    if recorded.build != build {
        let theirs = recorded.build;
        println!("SKIPPED: turn: recorded with {theirs}, built with {build}; record: {UPDATE}");
    }
    exit
}
