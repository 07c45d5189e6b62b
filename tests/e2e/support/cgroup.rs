//! A memory cgroup for one server. Needs root and a hierarchy with the memory controller, of either
//! version.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::observe::until;
use super::process::{Watched, wait_gone};
use super::{DEADLINE, Server};

/// A memory cgroup. Dropping it removes it; the server must have exited by then.
#[derive(Debug)]
pub struct MemoryGroup {
    folder: PathBuf,
    files: Files,
}

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

impl MemoryGroup {
    /// Creates a cgroup without a limit.
    ///
    /// # Errors
    ///
    /// The reason why none can be created, for [`super::adversity::skipped`].
    pub fn new() -> Result<Self, String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("uppercased-test-{}-{number}", std::process::id());
        let mut refusals = Vec::new();
        for (parent, files) in parents() {
            let folder = parent.join(&name);
            let made = fs::create_dir(&folder);
            let group = made.map(|()| Self { folder, files });
            // A cgroup without the controller lacks these files.
            match group.and_then(|it| it.number(files.used).map(|_| it)) {
                Ok(group) => return Ok(group),
                Err(error) => refusals.push(format!("{}: {error}", parent.display())),
            }
        }
        Err(format!("no memory cgroup: {}", refusals.join("; ")))
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
        self.write("cgroup.procs", &pid.to_string());
    }

    /// Returns a program, with its first arguments, that starts a server inside the cgroup.
    pub fn program(&self, program: &str) -> (&'static str, [String; 3]) {
        let procs = self.folder.join("cgroup.procs");
        let script = format!("echo $$ > '{}' && exec \"$0\" \"$@\"", procs.display());
        ("/bin/sh", ["-c".to_owned(), script, program.to_owned()])
    }

    /// Sets the memory limit.
    #[track_caller]
    pub fn limit(&self, bytes: u64) {
        self.write(self.files.limit, &bytes.to_string());
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
        let text = fs::read_to_string(self.folder.join(self.files.kills)).expect("its events");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.expect("a count").parse().expect("a number")
    }

    fn number(&self, file: &str) -> io::Result<u64> {
        let text = fs::read_to_string(self.folder.join(file))?;
        text.trim().parse().map_err(io::Error::other)
    }

    #[track_caller]
    fn write(&self, file: &str, text: &str) {
        let path = self.folder.join(file);
        fs::write(&path, text).unwrap_or_else(|e| panic!("write {text} to {path:?}: {e}"));
    }
}

/// Returns the cgroups below which one can be created: this process's own in version 1; the root in
/// version 2, where only a cgroup without processes may have children with controllers.
fn parents() -> Vec<(PathBuf, Files)> {
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut fields = memberships.lines().map(|line| line.splitn(3, ':').skip(1));
    let own = fields.find_map(|mut fields| {
        let controllers = fields.next()?;
        let memory = controllers.split(',').any(|it| it == "memory");
        memory.then(|| fields.next())?
    });
    let first = Path::new("/sys/fs/cgroup/memory");
    let own = own.map(|path| first.join(path.trim_start_matches('/')));
    let first = own.into_iter().chain([first.to_owned()]);
    let first = first.map(|parent| (parent, FIRST));
    first
        .chain([(PathBuf::from("/sys/fs/cgroup"), SECOND)])
        .collect()
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Remaining processes belong to the server, which has been killed by now.
        let inside = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines().filter_map(|pid| pid.parse().ok()) {
            if Watched::open(pid).is_some() {
                wait_gone(pid, DEADLINE);
            }
        }
        let removed = fs::remove_dir(&self.folder);
        if !std::thread::panicking() {
            // An exited process leaves the cgroup with a delay.
            if removed.is_err() {
                until("the cgroup is empty", || {
                    fs::remove_dir(&self.folder).is_ok()
                });
            }
        }
    }
}
