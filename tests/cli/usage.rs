//! Tests of the real program's command line: output and exit codes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use tempfile::{NamedTempFile, TempDir};

/// A run of the program in an environment without settings.
struct Run {
    command: Command,
    stdout_set: bool,
}

/// Far longer than any of these runs: a process still running then has become a server.
const DEADLINE: Duration = Duration::from_secs(60);

/// The result of a run.
#[derive(Debug)]
struct Outcome {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

impl Run {
    fn new() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UPPERCASED_") {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null());
        Self {
            command,
            stdout_set: false,
        }
    }

    /// Prepares `uppercased check --print`.
    fn print() -> Self {
        Self::new().arg("check").arg("--print")
    }

    fn arg(mut self, arg: &str) -> Self {
        self.command.arg(arg);
        self
    }

    fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Redirects standard output to `to` instead of capturing it.
    fn stdout_to(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stdout(to);
        self.stdout_set = true;
        self
    }

    /// Adds a configuration file with `text`; the file is removed when the handle is dropped.
    fn file(mut self, text: &str) -> (Self, NamedTempFile) {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        self.command.arg("--config").arg(file.path());
        (self, file)
    }

    fn outcome(mut self) -> Outcome {
        // Keep the test's redirections; capture the rest.
        if !self.stdout_set {
            self.command.stdout(Stdio::piped());
        }
        let child = self.command.stderr(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let (done, ended) = mpsc::channel();
        std::thread::Builder::new()
            .spawn(move || done.send(child.wait_with_output()))
            .unwrap();
        let Ok(output) = ended.recv_timeout(DEADLINE) else {
            // Not reaped yet (the thread still waits for it), so the PID cannot have been reused.
            kill(pid, Signal::SIGKILL).unwrap();
            panic!("still running after {DEADLINE:?}: {:?}", self.command);
        };
        let output = output.unwrap();
        Outcome {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code(),
        }
    }

    /// Runs it and returns its standard output; it must succeed without errors.
    fn stdout(self) -> String {
        let outcome = self.outcome();
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert_eq!(outcome.stderr, "", "{outcome:?}");
        outcome.stdout
    }

    /// Runs it and returns its error message, the single line of a usage error.
    fn complaint(self) -> String {
        let outcome = self.outcome();
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert_eq!(outcome.stdout, "", "{outcome:?}");
        assert_eq!(outcome.stderr.matches('\n').count(), 1, "{outcome:?}");
        let line = outcome.stderr.trim_end().to_owned();
        line.strip_prefix("uppercased: ").unwrap().to_owned()
    }
}

/// Returns the value and origin that `check --print` shows for `key`.
fn printed(text: &str, key: &str) -> (String, String) {
    text.lines()
        .find_map(|line| line.strip_prefix(&format!("{key} = ")))
        .and_then(|rest| rest.split_once(" # "))
        .map(|(value, origin)| (value.trim().to_owned(), origin.to_owned()))
        .unwrap()
}

#[test]
fn help_fits_terminal_and_names_every_command() {
    let short = Run::new().arg("-h").stdout();
    assert!(short.lines().all(|line| line.chars().count() <= 79));
    for word in [
        "--idle-timeout",
        "check",
        "client",
        "Examples:",
        "Connections:",
    ] {
        assert!(short.contains(word), "{word}");
    }
    let long = Run::new().arg("--help").stdout();
    for word in [
        "UPPERCASED_IDLE_TIMEOUT",
        "10ms to 30days, or off",
        "Exit codes",
    ] {
        assert!(long.contains(word), "{word}");
    }
    for name in [
        "serve", "check", "client", "reload", "upgrade", "scale", "status", "stop",
    ] {
        assert!(short.contains(&format!("  {name} ")), "{name}");
        let text = Run::new().args(&[name, "--help"]).stdout();
        assert!(text.contains("Example"), "{name}");
        // Lines broken both by hand and by the terminal's width.
        let torn = text
            .lines()
            .find(|line| line.trim_end().ends_with(" An") || *line == "show");
        assert_eq!(torn, None, "{name}");
    }
    for word in ["HUP   reload the configuration", "TTOU  remove a worker"] {
        assert!(long.contains(word), "{word}");
    }
}

#[test]
fn invalid_command_is_refused_before_server_is_asked() {
    for (args, what) in [
        (["scale"].as_slice(), "<N>"),
        (&["scale", "0"], "from 1 to 1024"),
        (&["scale", "+0"], "+1 or -1"),
        (&["scale", "-1024"], "from 1 to 1023"),
        (&["scale", "1025"], "from 1 to 1024"),
        (&["scale", "many"], "'many'"),
        (&["scale", "1", "2"], "'2'"),
        (&["reload", "--json"], "'--json'"),
        (&["reload", "--timeout", "30"], "for example 30s"),
        (&["stop", "--timeout", "0s"], "greater than zero"),
        (&["--workers", "3", "reload"], "takes no settings"),
        (&["--control", "/x", "status"], "put its own flags after it"),
        (&["reload", "--workers", "3"], "'--workers'"),
        (&["reload", "--control"], "--control"),
        (&["upgrad"], "'upgrade'"),
        (&["preflight", "--workers", "3"], "'--workers'"),
        (&["preflight"], "only the supervisor starts"),
    ] {
        let line = Run::new().args(args).complaint();
        assert!(line.contains(what), "{args:?}: {line}");
    }
}

#[test]
fn version_equals_package_version() {
    let expected = format!("uppercased {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(Run::new().arg("--version").stdout(), expected);
}

#[test]
fn closed_output_pipe_is_no_error() {
    for args in [["check", "--print"], ["serve", "--help"]] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let outcome = Run::new().args(&args).stdout_to(writer).outcome();
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
        assert_eq!(outcome.stderr, "", "{args:?}");
    }
}

#[test]
fn unwritable_output_is_an_error() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let outcome = Run::print().stdout_to(full).outcome();
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("standard output"), "{outcome:?}");
}

