//! The supervisor replaces its program in place; an unusable program changes nothing, and no client
//! is affected.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;

use crate::support::image::Image;
use crate::support::load::{Load, LoadSize};
use crate::support::observe::{self, until};
use crate::support::planned::Planned;
use crate::support::{Client, Server};

const QUICK: [&str; 4] = [
    "--listen=127.0.0.1:0",
    "--workers=2",
    "--bake-time=0s",
    // One test waits for it; ample for a normal start.
    "--start-timeout=5s",
];

fn version(planned: &Planned) -> String {
    let status = planned.server.status_json();
    status["version"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn upgrade_changes_only_the_program() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let load = Load::start(server.addr(), LoadSize::small());
    let before = planned.workers();
    let pid = server.pid();
    for version_after in ["7.1.0", "7.2.0"] {
        planned.install(
            Image::copy(planned.folder()).with_faults(&format!("version={version_after}")),
        );
        let workers = planned.workers();
        let answered = server.upgrade().expect_success();
        assert!(answered.stdout.contains("2 workers"), "{answered:?}");
        assert_eq!(version(&planned), version_after);
        planned.workers().assert_replaced_since(&workers);
        load.go_on_for(50);
    }
    let status = server.status_json();
    assert_eq!(status["pid"], u64::from(pid));
    planned.workers().assert_replaced_since(&before);
    // Other operations work with the new program.
    server.reload().expect_success();
    server.scale(3).expect_success();
    load.go_on_for(20);
    load.finish().assert_clean();
    assert_eq!(server.stop().code(), Some(0));
}

/// Some deployments keep versions side by side.
#[test]
fn upgrade_follows_symbolic_link_again() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["7.1.0", "7.2.0"]
        .map(|version| Image::copy(folder.path()).with_faults(&format!("version={version}")));
    let current = folder.path().join("current");
    symlink(first.path(), &current).unwrap();
    let server = Server::builder().program(&current).args(QUICK).start();
    assert_eq!(server.status_json()["version"], "7.1.0");
    let next = folder.path().join("next");
    symlink(second.path(), &next).unwrap();
    std::fs::rename(&next, &current).unwrap();
    server.upgrade().expect_success();
    assert_eq!(server.status_json()["version"], "7.2.0");
}

#[test]
fn program_path_need_not_be_utf8() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join(OsStr::from_bytes(b"caf\xe9 it's"));
    std::fs::create_dir(&odd).unwrap();
    let program = odd.join("uppercased");
    Image::copy(&odd).replace(&program);
    let server = Server::builder().program(&program).args(QUICK).start();
    let mut client = Client::connect(server.addr());
    server.reload().expect_success();
    Image::copy(&odd)
        .with_faults("version=8.0.0")
        .replace(&program);
    server.upgrade().expect_success();
    assert_eq!(server.status_json()["version"], "8.0.0");
    server.upgrade().expect_success();
    client.roundtrip(b"kept");
}

#[test]
fn sigusr2_triggers_upgrade() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    planned.install(Image::copy(planned.folder()).with_faults("version=8.0.0"));
    let mark = server.log_len();
    server.signal(Signal::SIGUSR2);
    server.wait_log_from(mark, |line| line.contains("operation done"));
    assert_eq!(version(&planned), "8.0.0");
    client.roundtrip(b"after");
}

#[test]
fn preflight_refuses_unusable_program() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let load = Load::start(server.addr(), LoadSize::small());
    let before = planned.workers();
    let running = version(&planned);
    let copy = || Image::copy(planned.folder());
    let broken: [(Image, &str); 9] = [
        (copy().not_executable(), "cannot execute"),
        (copy().truncated(), ""),
        (Image::other_program(planned.folder()), "exit code 0"),
        (copy().with_faults("main.starting=exit"), "exit code 3"),
        (copy().with_faults("main.starting=kill"), "SIGKILL"),
        (copy().with_faults("main.starting=stop"), "within 5s"),
        (
            copy().with_faults("preflight.starting=panic"),
            "exit code 101",
        ),
        (copy().with_faults("state_version=99"), "reads version 99"),
        (copy().with_faults("state_version=0"), "reads version 0"),
    ];
    for (image, cause) in broken {
        planned.install(image);
        server.upgrade().expect_failure(cause);
        planned.workers().assert_untouched_since(&before);
        assert_eq!(version(&planned), running);
        load.go_on_for(10);
    }
    std::fs::remove_file(planned.program()).unwrap();
    server.upgrade().expect_failure("cannot open the binary");
    planned.workers().assert_untouched_since(&before);
    load.finish().assert_clean();
}

