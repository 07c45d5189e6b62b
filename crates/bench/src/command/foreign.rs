//! Hints for flags that a command does not have: those of other patterns, and those of other load
//! generators.
//!
//! Invariant: a hint names only flags and commands that exist. Where a flag of another tool means
//! the same as one of this program, it is an alias in `flags` instead.

use clap::Arg;

use super::flags;
use crate::options::{Pattern, Word as _};

/// Flags of other load generators, and their equivalents here.
pub(super) const FOREIGN: &[(&[&str], &str)] = &[
    (
        &[
            "-o",
            "-j",
            "--out",
            "--output",
            "--output-format",
            "--format",
            "--summary-export",
        ],
        "`--json FILE` writes all results, `--json -` to standard output",
    ),
    (
        &["-L", "--latency", "--latency-correction", "--percentiles"],
        "the summary always has the percentiles, and `bench rate` corrects for coordinated omission",
    ),
    (
        &["-u", "--vus", "--users", "--concurrency"],
        "use `--connections`, each of which is a user",
    ),
    (
        &["-i", "-N", "--iterations", "--requests"],
        "use `--count` for a number of messages",
    ),
    (&["-P"], "use `--pipeline` for messages in flight"),
    (
        &["-w", "--rampup", "--ramp-up"],
        "use `--warmup` for a time that is not measured",
    ),
    (
        &["-p", "--port", "--host", "--target"],
        "write the address as HOST:PORT, without a flag",
    ),
    (
        &["--runs", "--repeat"],
        "`bench versus` alternates and compares runs of two servers",
    ),
    (
        &["--p50", "--p90", "--p95", "--p99", "--p99.9"],
        "use `--fail-if`, or `bench capacity` for the highest rate that holds a target",
    ),
    (
        &["--threshold", "--thresholds", "--max-latency", "--slo"],
        "use `--fail-if`, as in --fail-if 'p99 > 5ms'",
    ),
    (
        &["--disable-keepalive"],
        "use `bench churn`, which connects again for each exchange",
    ),
    (
        &[
            "-H",
            "-m",
            "-T",
            "-b",
            "-k",
            "-X",
            "--header",
            "--method",
            "--body",
            "--script",
            "--insecure",
        ],
        "the load is plain TCP, without HTTP or TLS",
    ),
];

/// Returns a hint for a flag, as typed, that a command of `bench` does not have.
#[must_use]
pub fn hint(flag: &str) -> Option<String> {
    if let Some(owners) = owners(flag) {
        return Some(format!("it applies to {owners}"));
    }
    let row = FOREIGN.iter().find(|(flags, _)| flags.contains(&flag));
    row.map(|(_, hint)| (*hint).to_owned())
}

/// Returns the error for a flag before a command that does not have it.
pub(super) fn misplaced(flag: &str, command: &str) -> String {
    let flag = format!("--{flag}");
    let owners = owners(&flag).unwrap_or_default();
    format!("cannot use {flag} with `{command}`: it applies to {owners}; remove it")
}

/// Returns the patterns that have this flag or alias, in words.
fn owners(flag: &str) -> Option<String> {
    let has = |pattern: &&Pattern| flags::of(**pattern).iter().any(|arg| is_spelled(arg, flag));
    let owners = Pattern::ALL.iter().filter(has);
    let owners: Vec<String> = owners
        .map(|one| format!("`bench {}`", one.word()))
        .collect();
    (!owners.is_empty()).then(|| owners.join(", "))
}

fn is_spelled(arg: &Arg, flag: &str) -> bool {
    let aliases = arg.get_all_aliases().unwrap_or_default();
    let short_aliases = arg.get_all_short_aliases().unwrap_or_default();
    let mut longs = aliases.into_iter().chain(arg.get_long());
    let mut shorts = short_aliases.into_iter().chain(arg.get_short());
    match flag.strip_prefix("--") {
        Some(long) => longs.any(|one| one == long),
        None => shorts.any(|one| flag == format!("-{one}")),
    }
}
