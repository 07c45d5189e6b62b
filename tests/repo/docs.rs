//! `docs/reference.md` says what the program says: every log line of the sources stands in its
//! tables, and every line of its tables stands in the sources. (Flags, signals, exit codes and
//! metrics are compared where their tables are: `src/cli`, `src/admin/exposition.rs`.)
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use crate::links::anchor;

/// The macros that write a line.
const MACROS: [&str; 5] = [
    "tracing::trace!(",
    "tracing::debug!(",
    "tracing::info!(",
    "tracing::warn!(",
    "tracing::error!(",
];

/// In debug builds only, for tests.
const NOT_SHIPPED: &str = "src/fault.rs";

/// The one line whose words are made elsewhere: each of the status, at `SIGUSR1`.
const FORWARDED: (&str, &str) = ("src/supervisor/status.rs", "{line}");

/// The one line that is written by hand, since the log itself has something to say.
const BY_HAND: (&str, &str) = (
    "src/log/line.rs",
    "log lines were lost because standard error took no more",
);

/// Fewer characters before `…` could mean anything.
const PREFIX_LEAST_CHARS: usize = 10;

/// A line that the program can write.
#[derive(Debug)]
struct Event {
    file: String,
    /// `None`: it has no words.
    message: Option<String>,
    fields: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of the program, its unit tests cut off.
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

/// The arguments of a macro, from behind its opening parenthesis; strings and nested brackets are
/// one argument's.
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

/// A string literal's text, if it is one; a line that ends in `\` goes on where the next begins.
fn literal(argument: &str) -> Option<String> {
    let text = argument.strip_prefix('"')?.strip_suffix('"')?;
    let mut lines = text.split("\\\n");
    let first = lines.next()?.to_owned();
    Some(lines.fold(first, |text, line| text + line.trim_start()))
}

/// The name of a field: `peer` of `%peer`, `after_ms` of `after_ms = after.as_millis()`.
fn field(argument: &str) -> Option<String> {
    let name = argument.split('=').next()?.trim();
    let name = name.trim_start_matches(['%', '?']);
    (!name.is_empty() && !name.starts_with('"')).then(|| name.to_owned())
}

/// A macro that is imported would not be found.
fn assert_macros_are_named_in_full(file: &str, text: &str) {
    for name in MACROS {
        let short = name.trim_start_matches("tracing::");
        let (all, whole) = (text.matches(short).count(), text.matches(name).count());
        assert_eq!(all, whole, "{file}: write {name}…) for {short}…)");
    }
}

/// Every line that the program can write, as its sources say.
fn events() -> Vec<Event> {
    let mut found = Vec::new();
    for (file, text) in sources() {
        if file == NOT_SHIPPED {
            continue;
        }
        assert_macros_are_named_in_full(&file, &text);
        for start in MACROS.iter().flat_map(|name| {
            let starts = text.match_indices(name);
            starts.map(|(at, _)| at + name.len()).collect::<Vec<_>>()
        }) {
            let arguments = arguments(&text[start..]);
            let message = arguments.iter().find_map(|one| literal(one));
            if (file.as_str(), message.as_deref()) != (FORWARDED.0, Some(FORWARDED.1)) {
                found.push(Event {
                    file: file.clone(),
                    message,
                    fields: arguments.iter().filter_map(|one| field(one)).collect(),
                });
            }
        }
        if file == BY_HAND.0 {
            assert!(text.contains(&format!("\"{}\"", BY_HAND.1)), "{BY_HAND:?}");
            found.push(Event {
                file,
                message: Some(BY_HAND.1.to_owned()),
                fields: vec!["lost".to_owned()],
            });
        }
    }
    found
}

/// The part of the page between this heading and the next one of its rank.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    section.split("\n## ").next().unwrap()
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// A log line as the page has it: `worker ready` (slot, generation).
#[derive(Debug)]
struct Documented {
    message: String,
    fields: Vec<String>,
}

/// The first column of the tables of log lines.
fn documented(page: &str) -> Vec<Documented> {
    let rows = section(page, "Standard output and the log")
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .filter_map(|row| row.split(" | ").next());
    let mut found = Vec::new();
    for cell in rows {
        let mut parts = cell.split('`').skip(1);
        while let (Some(message), after) = (parts.next(), parts.next().unwrap_or_default()) {
            let fields = after.strip_prefix(" (").and_then(|it| it.split(')').next());
            // What is no single word explains one.
            let fields = fields.unwrap_or_default().split(", ");
            let fields = fields.filter(|field| !field.is_empty() && !field.contains(' '));
            found.push(Documented {
                message: message.to_owned(),
                fields: fields.map(str::to_owned).collect(),
            });
        }
    }
    found
}

/// Whether a word of the page means that message; it may be cut with `…`.
fn means(documented: &str, message: &str) -> bool {
    match documented.strip_suffix('…') {
        Some(beginning) => {
            let beginning = beginning.trim_end();
            assert!(
                beginning.chars().count() >= PREFIX_LEAST_CHARS,
                "`{documented}` is cut so short that it could mean anything"
            );
            message.starts_with(beginning)
        }
        None => documented == message,
    }
}

#[test]
fn every_log_line_is_documented() {
    let (events, documented) = (events(), documented(&page("reference.md")));
    // A scanner that has gone blind must not pass.
    assert!(events.len() > 80, "{}", events.len());
    let missing: Vec<String> = events
        .iter()
        .filter(|event| {
            let message = event.message.as_deref();
            !message
                .is_some_and(|message| documented.iter().any(|one| means(&one.message, message)))
        })
        .map(|event| {
            let message = event.message.as_deref().unwrap_or("(no words)");
            format!("{}: {message}", event.file)
        })
        .collect();
    assert!(
        missing.is_empty(),
        "not among the log lines of docs/reference.md:\n  {}",
        missing.join("\n  ")
    );
}

#[test]
fn documented_log_lines_exist_with_their_fields() {
    let events = events();
    for one in documented(&page("reference.md")) {
        let meant: Vec<&Event> = events
            .iter()
            .filter(|event| {
                let message = event.message.as_deref();
                message.is_some_and(|message| means(&one.message, message))
            })
            .collect();
        assert!(!meant.is_empty(), "no source has this log line: {one:?}");
        for field in &one.fields {
            let has = meant.iter().any(|event| event.fields.contains(field));
            assert!(
                has,
                "no such field: {field} of {one:?}; there are {meant:?}"
            );
        }
    }
}

#[test]
fn every_quoted_log_line_exists() {
    let (events, page) = (events(), page("runbooks.md"));
    let quoted: Vec<&str> = page
        .split(['\n', '`'])
        .filter_map(|line| {
            let levels = ["INFO ", "WARN ", "ERROR "].into_iter();
            levels.filter_map(|level| line.strip_prefix(level)).next()
        })
        .collect();
    assert!(quoted.len() > 5, "{quoted:?}");
    let exists = |line: &&&str| {
        let mut messages = events.iter().filter_map(|event| event.message.as_deref());
        messages.any(|message| {
            let fields = line.strip_prefix(message);
            fields.is_some_and(|fields| fields.is_empty() || fields.starts_with(' '))
        })
    };
    let gone: Vec<&&str> = quoted.iter().filter(|line| !exists(line)).collect();
    assert!(gone.is_empty(), "no source has these log lines: {gone:?}");
}

/// Codes that are written as numbers: in a call, or as a constant. (Their table is `src/cli/exit.rs`.)
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
    let text = r#"%error, to = f(a, "x"), "it said \"no\": \
                  and, in the end, left"); rest("#;
    let arguments = arguments(text);
    assert_eq!(arguments.len(), 3, "{arguments:?}");
    assert_eq!(arguments[..2], ["%error", "to = f(a, \"x\")"]);
    let message = literal(&arguments[2]).unwrap();
    assert_eq!(message, "it said \\\"no\\\": and, in the end, left");
    assert_eq!(literal("cause"), None);
}
