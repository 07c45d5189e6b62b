//! Two machines behind a real HAProxy with the packaged configuration: drained and restored in
//! turn, stopped, started and reloaded under load. No client gets an error, and the machines know
//! the client addresses.
//!
//! A machine is a server in its own network namespace; HAProxy and the clients are in the test's
//! namespace.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::signal::Signal;

use crate::support::adversity::skipped;
use crate::support::link::ip;
use crate::support::load::{Load, LoadSize};
use crate::support::netns::{Namespace, isolated};
use crate::support::observe::{field, until, until_some};
use crate::support::{Client, DEADLINE, Lines, Server, poll_one};

const PACKAGED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/haproxy/haproxy.cfg");
/// The front address; loopback gives clients many source addresses.
const FRONT: &str = "127.0.0.1:9999";
/// Clients connected when a machine stops: enough for both machines to have some.
const STAYING: usize = 8;

/// Returns the path of HAProxy; if it is not installed, reports that and returns `None`.
fn haproxy() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian installs it there, which is not in every user's path.
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders
        .map(|folder| folder.join("haproxy"))
        .find(|file| file.is_file());
    if found.is_none() {
        skipped("haproxy is not installed here");
    }
    found
}

/// A running HAProxy. Dropping it stops it, and prints its output if the test fails.
struct Balancer {
    child: Child,
    log: Lines,
    stats: PathBuf,
    _folder: tempfile::TempDir,
}

/// The state of a machine in HAProxy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Machine {
    status: String,
    weight: u64,
    /// Client connections in total, and those open now.
    taken: u64,
    open: u64,
}

impl Balancer {
    /// Starts HAProxy with the packaged configuration, for machines at `one` and `two`.
    fn start(haproxy: &Path, [one, two]: [&str; 2]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut text = fs::read_to_string(PACKAGED).unwrap();
        for (packaged, here) in [
            ("bind :9999", &*format!("bind {FRONT}")),
            // A test has fewer descriptors.
            ("maxconn 50000", "maxconn 1000"),
            ("server one 10.0.0.11:", &format!("server one {one}:")),
            ("server two 10.0.0.12:", &format!("server two {two}:")),
            // A shorter keepalive interval, for the duration of the test.
            ("srvtcpka-idle 10s", "srvtcpka-idle 1s"),
            ("srvtcpka-intvl 5s", "srvtcpka-intvl 1s"),
        ] {
            assert!(text.contains(packaged), "{packaged:?} is not in the file");
            text = text.replace(packaged, here);
        }
        let stats = folder.path().join("stats.sock");
        text += &format!("\nglobal\n    stats socket {} mode 600\n", stats.display());
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let mut child = Command::new(haproxy)
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Lines::follow(child.stderr.take().unwrap());
        Self {
            child,
            log,
            stats,
            _folder: folder,
        }
    }

    /// Returns the machines by their names in the configuration; `None` while HAProxy starts.
    fn machines(&self) -> Option<BTreeMap<String, Machine>> {
        let mut asked = UnixStream::connect(&self.stats).ok()?;
        asked.set_read_timeout(Some(DEADLINE)).unwrap();
        asked.write_all(b"show stat\n").unwrap();
        let mut table = String::new();
        asked.read_to_string(&mut table).unwrap();
        let mut rows = table.lines().map(|row| row.split(',').collect::<Vec<_>>());
        let names = rows.next()?;
        let cell = |row: &[&str], name: &str| {
            let at = names
                .iter()
                .position(|one| one.trim_start_matches("# ") == name);
            row.get(at.unwrap()).copied().unwrap_or_default().to_owned()
        };
        let machines =
            rows.filter(|row| row.len() > 2 && row[0] == "machines" && row[1] != "BACKEND");
        let machines = machines.map(|row| {
            let number = |name| cell(&row, name).parse().unwrap_or(0);
            let machine = Machine {
                status: cell(&row, "status"),
                weight: number("weight"),
                taken: number("stot"),
                open: number("scur"),
            };
            (row[1].to_owned(), machine)
        });
        Some(machines.collect())
    }

    fn machine(&self, name: &str) -> Machine {
        let machines = until_some("HAProxy answers", || self.machines());
        machines[name].clone()
    }