#[test]
fn every_command_fills_slow_nonblocking_pipe() {
    for args in [
        ["man"].as_slice(),
        &["completions", "zsh"],
        &["--help"],
        &["help", "serve"],
    ] {
        let whole = Run::new().args(args).stdout();
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        // One page: less than the output of any of these commands, so each blocks on the reader.
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let run = Run::new().args(args).stdout_to(writer);
        let running = std::thread::Builder::new().spawn(|| run.outcome()).unwrap();
        let mut read: Vec<u8> = Vec::new();
        loop {
            let mut readable = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut readable, PollTimeout::from(60_000_u16)), Ok(1));
            let mut some = [0; 500];
            match nix::unistd::read(&reader, &mut some).unwrap() {
                0 => break,
                count => read.extend(&some[..count]),
            }
        }
        let outcome = running.join().unwrap();
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
        assert_eq!(outcome.stderr, "", "{args:?}");
        assert!(whole.len() > 4096, "{args:?} prints {} bytes", whole.len());
        assert!(read == whole.as_bytes(), "{args:?}: {} bytes", read.len());
    }
}

#[test]
fn error_fits_one_line_for_any_input() {
    let evil = "x\nUsage: forged\x1b[31m\x07\u{9b}\u{202e}\r\nERROR";
    let address = format!("{evil}:1");
    let variable = format!("UPPERCASED_{evil}");
    let typed = |args: &[&str]| Run::new().args(args);
    for (run, codes) in [
        (typed(&[evil]), [2, 2]),
        (typed(&[&format!("--{evil}")]), [2, 2]),
        (typed(&["check", "--listen", evil]), [2, 2]),
        (typed(&["check", "--idle-timeout", evil]), [2, 2]),
        (typed(&["check", "--config", evil]), [2, 2]),
        (typed(&["check"]).env("UPPERCASED_WORKERS", evil), [2, 2]),
        (typed(&["check"]).env(&variable, "1"), [2, 2]),
        (typed(&["status", "--control", evil]), [1, 2]),
        (typed(&["scale", evil]), [2, 2]),
        (typed(&["rotation", evil]), [2, 2]),
        (typed(&["client", &address]), [1, 2]),
        #[cfg(feature = "bench")]
        (typed(&["bench", &address]), [1, 2]),
        #[cfg(feature = "bench")]
        (
            typed(&["bench", "-n", "1", "--json", &format!("/nowhere/{evil}")]),
            [1, 2],
        ),
        #[cfg(feature = "bench")]
        (typed(&["bench", "compare", evil, evil]), [1, 2]),
        (typed(&["man", evil]), [2, 2]),
        (
            typed(&["man", "--dir", &format!("/dev/null/{evil}")]),
            [1, 2],
        ),
        (typed(&["completions", evil]), [2, 2]),
    ] {
        let what = format!("{:?}", run.command);
        let outcome = run.outcome();
        assert!(
            outcome.code.is_some_and(|code| codes.contains(&code)),
            "{what}: {outcome:?}"
        );
        let line = outcome.stderr.strip_suffix('\n').unwrap();
        let raw = |letter: char| letter.is_control() || letter == '\u{202e}';
        assert!(!line.is_empty() && !line.contains(raw), "{what}: {line:?}");
        // Not truncated: an escaped line is complete.
        assert!(line.contains("ERROR"), "{what}: {line:?}");
    }
}

