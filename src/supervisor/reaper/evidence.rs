//! Finds the cause of a crash from the exit status of a process that has sent no error message.
//!
//! Invariants: a cause is named only on evidence: the signal of a filter, or a kernel count that
//! has risen; each counted kill explains one crash, and only one that is found soon after it. Files
//! are read only at the start and after a process was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::{SIGKILL, SIGSYS};

use uppercased_ctl::clock::Tick;

use crate::supervisor::machine::ExitStatus;

/// Maximum time between a counted kill and the crash that it explains. Several processes may be
/// killed before the first is found; one that is killed by hand much later was not killed for
/// memory.
const EXPLAINS_FOR: Duration = Duration::from_secs(5);

/// The kernel's count of processes that it has killed for lack of memory.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    seen: Option<OomKills>,
    /// Kills that have not explained a crash yet.
    unexplained: u64,
    risen: Tick,
}

/// A count, and its file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OomKills {
    file: PathBuf,
    count: u64,
}

impl Evidence {
    /// Reads the present evidence.
    pub(crate) fn gathered() -> Self {
        Self {
            seen: OomKills::counted(),
            ..Self::default()
        }
    }

    /// Returns the cause of a crash with this status, if there is evidence.
    pub(crate) fn cause_of(&mut self, exit: ExitStatus, now: Tick) -> Option<String> {
        match exit {
            ExitStatus::Signalled(SIGSYS) => {
                Some("its sandbox refused a system call; use sandbox=off to allow it".to_owned())
            }
            ExitStatus::Signalled(SIGKILL) => {
                let file = self.explain(OomKills::counted(), now)?;
                let file = file.display();
                Some(format!(
                    "the kernel was out of memory (oom_kill in {file} rose); give it more, or lower \
                     max_connections"
                ))
            }
            _ => None,
        }
    }

    /// Uses up one kill as an explanation, if there is one; returns the file that counted it.
    fn explain(&mut self, counted: Option<OomKills>, now: Tick) -> Option<PathBuf> {
        if now.since(self.risen) > EXPLAINS_FOR {
            self.unexplained = 0;
        }
        let before = std::mem::replace(&mut self.seen, counted);
        let seen = self.seen.as_ref()?;
        // After a move to another cgroup there is nothing to compare with.
        let before = before.filter(|before| before.file == seen.file)?;
        let rise = seen.count.saturating_sub(before.count);
        if rise > 0 {
            self.unexplained += rise;
            self.risen = now;
        }
        self.unexplained = self.unexplained.checked_sub(1)?;
        Some(seen.file.clone())
    }
}

impl OomKills {
    /// Reads the count of this process's own cgroup, which includes its children, or that of the
    /// whole machine if the cgroup has none.
    fn counted() -> Option<Self> {
        let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        places(&memberships).into_iter().find_map(|file| {
            let count = oom_kills(&fs::read_to_string(&file).ok()?)?;
            Some(Self { file, count })
        })
    }
}

/// Returns the files that may have the count, the nearest first, from the lines of
/// `/proc/self/cgroup`. A container may show its own cgroup as the root.
fn places(memberships: &str) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.events"),
            some if some.split(',').any(|it| it == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.oom_control")
            }
            _ => continue,
        };
        let root = Path::new(root);
        let own = root.join(path.trim_start_matches('/')).join(name);
        places.extend([own, root.join(name)]);
    }
    places.push(PathBuf::from("/proc/vmstat"));
    places
}

/// Returns the value of `oom_kill` in a file of names and values.
fn oom_kills(text: &str) -> Option<u64> {
    let values = text.lines().filter_map(|line| line.split_once(' '));
    let mut of_kills = values.filter(|(name, _)| *name == "oom_kill");
    of_kills.next()?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(count: u64) -> Option<OomKills> {
        let file = PathBuf::from("memory.events");
        Some(OomKills { file, count })
    }

    fn evidence(count: u64) -> Evidence {
        Evidence {
            seen: counted(count),
            ..Evidence::default()
        }
    }

    const fn at(ms: u64) -> Tick {
        Tick::from_millis(ms)
    }

    #[test]
    fn each_kill_explains_one_death() {
        let mut evidence = evidence(3);
        assert_eq!(evidence.explain(counted(3), at(1_000)), None, "by hand");
        // Two are killed before the first is found.
        assert!(evidence.explain(counted(5), at(2_000)).is_some());
        assert!(evidence.explain(counted(5), at(2_100)).is_some());
        assert_eq!(evidence.explain(counted(5), at(2_200)), None, "by hand");
    }

    #[test]
    fn foreign_kill_explains_no_later_death() {
        let mut evidence = evidence(0);
        assert!(evidence.explain(counted(2), at(1_000)).is_some());
        assert_eq!(evidence.explain(counted(2), at(7_000)), None);
    }

    #[test]
    fn counts_of_different_cgroups_are_not_compared() {
        let mut evidence = evidence(0);
        let elsewhere = |count| {
            let file = PathBuf::from("/proc/vmstat");
            Some(OomKills { file, count })
        };
        assert_eq!(evidence.explain(elsewhere(9), at(1)), None);
        assert_eq!(evidence.explain(None, at(2)), None);
        assert_eq!(evidence.explain(elsewhere(10), at(3)), None);
        assert!(evidence.explain(elsewhere(11), at(4)).is_some());
    }

    #[test]
    fn nearest_count_is_read_first() {
        let first = |text: &str| places(text).remove(0).display().to_string();
        assert_eq!(
            first("0::/system.slice/it.service\n"),
            "/sys/fs/cgroup/system.slice/it.service/memory.events"
        );
        assert_eq!(
            first("5:cpu,memory:/a:b\n1:cpu:/c\n0::/\n"),
            "/sys/fs/cgroup/memory/a:b/memory.oom_control"
        );
        assert_eq!(first(""), "/proc/vmstat");
        assert_eq!(first("nonsense"), "/proc/vmstat");
    }

    #[test]
    fn kernel_files_are_parsed() {
        assert_eq!(
            oom_kills("low 0\noom 7\noom_kill 2\noom_group_kill 1\n"),
            Some(2)
        );
        assert_eq!(
            oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
            Some(4)
        );
        assert_eq!(oom_kills("low 0\n"), None);
        assert!(OomKills::counted().is_some(), "this kernel counts");
    }
}