#[test]
fn preflight_refuses_configuration_of_new_program() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    let before = planned.workers();
    for (text, cause) in [
        ("no_such_setting = 1\n", "unknown setting"),
        ("share_port = true\n", "cannot change share_port"),
    ] {
        planned.configure(text);
        server.upgrade().expect_failure(cause);
        planned.workers().assert_untouched_since(&before);
    }
    client.roundtrip(b"unharmed");
    planned.configure("");
    server.upgrade().expect_success();
    client.roundtrip(b"moved");
}

/// The new program passes the pre-flight check and fails after the exec: the old program is
/// restored.
#[test]
fn failure_after_exec_restores_old_program() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let load = Load::start(server.addr(), LoadSize::small());
    let before = planned.workers();
    let running = version(&planned);
    planned
        .install(Image::copy(planned.folder()).with_faults("version=9.0.0;supervisor.resume=fail"));
    server
        .upgrade()
        .expect_failure("fault point supervisor.resume");
    assert_eq!(version(&planned), running);
    planned.workers().assert_untouched_since(&before);
    load.go_on_for(30);
    // The next upgrade may succeed.
    planned.install_good();
    server.upgrade().expect_success();
    planned.workers().assert_replaced_since(&before);
    load.finish().assert_clean();
}

/// The supervisor runs the new program, but its workers fail: the old workers stay, and the
/// requester gets the cause.
#[test]
fn failing_workers_stay_with_old_program() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let load = Load::start(server.addr(), LoadSize::small());
    let before = planned.workers();
    planned.install(Image::copy(planned.folder()).with_faults("version=9.1.0;worker.ready=exit"));
    server.upgrade().expect_failure("exit code 3");
    assert_eq!(version(&planned), "9.1.0");
    planned.workers().assert_untouched_since(&before);
    load.go_on_for(30);
    // After a crash the old worker's program is restarted, not the failed one.
    let victim = server.worker_pids()[0];
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(victim.cast_signed()),
        Signal::SIGTERM,
    )
    .unwrap();
    planned.install_good();
    server.upgrade().expect_success();
    planned.workers().assert_replaced_since(&before);
    load.finish().assert_clean();
}

/// The next program detects a worker that exited during the exec, and handles a signal that arrived
/// then.
#[test]
fn upgrade_notices_events_during_exec() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    planned.install(Image::copy(planned.folder()).with_faults("supervisor.resuming=stop"));
    let mark = server.log_len();
    let command = server.start_command(&["upgrade"]);
    until("the new program stands still", || {
        observe::state(server.pid()) == Some('T')
    });
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(server.addr())).collect();
    let victim = observe::worker_of(server, 1);
    victim.signal(Signal::SIGKILL);
    for client in &mut clients {
        client.roundtrip(b"the supervisor is not needed");
    }
    server.signal(Signal::SIGUSR1);
    server.signal(Signal::SIGCONT);
    command.wait().expect_success();
    server.wait_log_from(mark, |line| line.contains("worker rescued"));
    server.wait_log_from(mark, |line| line.contains("serving for"));
    planned.workers().assert_serving();
}

/// Returns the descriptors of a process by number: the kind, and whether it is inherited across
/// exec.
fn held(pid: u32) -> Vec<(i32, String, bool)> {
    let held = observe::descriptors(pid).into_iter();
    let held = held.map(|(number, target)| {
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
        let info = info.unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = i32::from_str_radix(flags.unwrap_or("0").trim(), 8).expect("octal flags");
        // Each program gives new numbers to sockets, pipes and the like.
        let kind = target.split([':', ' ']).next().unwrap_or_default();
        (
            number,
            kind.to_owned(),
            flags & OFlag::O_CLOEXEC.bits() == 0,
        )
    });
    held.collect()
}

