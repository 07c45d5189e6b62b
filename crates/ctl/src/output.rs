//! Standard output of commands; the only module that writes to it.
//!
//! Invariants: a command's output is written completely, or its exit code is not 0. If another
//! process made the pipe non-blocking, the writer waits. A reader that closes the pipe early, as
//! `head` does, is not an error. Text for people has no control characters except line ends,
//! whatever its source. It must not change a flag of the open file, which other processes share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::escape::visible;
use crate::stderr::write_error;

/// Returns standard output, to query whether it is a terminal, its size, and whether it has a
/// reader.
pub fn stdout() -> BorrowedFd<'static> {
    rustix::stdio::stdout()
}

/// Prints lines for people and returns the exit code of the write.
pub fn print(text: &str) -> ExitCode {
    let lines: String = text
        .split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n') {
            Some(line) => visible(line) + "\n",
            None => visible(line),
        })
        .collect();
    print_raw(lines.as_bytes())
}

/// Prints machine-readable output or terminal control sequences unchanged.
pub fn print_raw(bytes: &[u8]) -> ExitCode {
    exit_code(write(bytes))
}

/// Returns the exit code for `result`; reports an error.
pub fn exit_code(result: io::Result<()>) -> ExitCode {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let hint = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space",
                io::ErrorKind::FileTooLarge => "; raise the limit on file sizes (ulimit -f)",
                _ => "",
            };
            write_error(&format!("cannot write standard output: {error}{hint}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Writes all of `bytes` to standard output, however long its reader takes.
///
/// # Errors
/// [`io::ErrorKind::BrokenPipe`] if the reader closed the pipe, which seldom needs a message; any
/// other error of the system.
pub fn write(bytes: &[u8]) -> io::Result<()> {
    write_to(stdout(), bytes, PollTimeout::NONE)
}

/// Writes all of `bytes`; fails if a non-blocking `fd` accepts nothing for `patience`.
///
/// # Errors
/// Any error of the system, and [`io::ErrorKind::TimedOut`].
pub fn write_to(fd: impl AsFd, mut bytes: &[u8], patience: PollTimeout) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(&fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut writable = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut writable, patience) {
                    Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use nix::fcntl::OFlag;

    use super::*;

    #[test]
    fn nonblocking_pipe_gets_every_byte() {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        // More than a pipe's capacity, so that the writer waits for the reader.
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let received = std::thread::scope(|scope| {
            let write = || write_to(writer, &sent, PollTimeout::NONE).unwrap();
            scope.spawn(write);
            let mut received = Vec::new();
            let mut reader = io::PipeReader::from(reader);
            loop {
                match reader.read_to_end(&mut received) {
                    Ok(_) => break received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        assert!(received == sent, "{} bytes came out", received.len());
    }

    #[test]
    fn unread_pipe_times_out() {
        let (_reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let bytes = vec![0; 10 << 20];
        let refused = write_to(&writer, &bytes, PollTimeout::from(1_u8)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
    }
}
