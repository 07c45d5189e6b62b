//! The `status` command: one report, or one per interval.
//!
//! A single text report includes rates, from two samples a moment apart; JSON has counters only,
//! from which rates can be computed. With `--watch` each interval appends a block of text or a line
//! of JSON, so that scripts can read it; `top` is for terminals. Invariants: intervals do not
//! drift; Ctrl-C ends a watch with success, the end of the server with failure.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::SIGINT;

use super::reply::{Error, Shown, request_status};
use crate::config::STATUS_RATES_SPAN;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::control::client::Error as AskError;
use uppercased_ctl::escape::visible;
use uppercased_ctl::output::{self, print};
use uppercased_ctl::sampler::Sampler;
use uppercased_ctl::status::{Sample, SocketStatus, Sockets};
use uppercased_ctl::stderr::write_error;

/// Shows the status of the server at `path`.
pub(super) fn status(path: &Path, shown: Shown, within: Duration) -> Result<ExitCode, Error> {
    let mut sampler = Sampler::new(shown.sockets);
    if let Some(every) = shown.watch {
        return watch(path, shown, within, every);
    }
    if !shown.json && shown.sockets.is_none() {
        // Retrying after another kind of reply would only repeat it.
        let (status, _) = request_status(path, within)?;
        sampler.compare_with(*status);
        wait_until(clock::now() + STATUS_RATES_SPAN);
    }
    let sample = sample_once(&mut sampler, path, within)?;
    Ok(match sample.sockets.as_ref() {
        _ if shown.json => output::print_raw(json(&sample)?.as_bytes()),
        Some(sockets) if shown.sockets.is_some() => print_sockets(sockets),
        _ => print(&block(&sample.lines())),
    })
}

fn sample_once(sampler: &mut Sampler, path: &Path, within: Duration) -> Result<Sample, Error> {
    let (status, server) = request_status(path, within)?;
    Ok(sampler.complete(*status, server))
}

fn watch(path: &Path, shown: Shown, within: Duration, every: Duration) -> Result<ExitCode, Error> {
    end_at_once_on_interrupt().map_err(|error| Error::Ask(AskError::System(error)))?;
    let mut sampler = Sampler::new(None);
    let mut next = clock::now();
    let mut seen_before = false;
    loop {
        let sample = match sample_once(&mut sampler, path, within) {
            Ok(sample) => sample,
            Err(error @ Error::Negative(..)) => return Err(error),
            Err(error) if !seen_before => return Err(error),
            Err(error) => {
                write_error(&format!("cannot follow the server: {error}"));
                return Ok(ExitCode::FAILURE);
            }
        };
        let text = match (shown.json, seen_before) {
            (true, _) => json(&sample)?,
            (false, true) => format!("\n{}", block(&sample.lines())),
            (false, false) => block(&sample.lines()),
        };
        seen_before = true;
        if let Err(error) = output::write(text.as_bytes()) {
            return Ok(output::exit_code(Err(error)));
        }
        next = following(next, every, clock::now());
        if !wait_until(next) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Returns the next time at a multiple of `every` after `last`, skipping those that have passed.
fn following(last: Tick, every: Duration, now: Tick) -> Tick {
    let late = now.since(last).as_nanos() / every.as_nanos().max(1);
    let steps = u32::try_from(late).unwrap_or(u32::MAX - 1) + 1;
    last + every.saturating_mul(steps)
}

/// Makes Ctrl-C end the process with exit code 0 from here on, even during a blocking call.
fn end_at_once_on_interrupt() -> io::Result<()> {
    let always = Arc::new(AtomicBool::new(true));
    signal_hook::flag::register_conditional_shutdown(SIGINT, 0, always)?;
    Ok(())
}

/// Waits; returns false if the reader has closed the output.
fn wait_until(until: Tick) -> bool {
    loop {
        let left = until.since(clock::now());
        if left.is_zero() {
            return true;
        }
        // Rounded up, so that the last millisecond is slept and not busy-polled.
        let left = left + Duration::from_micros(999);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // With no event requested, poll reports only that the reader has closed.
        let mut reader = [PollFd::new(output::stdout(), PollFlags::empty())];
        match poll(&mut reader, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return false,
            Err(_) => return true,
        }
    }
}

fn block(lines: &[String]) -> String {
    lines.iter().map(|line| visible(line) + "\n").collect()
}

fn json(sample: &Sample) -> Result<String, Error> {
    let line = serde_json::to_string(sample).map_err(|error| AskError::Nonsense(error.into()))?;
    Ok(line + "\n")
}

/// Prints one line per socket, for `grep`; lines wider than the terminal are not cut.
fn print_sockets(sockets: &Sockets) -> ExitCode {
    if let Some(why) = &sockets.unknown {
        write_error(&format!("cannot list the sockets: {why}"));
        return ExitCode::FAILURE;
    }
    let list = sockets.list.as_deref().unwrap_or_default();
    let wide = |end: fn(&SocketStatus) -> &String| list.iter().map(|one| end(one).len()).max();
    let (local, peer) = (wide(|one| &one.local), wide(|one| &one.peer));
    let (local, peer) = (local.unwrap_or(0).max(5), peer.unwrap_or(0).max(4));
    let mut text = format!(
        "{:<11} {:>6} {:>6} {:<local$} {:<peer$} owner\n",
        "state", "recv-q", "send-q", "local", "peer"
    );
    for one in list {
        let line = format!(
            "{:<11} {:>6} {:>6} {:<local$} {:<peer$} {}",
            one.state,
            one.recv_queue,
            one.send_queue,
            one.local,
            one.peer,
            owner(one)
        );
        text.push_str(visible(&line).trim_end());
        text.push('\n');
    }
    if sockets.unlisted > 0 {
        text.push_str(&format!(
            "… {} more; see --limit, or status for their number by state\n",
            sockets.unlisted
        ));
    }
    print(&text)
}

fn owner(socket: &SocketStatus) -> String {
    let owner = &socket.owner;
    match (owner.slot, owner.pid, &owner.program) {
        (Some(slot), Some(pid), _) => format!("slot {slot}, pid {pid}"),
        (Some(slot), None, _) => format!("slot {slot}"),
        (None, Some(pid), program) => {
            format!("pid {pid} ({})", program.as_deref().unwrap_or("?"))
        }
        // Owned by no process: not accepted yet, or not closed yet by the kernel.
        (None, None, _) if socket.inode == 0 => "-".to_owned(),
        (None, None, _) => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_interval_is_skipped_in_rhythm() {
        let every = Duration::from_millis(100);
        let at = Tick::from_millis;
        assert_eq!(following(at(1000), every, at(1030)), at(1100));
        assert_eq!(following(at(1000), every, at(1250)), at(1300));
        assert_eq!(following(at(1000), every, at(1100)), at(1200));
    }

    #[test]
    fn socket_owner_is_slot_process_or_unknown() {
        let mut socket = SocketStatus::default();
        assert_eq!(owner(&socket), "-");
        socket.inode = 7;
        assert_eq!(owner(&socket), "?");
        socket.owner.pid = Some(12);
        socket.owner.program = Some("nginx".to_owned());
        assert_eq!(owner(&socket), "pid 12 (nginx)");
        socket.owner.slot = Some(uppercased_ctl::identity::SlotId(3));
        assert_eq!(owner(&socket), "slot 3, pid 12");
    }
}
