//! Any file is a configuration or is refused, one line for each error.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use uppercased::config::{Draft, Facts, from_file};

fuzz_target!(|contents: &[u8]| {
    let facts = Facts {
        cpus: 2,
        lookup: &|_, port| Ok(vec![([192, 0, 2, 1], port).into()]),
    };
    let mut errors = Vec::new();
    let assignments = from_file(contents, Path::new("fuzzed.toml"), &mut errors);
    if let Err(errors) = Draft::new(&assignments, &facts, errors).finish() {
        assert!(errors.0.iter().all(|error| !error.to_string().is_empty()));
    }
});
