//! Cgroups for one server, with a limit on its memory or on its CPU time. They need root and a
//! hierarchy with the controller, of either version.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::observe::until;
use super::process::{Watched, wait_gone};
use super::{DEADLINE, Server};

/// A cgroup. Dropping it removes it; the server must have exited by then.
#[derive(Debug)]
struct Group(PathBuf);

/// A memory cgroup.
#[derive(Debug)]
pub struct MemoryGroup {
    group: Group,
    files: Files,
}

/// A cgroup with a quota of CPU time.
#[derive(Debug)]
pub struct CpuGroup {
    group: Group,
    quota: Quota,
}

/// The file of the quota and its form.
#[derive(Clone, Copy, Debug)]
enum Quota {
    /// `cpu.max`: quota and period (version 2).
    Max,
    /// `cpu.cfs_quota_us`: quota (version 1).
    Cfs,
}

/// Microseconds of the kernel's default period.
const PERIOD_US: u32 = 100_000;

/// File names of one cgroup version.
#[derive(Clone, Copy, Debug)]
struct Files {
    limit: &'static str,
    used: &'static str,
    peak: &'static str,
    kills: &'static str,
    /// Whether socket memory counts.
    counts_sockets: bool,
}

const FIRST: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    peak: "memory.max_usage_in_bytes",
    kills: "memory.oom_control",
    counts_sockets: false,
};

const SECOND: Files = Files {
    limit: "memory.max",
    used: "memory.current",
    peak: "memory.peak",
    kills: "memory.events",
    counts_sockets: true,
};

impl Group {
    /// Creates a cgroup below one of the `parents`, with what they are paired with; it must have the
    /// file that `needed` names, which one without the controller lacks.
    ///
    /// # Errors
    ///
    /// The reason why none can be created.
    fn new<T>(
        parents: impl IntoIterator<Item = (PathBuf, T)>,
        needed: impl Fn(&T) -> &'static str,
    ) -> Result<(Self, T), String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("uppercased-test-{}-{number}", std::process::id());
        let mut refusals = Vec::new();
        for (parent, kind) in parents {
            let folder = parent.join(&name);
            let group = fs::create_dir(&folder).map(|()| Self(folder));
            match group.and_then(|it| it.read(needed(&kind)).map(|_| it)) {
                Ok(group) => return Ok((group, kind)),
                Err(error) => refusals.push(format!("{}: {error}", parent.display())),
            }
        }
        Err(refusals.join("; "))
    }

    /// Returns a program, with its first arguments, that starts a server inside the cgroup.
    fn program(&self, program: &str) -> (&'static str, [String; 3]) {
        let procs = self.0.join("cgroup.procs");
        let script = format!("echo $$ > '{}' && exec \"$0\" \"$@\"", procs.display());
        ("/bin/sh", ["-c".to_owned(), script, program.to_owned()])
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(file))
    }

    #[track_caller]
    fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::write(&path, text).unwrap_or_else(|e| panic!("write {text} to {path:?}: {e}"));
    }
}

impl CpuGroup {
    /// Creates a cgroup without a quota.
    ///
    /// # Errors
    ///
    /// The reason why none can be created, for [`super::adversity::skipped`].
    pub fn new() -> Result<Self, String> {
        let file = |quota: &Quota| quota.file();
        let made = Group::new(parents("cpu", Quota::Cfs, Quota::Max), file);
        let (group, quota) = made.map_err(|why| format!("no CPU cgroup: {why}"))?;
        Ok(Self { group, quota })
    }

    /// See [`Group::program`].
    pub fn program(&self, program: &str) -> (&'static str, [String; 3]) {
        self.group.program(program)
    }

    /// Sets the quota to that of so many CPUs; `None`: to none.
    #[track_caller]
    pub fn limit(&self, cpus: Option<u32>) {
        let us = cpus.map(|cpus| (cpus * PERIOD_US).to_string());
        let text = match self.quota {
            Quota::Max => format!("{} {PERIOD_US}", us.as_deref().unwrap_or("max")),
            Quota::Cfs => us.unwrap_or_else(|| "-1".to_owned()),
        };
        self.group.write(self.quota.file(), &text);
    }
}

