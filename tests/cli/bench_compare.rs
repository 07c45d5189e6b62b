//! Tests of `bench compare`: accepted files, criteria, and errors for invalid files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use uppercased_bench::outcome::{FORMAT, Outcome};
use uppercased_bench::report::{self, Run};

/// Runs `bench compare`; returns its exit code, standard output and standard error.
fn compare(args: &[&str]) -> (Option<i32>, String, String) {
    let ran = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args(["bench", "compare"])
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (ran.status.code(), text(ran.stdout), text(ran.stderr))
}

#[test]
fn report_command_compares_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, outcome: &Outcome| -> String {
        let path = folder.path().join(name);
        fs::write(&path, serde_json::to_vec(outcome).unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut outcome = Outcome {
        format: FORMAT,
        ..Outcome::default()
    };
    outcome.plan.pattern = "ping".to_owned();
    outcome.measured_ms = 10_000;
    outcome.totals.messages = 1000;
    let a = file("a.json", &outcome);
    outcome.totals.messages = 1100;
    let b = file("b.json", &outcome);
    let (code, out, err) = compare(&[&a, &b]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let run = |name: &str| {
        vec![Run {
            name: name.to_owned(),
            outcome: report::load(Path::new(name)).unwrap(),
        }]
    };
    assert_eq!(out, report::compare(&run(&a), &run(&b)).to_string());
    let (code, out, _) = compare(&[&a, &b, "--", &b, &a]);
    assert_eq!(code, Some(0));
    assert!(out.contains("median of 2 pairs"), "{out}");
    let (code, out, _) = compare(&[&a, "--", &b, &a]);
    assert_eq!(code, Some(0));
    assert!(out.contains("of the medians of 1 and 2 runs"), "{out}");

    let json = folder.path().join("compared.json");
    let output = [
        "--json",
        json.to_str().unwrap(),
        "--label",
        "x",
        "--label",
        "y",
    ];
    let (code, out, _) = compare(&[&output[..], &[&a, &b]].concat());
    assert_eq!(code, Some(0));
    assert!(out.starts_with("A            x, 1 run by"), "{out}");
    let text = fs::read_to_string(&json).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&value["a"]["name"], &value["b"]["name"]),
        (&"x".into(), &"y".into())
    );
    let (code, out, _) = compare(&["--markdown", "-", &a, &b]);
    assert!(code == Some(0) && out.contains("| messages/s |"), "{out}");

    // B answers 10 % more messages.
    for (condition, code, result) in [
        ("rate < 1", 0, "rate < 1: ok, B/A 1.100"),
        ("rate > 105%", 3, "rate > 105%: FAILED, B/A 1.100"),
        ("slower", 3, "slower: FAILED, unknown"),
    ] {
        let (found, out, _) = compare(&["--fail-if", condition, &a, &b]);
        assert_eq!(found, Some(code), "{out}");
        assert!(out.contains(result), "{out}");
    }

    let missing = folder.path().join("none.json");
    let missing = missing.to_str().unwrap();
    let other = Path::new(file!());
    for (args, what) in [
        ([a.as_str(), missing].as_slice(), "none.json"),
        (&[&a, other.to_str().unwrap()], "is not an output"),
        (&[&a, folder.path().to_str().unwrap()], "cannot read"),
        (&[&a], "name a second one"),
        (&[&a, &b, &a], "separate them with `--`"),
        (&["--json=-", "--report=-", &a, &b], "to the same file"),
        (&["--fail-if=p99 > 5ms", &a, &b], "not a ratio B/A"),
        (&[], "A.json"),
    ] {
        let (code, out, err) = compare(args);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}");
        assert!(
            err.contains(what) && err.lines().count() == 1,
            "{args:?}: {err}"
        );
    }
}