/// Whichever step of the takeover fails, the previous program continues with all its descriptors
/// and no others.
#[test]
fn each_refused_step_restores_old_program() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let load = Load::start(server.addr(), LoadSize::small());
    let before = planned.workers();
    let running = version(&planned);
    let passed_on = |pid| {
        let held = held(pid).into_iter();
        let open = held.filter(|(_, _, passed_on)| *passed_on);
        open.collect::<Vec<_>>()
    };
    let kinds = |pid| {
        let mut kinds: Vec<String> = held(pid).into_iter().map(|(_, kind, _)| kind).collect();
        kinds.sort_unstable();
        kinds
    };
    let (open, all) = (passed_on(server.pid()), kinds(server.pid()));
    for point in [
        "resume.watch_basics",
        "resume.watch_child",
        "resume.map_memory",
        "resume.control",
    ] {
        let plan = format!("version=9.0.0;{point}=fail");
        planned.install(Image::copy(planned.folder()).with_faults(&plan));
        server.upgrade().expect_failure(point);
        assert_eq!(version(&planned), running);
        planned.workers().assert_untouched_since(&before);
        load.go_on_for(10);
        assert_eq!(passed_on(server.pid()), open, "after {point}");
        until("the clients of the control socket are gone", || {
            kinds(server.pid()) == all
        });
    }
    planned.install_good();
    server.upgrade().expect_success();
    assert_eq!(passed_on(server.pid()), open, "after an upgrade");
    load.finish().assert_clean();
}

/// A signal that arrives before a failed exec is handled by the program that continues.
#[test]
fn signal_survives_failed_exec() {
    let faults = "supervisor.exec=stop;supervisor.state_at_exec=fail";
    let planned = Planned::start_with(&QUICK, |builder| {
        builder.env(uppercased::fault::VARIABLE, faults)
    });
    let server = &planned.server;
    let command = server.start_command(&["upgrade"]);
    until("it stands still before the exec", || {
        observe::state(server.pid()) == Some('T')
    });
    let mark = server.log_len();
    server.signal(Signal::SIGUSR1);
    server.signal(Signal::SIGCONT);
    command.wait().expect_failure("supervisor.state_at_exec");
    server.wait_log_from(mark, |line| line.contains("serving for"));
}

#[test]
fn operation_requires_room_for_every_connection() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    // With limited memory, a worker has room only for the configured limits.
    let script = format!(
        "ulimit -f 1000000; exec '{}' \"$@\"",
        env!("CARGO_BIN_EXE_uppercased")
    );
    let limited = Image::script(folder.path(), &script);
    let config = folder.path().join("uppercased.toml");
    std::fs::write(&config, "max_connections = 20\n").expect("write the configuration");
    let server = Server::builder()
        .program(limited.path())
        .args(["--config", config.to_str().expect("a plain path")])
        .args(["--listen=127.0.0.1:0", "--workers=1", "--bake-time=0s"])
        .args(["--drain-timeout=60s"])
        .start();
    let mut clients: Vec<_> = (0..12).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.roundtrip(b"established");
    }
    std::fs::write(&config, "max_connections = 5\n").expect("write the configuration");
    let pids = server.worker_pids();
    for command in ["reload", "upgrade"] {
        let answered = server.command(&[command]);
        assert_eq!(answered.code, 1, "{answered:?}");
        let error = format!("{}{}", answered.stdout, answered.stderr);
        assert!(
            error.contains("room for 5 of its 12 connections"),
            "{error}"
        );
        assert_eq!(server.worker_pids(), pids, "{command} has begun");
    }
    server.command(&["upgrade", "--drain"]).expect_success();
    for client in &mut clients {
        client.roundtrip(b"still served");
    }
}
