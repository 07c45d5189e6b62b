//! The sandbox of workers and of the admin process: its state in the kernel, the fate of a process
//! that violates it, and every planned operation inside it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use nix::unistd::geteuid;

use crate::support::adversity::skipped;
use crate::support::image::Image;
use crate::support::observe::{until, until_some};
use crate::support::planned::Planned;
use crate::support::{Client, DEADLINE, Server, wait_gone};

const QUICK: [&str; 4] = [
    "--listen=127.0.0.1:0",
    "--bake-time=0s",
    "--workers=2",
    "--backoff-initial=10ms",
];

/// Attempts to leave the sandbox.
const OUTWARD: [&str; 6] = ["open", "connect", "bind", "exec", "setuid", "signal"];
/// Attempts to harm others through shared resources: shut down a listener, steer all new
/// connections to one worker, fill the disk, truncate a file or write to it unseen, overwrite the
/// log.
const SHARED: [&str; 6] = ["unlisten", "steer", "fill", "punch", "map", "overwrite"];

/// Returns a field of `/proc/PID/status`.
#[track_caller]
fn kernel_field(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let words = line.expect("the kernel has that field").split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}

/// Asserts that the process has no capabilities and cannot gain any. A process that starts without
/// any cannot drop the bounding set, and need not, because exec grants no privileges.
#[track_caller]
fn assert_without_capabilities(pid: u32) {
    let bounding = geteuid().is_root().then_some("CapBnd");
    let sets = ["CapEff", "CapPrm", "CapInh", "CapAmb"].into_iter();
    for set in sets.chain(bounding) {
        assert_eq!(kernel_field(pid, set), "0000000000000000", "{set}");
    }
}

/// Returns the layers reported by the first slot's worker.
#[track_caller]
fn layers(server: &Server) -> Vec<String> {
    let status = server.status_json();
    let layers = &status["slots"][0]["sandbox"]["layers"];
    let layers = layers.as_array().expect("it has said so").iter();
    layers
        .filter_map(|it| it.as_str().map(str::to_owned))
        .collect()
}

#[track_caller]
fn until_all_serve(planned: &Planned) {
    until("every slot serves", || {
        let workers = planned.workers().0;
        workers.iter().all(|worker| worker.state == "serving")
    });
}

#[test]
fn workers_are_sandboxed_by_default() {
    let server = Server::start(&QUICK);
    for pid in server.worker_pids() {
        assert_eq!(kernel_field(pid, "NoNewPrivs"), "1");
        assert_eq!(kernel_field(pid, "Seccomp"), "2");
        assert_eq!(kernel_field(pid, "Threads"), "1");
        assert_without_capabilities(pid);
    }
    let error = layers(&server);
    for layer in ["no_new_privs", "no_caps", "no_dump", "seccomp"] {
        assert!(error.iter().any(|it| it == layer), "{layer}: {error:?}");
    }
    let screen = server.command(&["status"]).expect_success().stdout;
    assert!(screen.contains("sandbox      no_new_privs"), "{screen}");
    Client::connect(server.addr()).roundtrip(b"served from within");
}

/// Returns the sorted kinds of all open descriptors of a process; `None` if it has exited.
fn descriptors(pid: u32) -> Option<Vec<String>> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links = folder.map(|entry| {
        Some(
            fs::read_link(entry.ok()?.path())
                .ok()?
                .display()
                .to_string(),
        )
    });
    let kind = |link: String| match link.split_once(':') {
        Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
        _ => link.trim_end_matches(" (deleted)").to_owned(),
    };
    let mut kinds: Vec<_> = links.map(|link| link.map(kind)).collect::<Option<_>>()?;
    kinds.sort();
    Some(kinds)
}

