//! Tests of the checks behind planned operations: the load, the delayed link, copies of the
//! program, the baseline. Each passes a correct server and detects a faulty one.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};
use uppercased::fault;
use uppercased_ctl::clock::now;
use uppercased_ctl::metrics::Counter;

use crate::support::adversity::{Frozen, skipped};
use crate::support::baseline::Baseline;
use crate::support::image::{Image, is_being_run};
use crate::support::link::{self, BothCounters, Link};
use crate::support::load::{FailureKind, Kind, Load, LoadSize, Report};
use crate::support::netns::{KernelCounters, isolated};
use crate::support::observe::{lose_worker, until, worker_of};
use crate::support::usage::Counters;
use crate::support::{Client, DEADLINE, Server, in_background, poll_one, serve_one, upper};

/// Long enough for an unexpected event to show, short enough for every run.
const MOMENT: Duration = Duration::from_millis(100);

/// Deadline of clients where lateness is not the fault under test. If a byte is absent from the
/// reply to a one-byte message, only this deadline reveals it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns the panic message of a closure; fails if it did not panic.
fn panic_of(body: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(body)).expect_err("it should have panicked");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic
            .downcast_ref::<&str>()
            .map_or("", |text| text)
            .to_owned(),
    }
}

/// Returns the report of one ping client of a server that runs `answer`.
fn report_of_one(answer: impl FnOnce(TcpStream) + Send + 'static) -> Report {
    report_within(PATIENCE, answer)
}

/// Like `report_of_one`, for a client with `deadline` for every wait.
fn report_within(deadline: Duration, answer: impl FnOnce(TcpStream) + Send + 'static) -> Report {
    let server = serve_one(answer);
    let size = LoadSize {
        pings: 1,
        deadline,
        ..LoadSize::none()
    };
    let load = Load::start(server.addr, size);
    server.join();
    load.finish()
}

/// Answers one message correctly; returns the next one unanswered.
fn after_one_message(stream: &mut TcpStream) -> Vec<u8> {
    let mut piece = [0; 1024];
    let len = stream.read(&mut piece).expect("a message");
    stream.write_all(&upper(&piece[..len])).expect("it reads");
    let len = stream.read(&mut piece).expect("a message");
    upper(&piece[..len])
}

#[test]
fn load_passes_correct_server() {
    isolated(|| {
        let before = KernelCounters::read();
        let server = Server::start(&["--workers=2", "--listen=127.0.0.1:0"]);
        let load = Load::start(server.addr(), LoadSize::small());
        load.go_on_for(500);
        // The slow readers are slow enough to cause backpressure.
        Counters::of(&server).wait(Counter::Backpressure, 1);
        let report = load.finish();
        report.assert_clean();
        println!("{report}");
        let size = LoadSize::small();
        let least = BTreeMap::from([
            (Kind::Churn, size.churn),
            (Kind::Stream, size.streams),
            (Kind::Ping, size.pings),
            (Kind::Slow, size.slow),
            (Kind::HalfClosed, size.half_closed),
            (Kind::Silent, size.idle + size.mid_message),
        ]);
        for (kind, least) in least {
            assert!(report.by_kind[&kind] >= least as u64, "{kind:?}: {report}");
        }
        // The clients end so gracefully that the kernel counts no loss.
        KernelCounters::read().assert_no_loss_since(&before);
        assert_eq!(server.stop().code(), Some(0));
        KernelCounters::read().assert_no_loss_since(&before);
    });
}

#[test]
fn load_detects_worker_death() {
    let server = Server::start(&["--workers=1", "--listen=127.0.0.1:0"]);
    let load = Load::start(server.addr(), LoadSize::small());
    load.go_on_for(20);
    let victim = lose_worker(&server, 0);
    // A client that finishes afterwards must detect it.
    assert!(victim.wait_gone(DEADLINE));
    let error = panic_of(|| load.go_on_for(1_000_000));
    assert!(error.contains(" received) after "), "{error}");
    let report = load.finish();
    let size = LoadSize::small();
    // Every long-lived client had a connection to it; clients that reconnect continue.
    let long_lived = size.streams + size.pings + size.slow + size.idle + size.mid_message;
    assert!(report.failure_count >= long_lived as u64, "{report}");
    let ends = report.count(FailureKind::EarlyEnd) + report.count(FailureKind::Reset);
    assert_eq!(ends as u64, report.failure_count, "{report}");
    let error = panic_of(|| report.assert_clean());
    assert!(error.contains("EarlyEnd: "), "{error}");
}

