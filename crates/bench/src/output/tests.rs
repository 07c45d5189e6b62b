//! Unit tests of `output.rs`.

use super::*;

fn open(json: &Path, report: &Path) -> Result<Outputs, Error> {
    Outputs::open(&[
        (Format::Json, json.to_owned()),
        (Format::Report, report.to_owned()),
    ])
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    Output::open(path)?.write(text, &Interrupt::default())
}

#[test]
fn two_outputs_in_one_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("there"), "").unwrap();
    fs::hard_link(at("there"), at("hard")).unwrap();
    std::os::unix::fs::symlink(at("there"), at("soft")).unwrap();
    std::os::unix::fs::symlink("new", at("nowhere")).unwrap();
    for (json, report) in [
        (at("new"), at("new")),
        (at("new"), at("./new")),
        (at("new"), at("nowhere")),
        (at("there"), at("hard")),
        (at("soft"), at("there")),
        ("-".into(), "/dev/stdout".into()),
    ] {
        let error = open(&json, &report).unwrap_err();
        assert!(error.is_usage(), "{json:?} {report:?}: {error}");
    }
    for (json, report) in [
        (at("new"), at("there")),
        ("/dev/null".into(), "/dev/null".into()),
    ] {
        open(&json, &report).unwrap();
    }
    // The check leaves no files.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
}

#[test]
fn file_is_replaced_as_a_whole() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    write(&path, "first").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("file", &link).unwrap();
    write(&link, "second").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "second");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn hard_linked_file_is_overwritten_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    fs::write(&one, "much longer than what comes").unwrap();
    fs::hard_link(&one, &other).unwrap();
    write(&one, "new").unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "new");
}

#[test]
fn full_device_and_unread_pipe_are_errors() {
    let error = write(Path::new("/dev/full"), "text").unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = write(&pipe, "text").unwrap_err();
    assert!(matches!(error, Error::NoReader { .. }), "{error}");
    let error = write(&folder.path().join("none/file"), "text").unwrap_err();
    assert!(error.to_string().contains("none/file"), "{error}");
}

#[test]
fn slow_reader_of_a_nonblocking_pipe_gets_all() {
    let (mut reader, writer) = io::pipe().unwrap();
    let flags = nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&writer, flags).unwrap();
    let text = vec![b'x'; 300_000];
    std::thread::scope(|scope| {
        let read = scope.spawn(move || {
            let mut all = Vec::new();
            io::Read::read_to_end(&mut reader, &mut all).unwrap();
            all.len()
        });
        write_all(writer.as_fd(), &text, &Interrupt::default()).unwrap();
        drop(writer);
        assert_eq!(read.join().unwrap(), text.len());
    });
}
