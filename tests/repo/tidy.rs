//! Checks rules of the repository that a compiler cannot check: allowed imports between modules,
//! places of `unsafe`, the maximum length of a file, and required mentions in the documentation.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::imports::{Imports, Module};
use uppercased_ctl::metrics::{CloseReason, PauseCause, RefusalCause};

/// Maximum lines of product code per file, without tests. Split longer files by concept.
const FILE_LINES_MAX: usize = 600;

/// Cores: modules that decide, without input or output.
const CORES: [&str; 47] = [
    "crates/bench/src/capacity/search.rs",
    "crates/bench/src/connection.rs",
    "crates/bench/src/criterion.rs",
    "crates/bench/src/failure.rs",
    "crates/bench/src/findings.rs",
    "crates/bench/src/histogram.rs",
    "crates/bench/src/judge.rs",
    "crates/bench/src/options.rs",
    "crates/bench/src/outcome.rs",
    "crates/bench/src/plan.rs",
    "crates/bench/src/record.rs",
    "crates/bench/src/report/advice.rs",
    "crates/bench/src/report/capacity.rs",
    "crates/bench/src/report/compare",
    "crates/bench/src/report/export.rs",
    "crates/bench/src/report/figures.rs",
    "crates/bench/src/report/html",
    "crates/bench/src/report/summary.rs",
    "crates/bench/src/size.rs",
    "crates/bench/src/truth.rs",
    "crates/ctl/src/control/protocol.rs",
    "crates/ctl/src/escape.rs",
    "crates/ctl/src/identity.rs",
    "crates/ctl/src/metrics.rs",
    "crates/ctl/src/proxy_header.rs",
    "crates/ctl/src/status",
    "src/admin/answer.rs",
    "src/admin/exposition.rs",
    "src/admin/http.rs",
    "src/admission.rs",
    "src/cli/definition.rs",
    "src/cli/exit.rs",
    "src/cli/manual/page.rs",
    "src/connection.rs",
    "src/handover",
    "src/memory/layout.rs",
    "src/sandbox/calls.rs",
    "src/supervisor/admin/life.rs",
    "src/supervisor/backoff.rs",
    "src/supervisor/machine",
    "src/supervisor/resize/follower.rs",
    "src/supervisor/systemd/inheritance.rs",
    "src/supervisor/systemd/notify.rs",
    "src/top/keys.rs",
    "src/top/model.rs",
    "src/top/view.rs",
    "src/wire.rs",
];

/// Names forbidden in a core.
const OUTSIDE: [&str; 9] = [
    "clock::now",
    "std::env",
    "std::fs",
    "std::net::Tcp",
    "std::os::fd",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "crate::sys::",
];