#[test]
fn load_reports_stall_without_failing() {
    let server = Server::start(&["--workers=1", "--listen=127.0.0.1:0"]);
    let load = Load::start(server.addr(), LoadSize::small());
    let frozen = Frozen::workers(&server);
    // Nothing arrives here: the timeout creates the stall.
    let (quiet, _other_end) = UnixStream::pair().unwrap();
    assert!(!poll_one(&quiet, PollFlags::POLLIN, MOMENT));
    drop(frozen);
    load.go_on_for(20);
    let report = load.finish();
    report.assert_clean();
    // The whole stall except the time before the affected ping was sent.
    assert!(report.longest_stall > MOMENT / 4, "{report}");
}

#[test]
fn load_can_be_cancelled() {
    let server = Server::start(&["--workers=1", "--listen=127.0.0.1:0"]);
    drop(Load::start(server.addr(), LoadSize::small()));
}

#[test]
fn load_reports_position_of_wrong_byte() {
    let report = report_of_one(|mut stream| {
        let mut answer = after_one_message(&mut stream);
        *answer.last_mut().unwrap() ^= 1;
        stream.write_all(&answer).unwrap();
        // Until the client has received enough.
        let _ = stream.read(&mut [0]);
    });
    assert_eq!(report.count(FailureKind::WrongByte), 1, "{report}");
    let failure = &report.failures[0];
    assert_eq!(failure.received + 1, failure.sent, "{failure}");
    assert!(
        failure
            .client
            .starts_with("Ping 0, connection 0 at 127.0.1.")
    );
    assert_eq!(report.exchanges, 1);
}

#[test]
fn load_detects_missing_and_swapped_bytes() {
    let report = report_of_one(|mut stream| {
        let answer = after_one_message(&mut stream);
        stream.write_all(&answer[1..]).unwrap();
        let _ = stream.read(&mut [0]);
    });
    // Bytes after the gap are at the wrong position; a one-byte message is only absent.
    assert!(!report.is_clean());

    // Two connections, each answered with the other's bytes.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let server = in_background(move || {
        let (mut one, mut other) = (listener.accept().unwrap().0, listener.accept().unwrap().0);
        let (mut ones, mut others) = ([0; 1024], [0; 1024]);
        let ones_len = one.read(&mut ones).unwrap();
        let others_len = other.read(&mut others).unwrap();
        one.write_all(&upper(&others[..others_len])).unwrap();
        other.write_all(&upper(&ones[..ones_len])).unwrap();
        let _ = one.read(&mut [0]);
        let _ = other.read(&mut [0]);
    });
    let size = LoadSize {
        pings: 2,
        deadline: PATIENCE,
        ..LoadSize::none()
    };
    let report = Load::start(addr, size).finish();
    server.join().unwrap();
    assert_eq!(report.count(FailureKind::WrongByte), 2, "{report}");
}

#[test]
fn load_detects_surplus_bytes() {
    let report = report_of_one(|mut stream| {
        let mut answer = after_one_message(&mut stream);
        answer.push(b'!');
        stream.write_all(&answer).unwrap();
        let _ = stream.read(&mut [0]);
    });
    assert!(!report.is_clean(), "{report}");
    let failure = &report.failures[0];
    // Detected in the reply, or in the next message as a byte at its position.
    assert!(
        matches!(failure.kind, FailureKind::Surplus | FailureKind::WrongByte),
        "{failure}"
    );
}

