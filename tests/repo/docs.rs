//! Checks that the documentation agrees with the sources: every log event is written with the
//! fields of its declaration, and every quoted line exists. (Tables of events, flags, signals, exit
//! codes and metrics are compared where they are generated: `src/log/events.rs`, `src/cli`,
//! `src/admin/exposition.rs`.)
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use uppercased::log::events::{Declared, SECTIONS};

use crate::links::anchor;

/// The macro that writes a line, and the macros to which it expands.
const EVENT: &str = "event!(";
const UNDECLARED: [&str; 6] = [
    "tracing::trace!(",
    "tracing::debug!(",
    "tracing::info!(",
    "tracing::warn!(",
    "tracing::error!(",
    "tracing::event!(",
];

/// The macro's declaration, and test code that only debug builds contain.
const EXEMPT: [&str; 2] = ["src/log.rs", "src/fault.rs"];

/// The only event written without the macro, because the log itself reports it.
const BY_HAND: &str = "log_lines_lost";

/// A place in the sources that writes an event.
#[derive(Debug)]
struct Written {
    key: String,
    fields: Vec<String>,
}

fn declared() -> impl Iterator<Item = &'static Declared> {
    SECTIONS.iter().flat_map(|(_, events)| *events)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns every Rust file of the program, without its unit tests.
fn sources() -> Vec<(String, String)> {
    let mut folders: Vec<PathBuf> = ["src", "crates"].map(|folder| root().join(folder)).to_vec();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            if name.ends_with(".rs") && !name.ends_with("tests.rs") && !name.contains("/tests/") {
                let text = fs::read_to_string(&path).unwrap();
                let product = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
                found.push((name, product.to_owned()));
            }
        }
    }
    found
}

/// Returns the arguments of a macro call, given the text after its opening parenthesis; strings and
/// nested brackets belong to one argument.
fn arguments(text: &str) -> Vec<String> {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    let mut found = vec![String::new()];
    for character in text.chars() {
        let last = found.last_mut().unwrap();
        if quoted {
            last.push(character);
            quoted = escaped || character != '"';
            escaped = character == '\\' && !escaped;
            continue;
        }
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            '"' => quoted = true,
            ',' if depth == 0 => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        last.push(character);
    }
    found.iter().map(|one| one.trim().to_owned()).collect()
}

/// Returns the name of a field: `peer` of `%peer`, `after_ms` of `after_ms = after.as_millis()`.
fn field(argument: &str) -> Option<String> {
    let name = argument.split('=').next()?.trim();
    let name = name.trim_start_matches(['%', '?']);
    (!name.is_empty() && !name.starts_with('"')).then(|| name.to_owned())
}

/// Returns every place in the sources that writes an event.
fn written() -> Vec<Written> {
    let mut found = Vec::new();
    for (file, text) in sources() {
        if EXEMPT.contains(&file.as_str()) {
            continue;
        }
        for name in UNDECLARED {
            assert!(
                !text.contains(name),
                "{file}: declare it in src/log/events.rs"
            );
        }
        for (at, _) in text.match_indices(EVENT) {
            let mut arguments = arguments(&text[at + EVENT.len()..]).into_iter();
            let first = arguments.next().unwrap();
            // After a semicolon: the worker whose slot and generation are the first fields.
            let (key, worker) = first.split_once(';').unwrap_or((&first, ""));
            let of_worker = ["slot", "generation"].map(str::to_owned);
            let of_worker = of_worker.into_iter().filter(|_| !worker.is_empty());
            let others = arguments.filter_map(|one| field(&one));
            found.push(Written {
                key: key.to_owned(),
                fields: of_worker.chain(others).collect(),
            });
        }
    }
    found
}

/// Returns the part of the page between this heading and the next of its level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    section.split("\n## ").next().unwrap()
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

#[test]
fn events_are_written_with_declared_fields() {
    let written = written();
    // A scanner that finds too few must fail.
    assert!(written.len() > 100, "{}", written.len());
    for event in declared().filter(|event| event.key != BY_HAND) {
        let places = written.iter().filter(|one| one.key == event.key);
        let fields: BTreeSet<&str> = places
            .flat_map(|one| one.fields.iter().map(String::as_str))
            .collect();
        let declared = BTreeSet::from_iter(event.fields.iter().copied());
        assert_eq!(fields, declared, "{}", event.key);
        assert!(written.iter().any(|one| one.key == event.key), "{event:?}");
    }
}

#[test]
fn every_quoted_log_line_exists() {
    let page = page("runbooks.md");
    let quoted: Vec<&str> = page
        .split(['\n', '`'])
        .filter_map(|line| {
            let levels = ["INFO ", "WARN ", "ERROR "].into_iter();
            levels.filter_map(|level| line.strip_prefix(level)).next()
        })
        .collect();
    assert!(quoted.len() > 5, "{quoted:?}");
    let exists = |line: &&&str| {
        declared().any(|event| {
            let fields = line.strip_prefix(event.message);
            fields.is_some_and(|fields| fields.is_empty() || fields.starts_with(' '))
        })
    };
    let gone: Vec<&&str> = quoted.iter().filter(|line| !exists(line)).collect();
    assert!(gone.is_empty(), "no source has these log lines: {gone:?}");
}

/// Covers codes written as numbers, in a call or as a constant. (Their table is `src/cli/exit.rs`.)
#[test]
fn every_exit_code_is_documented() {
    let page = page("reference.md");
    let codes = section(&page, "Exit codes");
    let documented = |code: &str| codes.contains(&format!("\n| {code} | "));
    let mut seen = 0;
    for (file, text) in sources() {
        let calls = text.split("ExitCode::from(").skip(1);
        let constants = text.split("const ").skip(1).filter_map(|rest| {
            let (name, value) = rest.split_once(": u8 = ")?;
            (name.starts_with("EXIT_") || name.starts_with("BAD_")).then_some(value)
        });
        for rest in calls.chain(constants) {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
            let code = &rest[..end];
            if !code.is_empty() {
                seen += 1;
                assert!(documented(code), "{file}: exit code {code}");
            }
        }
    }
    assert!(seen > 3, "{seen}");
}

#[test]
fn contents_list_every_section() {
    for name in ["reference.md", "runbooks.md"] {
        let page = page(name);
        let (contents, _) = page.split_once("\n## ").unwrap();
        let headings = page.lines().filter_map(|line| line.strip_prefix("## "));
        let linked: Vec<String> = headings
            .map(|heading| format!("- [{heading}](#{})", anchor(heading)))
            .collect();
        let contents: Vec<&str> = contents.lines().filter(|l| l.starts_with("- ")).collect();
        assert_eq!(contents, linked, "{name}");
    }
}

#[test]
fn scanner_reads_log_macros() {
    let text = r#"stale, %error, to = f(a, "x, y"), slot = slot.0); rest("#;
    let arguments = arguments(text);
    assert_eq!(
        arguments,
        ["stale", "%error", "to = f(a, \"x, y\")", "slot = slot.0"]
    );
    let fields: Vec<_> = arguments
        .iter()
        .skip(1)
        .filter_map(|one| field(one))
        .collect();
    assert_eq!(fields, ["error", "to", "slot"]);
}
