//! Tests of the test support that need no server. Each check is shown to fail.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::netns::{KernelCounters, LOSSES, isolated};
use crate::support::{
    Client, DEADLINE, Lines, Server, Watched, answer_all, assert_same, children, pattern, poll_one,
    serve_one, sweep, upper, wait_gone,
};

/// Long enough for an unexpected event to show, short enough for every run.
const MOMENT: Duration = Duration::from_millis(50);

/// Starts a server in the background that runs `answer` for one connection; returns its address.
fn serve_with(answer: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    serve_one(answer).addr
}

/// Returns the panic message of a closure; fails if it did not panic.
fn panic_of(body: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(body)).expect_err("it should have panicked");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().expect("a text")).to_owned(),
    }
}

#[test]
fn pattern_is_independent_of_offsets() {
    let whole = pattern(0, 5000);
    for (offset, len) in [
        (0, 0),
        (0, 1),
        (1, 7),
        (7, 2),
        (8, 8),
        (13, 4000),
        (4999, 1),
    ] {
        let from = usize::try_from(offset).unwrap();
        assert_eq!(
            pattern(offset, len),
            whole[from..from + len],
            "{offset}+{len}"
        );
    }
}

#[test]
fn pattern_has_every_byte_without_near_repeats() {
    let bytes = pattern(0, 64 * 1024);
    for value in 0..=u8::MAX {
        assert!(bytes.contains(&value), "0x{value:02x}");
    }
    let answers = upper(&bytes);
    for shift in 1..1000 {
        assert_ne!(
            answers[..1000],
            answers[shift..shift + 1000],
            "shift {shift}"
        );
    }
}

#[test]
fn upper_changes_letters_only() {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let answer = upper(&all);
    for (byte, up) in all.into_iter().zip(answer) {
        let expected = match byte {
            0x61..=0x7a => byte - 0x20,
            other => other,
        };
        assert_eq!(up, expected);
    }
}

#[test]
fn assert_same_reports_first_difference() {
    assert_same(b"same", b"same", "equal");
    let message = panic_of(|| assert_same(b"abcXe", b"abcde", "reply"));
    assert!(
        message.starts_with("reply: 5 bytes, expected 5; they part at byte 3"),
        "{message}"
    );
    let message = panic_of(|| assert_same(b"abc", b"abcde", "reply"));
    assert!(message.contains("part at byte 3"), "{message}");
}

#[test]
fn wait_gone_waits_for_process_exit() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    assert!(!wait_gone(pid, MOMENT), "it waits for its input");
    assert!(children(std::process::id()).contains(&pid));
    let watched = Watched::open(pid).unwrap();
    assert!(!watched.is_gone());
    assert_eq!(watched.exit_status(Duration::ZERO), None);
    drop(child.stdin.take());
    assert!(wait_gone(pid, DEADLINE));
    let status = watched.exit_status(DEADLINE).unwrap();
    assert!(status.success());
    assert!(
        !children(std::process::id()).contains(&pid),
        "zombies are no children"
    );
    assert_eq!(child.wait().unwrap(), status, "seen but not reaped before");
    assert!(
        wait_gone(pid, Duration::ZERO),
        "a reaped process has exited"
    );
    // For an exited process: no panic, and no other process is signalled.
    watched.signal(Signal::SIGKILL);
}

#[test]
fn exit_status_distinguishes_signal_and_code() {
    use std::os::unix::process::ExitStatusExt;
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let watched = Watched::open(child.id()).unwrap();
    watched.signal(Signal::SIGTERM);
    let status = watched.exit_status(DEADLINE).unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
    assert_eq!(child.wait().unwrap(), status);

    let mut child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
    let watched = Watched::open(child.id()).unwrap();
    let status = watched.exit_status(DEADLINE).unwrap();
    assert_eq!(status.code(), Some(7));
    assert_eq!(child.wait().unwrap(), status);
}