#[test]
fn empty_variables_count_as_unset() {
    let names = uppercased::config::SETTINGS
        .iter()
        .map(|setting| setting.variable());
    let all = names.chain(["UPPERCASED_CONFIG".to_owned()]);
    let run = all.fold(Run::print(), |run, name| run.env(&name, ""));
    assert_eq!(run.stdout(), Run::print().stdout());
    let empty_control = Run::new().arg("status").env("UPPERCASED_CONTROL", "");
    let empty_control = empty_control.env("RUNTIME_DIRECTORY", "/nowhere");
    assert!(
        empty_control
            .complaint()
            .contains("cannot find a running server")
    );
}

#[test]
fn print_keeps_automatic_workers() {
    let first = Run::print().stdout();
    let (value, origin) = printed(&first, "workers");
    assert_eq!(value, "\"auto\"");
    let here = origin.strip_prefix("default; ");
    let here = here.and_then(|it| it.strip_suffix(" here"));
    assert!(here.is_some_and(|it| it.parse::<u16>().is_ok()), "{origin}");
    // A server with the printed file follows its CPUs, too.
    let (run, file) = Run::print().file(&first);
    let (value, origin) = printed(&run.stdout(), "workers");
    assert_eq!(value, "\"auto\"");
    assert!(origin.starts_with(&format!("file {}:", file.path().display())));
    let fixed = Run::print().args(&["--workers", "3"]).stdout();
    assert_eq!(printed(&fixed, "workers").0, "3");
}

#[test]
fn check_names_ignored_service_variables() {
    let with = |run: Run| {
        run.env("UPPERCASED_ADMIN_SERVICE_HOST", "10.0.0.1")
            .env("UPPERCASED_SHARE_PORT", "tcp://10.0.0.1:9999")
    };
    let notice = "ignored variables of Kubernetes services: UPPERCASED_ADMIN_SERVICE_HOST \
                  UPPERCASED_SHARE_PORT\n";
    let verdict = with(Run::new().arg("check")).stdout();
    assert_eq!(
        verdict,
        format!("configuration is valid (no file)\n{notice}")
    );
    assert!(with(Run::print()).stdout().contains(&format!("# {notice}")));
    let mistyped = with(Run::new().arg("check")).env("UPPERCASED_ADMIN_HOST", "10.0.0.1");
    assert!(mistyped.complaint().contains("UPPERCASED_ADMIN_HOST"));
}

#[test]
fn error_suggests_nearest_name() {
    let flag = Run::new().args(&["--idle-timout", "3s"]).complaint();
    assert!(
        flag.contains("'--idle-timout'") && flag.contains("'--idle-timeout'"),
        "{flag}"
    );
    let command = Run::new().arg("chek").complaint();
    assert!(
        command.contains("'chek'") && command.contains("'check'"),
        "{command}"
    );
    let junk = Run::new().args(&["serve", "junk"]).complaint();
    assert!(junk.contains("'junk'"), "{junk}");
    let missing = Run::new().args(&["check", "--workers"]).complaint();
    assert!(missing.contains("--workers"), "{missing}");
    let variable = Run::new()
        .arg("check")
        .env("UPPERCASED_IDLE", "1s")
        .complaint();
    assert!(
        variable.contains("UPPERCASED_IDLE;") && variable.contains("UPPERCASED_IDLE_TIMEOUT"),
        "{variable}"
    );
    let (run, file) = Run::new()
        .arg("check")
        .file("# mine\nidle-timout = \"1s\"\n");
    let place = format!("{}:2: ", file.path().display());
    let key = run.complaint();
    assert!(
        key.starts_with(&place) && key.contains("\"idle_timeout\""),
        "{key}"
    );
}

