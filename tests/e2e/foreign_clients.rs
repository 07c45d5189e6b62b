//! Common clients (`nc`, `socat`, `telnet`, a C program that sends lines with their NUL), and
//! invalid input, which is reported in one line with the mistake, its cause and a hint.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::poll::PollFlags;

use crate::support::adversity::skipped;
use crate::support::image::Image;
use crate::support::{DEADLINE, Server, in_background, poll_one};

/// A classic line client: it sends each line with its terminating NUL and reads the same number of
/// bytes.
const C_CLIENT: &str = r#"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    struct sockaddr_in server = { .sin_family = AF_INET };
    char line[256], reply[256];
    int end = socket(AF_INET, SOCK_STREAM, 0);

    if (count != 3 || inet_pton(AF_INET, arguments[1], &server.sin_addr) != 1)
        return 2;
    server.sin_port = htons(atoi(arguments[2]));
    if (connect(end, (struct sockaddr *)&server, sizeof server) != 0)
        return 1;
    while (fgets(line, sizeof line, stdin) != NULL) {
        size_t length = strlen(line) + 1, got = 0;
        if (write(end, line, length) != (ssize_t)length)
            return 1;
        while (got < length) {
            ssize_t part = read(end, reply + got, length - got);
            if (part <= 0)
                return 1;
            got += part;
        }
        if (reply[length - 1] != '\0')
            return 1;
        fputs(reply, stdout);
    }
    return close(end);
}
"#;

/// Returns the path of the program `name`; if it is not installed, reports that and returns `None`.
fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(name));
    let found = places.find(|place| place.is_file());
    if found.is_none() {
        skipped(&format!("{name} is not installed"));
    }
    found
}

/// Runs `program` with `input` and waits for it to exit.
fn converse(program: &Path, arguments: &[String], input: &'static [u8]) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = in_background(move || stdin.write_all(input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output
}

fn host_and_port(addr: SocketAddr) -> [String; 2] {
    [addr.ip().to_string(), addr.port().to_string()]
}

