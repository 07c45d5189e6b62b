//! Messages and exit codes of the client for failures of the server's replies, the connection, the
//! address, or its own input and output.

use super::*;

#[test]
fn early_close_reports_missing_bytes() {
    let server = serve_one(|mut stream| {
        let all = swallow_all(&mut stream);
        stream.write_all(&upper(&all[..2])).unwrap();
    });
    let run = pipe(server.addr, "hello\n");
    run.assert_failure(
        1,
        "the server closed the connection; 4 of 6 bytes were not answered; see the server's log",
    );
    assert_eq!(run.stdout, b"HE");
}

#[test]
fn client_notices_close_while_input_waits() {
    let server = serve_one(|mut stream| {
        let line = swallow(&mut stream, 3);
        stream.write_all(&upper(&line)).unwrap();
    });
    // The input is still open when the server closes: this end is kept until after the run.
    let mut child = client(&server.addr.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hi\n").unwrap();
    let run = finish(child, Vec::new());
    run.assert_failure(
        1,
        "the server closed the connection; all 3 bytes sent so far were answered",
    );
    drop(stdin);
}

#[test]
fn client_reports_position_of_wrong_byte() {
    const WRONG: usize = 100_000;
    let server = serve_one(|mut stream| {
        let mut answer = upper(&swallow_all(&mut stream));
        answer[WRONG] = b'?';
        // The client exits at the wrong byte, before the rest arrives.
        drop(stream.write_all(&answer));
    });
    let mut input = pattern(0, 200_000);
    input[WRONG] = b'x';
    let run = pipe(server.addr, input.clone());
    run.assert_failure(
        1,
        "wrong reply: byte 100000 is 0x3f, expected 0x58; check that this is an uppercased server",
    );
    // The output received is shown, including the wrong byte.
    assert_same(&run.stdout[..WRONG], &upper(&input[..WRONG]), "before it");
    assert_eq!(run.stdout[WRONG], b'?');
}

#[test]
fn surplus_reply_is_a_failure() {
    let server = serve_one(|mut stream| {
        let all = swallow_all(&mut stream);
        stream.write_all(&upper(&all)).unwrap();
        stream.write_all(b"!!").unwrap();
    });
    let run = pipe(server.addr, "hi\n");
    run.assert_failure(
        1,
        "wrong reply: 2 bytes more than the 3 that were sent; check that this is an uppercased \
         server",
    );
}

#[test]
fn unsolicited_greeting_is_a_failure() {
    let server = serve_one(|mut stream| {
        stream.write_all(b"220 smtp\r\n").unwrap();
        // Keep it open until the client has exited.
        drop(stream.read(&mut [0]));
    });
    let (_held, input) = std::io::pipe().map(|(read, write)| (write, read)).unwrap();
    let child = client(&server.addr.to_string())
        .stdin(input)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    finish(child, Vec::new()).assert_failure(
        1,
        "wrong reply: 10 bytes more than the 0 that were sent; check that this is an uppercased \
         server",
    );
}

#[test]
fn client_distinguishes_reset_from_close() {
    let server = serve_one(|mut stream| {
        let all = swallow_all(&mut stream);
        stream.write_all(&upper(&all[..2])).unwrap();
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    });
    let run = pipe(server.addr, "hello\n");
    // The kernel may discard the two bytes before the reset.
    assert_eq!(run.code, Some(1));
    let error = run
        .stderr
        .strip_prefix("uppercased: the server reset the connection; ");
    let error = error.unwrap_or_else(|| panic!("{:?}", run.stderr));
    let missing = 6 - run.stdout.len();
    assert_eq!(
        error,
        format!("{missing} of 6 bytes were not answered; see the server's log\n")
    );
}

#[test]
fn reset_during_send_is_reported() {
    let server = serve_one(|mut stream| {
        drop(swallow(&mut stream, 1000));
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    });
    let run = filter(
        server.addr,
        |mut stdin| {
            while stdin.write_all(&[b'x'; 4096]).is_ok() {}
        },
    );
    assert_eq!(run.code, Some(1));
    let error = &run.stderr;
    assert!(
        error.starts_with("uppercased: the server reset the connection; "),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn refused_connection_is_one_clear_error() {
    let (_held, addr) = deaf_port();
    pipe(addr, "hi\n").assert_failure(
        1,
        &format!(
            "cannot connect to {addr}: connection refused; check that the server is running on \
             this port"
        ),
    );
}

#[test]
fn invalid_address_is_bad_usage() {
    for (target, why) in [
        ("nowhere:", "the port is missing"),
        (
            "http://localhost:9999/",
            "it is a URL, but the protocol is plain TCP",
        ),
        ("nowhere:0", "the port must be a number from 1 to 65535"),
        ("::1:9999", "an IPv6 address with a port needs brackets"),
    ] {
        let child = client(target)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        finish(child.unwrap(), Vec::new()).assert_failure(
            2,
            &format!(
                "cannot read the address {target:?}: {why}; \
                 write HOST:PORT, as in localhost:9999 or [::1]:9999"
            ),
        );
    }
}

#[test]
fn client_reports_unreadable_input() {
    let server = serve_one(answer_all);
    let child = client(&server.addr.to_string())
        .stdin(File::open("/").unwrap())
        .stdout(Stdio::null())
        .spawn();
    let run = finish(child.unwrap(), Vec::new());
    run.assert_failure(1, "cannot read standard input: Is a directory");
}

#[test]
fn client_reports_unwritable_output() {
    let server = serve_one(answer_all);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = client(&server.addr.to_string())
        .stdin(Stdio::piped())
        .stdout(full)
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hi\n").unwrap();
    let run = finish(child, Vec::new());
    run.assert_failure(1, "cannot write standard output: No space left on device");
}

#[test]
fn client_ignores_closed_output_pipe() {
    let server = serve_one(|mut stream| {
        let line = swallow(&mut stream, 3);
        stream.write_all(&upper(&line)).unwrap();
        drop(stream.read(&mut [0]));
    });
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let mut child = client(&server.addr.to_string())
        .stdin(Stdio::piped())
        .stdout(write)
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hi\n").unwrap();
    let run = finish(child, Vec::new());
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), ""));
}
