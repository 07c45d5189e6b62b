//! Tests of the formats for other programs, and of the data in the pages.

use std::path::Path;

use uppercased_bench::outcome::Outcome;
use uppercased_bench::report;

use super::{assert_fits, assert_self_contained, assert_text, charts_in, faster, outcomes, runs};

#[test]
fn page_contains_its_measurement() {
    for outcome in [
        outcomes::failed(),
        outcomes::capacity(),
        outcomes::criteria(),
    ] {
        let page = report::html(&outcome);
        assert_eq!(
            report::parse(page.as_bytes(), Path::new("it")).unwrap(),
            outcome
        );
    }
}

#[test]
fn exports_read_well() {
    for (name, text) in [
        ("export_markdown", report::markdown(&outcomes::clean())),
        ("export_hgrm", report::hgrm(&outcomes::clean())),
        ("export_capacity", report::csv(&outcomes::capacity())),
        (
            "export_capacity_markdown",
            report::markdown(&outcomes::capacity()),
        ),
    ] {
        assert_text(name, &text);
    }
    let csv = report::csv(&outcomes::clean());
    let rows: Vec<Vec<&str>> = csv.lines().map(|row| row.split(',').collect()).collect();
    assert_eq!(rows.len(), 1 + outcomes::clean().series.len());
    assert!(
        rows.iter().all(|row| row.len() == rows[0].len()),
        "{rows:?}"
    );
    for outcome in [Outcome::default(), outcomes::huge(), outcomes::bare()] {
        assert!(report::hgrm(&outcome).starts_with("       Value     Percentile"));
        let text = report::markdown(&outcome);
        let cells = |line: &str| line.replace("\\|", "").matches('|').count();
        let counts: Vec<usize> = text.lines().map(cells).collect();
        assert!(counts.iter().all(|count| *count == counts[0]), "{text}");
    }
}

/// Parsers of the format accept lines of this form only.
#[test]
fn distribution_ends_at_all_answers() {
    let text = report::hgrm(&outcomes::clean());
    let rows: Vec<&str> = text.lines().skip(2).collect();
    let (last, footer) = (rows[rows.len() - 4], rows[rows.len() - 2]);
    let count = outcomes::clean().latency.unwrap().count;
    assert!(
        last.ends_with(&format!("1.000000000000 {count:>10}")),
        "{last}"
    );
    assert!(
        footer.ends_with(&format!("Total count    = {count:>12}]")),
        "{footer}"
    );
}

#[test]
fn comparison_is_exported_with_its_runs() {
    let mut a = runs("a", [1.0, 1.02, 0.9, 1.0, 1.1, 1.0].map(faster));
    for run in &mut a {
        run.outcome.label = "a <b> | c".to_owned();
    }
    let b = runs("b", [1.3, 1.4, 1.2, 1.3, 1.5, 1.3].map(faster));
    let comparison = report::compare(&a, &b);
    let text = comparison.to_string();
    assert_fits(&text);
    assert!(
        text.contains("result       B (127.0.0.1:9999) is faster than A (a <b> | c)"),
        "{text}"
    );
    let json = comparison.json(&a, &b).unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["result"], "faster");
    assert_eq!(value["a"]["runs"].as_array().unwrap().len(), 6);
    assert_eq!(value["figures"][0]["name"], "messages/s");
    let page = report::comparison_html(&comparison, comparison.json(&a, &b));
    assert_self_contained(&page);
    assert_eq!(charts_in(&page), 1);
    assert!(page.contains("is faster than"));
    assert!(page.contains("<p>A: a &lt;b&gt; | c; B: 127.0.0.1:9999</p>"));
    assert_text("export_comparison", &comparison.markdown());
    assert!(!page.contains("class=\"result"));
    // Five pairs agree by chance too often.
    let few = report::compare(&a[..5], &b[..5]).to_string();
    assert!(few.contains("result       unknown"), "{few}");
    let unpaired = report::compare(&a[..4], &b[..3]).to_string();
    assert!(unpaired.contains("result       unknown"), "{unpaired}");
    let unpaired = report::compare(&a[..5], &b[..4]).to_string();
    assert!(unpaired.contains("is faster than"), "{unpaired}");
    // The same runs are not distinguishable, and one run has no spread.
    assert!(
        report::compare(&a, &a)
            .to_string()
            .contains("not distinguishable")
    );
    assert!(
        report::compare(&a[..1], &b[..1])
            .to_string()
            .contains("result       unknown")
    );
}

#[test]
fn comparison_shows_its_criteria() {
    let a = runs("a", [1.0; 8].map(faster));
    let b = runs("b", [0.9; 8].map(faster));
    let comparison = super::judged(&a, &b, &["slower", "p99 > 1.2", "memory > 110%"]);
    assert_eq!(comparison.failed_criteria(), 1);
    let text = comparison.to_string();
    assert_fits(&text);
    for line in [
        "\nfail if      slower: FAILED, slower\n",
        "\n             p99 > 1.2: ok, B/A 1.111\n",
        "\n             memory > 110%: ok, B/A 1.000\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let json = comparison.json(&a, &b).unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["criteria"][0]["is_failed"], true);
    assert_eq!(value["criteria"][2]["value"], 1.0);
    let page = report::comparison_html(&comparison, Ok(json));
    assert_self_contained(&page);
    for part in [
        "<p class=\"result failed\">1 of 3 criteria</p>",
        "<li>p99 &gt; 1.2: ok, B/A 1.111</li>",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let markdown = comparison.markdown();
    assert!(
        markdown.contains("\n- slower: FAILED, slower\n"),
        "{markdown}"
    );
}

/// `docs/bench.md` describes every field.
#[test]
fn documentation_names_every_field() {
    fn names(value: &serde_json::Value, into: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                into.extend(fields.keys().cloned());
                fields.values().for_each(|value| names(value, into));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|value| names(value, into)),
            _ => {}
        }
    }
    let mut outcome = outcomes::failed();
    outcome.capacity = outcomes::capacity().capacity;
    outcome.criteria = outcomes::criteria().criteria;
    let kinds = std::mem::take(&mut outcome.failures);
    assert!(!kinds.is_empty() && !outcome.marks.is_empty());
    let mut fields = Vec::new();
    names(&serde_json::to_value(&outcome).unwrap(), &mut fields);
    let run = runs("a", [outcome]);
    let json = report::compare(&run, &run).json(&run, &run).unwrap();
    names(&serde_json::from_str(&json).unwrap(), &mut fields);
    let page = include_str!("../../../../docs/bench.md");
    let codes: Vec<&str> = page.split('`').skip(1).step_by(2).collect();
    fields.retain(|field| !codes.contains(&field.as_str()));
    assert!(fields.is_empty(), "not in docs/bench.md: {fields:?}");
}
