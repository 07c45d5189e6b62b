//! Tests of the reports: summary and comparison verbatim, the page as well-formed, self-contained
//! markup, and old, new and broken files.
//!
//! The texts are in `tests/report/*.txt`; `UPDATE_SNAPSHOTS=1 cargo test -p uppercased-bench --test
//! report` rewrites them. `PAGES=DIR` likewise writes the pages to a directory, for inspection;
//! `browser.rs` opens them in a browser.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use uppercased_bench::criterion::ComparisonCriterion;
use uppercased_bench::outcome::{Interval, Outcome};
use uppercased_bench::report::{self, Advice, COLUMNS, Comparison, Error, Run, Warning};

mod browser;
mod exports;
mod outcomes;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/report")
        .join(name)
}

/// Compares with the stored text.
#[track_caller]
fn assert_text(name: &str, text: &str) {
    let path = fixture(name).with_extension("txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    assert_eq!(text, expected, "\n{text}\n{}", path.display());
}

#[track_caller]
fn assert_fits(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= COLUMNS, "{line}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert_eq!(line.trim_end(), line);
    }
    assert!(text.ends_with('\n'));
}

/// Checks that every element is closed where it should be, and that nothing is fetched or run.
#[track_caller]
fn assert_self_contained(page: &str) {
    const VOID: [&str; 2] = ["meta", "br"];
    let (_, body) = page.split_once("<!DOCTYPE html>").unwrap();
    let mut open = Vec::new();
    for piece in body.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').unwrap();
        assert!(
            !text.contains('>') || open.last() == Some(&"style"),
            "{text}"
        );
        let name = tag.split([' ', '\n', '/']).find(|n| !n.is_empty()).unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{piece}");
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    // Data is not run.
    let scripts = page.matches("<script type=\"application/json\" id=\"data\">");
    assert_eq!(scripts.count(), page.matches("<script").count());
    for loading in [
        "<link", "<img", "<iframe", "src=", "href=", "url(", "@import",
    ] {
        assert!(!page.contains(loading), "{loading}");
    }
    assert!(!page.contains("NaN") && !page.contains(" inf"));
}

fn charts_in(page: &str) -> usize {
    page.matches("<svg role=\"img\"").count()
}

/// Checks that a screen reader finds a name for everything.
#[track_caller]
fn assert_accessible(page: &str) {
    let count = |what: &str| page.matches(what).count();
    assert!(page.contains("<html lang=\"en\">"));
    assert_eq!(count("<table>"), count("<caption>"));
    assert_eq!(
        count("<table>"),
        count("<div class=\"scroll\" role=\"region\" aria-label=")
    );
    assert_eq!(count("<th scope="), count("<th") - count("<thead"));
    for number in 0..charts_in(page) {
        let names = format!("aria-labelledby=\"title-{number} description-{number}\"");
        assert_eq!(count(&names), 1);
        assert_eq!(count(&format!("<title id=\"title-{number}\">")), 1);
        assert_eq!(count(&format!("<desc id=\"description-{number}\">")), 1);
    }
}

/// Returns the page, and writes it to `PAGES` if set.
fn page(name: &str, outcome: &Outcome) -> String {
    let page = report::html(outcome);
    if let Some(folder) = std::env::var_os("PAGES") {
        fs::write(Path::new(&folder).join(name).with_extension("html"), &page).unwrap();
    }
    page
}

#[test]
fn summaries_read_well() {
    for (name, outcome) in [
        ("clean", outcomes::clean()),
        ("restarted", outcomes::restarted()),
        ("stalled", outcomes::stalled()),
        ("failed", outcomes::failed()),
        ("stream", outcomes::stream()),
        ("bare", outcomes::bare()),
        ("tiny", outcomes::tiny()),
        ("huge", outcomes::huge()),
        ("empty", Outcome::default()),
        ("criteria", outcomes::criteria()),
        ("capacity", outcomes::capacity()),
    ] {
        let text = report::summary(&outcome);
        assert_fits(&text);
        assert_text(name, &text);
    }
}

#[test]
fn page_needs_no_other_file() {
    for (name, outcome, charts) in [
        ("clean", outcomes::clean(), 3),
        ("restarted", outcomes::restarted(), 3),
        ("stalled", outcomes::stalled(), 3),
        ("failed", outcomes::failed(), 3),
        ("stream", outcomes::stream(), 1),
        ("bare", outcomes::bare(), 0),
        ("tiny", outcomes::tiny(), 3),
        ("huge", outcomes::huge(), 3),
        ("empty", Outcome::default(), 0),
    ] {
        let page = page(name, &outcome);
        assert_self_contained(&page);
        assert_eq!(charts_in(&page), charts, "{name}");
        assert_accessible(&page);
        assert!(page.len() < 2 << 20, "{name}: {} bytes", page.len());
    }
}

