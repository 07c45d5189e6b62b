//! The number of CPUs that this process may use: its affinity, and the quota of its cgroups.
//!
//! The files of the quota are opened once and then read in place, so that a later count costs a few
//! system calls that wait for nothing, and needs no descriptor: without one a quota would seem to
//! have vanished. Source: cgroup-v2.rst (`cpu.max`) and sched-bwc.rst (`cpu.cfs_quota_us`) of the
//! kernel.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::cpus;

/// Where the hierarchies of cgroups are mounted.
const MOUNTS: &str = "/sys/fs/cgroup";
/// The membership of this process.
const MEMBERSHIP: &str = "/proc/self/cgroup";
/// Bytes of a limit: two numbers of microseconds.
const LIMIT_MAX_BYTES: usize = 64;

/// The cgroups that limit this process.
#[derive(Debug, Default)]
pub struct Quota {
    limits: Vec<Limit>,
}

/// The files of one cgroup.
#[derive(Debug)]
enum Limit {
    /// `cpu.max`: quota and period (version 2).
    Max(File),
    /// `cpu.cfs_quota_us` and `cpu.cfs_period_us` (version 1).
    Cfs { quota: File, period: File },
}

impl Quota {
    /// Returns the cgroups of this process. None limits it if they cannot be read.
    #[must_use]
    pub fn of_this_process() -> Self {
        let membership = std::fs::read_to_string(MEMBERSHIP).unwrap_or_default();
        Self::below(Path::new(MOUNTS), &membership)
    }

    /// Returns the cgroups in `membership`, and all above them, in the hierarchies at `mounts`.
    fn below(mounts: &Path, membership: &str) -> Self {
        let mut limits = Vec::new();
        for line in membership.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) =
                (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                limits.extend(above(mounts, path).filter_map(|group| Limit::max(&group)));
            } else if controllers.split(',').any(|name| name == "cpu") {
                let mount = mounts.join(controllers);
                limits.extend(above(&mount, path).filter_map(|group| Limit::cfs(&group)));
            }
        }
        Self { limits }
    }

    /// Returns the number of CPUs, at least 1: those of the affinity, or as many as the smallest
    /// quota pays for.
    ///
    /// # Errors
    /// The error of reading the affinity or a limit.
    pub fn cpus(&self) -> io::Result<u16> {
        let mut cpus = cpus::usable()?.len();
        for limit in &self.limits {
            cpus = limit.cpus()?.map_or(cpus, |paid| paid.min(cpus));
        }
        Ok(u16::try_from(cpus.max(1)).unwrap_or(u16::MAX))
    }
}

/// Returns the folder at `path` below `mount`, and all between them. A container may not have the
/// lower ones: its mount is its own cgroup.
fn above<'a>(mount: &'a Path, path: &'a str) -> impl Iterator<Item = std::path::PathBuf> + 'a {
    let folders = Path::new(path).ancestors();
    folders.map(move |folder| mount.join(folder))
}

impl Limit {
    fn max(group: &Path) -> Option<Self> {
        File::open(group.join("cpu.max")).ok().map(Self::Max)
    }

    fn cfs(group: &Path) -> Option<Self> {
        Some(Self::Cfs {
            quota: File::open(group.join("cpu.cfs_quota_us")).ok()?,
            period: File::open(group.join("cpu.cfs_period_us")).ok()?,
        })
    }

    /// Returns the number of CPUs that the quota pays for; `None` without one.
    fn cpus(&self) -> io::Result<Option<usize>> {
        let (quota, period) = match self {
            Self::Max(file) => {
                let text = read(file)?;
                let mut words = text.split_whitespace();
                let quota = words.next().and_then(|word| word.parse().ok());
                (quota, words.next().and_then(|word| word.parse().ok()))
            }
            Self::Cfs { quota, period } => {
                let number = |file| io::Result::Ok(read(file)?.trim().parse::<usize>().ok());
                (number(quota)?, number(period)?)
            }
        };
        // Without a quota the first is "max", or -1.
        Ok(quota
            .zip(period)
            .and_then(|(quota, period)| quota.checked_div(period)))
    }
}

fn read(file: &File) -> io::Result<String> {
    let mut bytes = [0; LIMIT_MAX_BYTES];
    let read = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Returns the CPUs with these files, of a machine that has as many as this one.
    fn with(files: &[(&str, &str)], membership: &str) -> (tempfile::TempDir, Quota) {
        let mounts = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = mounts.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let quota = Quota::below(mounts.path(), membership);
        (mounts, quota)
    }

    fn paid(quota: &Quota) -> Vec<Option<usize>> {
        let paid = quota.limits.iter().map(|limit| limit.cpus().unwrap());
        paid.collect()
    }

    #[test]
    fn quota_of_each_version_is_read() {
        let files = [
            ("a/b/cpu.max", "150000 100000\n"),
            ("a/cpu.max", "max 100000\n"),
        ];
        let (mounts, quota) = with(&files, "0::/a/b\n");
        assert_eq!(paid(&quota), [Some(1), None]);
        assert_eq!(quota.cpus().unwrap(), 1);
        fs::write(mounts.path().join("a/b/cpu.max"), "max 100000\n").unwrap();
        let all = cpus::usable().unwrap().len();
        assert_eq!(
            usize::from(quota.cpus().unwrap()),
            all,
            "the same file is read again"
        );

        // A container has its own cgroup at the mount, and the path of the host.
        let files = [
            ("cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
            ("cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ];
        let membership = "5:memory:/x\n4:cpu,cpuacct:/docker/1\n0::/\n";
        let (mounts, quota) = with(&files, membership);
        assert_eq!(paid(&quota), [Some(0)]);
        assert_eq!(quota.cpus().unwrap(), 1);
        fs::write(mounts.path().join(files[0].0), "-1\n").unwrap();
        assert_eq!(paid(&quota), [None]);
    }

    #[test]
    fn own_count_agrees_with_standard_library() {
        let standard = std::thread::available_parallelism().unwrap().get();
        let own = Quota::of_this_process().cpus().unwrap();
        assert_eq!(usize::from(own), standard);
    }
}