#[test]
fn netcat_receives_reply_and_eof() {
    let Some(nc) = installed("nc") else { return };
    let server = Server::start(&["--listen=127.0.0.1:0"]);
    let [host, port] = host_and_port(server.addr());
    let output = converse(
        &nc,
        &["-N".into(), host, port],
        b"hello, netcat\n\xff\x00ok",
    );
    assert_eq!(output.stdout, b"HELLO, NETCAT\n\xff\x00OK", "{output:?}");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn socat_receives_reply_over_both_families() {
    let Some(socat) = installed("socat") else {
        return;
    };
    let server = Server::builder()
        .args(["--listen=127.0.0.1:0", "--listen=[::1]:0"])
        .listeners(2)
        .start();
    for addr in server.addrs() {
        let target = format!("TCP:{addr}");
        // Half-closes at the end of its input and waits up to ten seconds for the server's close.
        let output = converse(
            &socat,
            &["-t10".into(), "-".into(), target],
            b"hello, socat\n",
        );
        assert_eq!(output.stdout, b"HELLO, SOCAT\n", "{output:?}");
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn telnet_shows_reply_to_line() {
    let Some(telnet) = installed("telnet") else {
        return;
    };
    let server = Server::start(&["--listen=127.0.0.1:0"]);
    let mut child = Command::new(telnet)
        .args(host_and_port(server.addr()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello, telnet\n").unwrap();
    let shown = read_until(&mut child, "HELLO, TELNET");
    // It exits at the end of its input.
    drop(stdin);
    child.wait().unwrap();
    assert!(shown.contains("HELLO, TELNET"), "{shown}");
}

/// Reads the program's output until it contains `wanted`, or to its end.
fn read_until(child: &mut Child, wanted: &str) -> String {
    let mut stdout = child.stdout.take().unwrap();
    let mut shown = String::new();
    while !shown.contains(wanted) {
        assert!(
            poll_one(&stdout, PollFlags::POLLIN, DEADLINE),
            "silent after {shown:?}"
        );
        let mut piece = [0; 256];
        match stdout.read(&mut piece).unwrap() {
            0 => break,
            length => shown.push_str(&String::from_utf8_lossy(&piece[..length])),
        }
    }
    shown
}

#[test]
fn c_client_receives_line_with_its_nul() {
    let Some(cc) = installed("cc") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("client.c"), folder.path().join("client"));
    fs::write(&source, C_CLIENT).unwrap();
    let compiled = Command::new(cc)
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .status()
        .unwrap();
    assert!(compiled.success());
    let server = Server::start(&["--listen=127.0.0.1:0"]);
    let arguments = host_and_port(server.addr());
    let output = converse(&program, &arguments, b"first line\nand a second\n");
    assert_eq!(output.stdout, b"FIRST LINE\nAND A SECOND\n", "{output:?}");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn own_client_checks_reply() {
    let server = Server::start(&["--listen=127.0.0.1:0"]);
    let program = Path::new(env!("CARGO_BIN_EXE_uppercased"));
    let target = server.addr().to_string();
    let output = converse(program, &["client".into(), target], b"hello, client\n");
    assert_eq!(output.stdout, b"HELLO, CLIENT\n", "{output:?}");
    assert!(output.status.success(), "{output:?}");
}

/// Asserts that the server refuses to start with `code` and one line that contains every `part`.
#[track_caller]
fn refused(arguments: &[&str], code: i32, parts: &[&str]) {
    judge(Server::expect_failure(arguments), code, parts);
}

#[track_caller]
fn judge((code, error): (i32, String), expected: i32, parts: &[&str]) {
    assert_eq!(code, expected, "{error}");
    // The log may already have reported the start; the refusal is one line.
    let mut refusals = error
        .lines()
        .filter(|line| line.starts_with("uppercased: "));
    let refusal = refusals
        .next()
        .unwrap_or_else(|| panic!("no refusal: {error}"));
    assert!(
        refusals.next().is_none() && error.trim_end().ends_with(refusal),
        "{error}"
    );
    assert!(
        !error.contains(" ERROR ") && !error.contains(" WARN "),
        "reported twice: {error}"
    );
    for part in parts {
        assert!(refusal.contains(part), "{part:?} is missing: {refusal}");
    }
}

#[test]
fn bad_usage_is_refused_on_one_line() {
    refused(
        &["--workers", "0"],
        2,
        &["--workers", "0 is too low", "for example"],
    );
    refused(&["--workers", "99999"], 2, &["--workers", "1024"]);
    refused(
        &["--bytes-per-turn", "1GiB"],
        2,
        &["--bytes-per-turn", "64MiB"],
    );
    refused(&["--listen", "nonsense"], 2, &["--listen", "for example"]);
    refused(
        &["--max-connections", "9999999"],
        2,
        &["max_connections", "ulimit -n", "LimitNOFILE="],
    );
    refused(
        &["--config", "/nowhere/at/all.toml"],
        2,
        &["/nowhere/at/all.toml", "check its path"],
    );

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.toml");
    let name = file.display().to_string();
    fs::write(&file, "workers = \n").unwrap();
    refused(&["--config", &name], 2, &[&name, "1:"]);
    fs::write(&file, "idle_timeuot = \"30s\"\n").unwrap();
    refused(
        &["--config", &name],
        2,
        &[&name, "idle_timeuot", "idle_timeout"],
    );
}

#[test]
fn system_refusal_is_reported_on_one_line() {
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = foreign.local_addr().unwrap().to_string();
    let own_pid = format!("pid {}", std::process::id());
    refused(&["--listen", &taken], 1, &[&taken, &own_pid, "--listen"]);
    refused(
        &["--listen", "192.0.2.1:9999"],
        1,
        &["does not have the address", "0.0.0.0"],
    );
}

#[test]
fn too_low_descriptor_limit_refuses_start() {
    let shell = "ulimit -n 40 && exec \"$0\" --listen 127.0.0.1:0 --workers 2";
    let output = Command::new("sh")
        .args(["-c", shell, env!("CARGO_BIN_EXE_uppercased")])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    judge(
        (output.status.code().unwrap(), error),
        2,
        &["descriptor", "ulimit -n"],
    );
}

#[test]
fn privileged_port_refuses_unprivileged_user() {
    let start = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if start.trim().parse::<u16>().unwrap() <= 80 {
        skipped("every user may bind every port");
        return;
    }
    // Other users may not be able to read the build directory.
    let folder = tempfile::tempdir().unwrap();
    let program = Image::for_every_user(folder.path());
    let mut command = Command::new(program.path());
    command.args(["--listen", "127.0.0.1:80"]);
    if nix::unistd::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().unwrap();
    judge(
        (code, error),
        1,
        &["127.0.0.1:80", "permission denied", "CAP_NET_BIND_SERVICE"],
    );
}