#[test]
fn sweep_kills_orphans_and_spares_others() {
    let value = std::process::id().to_string();
    // The mark of this process begins with the mark to be swept.
    let mut spared = Command::new("cat")
        .env("E2E_SWEEP", format!("{value}0"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // The shell exits at once and leaves a child that blocks on a read.
    let mut parent = Command::new("sh")
        .args(["-c", "exec 3<&0; cat <&3 >/dev/null & echo $!"])
        .env("E2E_SWEEP", &value)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let held = parent.stdin.take();
    let message = Lines::follow(parent.stdout.take().unwrap());
    let orphan = message.find_from(0, DEADLINE, |_| true).unwrap();
    let orphan = orphan.parse().unwrap();
    parent.wait().unwrap();
    assert!(!wait_gone(orphan, MOMENT), "the orphan runs");

    sweep(&format!("E2E_SWEEP={value}")).unwrap();
    assert!(wait_gone(orphan, Duration::ZERO));
    assert!(!wait_gone(spared.id(), Duration::ZERO));
    drop(held);
    spared.kill().unwrap();
    spared.wait().unwrap();
}

#[test]
fn lines_wait_for_text_and_end() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let lines = Lines::follow(theirs);
    let say = |text: &str| (&ours).write_all(text.as_bytes()).unwrap();
    assert_eq!(lines.find_from(0, MOMENT, |_| true), None);
    for number in 1..=1000 {
        say("written before\n");
        // At once, even if the reading thread has not run.
        assert_eq!(lines.len(), number);
    }
    say("one\ntwo\nthr");
    let found = lines.find_from(0, DEADLINE, |line| line == "two");
    assert_eq!(found.as_deref(), Some("two"));
    assert_eq!(lines.len(), 1002);
    let next = lines.find_from(1002, MOMENT, |_| true);
    assert_eq!(next, None, "not yet a line");
    assert!(!lines.wait_end(MOMENT));
    say("ee");
    drop(ours);
    assert!(lines.wait_end(DEADLINE));
    assert_eq!(lines.all()[1000..], ["one", "two", "three"]);
    let never = lines.find_from(0, DEADLINE, |line| line == "four");
    assert_eq!(never, None, "detected at once, because no more can arrive");
}

#[test]
fn client_accepts_correct_replies() {
    let mut client = Client::connect(serve_one(answer_all).addr);
    client.expect_open();
    client.roundtrip(b"hello");
    client.roundtrip(&pattern(0, 200_000));
    client.stream(12_345, 3_000_000);
    client.expect_silence(MOMENT);
    client.send_all(b"last");
    client.half_close();
    assert_eq!(client.read_to_end(), b"LAST");
    client.expect_eof();
}

#[test]
fn client_detects_incorrect_replies() {
    let addr = serve_with(|mut stream| stream.write_all(b"HELLo").unwrap());
    let message = panic_of(|| Client::connect(addr).roundtrip(b"hello"));
    assert!(message.contains("part at byte 4"), "{message}");

    let addr = serve_with(|mut stream| stream.write_all(b"HE").unwrap());
    let mut client = Client::connect(addr);
    let message = panic_of(|| client.expect(b"HELLO"));
    assert!(message.contains("closed after 2 of 5"), "{message}");
    let message = panic_of(|| client.expect_open());
    assert!(message.contains("the server has closed"), "{message}");

    let addr = serve_with(|mut stream| stream.write_all(b"surplus").unwrap());
    let mut client = Client::connect(addr);
    assert!(poll_one(
        client.socket(),
        nix::poll::PollFlags::POLLIN,
        DEADLINE
    ));
    let message = panic_of(|| client.expect_silence(MOMENT));
    assert!(message.contains("unexpected byte 0x73"), "{message}");
    let message = panic_of(|| client.expect_eof());
    assert!(
        message.contains("before the end: 7 bytes, expected 0"),
        "{message}"
    );

    let addr = serve_with(|stream| {
        let socket = socket2::SockRef::from(&stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    });
    Client::connect(addr).expect_reset();
}

#[test]
fn server_start_failure_includes_log() {
    let start = || {
        let server = Server::builder().program("/bin/sh");
        server.args(["-c", "echo trouble >&2; exit 3"]).start();
    };
    let message = panic_of(start);
    assert!(message.contains("does not serve on all"), "{message}");
    let server = Server::builder().program("/bin/sh");
    let failure = server
        .args(["-c", "echo trouble >&2; exit 3"])
        .expect_failure();
    assert_eq!(failure, (3, "trouble\n".to_owned()));
}

#[test]
fn server_is_started_stopped_and_swept() {
    // A stand-in that announces two addresses and stops on SIGTERM. Its worker, and an orphan that
    // is not its child, ignore the signal and block forever.
    const SERVER: &str = "trap 'echo stopping >&2; exit 5' TERM\n\
        mkfifo never\n\
        sh worker.sh worker &\n\
        (sh worker.sh orphan &)\n\
        echo 'listening on 127.0.0.1:7'\n\
        echo 'listening on [::]:8'\n\
        wait\n";
    const WORKER: &str = "trap '' TERM; exec 3<>never; echo $1 $$ >&2; read line <&3\n";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("server.sh"), SERVER).unwrap();
    std::fs::write(dir.path().join("worker.sh"), WORKER).unwrap();

    let server = Server::builder()
        .program("/bin/sh")
        .cwd(dir.path())
        .args(["server.sh", "--listen", "--listen=x"])
        .start();
    let loopback = |text: &str| text.parse::<SocketAddr>().unwrap();
    assert_eq!(
        server.addrs(),
        [loopback("127.0.0.1:7"), loopback("[::1]:8")]
    );
    assert_eq!(server.addr(), server.addrs()[0]);
    let pid_of = |name: &str| {
        let line = server.wait_log(|line| line.starts_with(name));
        line[name.len()..].trim().parse::<u32>().unwrap()
    };
    let (worker, orphan) = (pid_of("worker"), pid_of("orphan"));
    assert_eq!(server.worker_pids(), [worker]);
    assert!(server.is_running());
    let mark = server.log_len();
    assert_eq!(server.stop().code(), Some(5));
    assert!(!server.is_running());
    assert_eq!(server.wait_log_from(mark, |_| true), "stopping");
    assert!(!wait_gone(worker, Duration::ZERO));
    assert!(!wait_gone(orphan, Duration::ZERO));
    drop(server);
    assert!(wait_gone(worker, Duration::ZERO));
    assert!(wait_gone(orphan, Duration::ZERO));
}

#[test]
fn namespace_has_its_own_counters() {
    isolated(|| {
        let fresh = KernelCounters::read();
        for name in LOSSES {
            assert_eq!(fresh.count(name), 0, "{name}");
        }
        assert_eq!(fresh.count("ActiveOpens"), 0);

        // A graceful conversation is not a loss.
        let mut client = Client::connect(serve_one(answer_all).addr);
        client.roundtrip(b"hello");
        client.half_close();
        client.expect_eof();
        drop(client);
        let orderly = KernelCounters::read();
        orderly.assert_no_loss_since(&fresh);
        assert_eq!(orderly.count("ActiveOpens"), 1, "no other connections");

        // A refused connection is a loss.
        let refused = Client::try_connect((Ipv4Addr::LOCALHOST, 1).into()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let after = KernelCounters::read();
        let delta = after.delta(&orderly);
        assert_eq!(
            (delta["OutRsts"], delta["AttemptFails"]),
            (1, 1),
            "{delta:?}"
        );
        let message = panic_of(|| after.assert_no_loss_since(&orderly));
        assert!(message.contains("OutRsts"), "{message}");
    });
}

#[test]
fn failure_inside_namespace_fails_test() {
    const INSIDE: &str = "this is the failure that the test is about";
    if std::env::var_os("E2E_NETNS").is_some() {
        isolated(|| panic!("{INSIDE}"));
    }
    match catch_unwind(|| isolated(|| ())) {
        Ok(ran) => assert!(!ran, "the failure inside was not detected"),
        Err(panic) => {
            let message = panic.downcast::<String>().unwrap();
            assert!(
                message.contains("in its namespace: exit status: 101"),
                "{message}"
            );
        }
    }
}

#[test]
fn isolated_detects_body_that_never_ran() {
    // The thread's name selects the test to run; no test has this name.
    let elsewhere = std::thread::Builder::new().name("no_test_has_this_name".to_owned());
    let ran = elsewhere.spawn(|| isolated(|| ())).unwrap().join();
    match ran {
        Ok(ran) => assert!(!ran, "nothing was run, and that was not detected"),
        Err(panic) => {
            let message = panic.downcast::<String>().unwrap();
            assert!(message.contains("the body did not run"), "{message}");
        }
    }
}
