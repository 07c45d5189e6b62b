//! Any file in place of a measurement: it is refused with one error, or displayed within the width
//! and written so that it can be read again.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use uppercased_bench::report::{self, COLUMNS, Run};

fuzz_target!(|text: &[u8]| {
    let Ok(outcome) = report::parse(text, Path::new("it")) else {
        return;
    };
    let again = serde_json::to_vec(&outcome).expect("an outcome has only what JSON has");
    let again = report::parse(&again, Path::new("it")).expect("it was read before");
    let run = |outcome| {
        let name = "it".to_owned();
        [Run { name, outcome }]
    };
    for text in [
        report::summary(&outcome),
        report::compare(&run(outcome.clone()), &run(again)).to_string(),
    ] {
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
    assert!(!report::html(&outcome).is_empty());
});