/// Descriptors of the launching shell and of the supervisor are not inherited.
#[test]
fn processes_hold_only_needed_descriptors() {
    if !geteuid().is_root() {
        skipped("only root can inspect a sandboxed process");
        return;
    }
    let planned = Planned::start(&[&QUICK[..], &["--admin=0"]].concat());
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"one connection");
    // No input, no output; the log twice: as inherited and as reopened.
    let streams = ["/dev/null", "/dev/null", "pipe", "pipe"];
    let own = [
        "/memfd:uppercased-slot",
        "anon_inode:[eventpoll]",
        // Of the supervisor, and of itself for its keeper.
        "anon_inode:[pidfd]",
        "anon_inode:[pidfd]",
        // The lease.
        "pipe",
    ];
    // The channel, the rendezvous, the listener, and in one of the workers the client.
    let needed = [3, 4].map(|sockets| {
        let mut needed = [&streams[..], &own, &vec!["socket"; sockets]].concat();
        needed.sort_unstable();
        needed
    });
    // Twice: first for workers that bind, then for workers that adopt and take over.
    for _ in 0..2 {
        until("workers with what they need", || {
            let mut open: Vec<_> = server.worker_pids().into_iter().map(descriptors).collect();
            open.sort_by_key(|open| open.as_ref().map(Vec::len));
            open.iter().flatten().eq(&needed)
        });
        server.reload().expect_success();
        client.roundtrip(b"moved");
    }
    // The alarm has two ends; the channel is open twice, once for waiting; the listener.
    let mut needed = [&streams[..], &["pipe"; 2], &["socket"; 3]].concat();
    needed.sort_unstable();
    assert_eq!(descriptors(admin_pid(server)).expect("it lives"), needed);
}

#[test]
fn sandbox_can_be_disabled() {
    let server = Server::start(&[&QUICK[..], &["--sandbox=off"]].concat());
    for pid in server.worker_pids() {
        assert_eq!(kernel_field(pid, "NoNewPrivs"), "0");
        assert_eq!(kernel_field(pid, "Seccomp"), "0");
    }
    let screen = server.command(&["status"]).expect_success().stdout;
    assert!(screen.contains("sandbox      off"), "{screen}");
}

#[test]
fn workers_of_another_user_support_every_operation() {
    if !geteuid().is_root() {
        skipped("only root can run workers as another user");
        return;
    }
    let planned = Planned::start(&[&QUICK[..], &["--user=nobody"]].concat());
    let server = &planned.server;
    let assert_nobodies = || {
        for pid in server.worker_pids() {
            let uids = kernel_field(pid, "Uid");
            let mut uids = uids.split(' ');
            let first = uids.next().expect("four of them");
            assert!(first != "0" && uids.all(|uid| uid == first), "{first}");
            assert_eq!(kernel_field(pid, "Groups"), "");
            assert_without_capabilities(pid);
        }
    };
    assert_nobodies();
    assert_eq!(
        layers(server).first().map(String::as_str),
        Some("user=nobody")
    );
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    server.reload().expect_success();
    client.roundtrip(b"moved");
    server.scale(3).expect_success();
    server.scale(1).expect_success();
    client.roundtrip(b"moved again");
    server.upgrade().expect_success();
    client.roundtrip(b"and again");
    assert_nobodies();
    // The new program knows the reports received by the old one.
    assert_eq!(
        layers(server).first().map(String::as_str),
        Some("user=nobody")
    );
}

#[test]
fn escaping_worker_is_killed_with_cause() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    for what in OUTWARD.into_iter().chain(SHARED) {
        let mark = server.log_len();
        let plan = format!("worker.sandboxed=violate:{what}");
        planned.install(Image::copy(planned.folder()).with_faults(&plan));
        let before = planned.workers();
        let answered = server.reload();
        assert_eq!(answered.code, 1, "{what}: {answered:?}");
        let died = server.wait_log_from(mark, |line| line.contains("worker exited unexpectedly"));
        let error = died.contains("SIGSYS") && died.contains("sandbox refused");
        assert!(error, "{what}: {died}");
        until_all_serve(&planned);
        planned.workers().assert_untouched_since(&before);
        Client::connect(server.addr()).roundtrip(b"served on");
    }
}

/// A panic is reported, and the process ends as without a sandbox.
#[test]
fn panic_in_sandbox_ends_worker() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let mark = server.log_len();
    let plan = "worker.sandboxed=panic";
    planned.install(Image::copy(planned.folder()).with_faults(plan));
    assert_eq!(server.reload().code, 1);
    server.wait_log_from(mark, |line| line.contains("worker panicked"));
    let died = server.wait_log_from(mark, |line| line.contains("worker exited unexpectedly"));
    assert!(died.contains("exit_code=101"), "{died}");
}

