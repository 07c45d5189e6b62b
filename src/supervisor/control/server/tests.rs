//! Unit tests of `server.rs`.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use mio::{Events, Poll};
use tempfile::TempDir;

use super::*;
use crate::config::{CONTROL_REQUEST_MAX_BYTES, CONTROL_REQUEST_TIMEOUT};
use crate::sys::fd::pass_on;
use uppercased_ctl::clock;
use uppercased_ctl::control::{Done, Options, place};
use uppercased_ctl::limits::CONTROL_REPLY_MAX_BYTES;

const FIRST: Token = Token(40);

struct Bench {
    directory: TempDir,
    poll: Poll,
    server: ControlServer,
    left: Vec<RequestId>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let poll = Poll::new().unwrap();
        let control = Control::Path(directory.path().join("control"));
        let server = ControlServer::open(&control, poll.registry(), FIRST, RequestId(7));
        Self {
            server: server.unwrap().unwrap(),
            directory,
            poll,
            left: Vec::new(),
        }
    }

    fn client(&self) -> unix::UnixStream {
        unix::UnixStream::connect(self.server.path()).unwrap()
    }

    /// Runs one turn of the server.
    fn turn(&mut self) -> Vec<(RequestId, Request)> {
        let mut asked = Vec::new();
        let mut events = Events::with_capacity(64);
        loop {
            self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            if events.is_empty() {
                return asked;
            }
            for event in &events {
                let own = self.server.first.0..self.server.first.0 + CONTROL_CLIENTS_MAX + 1;
                assert!(own.contains(&event.token().0));
                let registry = self.poll.registry();
                for event in self.server.on_ready(event.token(), registry, clock::now()) {
                    match event {
                        Event::Requested(id, request) => asked.push((id, request)),
                        Event::Withdrawn(id) => self.left.push(id),
                    }
                }
            }
        }
    }

    /// Connects a client that has sent these bytes; returns it and the resulting requests.
    fn sends(&mut self, bytes: &[u8]) -> (unix::UnixStream, Vec<(RequestId, Request)>) {
        let mut client = self.client();
        client.write_all(bytes).unwrap();
        let asked = self.turn();
        (client, asked)
    }

    fn progress(&mut self, id: RequestId, text: &str) {
        self.server.progress(id, text, self.poll.registry());
    }

    fn answer(&mut self, id: RequestId, reply: Reply) {
        let registry = self.poll.registry();
        self.server.answer(id, reply, registry, clock::now());
    }

    fn clients(&self) -> usize {
        self.server.clients.iter().flatten().count()
    }
}

fn everything(mut client: unix::UnixStream) -> String {
    let mut text = String::new();
    let patience = Some(Duration::from_secs(10));
    client.set_read_timeout(patience).unwrap();
    // Closed with unread input, the peer resets; its earlier output arrives first.
    let _ = client.read_to_string(&mut text);
    text
}

const RELOAD: &[u8] = br#"{"version":1,"command":"reload"}
"#;

