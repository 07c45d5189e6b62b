//! Checks that the packages agree with the program: configurations are valid, and a service manager
//! waits as long as the configuration allows.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::{NamedTempFile, TempDir};

use crate::links::anchor;

const CONFIGURATION: &str = "packaging/uppercased.toml";
const SERVICE: &str = "packaging/systemd/uppercased.service";
const KUBERNETES: &str = "packaging/kubernetes/uppercased.yaml";
const POD_MONITOR: &str = "packaging/monitoring/kubernetes/podmonitor.yaml";
const ALERTS: &str = "packaging/monitoring/alerts.yaml";
const ALERTS_TEST: &str = "packaging/monitoring/alerts_test.yaml";
const DASHBOARD: &str = "packaging/monitoring/dashboard.json";
const CONTAINERFILE: &str = "packaging/Containerfile";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the names and values printed by `check --print` for a configuration file, or without
/// one.
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

/// Parses a duration in the notation of the program and systemd; a bare number means seconds.
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

/// Returns the values of a key in a unit file, or in YAML.
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

/// Returns the configuration file in the `ConfigMap`: the lines below its name with the indentation
/// of the first.
fn config_map() -> String {
    let file = read(KUBERNETES);
    let (_, below) = file.split_once("  uppercased.toml: |\n").unwrap();
    let lines = below.lines().map_while(|line| line.strip_prefix("    "));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn packaged_configuration_shows_the_defaults() {
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
fn service_shows_what_workers_use() {
    // They are not dumpable, so a hidden /proc hides them from their own user, too.
    assert_eq!(values(&read(SERVICE), "ProtectProc", "="), [""; 0]);
}

#[test]
fn systemd_waits_longer_than_any_slot() {
    let unit = read(SERVICE);
    let configuration = read(CONFIGURATION);
    let set = |key| time(&only(&unit, key, "="));
    let needs = |name| duration(Some(&configuration), name);
    assert!(set("TimeoutStopSec") > needs("lame_duck") + needs("drain_timeout"));
    // One failed slot does not end the others.
    let mended = needs("hang_timeout") + needs("backoff_max") + needs("start_timeout");
    assert!(set("WatchdogSec") > mended, "{mended:?}");
    assert!(set("TimeoutStartSec") > needs("start_timeout") + needs("bake_time"));
}

#[test]
fn systemd_reloads_by_program_command() {
    let unit = read(SERVICE);
    // `notify-reload` would also send a signal, and the second of the two reloads would be refused.
    assert_eq!(only(&unit, "Type", "="), "notify");
    let reload = only(&unit, "ExecReload", "=");
    let words: Vec<&str> = reload.split(' ').collect();
    assert_eq!(words[0], "/usr/bin/uppercased");
    assert_asks_for_a_server(&words[1..]);
}

/// Checks that a command is valid, without a running server.
#[track_caller]
fn assert_asks_for_a_server(words: &[impl AsRef<OsStr>]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
    command.args(words).env("RUNTIME_DIRECTORY", "/nowhere");
    let complaint = text(&command.output().unwrap().stderr);
    assert!(
        complaint.contains("cannot find a running server"),
        "{complaint}"
    );
}

#[test]
fn kubernetes_waits_for_stop() {
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
fn deployment_parts_reference_each_other() {
    let (file, image) = (read(KUBERNETES), read(CONTAINERFILE));
    let user = only(&file, "runAsUser", ": ");
    assert_eq!(only(&image, "USER", " "), format!("{user}:{user}"));
    // The name is the label and selector of every object: nine occurrences.
    let labels = values(&file, "app.kubernetes.io/name", ": ");
    assert!(labels.len() == 9 && labels.iter().all(|label| label == "uppercased"));
    let ports = values(&file, "containerPort", ": ");
    let [port, admin_port] = ports.as_slice() else {
        panic!("{ports:?}");
    };
    assert_eq!(only(&image, "EXPOSE", " "), *port);
    assert!(config_map().contains(&format!("listen = \"*:{port}\"")));
    // The control socket's folder is writable.
    let place = only(&image, "ENV RUNTIME_DIRECTORY", "=");
    assert!(values(&file, "mountPath", ": ").contains(&place));
    // Every probe reads a page of the admin endpoint.
    assert!(config_map().contains(&format!("admin = \"0.0.0.0:{admin_port}\"")));
    assert_eq!(
        values(&file, "port", ": "),
        ["admin", "admin", "admin", "9999"]
    );
    assert_eq!(
        values(&file, "path", ": "),
        ["/readyz", "/readyz", "/healthz"]
    );
    assert_eq!(
        only(&file, "prometheus.io/port", ": "),
        format!("\"{admin_port}\"")
    );
}

/// Reports it on standard error itself: the test runner hides the output of a test that passes.
fn report_skipped(program: &str) {
    drop(writeln!(
        io::stderr(),
        "SKIPPED: {program} is not installed"
    ));
}

/// Returns what a program prints that must succeed; `None` where it is not installed.
fn run_if_installed(program: &str, args: &[&str]) -> Option<String> {
    let Ok(output) = Command::new(program).args(args).output() else {
        report_skipped(program);
        return None;
    };
    assert!(output.status.success(), "{args:?}: {}", text_of(&output));
    Some(text(&output.stdout))
}

#[test]
fn kustomization_builds_whole_deployment() {
    let build = |folder: &str| run_if_installed("kubectl", &["kustomize", folder]);
    let Some(base) = build("packaging/kubernetes") else {
        return;
    };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        only(&base, "image", ": "),
        format!("localhost/uppercased:{version}")
    );
    let kinds = |file: &str| values(file, "kind", ": ");
    let mut expected = kinds(&read(KUBERNETES));
    let mut found = kinds(&base);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let monitored = build("packaging/monitoring/kubernetes").unwrap();
    assert!(kinds(&monitored).contains(&"PodMonitor".to_owned()));
}

#[test]
fn pod_monitor_selects_deployed_pods() {
    let (file, monitor) = (read(KUBERNETES), read(POD_MONITOR));
    let labels = values(&monitor, "app.kubernetes.io/name", ": ");
    assert_eq!(labels, ["uppercased"; 2]);
    let name = only(&monitor, "port", ": ");
    assert!(values(&file, "name", ": ").contains(&name));
    let path = only(&monitor, "path", ": ");
    assert_eq!(only(&file, "prometheus.io/path", ": "), path);
}

/// Returns the names of the metrics that the program serves, with those of a histogram's series.
fn metrics() -> BTreeSet<String> {
    let page = read("docs/reference.md");
    let (_, table) = page.split_once("<!-- metrics: begin -->").unwrap();
    let (table, _) = table.split_once("<!-- metrics: end -->").unwrap();
    let mut names = BTreeSet::new();
    for row in table.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, rest) = row.split_once('`').unwrap();
        if rest.starts_with(" | histogram") {
            names.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
        } else {
            names.insert(name.to_owned());
        }
    }
    assert!(names.len() > 40, "{names:?}");
    names
}