impl Quota {
    const fn file(self) -> &'static str {
        match self {
            Self::Max => "cpu.max",
            Self::Cfs => "cpu.cfs_quota_us",
        }
    }
}

impl MemoryGroup {
    /// Creates a cgroup without a limit.
    ///
    /// # Errors
    ///
    /// The reason why none can be created, for [`super::adversity::skipped`].
    pub fn new() -> Result<Self, String> {
        let file = |files: &Files| files.used;
        let made = Group::new(parents("memory", FIRST, SECOND), file);
        let (group, files) = made.map_err(|why| format!("no memory cgroup: {why}"))?;
        Ok(Self { group, files })
    }

    /// Moves all processes of `server` into it. Memory in use stays charged to the old group; only
    /// new memory counts.
    #[track_caller]
    pub fn take(&self, server: &Server) {
        for pid in server.processes() {
            self.take_process(pid);
        }
    }

    /// Moves one process into it.
    #[track_caller]
    pub fn take_process(&self, pid: u32) {
        self.group.write("cgroup.procs", &pid.to_string());
    }

    /// See [`Group::program`].
    pub fn program(&self, program: &str) -> (&'static str, [String; 3]) {
        self.group.program(program)
    }

    /// Sets the memory limit.
    #[track_caller]
    pub fn limit(&self, bytes: u64) {
        self.group.write(self.files.limit, &bytes.to_string());
    }

    /// Returns whether socket memory counts towards the limit.
    pub fn counts_sockets(&self) -> bool {
        self.files.counts_sockets
    }

    /// Returns the bytes in use.
    #[track_caller]
    pub fn used(&self) -> u64 {
        self.number(self.files.used).expect("what is in use")
    }

    /// Returns the peak of bytes in use; `None` if the kernel has no such file.
    pub fn peak(&self) -> Option<u64> {
        self.number(self.files.peak).ok()
    }

    /// Returns the number of processes killed by the kernel for lack of memory.
    #[track_caller]
    pub fn kills(&self) -> u64 {
        let text = self.group.read(self.files.kills).expect("its events");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.expect("a count").parse().expect("a number")
    }

    fn number(&self, file: &str) -> io::Result<u64> {
        self.group
            .read(file)?
            .trim()
            .parse()
            .map_err(io::Error::other)
    }
}

/// Returns the cgroups below which one with `controller` can be created, with what stands for their
/// version: this process's own in version 1, and its root; the root in version 2, where only a cgroup
/// without processes may have children with controllers.
fn parents<T: Copy>(controller: &str, first: T, second: T) -> Vec<(PathBuf, T)> {
    let mounts = Path::new("/sys/fs/cgroup");
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let has_it = controllers.split(',').any(|it| it == controller);
        let path = fields.next().filter(|_| has_it)?;
        let mount = mounts.join(controllers);
        Some([mount.join(path.trim_start_matches('/')), mount])
    });
    let own = own.into_iter().flatten().map(|parent| (parent, first));
    own.chain([(mounts.to_owned(), second)]).collect()
}

impl Drop for Group {
    fn drop(&mut self) {
        // Remaining processes belong to the server, which has been killed by now.
        let inside = self.read("cgroup.procs").unwrap_or_default();
        for pid in inside.lines().filter_map(|pid| pid.parse().ok()) {
            if Watched::open(pid).is_some() {
                wait_gone(pid, DEADLINE);
            }
        }
        let removed = fs::remove_dir(&self.0);
        if !std::thread::panicking() {
            // An exited process leaves the cgroup with a delay.
            if removed.is_err() {
                until("the cgroup is empty", || fs::remove_dir(&self.0).is_ok());
            }
        }
    }
}