#[test]
fn request_receives_progress_answer_and_eof() {
    let mut bench = Bench::new();
    let mode = fs::metadata(bench.server.path()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    let (mut client, asked) = bench.sends(&RELOAD[..10]);
    assert_eq!(asked, []);
    client.write_all(&RELOAD[10..]).unwrap();
    assert_eq!(
        bench.turn(),
        [(RequestId(7), Request::Reload(Options::default()))]
    );
    bench.progress(RequestId(7), "slot 0");
    bench.progress(RequestId(8), "of somebody else");
    let done = Done {
        replaced: 2,
        workers: 2,
        duration_ms: 1,
        ..Done::default()
    };
    bench.answer(RequestId(7), Reply::Done(done));
    assert_eq!(
        everything(client),
        "{\"progress\":\"slot 0\"}\n{\"done\":{\"replaced\":2,\"workers\":2,\"migrated\":0,\
             \"draining\":0,\"closed_after_ms\":0,\"duration_ms\":1}}\n"
    );
    assert_eq!(bench.clients(), 0);

    let (_client, asked) = bench.sends(RELOAD);
    assert_eq!(asked, [(RequestId(8), Request::Reload(Options::default()))]);
}

#[test]
fn malformed_request_is_refused_with_reason() {
    let mut bench = Bench::new();
    let long = vec![b'x'; CONTROL_REQUEST_MAX_BYTES + 1];
    for (bytes, why) in [
        (b"GET / HTTP/1.1\r\n".as_slice(), "the line is not valid"),
        (b"{\"version\":9}\n", "version 9"),
        (long.as_slice(), "exceeds 4096 bytes"),
    ] {
        let (client, asked) = bench.sends(bytes);
        assert_eq!(asked, []);
        let text = everything(client);
        assert!(text.starts_with("{\"refused\":"), "{text}");
        assert!(text.contains(why), "{text}");
    }
    assert_eq!(bench.clients(), 0);
}

#[test]
fn half_closed_client_is_answered() {
    let mut bench = Bench::new();
    let (client, asked) = bench.sends(RELOAD.trim_ascii_end());
    assert_eq!(asked, []);
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let asked = bench.turn();
    assert_eq!(asked.len(), 1, "the end of the line may be missing");
    bench.turn();
    bench.answer(asked[0].0, Reply::Refused("busy".to_owned()));
    assert_eq!(everything(client), "{\"refused\":\"busy\"}\n");

    let (client, asked) = bench.sends(RELOAD);
    drop(client);
    bench.turn();
    assert_eq!(bench.clients(), 0);
    assert_eq!(bench.left, [asked[0].0]);
    bench.answer(asked[0].0, Reply::Failed("nobody reads this".to_owned()));

    // A client that only checks whether a server listens.
    drop(bench.client());
    assert_eq!(bench.turn(), []);
    assert_eq!(bench.clients(), 0);
}

#[test]
fn excess_client_is_refused_with_reason() {
    let mut bench = Bench::new();
    let mut clients = Vec::new();
    for _ in 0..CONTROL_CLIENTS_MAX {
        let (client, asked) = bench.sends(RELOAD);
        clients.push((client, asked[0].0));
    }
    let late = bench.client();
    bench.turn();
    let text = everything(late);
    assert!(
        text.contains("refused") && text.contains("32 clients"),
        "{text}"
    );
    let (client, id) = clients.remove(3);
    bench.answer(id, Reply::Refused(String::new()));
    drop(client);
    assert_eq!(bench.sends(RELOAD).1.len(), 1);
}

#[test]
fn silent_clients_yield_to_waiting_ones() {
    let mut bench = Bench::new();
    let silent: Vec<_> = (0..CONTROL_CLIENTS_MAX).map(|_| bench.client()).collect();
    bench.turn();
    assert_eq!(bench.clients(), CONTROL_CLIENTS_MAX);
    // One of them sends its request while it waits to be closed: it keeps its place.
    (&silent[0]).write_all(RELOAD).unwrap();
    let mut late = bench.client();
    late.write_all(RELOAD).unwrap();
    let mut asked = bench.turn().len();
    while asked < 2 {
        let due = bench.server.deadline().unwrap();
        assert!(due <= clock::now() + CONTROL_PATIENCE);
        let registry = bench.poll.registry();
        asked += bench.server.handle_timeout(registry, due).len();
        asked += bench.turn().len();
    }
    assert_eq!(asked, 2, "the late one and the one that spoke");
    assert_eq!(bench.clients(), CONTROL_CLIENTS_MAX);
    assert_eq!(bench.server.displaced, 1);
}

#[test]
fn silent_and_non_reading_clients_time_out() {
    let mut bench = Bench::new();
    let silent = bench.client();
    bench.turn();
    let due = bench.server.deadline().unwrap();
    assert!(due <= clock::now() + CONTROL_REQUEST_TIMEOUT);
    bench.server.handle_timeout(bench.poll.registry(), due);
    assert_eq!((everything(silent), bench.clients()), (String::new(), 0));
    assert_eq!(bench.server.deadline(), None);

    let (_deaf, asked) = bench.sends(RELOAD);
    let text = "x".repeat(1000);
    for _ in 0..=CONTROL_REPLY_MAX_BYTES / text.len() + 1000 {
        bench.progress(asked[0].0, &text);
    }
    assert_eq!(bench.clients(), 0);

    // It has its answer and does not read it.
    let (_deaf, asked) = bench.sends(RELOAD);
    for _ in 0..1000 {
        bench.progress(asked[0].0, &text);
    }
    bench.answer(asked[0].0, Reply::Refused(text));
    assert_eq!(bench.clients(), 1);
    let due = bench.server.deadline().unwrap();
    bench.server.handle_timeout(bench.poll.registry(), due);
    assert_eq!(bench.clients(), 0);
}

#[test]
fn long_answer_arrives_in_pieces() {
    let mut bench = Bench::new();
    let (mut client, asked) = bench.sends(RELOAD);
    let text = "x".repeat(1000);
    for _ in 0..1000 {
        bench.progress(asked[0].0, &text);
    }
    bench.answer(asked[0].0, Reply::Refused(text));
    client.set_nonblocking(true).unwrap();
    let (mut got, mut bytes) = (0, [0; 4096]);
    loop {
        match client.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(_) => assert_eq!(bench.turn(), []),
        }
    }
    assert_eq!(got, 1000 * (1000 + 16) + 1000 + 15);
}