/// The crash of a serving worker that violates the sandbox is counted and shown, and the worker is
/// replaced.
#[test]
fn escaping_serving_worker_is_counted_and_rescued() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let mark = server.log_len();
    let plan = "receiver.requested=violate:connect";
    planned.install(Image::copy(planned.folder()).with_faults(plan));
    let _answered = server.reload();
    server.wait_log_from(mark, |line| {
        line.contains("worker rescued") && line.contains("SIGSYS")
    });
    until_all_serve(&planned);
    let status = server.status_json();
    assert!(status["totals"]["crashes"].as_u64() >= Some(1), "{status}");
    // Its rollback may have ended it since, which counts, too.
    let crashes = status["slots"][0]["last_crashes"].as_array();
    let mut exits = crashes
        .into_iter()
        .flatten()
        .filter_map(|it| it["exit"].as_str());
    assert!(exits.any(|exit| exit.contains("SIGSYS")), "{status}");
}

/// Without the outermost layer, the inner ones still hold.
#[test]
fn each_layer_refuses_on_its_own() {
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let has_landlock = layers(server).iter().any(|layer| layer == "landlock");
    let mut violations = vec!["setuid"];
    if has_landlock {
        violations.extend(["open", "connect", "bind", "exec", "signal"]);
    } else {
        eprintln!("this kernel has no Landlock: only what capabilities forbid is tried");
    }
    for what in violations {
        let mark = server.log_len();
        let plan = format!("sandbox.seccomp=fail;worker.sandboxed=violate:{what}");
        planned.install(Image::copy(planned.folder()).with_faults(&plan));
        server.reload().expect_success();
        let line = server.wait_log_from(mark, |line| line.contains("a violation"));
        let refused = line.contains("was refused")
            && (line.contains("Permission denied")
                || line.contains("not permitted")
                || line.contains("EPERM"));
        assert!(refused, "{what}: {line}");
    }
}

#[test]
fn missing_kernel_support_is_reported_or_refused() {
    let lacking = |mode: &str| {
        let server = Server::builder()
            .args(QUICK)
            .args([format!("--sandbox={mode}")]);
        server.env("FAULT_POINTS", "sandbox.landlock=fail")
    };
    let server = lacking("auto").start();
    let missing = &server.status_json()["slots"][1]["sandbox"]["missing"][0];
    let error = missing
        .as_str()
        .is_some_and(|it| it.starts_with("landlock:"));
    assert!(error, "{missing}");
    server.reload().expect_success();
    let log = server.log();
    let lines = log.iter().filter(|it| it.contains("sandbox incomplete"));
    assert_eq!(lines.count(), 1, "{log:#?}");

    let (code, error) = lacking("required").expect_failure();
    assert_eq!(code, 1, "{error}");
    assert!(
        error.contains("cannot complete the required sandbox"),
        "{error}"
    );
}

/// Returns the PID of the admin process once it responds.
#[track_caller]
fn admin_pid(server: &Server) -> u32 {
    until_some("an admin process that is locked in", || {
        let admin = &server.status_json()["admin"];
        admin["sandbox"].as_object()?;
        u32::try_from(admin["pid"].as_u64()?).ok()
    })
}

