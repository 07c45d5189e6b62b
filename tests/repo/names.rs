//! Checks the names of tests, and the table in `tests/README.md` that lists the tests of each
//! promise.

use std::collections::BTreeMap;
use std::fs;

use crate::tidy::{assert_none, root, sources};

/// Maximum number of words in a test's name.
const WORDS_MAX: usize = 8;

/// Words that begin a clause instead of naming the subject.
const HEADLESS: [&str; 6] = ["who", "whoever", "whom", "whose", "what", "whatever"];

/// Returns the names of the tests in `text`.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text.lines().map(str::trim_start);
    std::iter::from_fn(move || {
        lines.find(|line| *line == "#[test]")?;
        lines.find_map(|line| line.strip_prefix("fn ")?.split('(').next())
    })
}

/// Returns the tests of each file, by its path from the root.
fn tests_by_file() -> BTreeMap<String, Vec<String>> {
    let files = ["src", "crates", "tests"].into_iter().flat_map(sources);
    files
        .map(|(file, text)| (file, tests_in(&text).map(str::to_owned).collect()))
        .collect()
}

/// Returns the text between backquotes in `cell`.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn test_names_are_short_and_have_subjects() {
    let mut seen = 0;
    let mut offences = Vec::new();
    for (file, tests) in tests_by_file() {
        seen += tests.len();
        let is_bad = |name: &&String| {
            name.split('_').count() > WORDS_MAX
                || HEADLESS.contains(&name.split('_').next().unwrap_or_default())
        };
        offences.extend(
            tests
                .iter()
                .filter(is_bad)
                .map(|name| format!("{file}: {name}")),
        );
    }
    assert!(seen > 1000, "only {seen} tests were found");
    assert_none("a test's name is too long or has no subject", offences);
}

#[test]
fn index_names_existing_tests() {
    let index = fs::read_to_string(root().join("tests/README.md")).expect("the index is there");
    let by_file = tests_by_file();
    let mut seen = 0;
    let mut offences = Vec::new();
    for row in index.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').collect();
        let [_, _, _, files, tests, _] = cells[..] else {
            continue;
        };
        let mut listed = Vec::new();
        for file in quoted(files) {
            let path = match file.strip_prefix("src/") {
                Some(_) => file.to_owned(),
                None => format!("tests/{file}"),
            };
            match by_file.get(&path) {
                Some(tests) => listed.extend(tests),
                None => offences.push(format!("no file {path}")),
            }
        }
        for test in quoted(tests) {
            seen += 1;
            if !listed.iter().any(|name| *name == test) {
                offences.push(format!("no test {test} in {files}"));
            }
        }
    }
    assert!(seen > 50, "only {seen} tests are listed");
    assert_none("tests/README.md", offences);
}