/// Checks that every metric named in `expressions` exists.
#[track_caller]
fn assert_metrics_exist<'a>(expressions: impl IntoIterator<Item = &'a str>) {
    let known = metrics();
    let mut seen = 0;
    for expression in expressions {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named = |word: &&str| {
            ["uppercased_", "process_"]
                .iter()
                .any(|start| word.starts_with(start))
        };
        for word in words.filter(named) {
            assert!(known.contains(word), "{word} in {expression}");
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn alerts_use_known_metrics_and_runbooks() {
    let (alerts, tests) = (read(ALERTS), read(ALERTS_TEST));
    let expressions = values(&alerts, "expr", ": ");
    assert_metrics_exist(expressions.iter().map(String::as_str));
    let names = values(&alerts, "alert", ": ");
    assert_eq!(names.len(), expressions.len());
    for name in &names {
        for case in ["fires", "is silent"] {
            let case = format!("  - name: {name} {case}\n");
            assert!(tests.contains(&case), "{case}");
        }
    }
    let page = read("docs/runbooks.md");
    let headings = page.lines().filter_map(|line| line.strip_prefix("## "));
    let anchors: Vec<String> = headings
        .map(|one| format!("docs/runbooks.md#{}", anchor(one)))
        .collect();
    let runbooks = values(&alerts, "runbook", ": ");
    assert_eq!(runbooks.len(), names.len());
    for runbook in runbooks {
        assert!(anchors.contains(&runbook), "{runbook}");
    }
}

#[test]
fn alerts_fire_on_their_symptoms() {
    let config = "packaging/monitoring/prometheus.yaml";
    run_if_installed("promtool", &["test", "rules", ALERTS_TEST]);
    run_if_installed("promtool", &["check", "config", config]);
}

#[test]
fn dashboard_shows_known_metrics() {
    let dashboard: serde_json::Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut expressions = Vec::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = &panel["gridPos"];
        let right = place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap();
        assert!(right <= 24, "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            expressions.push(target["expr"].as_str().unwrap());
        }
    }
    assert_metrics_exist(expressions);
}

#[test]
fn packages_have_the_same_files() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let metadata = &manifest["package"]["metadata"];
    let of_deb = metadata["deb"]["assets"].as_array().unwrap().iter();
    let of_deb = of_deb.map(|asset| asset[0].as_str().unwrap().to_owned());
    let of_rpm = metadata["generate-rpm"]["assets"]
        .as_array()
        .unwrap()
        .iter();
    let of_rpm = of_rpm.map(|asset| asset["source"].as_str().unwrap().to_owned());
    // Only Debian has a tool that reads them.
    let of_deb = of_deb.filter(|source| !source.ends_with("lintian-overrides"));
    let (deb, rpm): (BTreeSet<_>, BTreeSet<_>) = (of_deb.collect(), of_rpm.collect());
    assert_eq!(deb, rpm);
}

#[test]
fn book_has_every_page() {
    let summary = read("docs/SUMMARY.md");
    let pages = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap();
    let pages = pages.map(|page| page.unwrap().file_name().into_string().unwrap());
    for page in pages.filter(|page| page.ends_with(".md") && page != "SUMMARY.md") {
        assert!(summary.contains(&format!("]({page})")), "{page}");
    }
}

/// A root folder for dpkg, in which recording stand-ins replace the system's programs.
struct Root(TempDir);

impl Root {
    /// Returns `None` where dpkg is not installed.
    fn new() -> Option<Self> {
        if Command::new("dpkg-deb").arg("--version").output().is_err() {
            report_skipped("dpkg");
            return None;
        }
        let root = Self(TempDir::new().unwrap());
        for folder in ["bin", "run/systemd/system", "run/uppercased", "proc/7"] {
            fs::create_dir_all(root.path(folder)).unwrap();
        }
        for folder in ["info", "updates"] {
            fs::create_dir_all(root.path("var/lib/dpkg").join(folder)).unwrap();
        }
        for file in ["status", "available"] {
            fs::write(root.path("var/lib/dpkg").join(file), "").unwrap();
        }
        root.set_state("inactive");
        let note = "echo \"${0##*/} $*\" >>\"$DPKG_ROOT/calls\"\n";
        root.stub("systemd-sysusers", note);
        root.stub("deb-systemd-helper", note);
        root.stub("deb-systemd-invoke", note);
        root.stub("sleep", "");
        let show =
            "case \"$*\" in *MainPID*) echo 7;; *ActiveState*) cat \"$DPKG_ROOT/state\";; esac\n";
        root.stub("systemctl", &format!("{note}{show}"));
        root.stub("uppercased", note);
        Some(root)
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside)
    }

    fn stub(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        // A child process writes the script. Otherwise another thread could fork while this process
        // has it open for writing, and executing it would fail with ETXTBSY.
        let text = format!("#!/bin/sh\n{script}");
        let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let mut shell = Command::new("sh");
        let status = shell.args(["-c", write]).arg(&path).arg(text).status();
        assert!(status.unwrap().success());
    }

    fn set_state(&self, state: &str) {
        fs::write(self.path("state"), state).unwrap();
    }

    /// Builds a package of this version with the real scripts; the version stands in for the
    /// program.
    fn package(&self, version: u32) -> PathBuf {
        let tree = self.path(&format!("tree-{version}"));
        let control = tree.join("DEBIAN");
        fs::create_dir_all(&control).unwrap();
        fs::create_dir_all(tree.join("usr/bin")).unwrap();
        fs::write(tree.join("usr/bin/uppercased"), version.to_string()).unwrap();
        let text = format!(
            "Package: uppercased\nVersion: {version}\nArchitecture: all\nMaintainer: nobody\n\
             Description: test\n"
        );
        fs::write(control.join("control"), text).unwrap();
        fs::write(tree.join("uppercased.toml"), "").unwrap();
        fs::write(control.join("conffiles"), "/uppercased.toml\n").unwrap();
        for name in ["preinst", "postinst", "prerm", "postrm"] {
            let script = read(&format!("packaging/deb/{name}"));
            fs::write(control.join(name), script).unwrap();
            let permissions = Permissions::from_mode(0o755);
            fs::set_permissions(control.join(name), permissions).unwrap();
        }
        let package = self.path(&format!("{version}.deb"));
        let mut build = Command::new("dpkg-deb");
        build.args(["--root-owner-group", "-Znone", "--build"]);
        let built = build.arg(&tree).arg(&package).output().unwrap();
        assert!(built.status.success(), "{}", text_of(&built));
        package
    }

    /// Runs dpkg; returns the calls of the scripts, and the output.
    fn dpkg(&self, action: &str, what: impl AsRef<OsStr>) -> (String, String) {
        let _ = fs::remove_file(self.path("calls"));
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("dpkg");
        command
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .args([
                "--force-script-chrootless",
                "--force-not-root",
                "--force-bad-path",
            ])
            .arg(format!("--root={}", self.0.path().display()))
            .args(["--log=/dev/null", action])
            .arg(what);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        (calls, text_of(&output))
    }
}

