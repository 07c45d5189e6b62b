//! Any file is a configuration or is refused in one line.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use uppercased::config::{Facts, from_file, resolve};

fuzz_target!(|contents: &[u8]| {
    let facts = Facts {
        cpus: 2,
        lookup: &|_, port| Ok(vec![([192, 0, 2, 1], port).into()]),
    };
    let resolved = from_file(contents, Path::new("fuzzed.toml"))
        .and_then(|assignments| resolve(&assignments, &facts));
    if let Err(error) = resolved {
        assert!(!error.to_string().is_empty());
    }
});