#[test]
fn load_distinguishes_close_reset_and_silence() {
    let report = report_of_one(|mut stream| {
        let answer = after_one_message(&mut stream);
        stream.write_all(&answer[1..1]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = stream.read(&mut [0]);
    });
    assert_eq!(report.count(FailureKind::EarlyEnd), 1, "{report}");

    let report = report_of_one(|mut stream| {
        after_one_message(&mut stream);
        let socket = socket2::SockRef::from(&stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    });
    assert_eq!(report.count(FailureKind::Reset), 1, "{report}");

    // On a busy machine even the first reply may be late.
    let report = report_within(MOMENT, |mut stream| {
        let mut piece = [0; 1024];
        while stream.read(&mut piece).is_ok_and(|len| len > 0) {}
    });
    assert_eq!(report.count(FailureKind::Late), 1, "{report}");

    // No program listens on this port.
    let size = LoadSize {
        churn: 1,
        ..LoadSize::none()
    };
    let report = Load::start((Ipv4Addr::LOCALHOST, 1).into(), size).finish();
    assert!(report.count(FailureKind::Refused) > 0, "{report}");
    let error = panic_of(|| report.assert_clean());
    assert!(error.contains("Refused: Churn 0"), "{error}");
}

#[test]
fn link_delays_packets() {
    isolated(|| {
        let link = match Link::new(link::DELAY) {
            Ok(link) => link,
            Err(why) => return skipped(&why),
        };
        let listener = TcpListener::bind((link::SERVER, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let server =
            in_background(move || crate::support::answer_all(listener.accept().unwrap().0));
        let before = link.counters();
        let begun = now();
        let mut client = link.clients().run(|| Client::connect(addr));
        let connected = now();
        // The first round trip. Times have only a lower bound: a slow machine takes longer, no
        // machine takes less.
        client.roundtrip(b"hello");
        let answered = now();
        let round_trip = 2 * link.delay();
        assert!(connected.since(begun) >= round_trip);
        assert!(answered.since(connected) >= round_trip);
        client.half_close();
        client.expect_eof();
        assert_eq!(server.join().unwrap(), 5);
        assert!(link.carried() >= 8, "handshake, question, answer, ends");
        assert_eq!(link.dropped(), 0);
        let after = link.counters();
        after.assert_no_loss_since(&before);
        let opened = |side: fn(&BothCounters) -> &KernelCounters, name| {
            side(&after).count(name) - side(&before).count(name)
        };
        assert_eq!(
            opened(|both| &both.server, "PassiveOpens"),
            1,
            "counted where it was accepted"
        );
        assert_eq!(
            opened(|both| &both.clients, "ActiveOpens"),
            1,
            "counted where it was made"
        );
        assert_eq!(opened(|both| &both.server, "ActiveOpens"), 0);
    });
}

#[test]
fn load_over_link_passes_correct_server() {
    isolated(|| {
        let link = match Link::new(link::DELAY) {
            Ok(link) => link,
            Err(why) => return skipped(&why),
        };
        let server = Server::builder()
            .args(["--workers=2", "--listen", &link::listen_any_port()])
            .start();
        let before = link.counters();
        let load = Load::start_from(link.origin(), server.addr(), LoadSize::far());
        load.go_on_for(1000);
        let begun = now();
        let carried = link.carried();
        load.go_on_for(1000);
        let rate = (link.carried() - carried) as f64 / now().since(begun).as_secs_f64();
        let report = load.finish();
        println!("{rate:.0} packets a second, {report}");
        report.assert_clean();
        assert_eq!(link.dropped(), 0);
        let after = link.counters();
        after.assert_no_loss_since(&before);
    });
}

/// The fault that this link exposes: a listener of a group is replaced, its queue is emptied, and
/// it is closed. Connections half-open at that moment are lost.
#[test]
fn load_over_link_detects_closed_listener() {
    const REPLACEMENTS: usize = 20;
    isolated(|| {
        let link = match Link::new(link::DELAY) {
            Ok(link) => link,
            Err(why) => return skipped(&why),
        };
        let before = KernelCounters::read();
        let report = report_of_replacements(&link, 0);
        report.assert_clean();
        let between = KernelCounters::read();
        between.assert_no_loss_since(&before);

        let report = report_of_replacements(&link, REPLACEMENTS);
        println!("{report}");
        assert!(report.count(FailureKind::Reset) > 0, "{report}");
        let lost = KernelCounters::read().delta(&between);
        assert!(lost["OutRsts"] > 0, "{lost:?}");
        assert_eq!(link.dropped(), 0, "it was not the link");
    });
}

/// Returns the report of churn over `link` against a server that replaces its listeners
/// `replacements` times.
fn report_of_replacements(link: &Link, replacements: usize) -> Report {
    /// Enough for all replacements, and for the same number of connections without any.
    const EXCHANGES: u64 = 1500;
    let first = group_listener((link::SERVER, 0).into());
    let addr = first.local_addr().expect("a bound socket's name");
    let second = group_listener(addr);
    let (goes_on, wanted) = UnixStream::pair().expect("a socket pair");
    let server = in_background(move || {
        Replacing {
            listeners: vec![first, second],
            clients: Vec::new(),
            accepted: 0,
            replacements,
        }
        .run(&wanted)
    });
    let size = LoadSize {
        churn: LoadSize::far().churn,
        ..LoadSize::none()
    };
    let load = Load::start_from(link.origin(), addr, size);
    until("enough exchanges", || load.exchanges() >= EXCHANGES);
    let report = load.finish();
    drop(goes_on);
    assert_eq!(server.join().expect("the server fails at nothing"), 0);
    report
}

/// A server in one thread that repeatedly replaces the first of its listeners.
struct Replacing {
    listeners: Vec<TcpListener>,
    clients: Vec<TcpStream>,
    accepted: usize,
    /// Replacements still to be made.
    replacements: usize,
}

impl Replacing {
    /// Serves until the other end of `wanted` is closed; returns the number of replacements left.
    fn run(mut self, wanted: &UnixStream) -> usize {
        /// Connections between two replacements.
        const INTERVAL: usize = 50;
        while !poll_one(wanted, PollFlags::POLLIN, Duration::ZERO) {
            self.turn(wanted);
            if self.replacements > 0 && self.accepted >= INTERVAL {
                self.accepted = 0;
                self.replacements -= 1;
                let old = self.listeners.remove(0);
                let addr = old.local_addr().expect("a bound socket's name");
                self.listeners.push(group_listener(addr));
                // Emptied and closed, with nothing in between.
                self.clients.extend(accept_all(&old));
            }
        }
        self.replacements
    }

    fn turn(&mut self, wanted: &UnixStream) {
        let listeners = self.listeners.iter().map(AsFd::as_fd);
        let all = listeners.chain(self.clients.iter().map(AsFd::as_fd));
        let all = all.chain([wanted.as_fd()]);
        let mut watched: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut watched, PollTimeout::NONE).expect("poll");
        let ready: Vec<_> = watched
            .iter()
            .map(|one| one.any().unwrap_or(true))
            .collect();
        drop(watched);
        let (_, ready) = ready.split_at(self.listeners.len());
        let mut ready = ready.iter();
        self.clients.retain_mut(|client| {
            !*ready.next().expect("one for each") || answer(client).is_ok_and(|goes| goes)
        });
        for listener in &self.listeners {
            let new = accept_all(listener);
            self.accepted += new.len();
            self.clients.extend(new);
        }
    }
}

/// Replies to the available input; returns whether more may follow.
fn answer(client: &mut TcpStream) -> io::Result<bool> {
    let mut piece = [0; 8192];
    let len = client.read(&mut piece)?;
    client.write_all(&upper(&piece[..len]))?;
    Ok(len > 0)
}

fn accept_all(listener: &TcpListener) -> Vec<TcpStream> {
    let accept = || listener.accept().ok().map(|(stream, _)| stream);
    std::iter::from_fn(accept).collect()
}

fn group_listener(addr: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_port(true).expect("set SO_REUSEPORT");
    socket.bind(&addr.into()).expect("bind");
    socket.listen(1024).expect("listen");
    socket.set_nonblocking(true).expect("set O_NONBLOCK");
    socket.into()
}

#[test]
fn command_is_answered_within_deadline() {
    let server = Server::start(&["--workers=1", "--listen=127.0.0.1:0"]);
    assert!(server.control().is_absolute());
    assert!(server.control().starts_with(server.folder()));
    let answered = server.command(&["check"]).expect_success();
    assert!(!answered.stdout.is_empty(), "{answered:?}");
    let answered = server.command(&["no-such-order"]);
    assert_eq!(answered.code, 2, "{answered:?}");
    let error = panic_of(|| drop(answered.clone().expect_success()));
    assert!(error.contains("no-such-order"), "{error}");
    answered.expect_failure("no-such-order");
    // A server that does not stop is killed with its handle.
    let other = Server::builder().args(["--listen=127.0.0.1:0"]).start();
    let order = other.start_command(&["--listen=127.0.0.1:0", "--workers=1"]);
    drop(order);
}

#[test]
fn image_copies_behave_as_named() {
    let folder = tempfile::tempdir().unwrap();
    let version = |image: &Image| {
        let output = Command::new(image.path()).arg("--version").output()?;
        Ok::<_, io::Error>((output.status.success(), output.stdout))
    };
    let right = Image::copy(folder.path());
    let (worked, error) = version(&right).unwrap();
    assert!(worked && error.starts_with(b"uppercased "));

    // The program reads its trailer, and runs with one.
    let faulty = Image::copy(folder.path()).with_faults("version=9.9.9");
    assert!(version(&faulty).unwrap().0);
    let bytes = std::fs::read(faulty.path()).unwrap();
    let trailer = [fault::TRAILER_MARK, b"version=9.9.9"].concat();
    assert!(bytes.ends_with(&trailer));
    let error = panic_of(|| drop(Image::copy(folder.path()).with_faults(&"x=y;".repeat(300))));
    assert!(error.contains("so long a plan"), "{error}");

    let truncated = Image::copy(folder.path()).truncated();
    let ran = version(&truncated);
    assert!(!ran.is_ok_and(|(worked, _)| worked), "half a program ran");
    let denied = version(&Image::copy(folder.path()).not_executable()).unwrap_err();
    assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
    let (worked, error) = version(&Image::other_program(folder.path())).unwrap();
    assert!(worked && !error.starts_with(b"uppercased"));

    // Replaced while it runs: the server keeps the old file.
    let target = right.path().to_owned();
    let server = Server::builder()
        .program(&target)
        .args(["--workers=1", "--listen=127.0.0.1:0"])
        .start();
    assert!(is_being_run(&target));
    let new = Image::other_program(folder.path()).replace(&target);
    assert_eq!(new.path(), target);
    assert!(!is_being_run(&target), "another file has the name");
    Client::connect(server.addr()).roundtrip(b"still there");
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn baseline_detects_leaks() {
    let server = Server::start(&["--workers=2", "--listen=127.0.0.1:0", "--hang-timeout=off"]);
    let baseline = Baseline::of(&server);
    assert_eq!(baseline.processes(), 5, "{baseline}");
    assert!(baseline.descriptors() > 10 && baseline.memory_bytes() > 0);
    baseline.assert_back(&server);

    let load = Load::start(server.addr(), LoadSize::small());
    load.go_on_for(100);
    let error = panic_of(|| baseline.assert_back_within(&server, MOMENT));
    assert!(error.contains("socket"), "{error}");
    load.finish().assert_clean();
    baseline.assert_back(&server);

    // One remaining connection is one descriptor too many.
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"here");
    let error = panic_of(|| baseline.assert_back_within(&server, MOMENT));
    assert!(error.starts_with("the baseline was\n"), "{error}");
    drop(client);
    baseline.assert_back(&server);

    // One worker too few or too many is also detected.
    worker_of(&server, 1).signal(Signal::SIGSTOP);
    baseline.assert_back(&server);
    lose_worker(&server, 1);
    server.wait_log(|line| line.contains(" worker ready ") && line.contains("generation=2"));
    baseline.assert_back(&server);
}

#[test]
fn server_runs_in_another_namespace() {
    isolated(|| {
        let elsewhere = crate::support::netns::Namespace::fresh().unwrap();
        let server = Server::builder()
            .namespace(&elsewhere)
            .args(["--workers=1", "--listen=127.0.0.1:0"])
            .start();
        let addr = server.addr();
        assert!(
            Client::try_connect(addr).is_err(),
            "no process listens here"
        );
        let mut client = elsewhere.run(|| Client::connect(addr));
        // The socket stays in its namespace, whichever thread uses it.
        client.roundtrip(b"hello");
        assert!(!poll_one(
            client.socket(),
            PollFlags::POLLIN,
            Duration::ZERO
        ));
    });
}
