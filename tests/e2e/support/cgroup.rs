//! A memory cgroup for one server, where this machine lets a test make one: root, and a hierarchy with
//! the memory controller, of either version.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::observe::until;
use super::process::{Watched, wait_gone};
use super::{DEADLINE, Server};

/// Removed when dropped, after the server.
#[derive(Debug)]
pub struct MemoryGroup {
    folder: PathBuf,
    files: Files,
}

/// What the files of one version are called.
#[derive(Clone, Copy, Debug)]
struct Files {
    limit: &'static str,
    used: &'static str,
    peak: &'static str,
    kills: &'static str,
    /// Whether what sockets hold counts here.
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
    /// A new one, without a limit.
    ///
    /// # Errors
    ///
    /// Why there can be none here, to be told by [`super::adversity::skipped`].
    pub fn new() -> Result<Self, String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("uppercased-test-{}-{number}", std::process::id());
        let mut refusals = Vec::new();
        for (parent, files) in parents() {
            let folder = parent.join(&name);
            let made = fs::create_dir(&folder);
            let group = made.map(|()| Self { folder, files });
            // Without the controller it is a cgroup and nothing more.
            match group.and_then(|it| it.number(files.used).map(|_| it)) {
                Ok(group) => return Ok(group),
                Err(error) => refusals.push(format!("{}: {error}", parent.display())),
            }
        }
        Err(format!("no memory cgroup: {}", refusals.join("; ")))
    }

    /// Moves all of `server` into it. What it has by now stays where it was counted; what counts is
    /// what comes.
    #[track_caller]
    pub fn take(&self, server: &Server) {
        for pid in server.processes() {
            self.write("cgroup.procs", &pid.to_string());
        }
    }

    /// The program of a server that is born in it, and its first arguments.
    pub fn program(&self, program: &str) -> (&'static str, [String; 3]) {
        let procs = self.folder.join("cgroup.procs");
        let script = format!("echo $$ > '{}' && exec \"$0\" \"$@\"", procs.display());
        ("/bin/sh", ["-c".to_owned(), script, program.to_owned()])
    }

    /// Limits it.
    #[track_caller]
    pub fn limit(&self, bytes: u64) {
        self.write(self.files.limit, &bytes.to_string());
    }

    /// Whether what sockets hold counts towards the limit.
    pub fn counts_sockets(&self) -> bool {
        self.files.counts_sockets
    }

    /// Bytes in use now.
    #[track_caller]
    pub fn used(&self) -> u64 {
        self.number(self.files.used).expect("what is in use")
    }

    /// The most that was ever in use; `None` where the kernel does not say.
    pub fn peak(&self) -> Option<u64> {
        self.number(self.files.peak).ok()
    }

    /// Processes that were killed for want of memory.
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

/// Below which cgroups one may be made: this process's own, in the first version; the root in the
/// second, where only a cgroup without processes may have children with controllers.
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
        // Whoever is still in it is a server's, which has been killed by now.
        let inside = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines().filter_map(|pid| pid.parse().ok()) {
            if Watched::open(pid).is_some() {
                wait_gone(pid, DEADLINE);
            }
        }
        let removed = fs::remove_dir(&self.folder);
        if !std::thread::panicking() {
            // A process that has ended leaves it a moment later.
            if removed.is_err() {
                until("the cgroup is empty", || {
                    fs::remove_dir(&self.folder).is_ok()
                });
            }
        }
    }
}
