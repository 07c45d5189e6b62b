//! Unit tests of `cli.rs`.

use super::*;
use uppercased_ctl::control::ScaleTo;
use uppercased_ctl::escape::visible;
use uppercased_ctl::status::Rotation;

fn parsed(args: &[&str]) -> Result<Command, String> {
    let args = ["uppercased"].iter().chain(args).map(OsString::from);
    parse(args, []).map_err(|error| error.to_string())
}

#[test]
fn corrected_input_is_escaped_in_output() {
    let args = ["uppercased", "-c", "/no\nwhere"].map(OsString::from);
    let cause = resolve_launch(&args).unwrap_err();
    assert!(cause.contains("/no\nwhere"), "{cause:?}");
    assert!(visible(&cause).contains("/no\\nwhere"), "{cause:?}");
}

#[test]
fn each_role_has_its_command() {
    assert!(matches!(parsed(&[]), Ok(Command::Serve(_))));
    assert!(matches!(parsed(&["serve"]), Ok(Command::Serve(_))));
    assert_eq!(parsed(&["worker"]), Ok(Command::Worker));
    assert_eq!(
        parsed(&["client"]),
        Ok(Command::Client(client::Options {
            target: DEFAULT_TARGET.to_owned(),
            proxy_header: None,
        }))
    );
    assert_eq!(
        parsed(&["client", "[::1]:80"]),
        Ok(Command::Client(client::Options {
            target: "[::1]:80".to_owned(),
            proxy_header: None,
        }))
    );
    for port in ["80", ":80"] {
        let Ok(Command::Client(options)) = parsed(&["client", port]) else {
            panic!("{port}");
        };
        assert_eq!(options.target, "127.0.0.1:80");
    }
    assert!(matches!(parsed(&["check"]), Ok(Command::Check(text)) if text.contains("valid")));
}

#[test]
fn flags_may_precede_or_follow_command() {
    let Ok(Command::Serve(launch)) = parsed(&["--workers", "3", "serve", "--backlog=7"]) else {
        panic!("flags on both sides of `serve`");
    };
    let config = launch.config;
    assert_eq!((config.workers, config.backlog), (3, Some(7)));
    let twice = parsed(&["--workers", "3", "serve", "--workers", "4"]).unwrap_err();
    assert!(twice.contains("--workers"), "{twice}");
    // Commands without a configuration accept no settings.
    for role in ["client", "worker", "reload", "upgrade", "status", "stop"] {
        assert!(parsed(&["--workers", "3", role]).is_err(), "{role}");
    }
}

#[test]
fn command_may_name_its_server() {
    let command = |request| RemoteCommand {
        request,
        control: None,
        timeout: None,
        shown: Shown::default(),
    };
    const NOW: Options = Options {
        wait: false,
        drain: false,
    };
    let scale = |workers| {
        command(Request::Scale {
            workers,
            options: NOW,
        })
    };
    let status = |shown| RemoteCommand {
        shown,
        ..command(Request::Status)
    };
    for (args, expected) in [
        (["reload"].as_slice(), command(Request::Reload(NOW))),
        (&["upgrade"], command(Request::Upgrade(NOW))),
        (&["scale", "3"], scale(ScaleTo::Exactly(3))),
        (&["scale", "+1"], scale(ScaleTo::By(1))),
        (&["scale", "-2"], scale(ScaleTo::By(-2))),
        (
            &["upgrade", "--wait"],
            command(Request::Upgrade(Options { wait: true, ..NOW })),
        ),
        (
            &["reload", "--drain"],
            command(Request::Reload(Options { drain: true, ..NOW })),
        ),
        (
            &["rotation", "maint"],
            command(Request::Rotation {
                to: Rotation::Maint,
            }),
        ),
        (&["cancel"], command(Request::Cancel)),
        (&["stop"], command(Request::Stop)),
        (
            &["status", "--json", "--watch"],
            status(Shown {
                json: true,
                watch: Some(std::time::Duration::from_secs(1)),
                ..Shown::default()
            }),
        ),
        (
            &["status", "--watch", "500ms"],
            status(Shown {
                watch: Some(std::time::Duration::from_millis(500)),
                ..Shown::default()
            }),
        ),
        (
            &["status", "--sockets", "--limit", "7"],
            status(Shown {
                sockets: Some(7),
                ..Shown::default()
            }),
        ),
        (
            &["status", "--ready"],
            status(Shown {
                ready: true,
                ..Shown::default()
            }),
        ),
        (
            &["reload", "--timeout", "1m30s", "--control", "here"],
            RemoteCommand {
                control: Some(PathBuf::from("here")),
                timeout: Some(std::time::Duration::from_secs(90)),
                ..command(Request::Reload(NOW))
            },
        ),
    ] {
        assert_eq!(parsed(args), Ok(Command::Remote(expected)));
    }
    let with = |value: &str| {
        let variable = ("UPPERCASED_CONTROL".into(), value.into());
        let args = ["uppercased", "stop"].map(OsString::from);
        match parse(args, [variable]).unwrap() {
            Command::Remote(command) => command.control,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with("/run/x"), Some(PathBuf::from("/run/x")));
    assert_eq!((with("auto"), with("off")), (None, None));
}

#[test]
fn preflight_reads_arguments_like_server() {
    let Ok(Command::Preflight(server)) =
        parsed(&["preflight", "--", "--workers", "3", "serve", "--backlog=7"])
    else {
        panic!("a preflight");
    };
    let config = resolve_launch(&server).unwrap();
    assert_eq!((config.workers, config.backlog), (3, Some(7)));
    let args = ["uppercased", "--workers", "3", "serve", "--backlog=7"];
    assert_eq!(server, args.map(OsString::from));
    let why = |args: &[&str]| {
        let args = [&["preflight", "--"], args].concat();
        match parsed(&args) {
            Ok(Command::Preflight(server)) => resolve_launch(&server).unwrap_err(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(Err(why(&["--workers", "0"])), parsed(&["--workers", "0"]));
    for other in ["check", "worker", "reload"] {
        assert!(why(&[other]).contains("do not start a server"));
    }
}

#[test]
fn launch_survives_round_trip() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "workers = 2\n").unwrap();
    let path = file.path().to_str().unwrap();
    let Ok(Command::Serve(launch)) = parsed(&["--config", path, "--backlog=7"]) else {
        panic!("a server");
    };
    assert_eq!(resolve_launch(&launch.args).as_ref(), Ok(&launch.config));
    std::fs::write(file.path(), "workers = 5\n").unwrap();
    let again = resolve_launch(&launch.args).unwrap();
    assert_eq!((again.workers, again.backlog), (5, Some(7)));
    std::fs::write(file.path(), "workers = 5\nwrokers = 1\n").unwrap();
    let why = resolve_launch(&launch.args).unwrap_err();
    assert!(why.contains(":2: ") && !why.contains('\n'), "{why}");
    // A FIFO would block its reader: here the supervisor.
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::rename(&pipe, file.path()).unwrap();
    let why = resolve_launch(&launch.args).unwrap_err();
    assert!(why.contains("use a regular file"), "{why}");
}

#[test]
fn switch_needs_no_value() {
    for (args, on) in [
        (["--share-port"].as_slice(), true),
        (&["--share-port=true"], true),
        (&["--share-port=false"], false),
        (&[], false),
    ] {
        let Ok(Command::Serve(launch)) = parsed(args) else {
            panic!("{args:?}");
        };
        assert_eq!(launch.config.share_port, on, "{args:?}");
    }
}