#[test]
fn page_names_its_subject() {
    let page = page("restarted", &outcomes::restarted());
    assert!(page.contains(
        "<title>rate on 127.0.0.1:9999, 2026-09-21 14:13 UTC - uppercased bench</title>"
    ));
    for (name, value) in [
        ("server version", "0.1.0"),
        ("CPU model", "AMD EPYC 9R14"),
        ("CPUs", "2"),
        ("kernel", "Linux 6.18.5"),
        ("load average before", "0.42"),
    ] {
        let row = format!("<th scope=\"row\">{name}</th><td>{value}</td>");
        assert!(page.contains(&row), "{row}");
    }
}

#[test]
fn page_describes_charts_in_words() {
    let page = page("restarted", &outcomes::restarted());
    let (_, text) = page.split_once("<desc id=\"description-1\">").unwrap();
    let (text, _) = text.split_once("</desc>").unwrap();
    assert!(text.starts_with("p50: 300 µs to "), "{text}");
    assert!(
        text.contains("; max: ") && text.ends_with("; 4 numbered marks."),
        "{text}"
    );
}

#[test]
fn page_breaks_no_flag_at_its_hyphen() {
    let mut outcome = outcomes::clean();
    outcome.client.is_bottleneck = true;
    outcome.command = format!("uppercased bench --rate 5 --{}", "x".repeat(99));
    let page = page("flags", &outcome);
    for part in [
        "<code>uppercased bench <span>--rate</span> 5 --xxx",
        "try <span>--threads</span> 2</li>",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn page_escapes_markup_in_outcome() {
    let mut outcome = outcomes::failed();
    let evil = "</style></svg><script>alert(1)</script>'\"&\u{0}";
    for text in [
        &mut outcome.program,
        &mut outcome.command,
        &mut outcome.target,
        &mut outcome.label,
        &mut outcome.plan.pattern,
        &mut outcome.plan.size,
        &mut outcome.plan.expect,
        &mut outcome.latency_from,
        &mut outcome.machine.kernel,
        &mut outcome.machine.cpu_model,
        &mut outcome.client.why,
    ] {
        evil.clone_into(text);
    }
    evil.clone_into(&mut outcome.first_failures[0].kind);
    evil.clone_into(&mut outcome.first_failures[0].detail);
    evil.clone_into(&mut outcome.marks[0].command);
    evil.clone_into(&mut outcome.marks[3].output);
    outcome.failures.insert(evil.to_owned(), 1);
    outcome.plan.arrivals = Some(evil.to_owned());
    outcome.warnings.push(evil.to_owned());
    outcome.client.is_bottleneck = true;
    let page = page("evil", &outcome);
    assert_self_contained(&page);
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&#39;&quot;&amp; "));
}

#[test]
fn page_thins_long_series_and_reports_it() {
    let mut outcome = outcomes::clean();
    let one = outcome.series[0];
    outcome.series = (0..36_000)
        .map(|number| Interval {
            at_ms: number * 100,
            ..one
        })
        .collect();
    let page = page("long", &outcome);
    assert!(page.contains("A point stands for 75 intervals"));
    assert!(page.len() < 200_000, "{}", page.len());
}

#[test]
fn advice_names_the_flag_to_try() {
    let said = |outcome: &Outcome| -> Vec<String> {
        let advice = Advice::on(outcome);
        advice.iter().map(ToString::to_string).collect()
    };
    type Change = fn(&mut Outcome);
    let cases: [(&str, Change); 7] = [
        ("--threads 2", |o| o.client.is_bottleneck = true),
        ("from another machine", |o| {
            o.client.is_bottleneck = true;
            o.plan.threads = 2;
        }),
        ("--rate 121852", |o| o.plan.rate_per_s = Some(200_000.0)),
        ("`rate` with --rate 76158", |o| o.longest_stall_ms = 310.0),
        (
            "too few samples for p99.99 and above (50.0k; 100k needed)",
            |o| {
                o.latency.as_mut().unwrap().count = 50_000;
            },
        ),
        ("--connections 200", |o| {
            o.server.as_mut().unwrap().connections_by_worker = vec![45, 5];
        }),
        ("--expect upper", |o| o.plan.expect = "none".to_owned()),
    ];
    assert_eq!(said(&outcomes::clean()), Vec::<String>::new());
    for (expected, change) in cases {
        let mut outcome = outcomes::clean();
        change(&mut outcome);
        let said = said(&outcome);
        assert!(said.len() == 1 && said[0].contains(expected), "{said:?}");
    }
}

#[test]
fn advice_blames_stalled_server() {
    let said: Vec<String> = Advice::on(&outcomes::stalled())
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        said[0].contains("the server stalled") && !said.concat().contains("the client"),
        "{said:?}"
    );
}

#[test]
fn comparison_counts_unsent_messages() {
    let runs = |outcome: Outcome| runs("x", [outcome]);
    let comparison = report::compare(&runs(outcomes::stalled()), &runs(outcomes::clean()));
    let text = comparison.to_string();
    assert!(
        text.contains("planned messages (97.0 %) were not"),
        "{text}"
    );
    let p50 = text.lines().find(|line| line.starts_with("p50")).unwrap();
    assert!(p50.contains("4.8"), "{p50}");
}

/// Returns the comparison of these runs, checked by these criteria.
fn judged(a: &[Run], b: &[Run], criteria: &[&str]) -> Comparison {
    let mut comparison = report::compare(a, b);
    let criteria = criteria
        .iter()
        .map(|one| one.parse::<ComparisonCriterion>().unwrap());
    comparison.criteria = criteria.map(|one| one.check(&comparison, a, b)).collect();
    comparison
}

fn runs(side: &str, outcomes: impl IntoIterator<Item = Outcome>) -> Vec<Run> {
    let outcomes = outcomes.into_iter().enumerate();
    outcomes
        .map(|(number, outcome)| Run {
            name: format!("{side}{number}.json"),
            outcome,
        })
        .collect()
}

/// Returns the clean run, `factor` times as fast.
fn faster(factor: f64) -> Outcome {
    let mut outcome = outcomes::clean();
    outcome.totals.messages = (outcome.totals.messages as f64 * factor).round() as u64;
    for at in &mut outcome.latency.as_mut().unwrap().percentiles {
        at.value_ns = (at.value_ns as f64 / factor).round() as u64;
    }
    outcome.server.as_mut().unwrap().cpu_per_message_ns /= factor;
    outcome
}

/// Returns the page of a comparison of four pairs.
fn comparison_page() -> String {
    let drift = [1.0, 1.2, 0.9, 1.05];
    let a = runs("a", drift.map(faster));
    let b = runs("b", drift.map(|drift| faster(drift * 1.05)));
    let comparison = judged(&a, &b, &["slower", "p99 > 1.05"]);
    report::comparison_html(&comparison, comparison.json(&a, &b))
}

#[test]
fn comparisons_read_well() {
    let single = report::compare(&runs("a", [outcomes::clean()]), &runs("b", [faster(1.1)]));
    assert_text("compare_single", &single.to_string());
    assert!(single.warnings().is_empty());

    // Drift common to both sides does not change the ratio of the pairs.
    let drift = [1.0, 1.2, 0.9, 1.05];
    let a = runs("a", drift.map(faster));
    let b = runs("b", drift.map(|drift| faster(drift * 1.05)));
    let mut paired = report::compare(&a, &b);
    assert_text("compare_paired", &paired.to_string());
    paired = report::compare(&a, &b[..3]);
    assert_text("compare_unpaired", &paired.to_string());

    let mut other = outcomes::failed();
    other.plan.connections = 1000;
    other.server = None;
    other.client.is_bottleneck = true;
    let doubtful = report::compare(&a[..1], &runs("a", [other]));
    assert_text("compare_doubtful", &doubtful.to_string());
    let warnings = doubtful.warnings();
    assert!(warnings.iter().any(|d| matches!(d, Warning::Twice { .. })));

    let streams = report::compare(
        &runs("a", [outcomes::stream(), outcomes::stream()]),
        &runs("b", [outcomes::stream(), outcomes::stream()]),
    );
    assert_text("compare_stream", &streams.to_string());

    for (a, b) in [
        (Vec::new(), Vec::new()),
        (runs("a", [outcomes::huge()]), Vec::new()),
        (
            runs("a", [outcomes::huge()]),
            runs("b", [outcomes::tiny(), outcomes::huge()]),
        ),
        (
            runs("a", [Outcome::default()]),
            runs("b", [Outcome::default()]),
        ),
    ] {
        assert_fits(&report::compare(&a, &b).to_string());
    }
    for comparison in [single, paired, doubtful, streams] {
        assert_fits(&comparison.to_string());
    }
}

#[test]
fn outcome_survives_json_round_trip() {
    for outcome in [
        outcomes::clean(),
        outcomes::failed(),
        outcomes::stream(),
        outcomes::bare(),
        outcomes::huge(),
    ] {
        let json = serde_json::to_vec(&outcome).unwrap();
        assert_eq!(report::parse(&json, Path::new("it")).unwrap(), outcome);
    }
}

/// `format_1.json` was written by the first version, and is never changed.
#[test]
fn report_reads_first_format() {
    let outcome = report::load(&fixture("format_1.json")).unwrap();
    assert_eq!((outcome.format, outcome.totals.messages), (1, 20_000));
    let latency = outcome.latency.as_ref().unwrap();
    assert_eq!(latency.percentiles.last().unwrap().quantile, 0.9999);
    assert_eq!(outcome.marks[0].exit_code, None);
    assert_text("format_1", &report::summary(&outcome));
    let page = page("format_1", &outcome);
    assert_self_contained(&page);
    assert_eq!(charts_in(&page), 3);
}

#[test]
fn report_distinguishes_broken_from_newer_files() {
    let read = |text: &str| report::parse(text.as_bytes(), Path::new("run.json"));
    assert!(read(r#"{"format":1,"weather":{"fine":[1,2]}}"#).is_ok());
    for text in [
        "",
        "{",
        "[]",
        "null",
        "{}",
        r#"{"format":0}"#,
        r#"{"format":"1"}"#,
        r#"{"format":1,"measured_ms":-1}"#,
        r#"{"format":1,"longest_stall_ms":null}"#,
    ] {
        let error = read(text).unwrap_err();
        assert!(
            matches!(error, Error::NotAnOutcome { .. }),
            "{text}: {error}"
        );
        assert!(error.to_string().contains("run.json"));
    }
    // In that format, other fields may have any type.
    let error = read(r#"{"format":3,"measured_ms":"long"}"#).unwrap_err();
    assert!(
        matches!(error, Error::FromTheFuture { found: 3, .. }),
        "{error}"
    );
}

/// Returns arbitrary outcomes, through their JSON.
fn any_outcome() -> impl Strategy<Value = Outcome> {
    let number = prop_oneof![
        Just(0u64),
        Just(1),
        Just(u64::MAX),
        any::<u64>(),
        0u64..10_000
    ];
    let real = prop_oneof![Just(0.0f64), Just(f64::MAX), any::<f64>(), 0.0..1e9];
    let pattern = prop_oneof!["ping|rate|stream|churn|hold|idle", ".{0,100}"];
    let numbers = prop::collection::vec(number, 40);
    let reals = prop::collection::vec(real, 12);
    (numbers, reals, pattern, ".{0,200}", 0usize..20).prop_map(|(n, r, pattern, text, many)| {
        let real = |at: usize| if r[at].is_finite() { r[at] } else { 0.0 };
        let mut outcome = outcomes::failed();
        outcome.plan.pattern = pattern;
        outcome.plan.rate_per_s = (many > 10).then_some(real(0));
        outcome.target.clone_from(&text);
        outcome.measured_ms = n[0];
        outcome.totals.messages = n[1];
        outcome.totals.connections = n[2];
        outcome.totals.bytes_received = n[3];
        outcome.longest_stall_ms = real(1);
        outcome.machine.cpu_model.clone_from(&text);
        outcome.client.share_of_cpus = real(2);
        outcome.client.is_bottleneck = many % 2 == 0;
        if let Some(latency) = &mut outcome.latency {
            (latency.count, latency.min_ns, latency.max_ns) = (n[4], n[5], n[6]);
            if many % 3 == 0 {
                latency.histogram.truncate(many * 7);
            }
            for (at, percentile) in latency.percentiles.iter_mut().enumerate() {
                percentile.value_ns = n[7 + at];
                percentile.quantile = if many == 7 {
                    real(3)
                } else {
                    percentile.quantile
                };
            }
        }
        if let Some(server) = &mut outcome.server {
            server.memory_bytes = n[13];
            server.memory_per_connection_bytes = real(4);
            server.cpu_per_message_ns = real(5);
            server.connections_by_worker = n[14..14 + many].to_vec();
        }
        outcome.series.truncate(many);
        for (at, interval) in outcome.series.iter_mut().enumerate() {
            interval.at_ms = n[(at + 3) % 40];
            interval.length_ms = n[(at + 5) % 40];
            interval.messages = n[(at + 7) % 40];
            interval.p50_ns = n[(at + 11) % 40];
            interval.max_ns = n[(at + 13) % 40];
        }
        for (at, mark) in outcome.marks.iter_mut().enumerate() {
            mark.at_ms = n[(at + 17) % 40];
            mark.took_ms = n[(at + 19) % 40];
            mark.seen.longest_stall_ms = real(6 + at);
            mark.command.clone_from(&text);
        }
        outcome
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn report_shows_any_outcome(a in any_outcome(), b in any_outcome()) {
        assert_fits(&report::summary(&a));
        assert_self_contained(&report::html(&a));
        let comparison = report::compare(&runs("a", [a.clone()]), &runs("b", [b, a]));
        assert_fits(&comparison.to_string());
    }

    #[test]
    fn report_refuses_any_malformed_file(
        bytes in prop::collection::vec(any::<u8>(), 0..200), text in "\\{\"format\":[0-9]{1,12}.{0,40}",
    ) {
        for text in [bytes.as_slice(), text.as_bytes()] {
            let _ = report::parse(text, Path::new("it"));
        }
    }
}
