//! The job that a service manager (systemd) runs for this service: why it is being stopped.
//!
//! `busctl`, which ships with systemd, asks over D-Bus. The unit is that of the asking process, so
//! no name and no privilege is needed. Both questions block, so the supervisor never asks by itself.
//!
//! Source: org.freedesktop.systemd1(5), the property `Job` of a unit and `JobType` of a job.

use std::process::{Command, Stdio};

use crate::wire::Job;

/// The client of the D-Bus.
const BUSCTL: &str = "busctl";
const SYSTEMD: &str = "org.freedesktop.systemd1";
/// The unit of the process that asks.
const OWN_UNIT: &str = "/org/freedesktop/systemd1/unit/self";

/// Asks the service manager. Blocks for some milliseconds, or as long as D-Bus does.
///
/// # Errors
/// One line: there is no answer, or an unknown one.
pub(crate) fn ask() -> Result<Job, String> {
    let job = property(OWN_UNIT, "org.freedesktop.systemd1.Unit", "Job")?;
    let Some(path) = path_of(&job)? else {
        return Ok(Job::Nothing);
    };
    let kind = property(path, "org.freedesktop.systemd1.Job", "JobType")?;
    meaning_of(&kind)
}

fn property(path: &str, interface: &str, name: &str) -> Result<String, String> {
    let failed = |cause: &dyn std::fmt::Display| format!("cannot ask systemd: {BUSCTL}: {cause}");
    let output = Command::new(BUSCTL)
        .args(["--system", "--timeout=1", "get-property"])
        .args([SYSTEMD, path, interface, name])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(&error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(&said.lines().next().unwrap_or("no answer")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the object path of a job: `(uo) 486 "/org/freedesktop/systemd1/job/486"`. `None` if there
/// is no job: number 0.
fn path_of(job: &str) -> Result<Option<&str>, String> {
    let unknown = || format!("unknown answer of systemd: {}", job.trim_end());
    let rest = job.strip_prefix("(uo) ").ok_or_else(unknown)?;
    let (number, path) = rest.trim_end().split_once(' ').ok_or_else(unknown)?;
    let number: u32 = number.parse().map_err(|_| unknown())?;
    let path = path.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
    let path = path.filter(|it| it.starts_with('/')).ok_or_else(unknown)?;
    Ok((number != 0).then_some(path))
}

/// Returns the meaning of the type of a job: `s "restart"`.
fn meaning_of(kind: &str) -> Result<Job, String> {
    let kind = kind.trim_end();
    match kind.strip_prefix("s ").unwrap_or(kind).trim_matches('"') {
        "stop" => Ok(Job::Stop),
        // What users call try-restart and reload-or-restart becomes one of these.
        "start" | "restart" | "try-restart" => Ok(Job::Start),
        _ => Err(format!("unknown answer of systemd: {kind}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_systemd_are_understood() {
        let path = "/org/freedesktop/systemd1/job/486";
        let job = format!("(uo) 486 \"{path}\"\n");
        assert_eq!(path_of(&job), Ok(Some(path)));
        assert_eq!(path_of("(uo) 0 \"/\"\n"), Ok(None));
        for wrong in ["", "(uo) 486\n", "s \"486\"", "(uo) x \"/\"", "(uo) 4 path"] {
            assert!(path_of(wrong).is_err(), "{wrong}");
        }
        assert_eq!(meaning_of("s \"stop\"\n"), Ok(Job::Stop));
        assert_eq!(meaning_of("s \"restart\"\n"), Ok(Job::Start));
        assert_eq!(meaning_of("s \"start\"\n"), Ok(Job::Start));
        assert!(meaning_of("s \"reload\"\n").is_err());
    }
}
