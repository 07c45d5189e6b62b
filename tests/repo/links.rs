//! Checks that every relative link and anchor of a Markdown file has a target, every path in
//! backticks names a file, and ARCHITECTURE.md lists the actual layers and functions.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::tidy::LAYERS;

/// Folders with documentation; the empty name is the root without its subfolders.
const FOLDERS: [&str; 6] = [
    "",
    ".github",
    "docs",
    "packaging",
    "packaging/haproxy",
    "tests",
];

/// Prefixes of paths in backticks that refer to files of this repository.
const PATHS: [&str; 9] = [
    ".ci/",
    ".github/",
    "benches/",
    "crates/",
    "docs/",
    "fuzz/",
    "packaging/",
    "src/",
    "tests/",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns every Markdown file, by its path from the root.
fn pages() -> BTreeMap<PathBuf, String> {
    let mut pages = BTreeMap::new();
    for folder in FOLDERS {
        let Ok(entries) = fs::read_dir(root().join(folder)) else {
            continue;
        };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|ending| ending == "md") {
                let name = path.strip_prefix(root()).unwrap().to_owned();
                pages.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    pages
}

/// Returns the lines outside code blocks.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    page.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// Returns the anchor that a Markdown renderer gives to a heading.
pub(crate) fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    let anchor: String = heading.to_lowercase().chars().filter(kept).collect();
    anchor.replace(' ', "-")
}

fn has_anchor(page: &str, wanted: &str) -> bool {
    let headings = prose(page).filter(|line| line.starts_with('#'));
    let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#').trim()));
    anchors.any(|anchor| anchor == wanted)
}

/// Returns the link targets in a line, without absolute addresses.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

/// Returns the file that a link on this page refers to, by its path from the root.
fn target(page: &Path, file: &str) -> PathBuf {
    if file.is_empty() {
        return page.to_owned();
    }
    let mut target = page.to_owned();
    target.pop();
    for part in file.split('/') {
        match part {
            ".." => assert!(
                target.pop(),
                "{} links out of the repository",
                page.display()
            ),
            part => target.push(part),
        }
    }
    target
}

#[test]
fn relative_links_lead_somewhere() {
    let pages = pages();
    let (mut seen, mut broken) = (0, Vec::new());
    for (name, page) in &pages {
        for link in prose(page).flat_map(links) {
            seen += 1;
            let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
            let target = target(name, file);
            let exists = root().join(&target).exists();
            let found = wanted.is_empty()
                || pages
                    .get(&target)
                    .is_some_and(|page| has_anchor(page, wanted));
            if !exists || !found {
                broken.push(format!("{}: {link}", name.display()));
            }
        }
    }
    assert!(seen > 20, "only {seen} links found");
    assert!(
        broken.is_empty(),
        "broken links:\n  {}",
        broken.join("\n  ")
    );
}

#[test]
fn named_files_exist() {
    let (mut seen, mut gone) = (0, Vec::new());
    for (name, page) in pages() {
        for word in prose(&page).flat_map(|line| line.split('`').skip(1).step_by(2)) {
            // `foo/{a,b}.rs`, `tests/prop_*` and commands with arguments do not refer to a single
            // file.
            let path = word.split(':').next().unwrap_or(word);
            let single = !path.contains(['{', '*', ' ']);
            if single && PATHS.iter().any(|start| path.starts_with(start)) {
                seen += 1;
                if !root().join(path).exists() {
                    gone.push(format!("{}: {word}", name.display()));
                }
            }
        }
    }
    assert!(seen > 20, "only {seen} paths found");
    assert!(gone.is_empty(), "no such file:\n  {}", gone.join("\n  "));
}

#[test]
fn architecture_shows_the_layers() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, picture) = page.split_once("\n```text\n").unwrap();
    let (picture, _) = picture.split_once("\n```\n").unwrap();
    let shown: Vec<Vec<&str>> = picture.lines().map(|l| l.split(" · ").collect()).collect();
    let layers: Vec<Vec<&str>> = LAYERS.iter().rev().map(|layer| layer.to_vec()).collect();
    assert_eq!(shown, layers);
}

#[test]
fn architecture_walks_name_real_functions() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (mut seen, mut gone) = (0, Vec::new());
    // | `src/reactor.rs` | `turn`, `accept` | what happens |
    for row in page.lines().filter(|line| line.starts_with("| `src/")) {
        let mut cells = row.split(" | ");
        let file = cells
            .next()
            .unwrap()
            .trim_start_matches("| ")
            .trim_matches('`');
        let text = fs::read_to_string(root().join(file)).unwrap();
        let functions = cells.next().unwrap_or_default();
        for function in functions.split('`').skip(1).step_by(2) {
            seen += 1;
            let definition = format!("fn {function}");
            let defined = text
                .match_indices(&definition)
                .any(|(at, _)| text[at + definition.len()..].starts_with(['(', '<']));
            if !defined {
                gone.push(format!("{file}: {function}"));
            }
        }
    }
    assert!(seen > 10, "only {seen} hops found");
    assert!(
        gone.is_empty(),
        "no such function:\n  {}",
        gone.join("\n  ")
    );
}