#[test]
fn only_dead_socket_is_replaced() {
    let mut bench = Bench::new();
    let poll = Poll::new().unwrap();
    let open = |path: &Path| {
        let control = Control::Path(PathBuf::from(path));
        ControlServer::open(&control, poll.registry(), FIRST, RequestId(1))
    };
    let path = PathBuf::from(bench.server.path());
    let why = open(&path).unwrap_err().to_string();
    let own = format!("pid {}", std::process::id());
    assert!(why.contains(&own) && why.contains("--control"), "{why}");
    // The running server accepts requests as before.
    bench.turn();
    assert_eq!(bench.sends(RELOAD).1.len(), 1);

    let file = bench.directory.path().join("file");
    fs::write(&file, "mine").unwrap();
    let why = open(&file).unwrap_err().to_string();
    assert!(why.contains("not a socket"), "{why}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");

    let dead = bench.directory.path().join("dead");
    drop(unix::UnixListener::bind(&dead).unwrap());
    drop(open(&dead).unwrap().unwrap());
    assert!(!dead.exists());
    assert!(open(&bench.directory.path().join("a/b")).is_err());
}

#[test]
fn removed_socket_is_recreated_beside_living_servers() {
    let mut bench = Bench::new();
    let path = PathBuf::from(bench.server.path());
    let keep = |bench: &mut Bench| {
        let now = clock::now();
        bench.server.keep_file(bench.poll.registry(), now);
        assert_eq!(bench.server.file_due(), now + CONTROL_FILE_CHECK);
    };
    let (client, asked) = bench.sends(RELOAD);
    fs::remove_dir_all(bench.directory.path()).unwrap();
    keep(&mut bench);
    assert_eq!(bench.sends(RELOAD).1.len(), 1);
    bench.answer(asked[0].0, Reply::Refused("kept".to_owned()));
    assert!(everything(client).contains("kept"));

    fs::remove_file(&path).unwrap();
    let other = unix::UnixListener::bind(&path).unwrap();
    keep(&mut bench);
    assert!(!bench.server.socket.is_there(), "another one lives there");
    drop(other);
    keep(&mut bench);
    assert_eq!(bench.sends(RELOAD).1.len(), 1);
}

#[test]
fn only_own_socket_is_removed_at_exit() {
    let bench = Bench::new();
    let path = PathBuf::from(bench.server.path());
    fs::remove_file(&path).unwrap();
    let _other = unix::UnixListener::bind(&path).unwrap();
    drop(bench.server);
    assert!(path.exists());
}