    #[track_caller]
    fn until_status(&self, name: &str, wanted: impl Fn(&str) -> bool) {
        until(name, || wanted(&self.machine(name).status));
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("HAProxy: {:?}\n{}", self.machines(), self.log.text());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Creates a machine at the address 10.88.`host`.2.
fn machine(host: u8) -> Result<Namespace, String> {
    let there = Namespace::fresh().map_err(|error| format!("another namespace: {error}"))?;
    ip(&format!(
        "link add to{host} type veth peer name eth0 netns {}\n\
         address add 10.88.{host}.1/30 dev to{host}\n\
         link set to{host} up\n",
        there.path()
    ))?;
    let end = format!("address add 10.88.{host}.2/30 dev eth0\nlink set eth0 up\n");
    there.run(|| ip(&end))?;
    Ok(there)
}

/// Starts a server there that suits the packaged configuration.
fn server(there: &Namespace, host: u8) -> Server {
    let [here, proxy] = [2, 1].map(|end| format!("10.88.{host}.{end}"));
    Server::builder()
        .namespace(there)
        .args([
            format!("--listen={here}:9999"),
            format!("--agent={here}:9101"),
        ])
        .args([
            format!("--proxy-trust={proxy}"),
            "--proxy-protocol=all".to_owned(),
        ])
        .args([
            "--lame-duck=5s",
            "--workers=2",
            "--bake-time=0s",
            "--log-level=debug",
        ])
        .start()
}

/// Returns a load of short-lived clients.
fn short() -> LoadSize {
    LoadSize {
        churn: 6,
        ..LoadSize::none()
    }
}

/// Returns a load of long-lived clients.
fn long() -> LoadSize {
    LoadSize {
        churn: 0,
        ..LoadSize::small()
    }
}

/// Asserts that the server received the clients' own addresses and refused or disconnected none.
#[track_caller]
fn assert_knew_its_clients(server: &Server, host: u8) {
    let proxy = format!("10.88.{host}.1:");
    let log = server.log();
    let introduced: Vec<&String> = log
        .iter()
        .filter(|line| line.contains(" proxy header accepted"))
        .collect();
    let by = |line: &&&String, peer: &str| {
        let via = field(line, "via").is_some_and(|via| via.starts_with(&proxy));
        via && field(line, "peer").is_some_and(|it| it.starts_with(peer))
    };
    let clients = introduced.iter().filter(|line| by(line, "127.0.")).count();
    let checks = introduced.iter().filter(|line| by(line, &proxy)).count();
    assert!(
        clients > 0 && checks > 0,
        "{clients} and {checks} of {}",
        introduced.len()
    );
    assert_eq!(clients + checks, introduced.len(), "no other connection");
    let totals = &server.status_json()["totals"];
    assert_eq!(totals["refused"], serde_json::json!({}), "{totals}");
    for reason in [
        "write_stall",
        "drain_timeout",
        "system_error",
        "worker_died",
    ] {
        assert_eq!(
            totals["closed"][reason],
            serde_json::Value::Null,
            "{totals}"
        );
    }
}

#[test]
fn haproxy_accepts_packaged_configuration() {
    let Some(haproxy) = haproxy() else {
        return;
    };
    let output = Command::new(haproxy)
        .args(["-c", "-f", PACKAGED])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !log.contains("WARNING"), "{log}");
}

/// Runs `scene` with two machines, if the system permits it.
fn with_machines(scene: fn(&Path, &Namespace, &Namespace)) {
    let Some(haproxy) = haproxy() else {
        return;
    };
    isolated(|| {
        let (one, two) = match (machine(1), machine(2)) {
            (Ok(one), Ok(two)) => (one, two),
            (Err(why), _) | (_, Err(why)) => return skipped(&why),
        };
        scene(&haproxy, &one, &two);
    });
}

#[test]
fn clients_survive_draining_and_restoring_machines() {
    with_machines(out_and_in);
}

#[test]
fn haproxy_releases_clients_of_vanished_machine() {
    with_machines(vanished);
}

fn vanished(haproxy: &Path, one: &Namespace, two: &Namespace) {
    let front: SocketAddr = FRONT.parse().unwrap();
    let _machines = (server(one, 1), server(two, 2));
    let balancer = Balancer::start(haproxy, ["10.88.1.2", "10.88.2.2"]);
    let served = || Client::try_connect(front).is_ok_and(|mut client| client.is_served(b"up?"));
    until("a client is served", served);
    for name in ["one", "two"] {
        balancer.until_status(name, |status| status == "UP");
    }
    let mut silent: Vec<Client> = (0..STAYING).map(|_| Client::connect(front)).collect();
    for client in &mut silent {
        client.roundtrip(b"and then silent");
    }
    one.run(|| ip("link set eth0 down\n")).unwrap();
    until("its clients have been closed", || {
        silent.retain(|client| !poll_one(client.socket(), PollFlags::POLLIN, Duration::ZERO));
        let left = balancer.machine("two").open;
        balancer.machine("one").open == 0 && silent.len() as u64 == left
    });
    assert!(
        (1..STAYING).contains(&silent.len()),
        "both machines had clients"
    );
    silent
        .iter_mut()
        .for_each(|client| client.roundtrip(b"elsewhere"));
    Client::connect(front).roundtrip(b"and the next client");
}

fn out_and_in(haproxy: &Path, one: &Namespace, two: &Namespace) {
    let front: SocketAddr = FRONT.parse().unwrap();
    let (mut first, mut second) = (server(one, 1), server(two, 2));
    let balancer = Balancer::start(haproxy, ["10.88.1.2", "10.88.2.2"]);
    let served = || Client::try_connect(front).is_ok_and(|mut client| client.is_served(b"up?"));
    until("a client is served", served);
    for name in ["one", "two"] {
        balancer.until_status(name, |status| status == "UP");
        let weight = balancer.machine(name).weight;
        assert!((1..=100).contains(&weight), "{weight}");
    }
    let passing = Load::start(front, short());

    // Drained by command: existing clients stay, new ones go to the other machine.
    let staying = Load::start(front, long());
    assert!(balancer.machine("one").open > 0 && balancer.machine("two").open > 0);
    first.command(&["rotation", "drain"]).expect_success();
    balancer.until_status("one", |status| status.starts_with("DRAIN"));
    let before = balancer.machine("one").taken;
    passing.go_on_for(300);
    staying.go_on_for(100);
    assert_eq!(balancer.machine("one").taken, before, "no new client");
    assert!(balancer.machine("one").open > 0, "connected clients stay");
    staying.finish().assert_clean();
    until("every client has left", || {
        balancer.machine("one").open == 0
    });
    assert_knew_its_clients(&first, 1);
    assert!(first.stop().success());
    passing.go_on_for(100);
    drop(first);
    first = server(one, 1);
    balancer.until_status("one", |status| status == "UP");
    until("it has clients again", || {
        balancer.machine("one").taken > before
    });
    // A restored machine gets few clients at first (slowstart).
    until("it gets clients like the other one", || {
        2 * balancer.machine("one").weight >= balancer.machine("two").weight
    });
    passing.assert_unharmed();

    // Drained by a stop alone: the server reports it before refusing clients, and existing ones are
    // closed gracefully.
    let before = balancer.machine("two").taken;
    let mut staying: Vec<Client> = (0..STAYING).map(|_| Client::connect(front)).collect();
    staying
        .iter_mut()
        .for_each(|client| client.roundtrip(b"until the end"));
    second.signal(Signal::SIGTERM);
    balancer.until_status("two", |status| status.starts_with("DRAIN"));
    assert!(second.is_running(), "informed in time");
    until("it has ended", || {
        staying.retain_mut(|client| {
            let result = poll_one(client.socket(), PollFlags::POLLIN, Duration::ZERO);
            if result {
                client.expect_eof();
            }
            !result
        });
        !second.is_running()
    });
    assert!(second.wait_exit(DEADLINE).success());
    assert!(
        (1..STAYING).contains(&staying.len()),
        "both machines had clients"
    );
    staying
        .iter_mut()
        .for_each(|client| client.roundtrip(b"elsewhere"));
    drop(staying);
    drop(second);
    passing.go_on_for(100);
    second = server(two, 2);
    balancer.until_status("two", |status| status == "UP");
    until("it has clients again", || {
        balancer.machine("two").taken > before
    });
    passing.assert_unharmed();

    // Reloaded in place, and returned from maintenance.
    let staying = Load::start(front, long());
    for server in [&first, &second] {
        server.reload().expect_success();
    }
    first.command(&["rotation", "maint"]).expect_success();
    balancer.until_status("one", |status| status.starts_with("MAINT"));
    staying.go_on_for(100);
    first.command(&["rotation", "in"]).expect_success();
    balancer.until_status("one", |status| status == "UP");
    passing.go_on_for(100);
    staying.finish().assert_clean();
    passing.finish().assert_clean();
    for (server, host) in [(&first, 1), (&second, 2)] {
        assert_knew_its_clients(server, host);
        assert!(server.status_json()["totals"]["migrated_in"].as_u64() > Some(0));
    }
}