fn text_of(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

const STARTED: &str = "deb-systemd-invoke start uppercased.service";

#[test]
fn package_starts_service_after_reinstallation() {
    let Some(root) = Root::new() else { return };
    let (first, second) = (root.package(1), root.package(2));
    assert!(root.dpkg("--install", &first).0.contains(STARTED));
    // It was stopped manually, and remains stopped.
    assert!(!root.dpkg("--install", &second).0.contains(STARTED));
    let (calls, _) = root.dpkg("--remove", "uppercased");
    assert!(calls.contains("deb-systemd-invoke stop"), "{calls}");
    assert!(root.dpkg("--install", &second).0.contains(STARTED));
    assert!(!root.dpkg("--install", &first).0.contains(STARTED));
    root.dpkg("--purge", "uppercased");
    assert!(root.dpkg("--install", &first).0.contains(STARTED));
}

#[test]
fn package_reports_refused_upgrade() {
    let Some(root) = Root::new() else { return };
    root.dpkg("--install", root.package(1));
    root.set_state("active");
    let second = root.package(2);
    let old = "the old binary keeps running";
    let runs = |version: u32| fs::write(root.path("proc/7/exe"), version.to_string()).unwrap();

    // The control socket is elsewhere, so a signal is sent, and its result is checked.
    runs(1);
    let (calls, printed) = root.dpkg("--install", &second);
    assert!(calls.contains("--signal=USR2"), "{calls}");
    assert!(
        printed.contains(old) && !calls.contains(STARTED),
        "{printed}"
    );
    runs(2);
    assert!(!root.dpkg("--install", &second).1.contains(old));

    let _control = UnixListener::bind(root.path("run/uppercased/7.sock")).unwrap();
    let (calls, printed) = root.dpkg("--install", &second);
    assert!(
        calls.contains("uppercased upgrade --wait --control"),
        "{calls}"
    );
    assert!(!printed.contains(old), "{printed}");
    root.stub("uppercased", "exit 1\n");
    runs(1);
    assert!(root.dpkg("--install", &second).1.contains(old));
}