/// The layers, the lowest first. A module may import only its own files and modules of lower
/// layers. A name is that of a file directly in `src`, or of a member crate.
pub(crate) const LAYERS: [&[&str]; 12] = [
    &["uppercased_ctl", "uppercase"],
    &["uppercased_bench", "sys", "service"],
    &["config", "fault"],
    &["admission", "log", "memory", "sandbox"],
    &["client", "connection", "handover"],
    &["wire"],
    &["channel"],
    &["admin", "port", "reactor"],
    &["listener"],
    &["supervisor", "top", "worker"],
    &["preflight"],
    &["cli"],
];

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns every Rust file below `folder`: its path from the root, and its text.
pub(crate) fn sources(folder: &str) -> Vec<(String, String)> {
    let mut folders: Vec<PathBuf> = vec![root().join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)
            .expect("the folder is there")
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(root()).expect("it lies below the root");
                let text = fs::read_to_string(&path).expect("a source is text");
                found.push((name.display().to_string(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {folder}");
    found.sort();
    found
}

/// Returns the sources of the root package and of every member.
fn product_sources() -> impl Iterator<Item = (String, String)> {
    ["src", "crates"].into_iter().flat_map(sources)
}

/// Returns the text without its unit tests, which are at the end.
fn product(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text)
}

/// Returns whether a file holds unit tests only.
fn is_test_file(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.contains("/tests/")
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    product(text)
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

/// Fails with all violations, so that one run shows every one.
pub(crate) fn assert_none(what: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{what}:\n  {}", offences.join("\n  "));
}

#[test]
fn cores_make_no_system_call() {
    let mut seen = 0;
    let mut offences = Vec::new();
    for (name, text) in product_sources() {
        if is_test_file(&name) || !CORES.iter().any(|core| name.starts_with(core)) {
            continue;
        }
        seen += 1;
        for line in code_lines(&text) {
            let named = OUTSIDE.iter().filter(|outside| line.contains(**outside));
            // The layout is in cache lines of the mapping; their size is a plain number.
            let excused = line.contains("shared::LINE_BYTES");
            offences.extend(named.filter(|_| !excused).map(|o| format!("{name}: {o}")));
        }
    }
    assert!(
        seen >= CORES.len(),
        "the list of cores names files that are gone"
    );
    assert_none("a core reaches outside", offences);
}

/// The product's files and their imports, read once.
static IMPORTS: LazyLock<Imports> = LazyLock::new(|| {
    let files = product_sources().filter(|(name, _)| !is_test_file(name));
    let files = files.filter_map(|(name, text)| {
        let (package, path) = name.split_once("src/")?;
        let package = match package.strip_prefix("crates/") {
            Some(member) => format!("uppercased_{}", member.trim_end_matches('/')),
            None => "uppercased".to_owned(),
        };
        Some((package, path.to_owned(), text))
    });
    Imports::of(&files.collect::<Vec<_>>())
});

#[test]
fn modules_import_lower_layers_only() {
    let name = |module: &'static Module| match module.as_slice() {
        [package, rest @ ..] if package == "uppercased" => rest.first(),
        [package, ..] => Some(package),
        [] => None,
    };
    let layer = |name: &String| {
        LAYERS
            .iter()
            .position(|layer| layer.contains(&name.as_str()))
    };
    let mut offences = Vec::new();
    for (from, to) in IMPORTS.pairs() {
        let (Some(importer), Some(imported)) = (name(from), name(to)) else {
            continue;
        };
        for name in [importer, imported] {
            if layer(name).is_none() {
                offences.push(format!("{name} is in no layer"));
            }
        }
        if importer != imported && layer(imported) >= layer(importer) {
            offences.push(format!("{} imports {}", from.join("::"), to.join("::")));
        }
    }
    offences.sort();
    offences.dedup();
    assert_none("imports that do not point down", offences);
}

#[test]
fn files_import_each_other_without_circles() {
    let circles = IMPORTS.circles();
    let mut offences = Vec::new();
    for circle in &circles {
        let pairs = IMPORTS.pairs();
        let inside = pairs.filter(|(from, to)| circle.contains(from) && circle.contains(to));
        let lines =
            inside.map(|(from, to)| format!("{} imports {}", from.join("::"), to.join("::")));
        offences.push(lines.collect::<Vec<String>>().join("\n  "));
    }
    assert_none("files that import each other in a circle", offences);
}

/// The parts of the supervisor: each is a file and a folder of the same name.
const PARTS: [&str; 9] = [
    "admin",
    "control",
    "fleet",
    "locks",
    "reaper",
    "signals",
    "systemd",
    "telemetry",
    "upgrade",
];

#[test]
fn parts_of_supervisor_never_import_each_other() {
    let mut seen = 0;
    let mut offences = Vec::new();
    for (name, text) in sources("src/supervisor") {
        let path = name.trim_start_matches("src/supervisor/");
        let part = path.trim_end_matches(".rs").split('/').next();
        let Some(part) = PARTS.into_iter().find(|known| part == Some(known)) else {
            continue;
        };
        seen += 1;
        let outside = if path.contains('/') {
            "crate::supervisor::"
        } else {
            "super::"
        };
        for line in code_lines(&text) {
            let Some((_, imported)) = line.split_once(outside) else {
                continue;
            };
            let mut words = imported.split(|c: char| !c.is_alphanumeric());
            let foreign = |word| word == "Supervisor" || (word != part && PARTS.contains(&word));
            offences.extend(
                words
                    .find(|word| foreign(word))
                    .map(|_| format!("{name}: {line}")),
            );
        }
    }
    assert!(
        seen >= PARTS.len(),
        "the list of parts names files that are gone"
    );
    assert_none("a part of the supervisor knows another", offences);
}

#[test]
fn unsafe_code_stays_in_its_modules() {
    let mut offences = Vec::new();
    for (name, text) in product_sources() {
        let allowed = name.starts_with("src/sys/")
            || name == "crates/bench/src/sys.rs"
            || name.starts_with("src/uppercase");
        if !allowed && code_lines(&text).any(|line| line.contains("unsafe {")) {
            offences.push(name);
        }
    }
    assert_none("unsafe outside src/sys and src/uppercase", offences);
}

/// A fault plan stops, ends or fails a process at a named point. A value may only replace a
/// version, or select the misbehaviour of a compromised worker.
#[test]
fn fault_values_steer_no_branch() {
    const READERS: [&str; 4] = [
        "src/fault.rs",
        "src/supervisor/state.rs",
        "src/wire.rs",
        "src/worker/misbehaviour.rs",
    ];
    let mut offences = Vec::new();
    for (name, text) in product_sources() {
        let reads = code_lines(&text).any(|line| line.contains("fault::value("));
        if reads && !READERS.contains(&name.as_str()) {
            offences.push(name);
        }
    }
    assert_none("values of a fault plan in the product", offences);
}

#[test]
fn every_file_is_short_with_header() {
    let mut offences = Vec::new();
    for (name, text) in product_sources() {
        let lines = product(&text).lines().count();
        if lines > FILE_LINES_MAX {
            offences.push(format!("{name}: {lines} lines"));
        }
        if !text.starts_with("//!") {
            offences.push(format!("{name}: does not begin with a header"));
        }
    }
    assert_none("a file to be split or introduced", offences);
}

#[test]
fn sources_contain_no_leftover_markers() {
    // Split, so that this file does not match.
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["dbg", "!("]].map(|word| word.concat());
    let mut offences = Vec::new();
    for folder in ["src", "crates", "tests", "benches"] {
        for (name, text) in sources(folder) {
            for word in words.iter().filter(|word| text.contains(word.as_str())) {
                offences.push(format!("{name}: {word}"));
            }
        }
    }
    assert_none("left undone", offences);
}

#[test]
fn tests_never_sleep() {
    let mut offences = Vec::new();
    for folder in ["src", "crates", "tests"] {
        for (name, text) in sources(folder) {
            if name != "tests/repo/tidy.rs" && text.contains("sleep(") {
                offences.push(name);
            }
        }
    }
    assert_none("sleeps", offences);
}

#[test]
fn reference_explains_every_reason() {
    let page = fs::read_to_string(root().join("docs/reference.md")).expect("the page is there");
    let words = CloseReason::ALL.iter().map(|reason| reason.name());
    let words = words.chain(PauseCause::ALL.iter().map(|cause| cause.name()));
    let words = words.chain(RefusalCause::ALL.iter().map(|cause| cause.name()));
    let missing = words
        .filter(|word| !page.contains(&format!("`{word}`")))
        .map(str::to_owned);
    assert_none("not in docs/reference.md", missing.collect());
}