#[test]
fn only_dead_sockets_are_cleaned_up() {
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("made/for/it");
    fs::create_dir_all(&directory).unwrap();
    // No process has this number: it exceeds the maximum.
    let dead = place::socket_of(&directory, 1 << 23);
    drop(unix::UnixListener::bind(&dead).unwrap());
    let starting = place::socket_of(&directory, 1);
    drop(unix::UnixListener::bind(&starting).unwrap());
    let foreign = place::socket_of(&directory, (1 << 23) + 1);
    let _listener = unix::UnixListener::bind(&foreign).unwrap();

    let poll = Poll::new().unwrap();
    let here = Environment {
        runtime_directory: Some(directory.clone().into()),
        ..Environment::default()
    };
    let server = ControlServer::open_in(&here, poll.registry(), FIRST, RequestId(1)).unwrap();
    let own = place::socket_of(&directory, std::process::id());
    assert_eq!(server.path(), own);
    assert!(!dead.exists() && starting.exists() && foreign.exists());
    let nowhere = ControlServer::open_in(
        &Environment::default(),
        poll.registry(),
        FIRST,
        RequestId(1),
    );
    assert!(matches!(nowhere, Err(Error::NoPlace)));
}

#[test]
fn new_program_keeps_control_clients() {
    let mut bench = Bench::new();
    let (client, asked) = bench.sends(RELOAD);
    let (mut slow, _) = bench.sends(&RELOAD[..5]);

    let path = PathBuf::from(bench.server.path());
    let mut kept = Kept::default();
    let saved = bench.server.save(&mut kept);
    pass_on(kept.as_slice(), true).unwrap();
    let foreign = Saved {
        listener: 1_000_000.into(),
        ..saved.clone()
    };
    let registry = bench.poll.registry();
    let refused = ControlServer::restore(foreign, &mut Inherited::default(), registry, FIRST);
    assert!(refused.is_err());
    assert!(path.exists(), "a program that cannot go on leaves it");

    let poll = Poll::new().unwrap();
    let json = serde_json::to_string(&saved).unwrap();
    let saved = serde_json::from_str(&json).unwrap();
    let mut inherited = Inherited::default();
    let mut restored =
        ControlServer::restore(saved, &mut inherited, poll.registry(), FIRST).unwrap();
    restored.own_file();
    let before = std::mem::replace(&mut bench.poll, poll);
    // An exec closes the old descriptors, and drops nothing.
    let mut old = std::mem::replace(&mut bench.server, restored);
    old.socket.disown();
    drop((old, before));

    slow.write_all(&RELOAD[5..]).unwrap();
    assert_eq!(
        bench.turn(),
        [(RequestId(8), Request::Reload(Options::default()))]
    );
    bench.answer(asked[0].0, Reply::Refused("later".to_owned()));
    assert_eq!(everything(client), "{\"refused\":\"later\"}\n");
    assert_eq!(bench.sends(RELOAD).1.len(), 1);
    drop(bench.server);
    assert!(!path.exists());
}

#[test]
fn other_user_is_refused_despite_mode() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let mut bench = Bench::new();
    for (path, mode) in [
        (bench.directory.path(), 0o755),
        (bench.server.path(), 0o666),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new("nc");
    command.arg("-U").arg(bench.server.path()).uid(65_534);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let Ok(child) = command.spawn() else {
        println!("skipped: nc (netcat-openbsd) is not installed");
        return;
    };
    let mut events = Events::with_capacity(4);
    let patience = Some(Duration::from_secs(10));
    bench.poll.poll(&mut events, patience).unwrap();
    let registry = bench.poll.registry();
    for event in &events {
        bench.server.on_ready(event.token(), registry, clock::now());
    }
    assert_eq!(bench.clients(), 0);
    // The server stops when the child exits, whatever the result.
    drop(bench);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("refused") && said.contains("user 65534"),
        "{said}"
    );
}

#[test]
fn only_root_and_owner_may_ask() {
    assert_eq!(refusal_of(0, 7), None);
    assert_eq!(refusal_of(7, 7), None);
    let why = refusal_of(8, 7).unwrap();
    assert!(why.contains("user 8"), "{why}");
    assert!(refusal_of(7, 0).is_some());
}
