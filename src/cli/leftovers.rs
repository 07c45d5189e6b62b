//! `uppercased drain-leftovers`: stops the workers that a supervisor has left behind.
//!
//! Run by a service manager after the service has ended (`ExecStopPost=`), it asks first whether the
//! service starts again: then the workers serve on, and the next supervisor adopts them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{Control, LogFormat, LogLevel};
use crate::log;
use crate::preflight::job;
use crate::supervisor::drain_leftovers;
use crate::wire::Job;
use uppercased_ctl::output::print;
use uppercased_ctl::stderr;
use uppercased_ctl::units::counted;

/// Set by systemd for `ExecStopPost=`: `success`, or how the service failed.
const SERVICE_RESULT: &str = "SERVICE_RESULT";

/// Runs the command for the workers of the server with this control socket.
pub(super) fn run(control: Option<PathBuf>) -> ExitCode {
    // Fails only if there is a log already.
    let _ = log::init(LogLevel::Warn, LogFormat::Human);
    let result = std::env::var_os(SERVICE_RESULT);
    if let Some(result) = result
        && !is_stop(job::ask(), &result)
    {
        return print("systemd does not stop the service: its workers serve on\n");
    }
    let control = control.map_or(Control::Auto, Control::Path);
    match drain_leftovers(&control) {
        Ok(left) if left.remaining == 0 => {
            let drained = counted(left.drained as u64, "worker");
            print(&format!("{drained} drained\n"))
        }
        Ok(left) => {
            let remaining = counted(left.remaining as u64, "worker");
            stderr::write_error(&format!(
                "cannot drain in time: {remaining} still running; kill by process ID"
            ));
            ExitCode::FAILURE
        }
        Err(error) => {
            stderr::write_error(&format!("cannot drain the workers: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether the service manager stops the service. Without an answer a service that has ended
/// well was stopped: one that failed may be started again.
fn is_stop(job: Result<Job, String>, result: &OsString) -> bool {
    match job {
        Ok(Job::Stop) => true,
        Ok(Job::Start | Job::Nothing) => false,
        Err(_) => result == "success",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_drain_at_stops_only() {
        let [success, signal] = ["success", "signal"].map(OsString::from);
        let unknown = || Err("no D-Bus".to_owned());
        for (job, result, drains) in [
            (Ok(Job::Stop), &success, true),
            (Ok(Job::Stop), &signal, true),
            (Ok(Job::Start), &success, false),
            (Ok(Job::Start), &signal, false),
            (Ok(Job::Nothing), &success, false),
            (unknown(), &success, true),
            (unknown(), &signal, false),
        ] {
            assert_eq!(is_stop(job.clone(), result), drains, "{job:?} {result:?}");
        }
    }
}
