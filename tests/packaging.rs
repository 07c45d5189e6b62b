//! What is packaged agrees with the program: configurations are valid, and a service manager gives
//! the server the time that its configuration says it needs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::NamedTempFile;

const CONFIGURATION: &str = "packaging/uppercased.toml";
const SERVICE: &str = "packaging/systemd/uppercased.service";
const KUBERNETES: &str = "packaging/kubernetes/uppercased.yaml";
const CONTAINERFILE: &str = "packaging/Containerfile";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What `check --print` shows for a configuration file, or for none: names and values.
fn in_force(configuration: Option<&str>) -> Vec<(String, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("UPPERCASED_") {
            command.env_remove(name);
        }
    }
    command.args(["check", "--print"]);
    let mut file = NamedTempFile::new().unwrap();
    if let Some(text) = configuration {
        file.write_all(text.as_bytes()).unwrap();
        command.arg("--config").arg(file.path());
    }
    let output = command.output().unwrap();
    let (shown, complaint) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{complaint}\n{configuration:?}");
    let line = |line: &str| {
        let (name, value) = line.split_once(" = ")?;
        let value = value.split_once(" #").map_or(value, |(value, _)| value);
        Some((name.to_owned(), value.trim().to_owned()))
    };
    let shown: Vec<_> = shown.lines().filter_map(line).collect();
    assert!(shown.len() > 20, "{shown:?}");
    shown
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn duration(configuration: Option<&str>, name: &str) -> Duration {
    let shown = in_force(configuration);
    let (_, value) = shown.iter().find(|(key, _)| key == name).unwrap();
    time(value.trim_matches('"'))
}

/// A length of time as both the program and systemd write it; a bare number is seconds.
fn time(text: &str) -> Duration {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().unwrap();
    match &text[digits.len()..] {
        "" | "s" => Duration::from_secs(number),
        "ms" => Duration::from_millis(number),
        "m" | "min" => Duration::from_secs(60 * number),
        unit => panic!("{text}: what is {unit}?"),
    }
}

/// The values of a key in a unit file, or in YAML.
fn values(file: &str, key: &str, separator: &str) -> Vec<String> {
    let lines = file
        .lines()
        .map(|line| line.trim().trim_start_matches("- "));
    let found = lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(separator));
    found.map(|value| value.trim().to_owned()).collect()
}

fn only(file: &str, key: &str, separator: &str) -> String {
    let found = values(file, key, separator);
    assert_eq!(found.len(), 1, "{key}: {found:?}");
    found[0].clone()
}

/// The configuration file in the `ConfigMap`: the lines below its name, as deep as the first.
fn config_map() -> String {
    let file = read(KUBERNETES);
    let (_, below) = file.split_once("  uppercased.toml: |\n").unwrap();
    let lines = below.lines().map_while(|line| line.strip_prefix("    "));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_packaged_configuration_is_the_defaults_and_shows_them_as_they_are() {
    let packaged = read(CONFIGURATION);
    let defaults = in_force(None);
    assert_eq!(in_force(Some(&packaged)), defaults);

    let is_setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    let suggested: Vec<&str> = packaged.lines().filter(is_setting).collect();
    let suggested: Vec<&str> = suggested.iter().map(|line| &line[1..]).collect();
    let suggested: Vec<&str> = suggested
        .into_iter()
        .filter(|line| !line.is_empty())
        .collect();
    assert!(suggested.len() > 5, "{suggested:?}");
    assert_eq!(in_force(Some(&suggested.join("\n"))), defaults);
}

#[test]
fn systemd_waits_for_a_stop_and_longer_than_for_any_slot() {
    let unit = read(SERVICE);
    let configuration = read(CONFIGURATION);
    let set = |key| time(&only(&unit, key, "="));
    let needs = |name| duration(Some(&configuration), name);
    assert!(set("TimeoutStopSec") > needs("lame_duck") + needs("drain_timeout"));
    // One slot that fails is not the end of the others.
    let mended = needs("hang_timeout") + needs("backoff_max") + needs("start_timeout");
    assert!(set("WatchdogSec") > mended, "{mended:?}");
    assert!(set("TimeoutStartSec") > needs("start_timeout") + needs("bake_time"));
}

#[test]
fn systemd_reloads_by_a_command_of_the_program() {
    let unit = read(SERVICE);
    // `notify-reload` would send a signal, too, and the second of the two reloads be refused.
    assert_eq!(only(&unit, "Type", "="), "notify");
    let reload = only(&unit, "ExecReload", "=");
    let words: Vec<&str> = reload.split(' ').collect();
    assert_eq!(words[0], "/usr/bin/uppercased");
    assert_asks_for_a_server(&words[1..]);
}

/// A command that is valid, and finds nobody to give its order to.
#[track_caller]
fn assert_asks_for_a_server(words: &[impl AsRef<OsStr>]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
    command.args(words).env("RUNTIME_DIRECTORY", "/nowhere");
    let complaint = text(&command.output().unwrap().stderr);
    assert!(complaint.contains("no running server"), "{complaint}");
}

#[test]
fn kubernetes_waits_for_a_stop() {
    let configuration = config_map();
    let needs = |name| duration(Some(&configuration), name);
    let grace = time(&only(
        &read(KUBERNETES),
        "terminationGracePeriodSeconds",
        ": ",
    ));
    assert!(needs("lame_duck") > Duration::ZERO);
    assert!(grace > needs("lame_duck") + needs("drain_timeout"));
}

#[test]
fn the_parts_of_the_deployment_mean_each_other() {
    let (file, image) = (read(KUBERNETES), read(CONTAINERFILE));
    let user = only(&file, "runAsUser", ": ");
    assert_eq!(only(&image, "USER", " "), format!("{user}:{user}"));
    // The name is label and selector of everything: nine of the one and nothing else.
    let labels = values(&file, "app.kubernetes.io/name", ": ");
    assert!(labels.len() == 9 && labels.iter().all(|label| label == "uppercased"));
    let port = only(&file, "containerPort", ": ");
    assert_eq!(only(&image, "EXPOSE", " "), port);
    assert!(config_map().contains(&format!(":{port}\"")));
    // The control socket's place is writable, and is where the probes look.
    let place = only(&image, "ENV RUNTIME_DIRECTORY", "=");
    assert!(values(&file, "mountPath", ": ").contains(&place));
    // Every probe is a command of the program.
    for probe in values(&file, "command", ": ") {
        let words: Vec<String> = serde_json::from_str(&probe).unwrap();
        assert_asks_for_a_server(&words[1..]);
    }
}