#[test]
fn invalid_values_are_refused_with_hint() {
    for (args, what, way_out) in [
        (
            ["--workers", "0"],
            "--workers: 0 is too low",
            "1 to 1024, or auto",
        ),
        (["--workers", "-1"], "--workers: -1 is too low", "1 to 1024"),
        (
            ["--workers", "99999999999999999999"],
            "too high",
            "1 to 1024",
        ),
        (
            ["--workers", "many"],
            "\"many\" is not a whole number",
            "auto",
        ),
        (
            ["--max-connections", "99999999"],
            "too high",
            "1 to 10000000",
        ),
        (["--pending-output", "1GiB"], "1GiB is too large", "64KiB"),
        (
            ["--recv-buffer", "12KB"],
            "\"12KB\" is not a size",
            "4KiB to 16MiB",
        ),
        (["--drain-timeout", "2days"], "2days is too long", "1day"),
        (
            ["--idle-timeout", "30"],
            "it has no unit",
            "for example 30s",
        ),
        (["--idle-timeout", "30x"], "\"x\" is not a unit", "or off"),
        (
            ["--idle-timeout", ""],
            "\"\" is not a duration",
            "for example 30s",
        ),
        (
            ["--log-level", "loud"],
            "\"loud\"",
            "error, warn, info, debug or trace",
        ),
        (["--listen", "localhost"], "has no port", "HOST:PORT"),
        (["--listen", "::1:9999"], "without brackets", "[IPV6]:PORT"),
        (["--listen", "1.2.3.4:99999"], "above 65535", "HOST:PORT"),
        (["--listen", "80,127.0.0.1:80"], "overlap", "remove one"),
        (
            ["--backoff-max", "1ms"],
            "shorter than the first delay",
            "raise one",
        ),
    ] {
        for command in [[].as_slice(), &["serve"], &["check"]] {
            let line = Run::new().args(command).args(&args).complaint();
            assert!(
                line.contains(what) && line.contains(way_out),
                "{args:?}: {line}"
            );
        }
    }
}

#[test]
fn every_error_of_a_configuration_is_reported() {
    for command in ["check", "serve"] {
        let (run, file) = Run::new()
            .args(&[command, "--workers", "0", "--user", "no-such-user"])
            .file("wokers = 4\nidle_timeout = 1.5\nbackoff_initial = \"1m\"\nlisten = = 1\n");
        let outcome = run.env("UPPERCASED_LOG_LEVL", "x").outcome();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""));
        let path = file.path().display();
        for place in [
            format!("{path}:1: unknown setting \"wokers\""),
            format!("{path}:2: idle_timeout: "),
            format!("{path}:4:10: not valid TOML"),
            "unknown setting UPPERCASED_LOG_LEVL".to_owned(),
            "--workers: 0 is too low".to_owned(),
            "the default of backoff_max: 10s is shorter".to_owned(),
            "--user: ".to_owned(),
        ] {
            let line = format!("uppercased: {place}");
            let found = outcome.stderr.lines().filter(|it| it.starts_with(&line));
            assert_eq!(found.count(), 1, "{place}: {outcome:?}");
        }
        assert_eq!(outcome.stderr.lines().count(), 7, "{outcome:?}");
    }
    let foreign: String = (0..1000).map(|number| format!("a{number} = 1\n")).collect();
    let (run, _file) = Run::new().arg("check").file(&foreign);
    let outcome = run.outcome();
    assert!(
        outcome.stderr.ends_with("uppercased: 980 more errors\n"),
        "{outcome:?}"
    );
}

