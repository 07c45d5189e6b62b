//! Unit tests of `source.rs`.

use super::super::in_one_line;
use super::*;
use proptest::prelude::*;

fn file(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut errors = Vec::new();
    let all = from_file(text.as_bytes(), Path::new("u.toml"), &mut errors);
    let texts = all
        .into_iter()
        .map(|one| (one.setting.key().to_owned(), one.text));
    match errors.as_slice() {
        [] => Ok(texts.collect()),
        errors => Err(in_one_line(errors)),
    }
}

fn environment(name: &str, value: &str) -> Result<usize, String> {
    let mut errors = Vec::new();
    let all = from_environment([(name.into(), value.into())], &mut errors);
    match errors.as_slice() {
        [] => Ok(all.len()),
        errors => Err(in_one_line(errors)),
    }
}

#[test]
fn file_values_convert_to_flag_text() {
    let text = "workers = 4\nbacklog = 0x1_00\nshare_port = true\nidle_timeout = \"30s\"\n\
                    listen = [\"[::1]:1\", 9999]";
    let found = file(text).unwrap();
    let texts: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["4", "256", "true", "30s", "[::1]:1,9999"]);
}

#[test]
fn errors_name_place_and_nearest_setting() {
    assert_eq!(
        file("workers = 4\n idle-timeout = \"1s\"").unwrap_err(),
        "u.toml:2: unknown setting \"idle-timeout\"; did you mean \"idle_timeout\"? \
             (`uppercased --help` lists all)"
    );
    assert_eq!(
        file("[server]\nworkers = 4").unwrap_err(),
        "u.toml:1: unexpected table \"server\": settings must be at the top level; remove the \
             table header"
    );
    assert_eq!(
        file("config = 4").unwrap_err(),
        "u.toml:1: unknown setting \"config\" (`uppercased --help` lists all)"
    );
    let why = file("workers = 4.5").unwrap_err();
    assert!(why.ends_with("use for example 4"), "{why}");
    let why = file("workers = 4\nlisten = = 3\n").unwrap_err();
    assert!(why.starts_with("u.toml:2:10: not valid TOML: "), "{why}");
    assert!(!why.contains('\n'), "{why}");
    assert_eq!(
        file("idle_timeout = 1.5").unwrap_err(),
        "u.toml:1: idle_timeout: unexpected value of type float; use for example \"30s\""
    );
    assert!(file("workers = [4]").unwrap_err().contains("array"));
    assert!(file("listen = [[1]]").unwrap_err().contains("array"));
    let mut broken = Vec::new();
    from_file(b"workers = 4\n#\xff", Path::new("u.toml"), &mut broken);
    let broken = in_one_line(&broken);
    assert!(
        broken.starts_with("u.toml:2:2: not valid TOML: this byte"),
        "{broken}"
    );
}

#[test]
fn file_reports_every_error_with_place() {
    let text = "wokers = 4\nlisten = = 1\nidle_timeout = 1.5\nbacklog = 7\nbacklog = 8\nx = \"\n\
                pin = true\n";
    let mut errors = Vec::new();
    let read = from_file(text.as_bytes(), Path::new("u.toml"), &mut errors);
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for line in [1, 2, 3, 5, 6] {
        let place = format!("u.toml:{line}:");
        let there = errors.iter().filter(|error| error.starts_with(&place));
        assert_eq!(there.count(), 1, "{line}: {errors:#?}");
    }
    assert_eq!(errors.len(), 5, "{errors:#?}");
    assert!(
        read.iter().any(|one| one.setting.key() == "pin"),
        "{read:?}"
    );
}

#[test]
fn environment_names_are_checked() {
    assert_eq!(environment("UPPERCASED_WORKERS", "4"), Ok(1));
    assert_eq!(environment("UPPERCASED_CONFIG", "x"), Ok(0));
    assert_eq!(environment("PATH", "x"), Ok(0));
    assert_eq!(
        environment("UPPERCASED_WORKER", "4").unwrap_err(),
        "unknown setting UPPERCASED_WORKER; did you mean UPPERCASED_WORKERS? (`uppercased \
             --help` lists all)"
    );
    assert!(environment("UPPERCASED_workers", "4").is_err());
    let port = environment("UPPERCASED_PORT", "80").unwrap_err();
    assert!(!port.contains("nearest"), "{port}");
    assert!(environment("UPPERCASED_", "4").is_err());
}

#[test]
fn service_variables_and_empty_ones_are_unset() {
    assert_eq!(environment("UPPERCASED_SERVICE_HOST", "10.0.0.1"), Ok(0));
    assert_eq!(
        environment("UPPERCASED_ADMIN_PORT_80_TCP_ADDR", "::1"),
        Ok(0)
    );
    assert!(environment("UPPERCASED_PORT", "9999").is_err());
    for setting in SETTINGS {
        assert_eq!(environment(&setting.variable(), ""), Ok(0));
    }
    assert_eq!(environment(CONFIG_VARIABLE, ""), Ok(0));
    assert!(environment("UPPERCASED_WORKRES", "").is_err());
}

proptest! {
    #[test]
    fn file_parser_never_panics(contents in prop::collection::vec(any::<u8>(), 0..80)) {
        from_file(&contents, Path::new("u.toml"), &mut Vec::new());
    }

    #[test]
    fn near_valid_file_never_panics(text in "([a-z_]{0,9}[=\\[\\]\"{}.#\n 0-9]{0,6}){0,9}") {
        from_file(text.as_bytes(), Path::new("u.toml"), &mut Vec::new());
    }
}

#[test]
fn value_that_is_not_toml_is_not_read() {
    let mut errors = Vec::new();
    let text = b"workers = \nlisten = [\n 9999,\n oops ]\nbacklog = 5\n";
    let read = from_file(text, Path::new("u.toml"), &mut errors);
    let keys: Vec<&str> = read.iter().map(|one| one.setting.key()).collect();
    assert_eq!(keys, ["backlog"], "{errors:?}");
    assert_eq!(errors.len(), 2, "{errors:?}");
}
