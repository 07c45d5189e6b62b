//! Unit tests of `during.rs`.

use std::io::Write as _;

use super::*;

fn job(text: &str) -> Job {
    text.parse().unwrap()
}

/// Waits for the commands to exit by themselves; returns their marks.
fn joined(jobs: &mut Jobs) -> Vec<Mark> {
    let threads = jobs.threads.drain(..);
    threads.flat_map(|job| job.join().unwrap().marks).collect()
}

#[test]
fn skipped_runs_are_counted_at_once() {
    let at = Tick::from_millis;
    let every = Duration::from_millis(10);
    assert_eq!(missed(at(100), every, at(100)), 0);
    assert_eq!(missed(at(100), every, at(139)), 3);
    let nanosecond = Duration::from_nanos(1);
    assert_eq!(missed(at(0), nanosecond, at(3_600_000)), 3_600_000_000_000);
}

#[test]
fn program_path_need_not_be_text() {
    use std::os::unix::ffi::OsStringExt as _;

    let folder = tempfile::tempdir().unwrap();
    let name = std::ffi::OsString::from_vec(b"caf\xe9 it's".to_vec());
    let program = folder.path().join(name);
    // A child process writes the script. Otherwise another thread could fork while this process has
    // it open for writing, and executing it would fail with ETXTBSY.
    let write = r#"printf '#!/bin/sh\necho "$1" >&2\n' > "$0" && chmod 700 "$0""#;
    let mut shell = Command::new("sh");
    let status = shell.args(["-c", write]).arg(&program).status();
    assert!(status.unwrap().success());
    let job = Job {
        first: Duration::from_millis(1),
        every: None,
        action: Action::Program(vec![program.into(), "a b".into()]),
    };
    let now = clock::now();
    let until = now + Duration::from_secs(9);
    let mut jobs = Jobs::start(&[job], now, until, &Interrupt::default());
    let marks = joined(&mut jobs);
    let found = (marks[0].exit_code, marks[0].output.as_str());
    assert_eq!(found, (Some(0), "a b"));
}

#[test]
fn command_leaves_mark_with_its_last_line() {
    let now = clock::now();
    let jobs = [
        job("at 1ms: echo one; echo two >&2; exit 3"),
        job("at 2ms: kill -9 $$"),
        job("at 1h: echo never"),
    ];
    let jobs = Jobs::start(
        &jobs,
        now,
        now + Duration::from_secs(2),
        &Interrupt::default(),
    );
    // Synchronised by the commands' exits, not by the clock: the third is due after the
    // measurement.
    let marks: Vec<Mark> = {
        let mut jobs = jobs;
        let third = jobs.threads.pop().unwrap();
        let mut marks = joined(&mut jobs);
        drop(jobs);
        let third = third.join().unwrap();
        assert_eq!(third.job.action, Action::Shell("echo never".to_owned()));
        marks.extend(third.marks);
        marks
    };
    assert_eq!(marks.len(), 2);
    assert_eq!(
        (marks[0].exit_code, marks[0].output.as_str()),
        (Some(3), "two")
    );
    assert_eq!(marks[1].exit_code, None);
}

#[test]
fn command_repeats_without_overlap() {
    let now = clock::now();
    let jobs = [job("every 10ms: true")];
    let jobs = Jobs::start(
        &jobs,
        now,
        now + Duration::from_secs(2),
        &Interrupt::default(),
    );
    let marks = joined(&mut { jobs });
    assert!(marks.len() > 1, "{}", marks.len());
    for pair in marks.windows(2) {
        assert!(
            pair[0].at_ms + pair[0].took_ms <= pair[1].at_ms + 1,
            "{pair:?}"
        );
    }
}

#[test]
fn output_is_bounded() {
    let (reader, mut writer) = io::pipe().unwrap();
    let (mut output, mut tail) = (Some(reader), Vec::new());
    writer.write_all(&vec![b'x'; 50_000]).unwrap();
    read_what_is_there(&mut output, &mut tail);
    assert_eq!(
        (tail.len(), last_line(&tail).len()),
        (2 * OUTPUT_MAX, OUTPUT_MAX)
    );
    assert_eq!(last_line(b"a\nb\n\n"), "b");
    assert_eq!(last_line(b""), "");
}

/// Regardless of how much is unread when the command exits.
#[test]
fn output_is_read_without_waiting_for_more() {
    let (reader, mut writer) = io::pipe().unwrap();
    let (mut output, mut tail) = (Some(reader), Vec::new());
    read_what_is_there(&mut output, &mut tail);
    assert!(output.is_some() && tail.is_empty(), "there may be more");
    writer.write_all(&b"progress\n".repeat(5_000)).unwrap();
    writer.write_all(b"the verdict\n").unwrap();
    // The writer still exists, like a remaining descendant.
    read_what_is_there(&mut output, &mut tail);
    assert_eq!(last_line(&tail), "the verdict");
    assert!(output.is_some());
    drop(writer);
    // A child that another test forks has the writer, too, until it executes its program.
    let reader = output.as_ref().unwrap();
    let mut watched = [PollFd::new(reader.as_fd(), PollFlags::empty())];
    assert_eq!(poll(&mut watched, 10_000_u16), Ok(1), "the end arrives");
    read_what_is_there(&mut output, &mut tail);
    assert!(output.is_none(), "its end is seen");
}

#[test]
fn surviving_grandchild_is_not_awaited() {
    let now = clock::now();
    // The descendant holds the output until its own input, a pipe, is closed.
    let command = "at 1ms: mkfifo \"$PIPE\"; cat \"$PIPE\" & echo $!";
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let command = command.replace("$PIPE", pipe.to_str().unwrap());
    let jobs = Jobs::start(
        &[job(&command)],
        now,
        now + Duration::from_secs(9),
        &Interrupt::default(),
    );
    let marks = joined(&mut { jobs });
    assert_eq!(marks[0].exit_code, Some(0));
    let pid: i32 = marks[0].output.parse().unwrap();
    let alive = rustix::process::test_kill_process(Pid::from_raw(pid).unwrap());
    assert!(alive.is_ok(), "{alive:?}");
    // Opening and closing it for writing ends the descendant.
    drop(std::fs::OpenOptions::new().write(true).open(&pipe).unwrap());
}