#[test]
fn check_warns_about_unwise_values() {
    let unwise = [
        "check",
        "--workers",
        "1",
        "--hang-timeout",
        "200ms",
        "--sandbox",
        "off",
    ];
    let text = Run::new().args(&unwise).stdout();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "configuration is valid (no file)");
    assert!(
        lines[1].starts_with("warning: --hang-timeout: 200ms"),
        "{text}"
    );
    assert!(lines[2].starts_with("warning: --sandbox: "), "{text}");
    let printed = Run::new().args(&unwise).arg("--print").stdout();
    assert!(printed.contains("\n# warning: --sandbox: "), "{printed}");
    let strict = Run::new().args(&unwise).arg("--strict").outcome();
    assert_eq!((strict.code, strict.stdout.as_str()), (Some(2), ""));
    assert_eq!(strict.stderr.lines().count(), 2, "{strict:?}");
    Run::new()
        .args(&["check", "--workers", "1", "--strict"])
        .stdout();
}

#[test]
fn error_names_source_of_bad_value() {
    let run = Run::new().arg("check").env("UPPERCASED_WORKERS", "0");
    let line = run.complaint();
    assert!(
        line.starts_with("UPPERCASED_WORKERS: 0 is too low"),
        "{line}"
    );
    // Even if another source overrides it.
    let (run, file) = Run::new()
        .args(&["check", "--workers", "3"])
        .file("\nworkers = 0\n");
    let place = format!("{}:2: workers: 0 is too low", file.path().display());
    let line = run.complaint();
    assert!(line.starts_with(&place), "{line}");
}

#[test]
fn error_names_invalid_configuration_file() {
    let (run, file) = Run::new().arg("check").file("workers = 4\nlisten = = 1\n");
    let place = format!("{}:2:10: not valid TOML", file.path().display());
    let line = run.complaint();
    assert!(line.starts_with(&place), "{line}");

    let (run, _file) = Run::new().arg("check").file("idle_timeout = 1.5\n");
    let line = run.complaint();
    assert!(
        line.contains("type float") && line.contains("\"30s\""),
        "{line}"
    );

    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("a\nb.toml");
    for path in [directory.path(), missing.as_path()] {
        let path = path.to_str().unwrap();
        let line = Run::new().args(&["check", "--config", path]).complaint();
        assert!(
            line.starts_with("cannot read the configuration file"),
            "{line}"
        );
        let line = Run::new().env("UPPERCASED_CONFIG", path).complaint();
        assert!(line.contains("UPPERCASED_CONFIG"), "{line}");
    }
    assert!(
        Run::new()
            .args(&["check", "-c", "/dev/null"])
            .stdout()
            .contains("/dev/null")
    );
    let line = Run::new()
        .args(&["check", "--config", "/dev/zero"])
        .complaint();
    assert!(line.contains("larger than 1048576 bytes"), "{line}");
}

#[test]
fn check_detects_low_descriptor_limit() {
    let check = |limit: &str, args: &str| {
        let mut run = Run::new();
        let program = env!("CARGO_BIN_EXE_uppercased");
        let script = format!("ulimit -n {limit} && exec {program} check {args}");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script);
        for (name, value) in run.command.get_envs() {
            if value.is_none() {
                shell.env_remove(name);
            }
        }
        run.command = shell;
        run
    };
    let line = check("64", "--workers 1").complaint();
    assert!(
        line.contains("it is 64") && line.contains("ulimit -n 70"),
        "{line}"
    );
    let line = check("1024", "--workers 1 --max-connections 1000").complaint();
    assert!(
        line.contains("LimitNOFILE=1069") && line.contains("at most 955"),
        "{line}"
    );
    let valid = check("1024", "--workers 1 --max-connections 955").stdout();
    assert_eq!(valid, "configuration is valid (no file)\n");
}

#[test]
fn flags_override_environment_and_environment_overrides_file() {
    let text = "workers = 1\nbacklog = 1\nidle_timeout = \"1m\"\nlisten = [\"1.1.1.1:1\", 2]\n";
    let (run, file) = Run::print().file(text);
    let text = run
        .env("UPPERCASED_BACKLOG", "2")
        .env("UPPERCASED_IDLE_TIMEOUT", "2m")
        .args(&[
            "--idle-timeout",
            "180s",
            "--listen",
            "[::1]:5",
            "--listen=6",
        ])
        .stdout();
    let path = file.path().display();
    for (key, value, origin) in [
        ("workers", "1", format!("file {path}:1")),
        ("backlog", "2", "environment UPPERCASED_BACKLOG".to_owned()),
        ("idle_timeout", "\"3m\"", "flag --idle-timeout".to_owned()),
        (
            "listen",
            "[\"[::1]:5\", \"0.0.0.0:6\"]",
            "flag --listen".to_owned(),
        ),
        ("keepalive", "\"10m\"", "default".to_owned()),
    ] {
        assert_eq!(printed(&text, key), (value.to_owned(), origin));
    }
}