/// Returns the admin endpoint's response to a request for `page`, with its head.
#[track_caller]
fn shown(server: &Server, page: &str) -> String {
    let status = server.status_json();
    let address = status["admin"]["address"].as_str().expect("an address");
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let request = format!("GET {page} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn admin_process_sandboxes_all_its_threads() {
    let server = Server::start(&[&QUICK[..], &["--admin=0"]].concat());
    let admin = admin_pid(&server);
    let threads = fs::read_dir(format!("/proc/{admin}/task")).expect("its threads");
    let threads: Vec<_> = threads.flatten().collect();
    assert!(threads.len() > 1, "{threads:?}");
    for thread in threads {
        // The kernel finds a thread below `/proc` like a process.
        let name = thread.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        let id = id.expect("a number");
        assert_eq!(kernel_field(id, "NoNewPrivs"), "1");
        assert_eq!(kernel_field(id, "Seccomp"), "2");
        assert_without_capabilities(id);
    }
    for page in ["/healthz", "/readyz", "/status", "/metrics"] {
        let answer = shown(&server, page);
        assert!(answer.starts_with("HTTP/1.1 200"), "{page}: {answer}");
    }
    let status = server.status_json();
    assert_eq!(status["admin"]["sandbox"], status["slots"][0]["sandbox"]);
    assert_eq!(status["admin"]["crashes"], 0);
}

/// Its user may not connect to the control socket, through which it could stop the server; its
/// queries still work.
#[test]
fn admin_process_works_as_another_user() {
    if !geteuid().is_root() {
        skipped("only root can run processes as another user");
        return;
    }
    let server = Server::start(&[&QUICK[..], &["--admin=0", "--user=nobody"]].concat());
    let admin = admin_pid(&server);
    let mine = kernel_field(server.worker_pids()[0], "Uid");
    assert_eq!(kernel_field(admin, "Uid"), mine);
    assert!(!mine.contains(" 0"), "{mine}");
    assert_eq!(kernel_field(admin, "Groups"), "");
    assert_without_capabilities(admin);
    assert!(shown(&server, "/readyz").starts_with("HTTP/1.1 200"));
    // It exits with its supervisor, whichever user it runs as.
    server.kill();
    assert!(wait_gone(admin, DEADLINE), "it survives its supervisor");
}

#[test]
fn escaping_admin_process_is_killed() {
    for what in OUTWARD.into_iter().chain(SHARED) {
        let plan = format!("admin.sandboxed=violate:{what}");
        let server = Server::builder().args(QUICK).args(["--admin=0"]);
        let server = server.env("FAULT_POINTS", plan).start();
        let died = server.wait_log(|line| line.contains("admin process exited unexpectedly"));
        let error = died.contains("SIGSYS") && died.contains("sandbox refused");
        assert!(error, "{what}: {died}");
        Client::connect(server.addr()).roundtrip(b"served on");
        let status = server.status_json();
        assert!(status["admin"]["crashes"].as_u64() >= Some(1), "{status}");
        assert_eq!(status["totals"]["crashes"], 0, "{status}");
    }
}

/// As for workers, the layers below the outermost one also hold.
#[test]
fn each_admin_layer_refuses_on_its_own() {
    let mut violations = vec!["setuid"];
    if layers(&Server::start(&QUICK))
        .iter()
        .any(|it| it == "landlock")
    {
        violations.extend(["open", "connect", "bind", "exec", "signal"]);
    }
    for what in violations {
        let plan = format!("sandbox.seccomp=fail;admin.sandboxed=violate:{what}");
        let server = Server::builder().args(QUICK).args(["--admin=0"]);
        let server = server.env("FAULT_POINTS", plan).start();
        let line = server.wait_log(|line| line.contains("a violation"));
        let refused = line.contains("was refused")
            && (line.contains("Permission denied")
                || line.contains("not permitted")
                || line.contains("EPERM"));
        assert!(refused, "{what}: {line}");
        server.wait_log(|line| line.contains("admin sandbox incomplete"));
        assert!(shown(&server, "/healthz").starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn reload_updates_sandbox_of_admin_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sandbox.toml");
    let write = |how: &str| fs::write(&file, format!("sandbox = \"{how}\"\n")).expect("write");
    write("auto");
    let config = format!("--config={}", file.display());
    let server = Server::start(&[&QUICK[..], &["--admin=0", &config]].concat());
    let first = admin_pid(&server);
    // A reload without relevant changes keeps the process.
    server.reload().expect_success();
    assert_eq!(admin_pid(&server), first);
    write("off");
    server.reload().expect_success();
    let second = until_some("another process", || {
        Some(admin_pid(&server)).filter(|pid| *pid != first)
    });
    assert_eq!(kernel_field(second, "Seccomp"), "0");
    assert_eq!(server.status_json()["admin"]["crashes"], 0, "it was wanted");
    assert!(shown(&server, "/readyz").starts_with("HTTP/1.1 200"));
}

#[test]
fn unknown_accounts_refuse_start() {
    for flag in ["--user=no-such-user", "--group=no-such-group", "--user=a:b"] {
        let (code, error) = Server::expect_failure(&["--listen=127.0.0.1:0", flag]);
        assert_eq!(code, 2, "{error}");
        let name = flag.split('=').next().unwrap_or_default();
        assert!(error.contains(name), "{error}");
    }
}