#[test]
fn config_flag_overrides_config_variable() {
    let (run, file) = Run::new().arg("check").file("workers = 1\n");
    let verdict = run.env("UPPERCASED_CONFIG", "/nonexistent").stdout();
    let expected = format!("configuration is valid (file {})\n", file.path().display());
    assert_eq!(verdict, expected);
}

#[test]
fn check_prints_equivalent_configuration_file() {
    let first = Run::print()
        .args(&["--listen", "*:7", "--listen", "127.0.0.1:8", "--share-port"])
        .args(&[
            "--idle-timeout",
            "90s",
            "--recv-buffer",
            "auto",
            "--max-connections",
            "77",
        ])
        .stdout();
    let (run, _file) = Run::print().file(&first);
    let second = run.stdout();
    let values = |text: &str| -> Vec<String> {
        let values = text.lines().filter(|line| !line.starts_with('#'));
        values
            .filter_map(|line| line.split_once(" # "))
            .map(|(value, _)| value.trim_end().to_owned())
            .collect()
    };
    assert_eq!(values(&first), values(&second));
    assert_eq!(values(&first).len(), uppercased::config::SETTINGS.len());
    assert!(values(&first).contains(&"idle_timeout = \"1m30s\"".to_owned()));
}

#[test]
fn addresses_may_be_names_and_ipv6() {
    for (typed, shown) in [
        ("[::1]:9999", "\"[::1]:9999\""),
        ("*:9999", "\"*:9999\""),
        ("9999", "\"0.0.0.0:9999\""),
        (":9999", "\"0.0.0.0:9999\""),
    ] {
        let text = Run::print().args(&["--listen", typed]).stdout();
        assert_eq!(printed(&text, "listen").0, shown, "{typed}");
    }
    let text = Run::print().args(&["--listen", "localhost:9999"]).stdout();
    let (shown, _) = printed(&text, "listen");
    let loopback = shown.contains("127.0.0.1:9999") || shown.contains("[::1]:9999");
    assert!(loopback, "{shown}");
}

#[test]
fn journal_lines_begin_with_priority() {
    // The journal names the file that standard error must be.
    let run = |stream: &str, arguments: &str| {
        let program = env!("CARGO_BIN_EXE_uppercased");
        let script = format!("JOURNAL_STREAM={stream} exec {program} {arguments}");
        let output = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .env("UPPERCASED_LISTEN", "192.0.2.1:1")
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let own = "$(stat -L -c %d:%i /proc/self/fd/2)";
    let error = run(own, "check --workers=none");
    assert!(error.starts_with("<3>uppercased: "), "{error}");
    let lines = run(own, "serve --workers=1 --control=off --log-format=otel");
    let last = lines.lines().last().unwrap();
    let record = last
        .strip_prefix("<3>")
        .unwrap_or_else(|| panic!("{lines}"));
    let record: serde_json::Value = serde_json::from_str(record).unwrap();
    assert_eq!(record["event_name"], "server_start_failed", "{record}");
    assert_eq!(record["severity_number"], 17, "{record}");
    assert!(
        lines.lines().any(|line| line.starts_with("<6>{")),
        "{lines}"
    );
    let error = run("1:2", "check --workers=none");
    assert!(error.starts_with("uppercased: "), "{error}");
}

#[test]
fn log_installs_only_once() {
    use uppercased::config::{LogFormat, LogLevel};
    assert!(uppercased::log::init(LogLevel::Error, LogFormat::Human).is_ok());
    let again = uppercased::log::init(LogLevel::Error, LogFormat::Json).unwrap_err();
    assert!(again.to_string().contains("already"), "{again}");
}

/// The container image is built without both commands.
#[test]
#[cfg(not(any(feature = "bench", feature = "top")))]
fn missing_feature_is_named() {
    for command in ["bench", "top"] {
        let outcome = Run::new().args(&[command, "--help"]).outcome();
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        let feature = format!("the feature `{command}`");
        assert!(outcome.stderr.contains(&feature), "{outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    }
}
