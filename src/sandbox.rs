//! Drops privileges before serving untrusted peers: other users' rights, capabilities, files, new
//! sockets, and every unused system call. So a bug that a peer can reach gains little. Workers and
//! the admin process use it; they differ in their system calls.
//!
//! The layers, in order, each independent of the others: another user and group, `no_new_privs` (no
//! executed program gains rights; the last two layers need it), no capabilities, not dumpable (no
//! process of the same user may inspect it), Landlock (no file, no bind, no connect, no signal to
//! others), and last, because it forbids the system calls of all the others, seccomp.
//!
//! Invariants: the sandbox is entered once every resource that the process needs is open, and
//! before it reports Ready; a process that must change its user and cannot does not serve, whatever
//! `sandbox` is set to; a layer counts as achieved only if the kernel confirmed it. All layers but
//! the last hold for the calling thread and those that it starts later, so [`begin`] comes before a
//! process's threads; the last one, [`PartialSandbox::finish`], covers all of them, and none can be
//! started after it.
//!
//! It must not be reversible.

pub(crate) mod calls;

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits, set_no_new_privs,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::config::{Config, Sandbox};
use crate::fault;
use crate::sys::accounts;
use uppercased_ctl::status::Sandboxed;

use calls::Role;
use uppercased_ctl::words;

/// The newest Landlock version that is requested; an older kernel supports less.
const LANDLOCK: ABI = ABI::V10;
/// The first version that covers every goal here. Later additions (connecting by the path of a Unix
/// socket, UDP) are used where the kernel supports them.
const LANDLOCK_WHOLE: ABI = ABI::V6;
/// The first version that covers TCP.
const LANDLOCK_TCP: ABI = ABI::V4;

words! {
    /// The layers of a sandbox.
    enum Layer {
        NoNewPrivileges = "no_new_privs",
        NoCapabilities = "no_caps",
        NotDumpable = "no_dump",
        Landlock = "landlock",
        Seccomp = "seccomp",
    }
}

/// The result of each layer that was tried; for one supported only in part, the parts.
type Outcomes = Vec<(Layer, Result<Option<&'static str>, String>)>;

/// A process with all layers entered but the last.
#[derive(Debug)]
#[must_use = "the process is not sandboxed before its system calls are filtered"]
pub(crate) struct PartialSandbox {
    mode: Sandbox,
    /// The user that it runs as.
    accounts: Vec<String>,
    outcomes: Outcomes,
}

/// Enters all layers but the system call filter, as configured, irreversibly, for this thread and
/// those that it starts later.
///
/// # Errors
/// Why the process must not serve, in one line.
pub(crate) fn begin(config: &Config) -> Result<PartialSandbox, String> {
    let mut partial = PartialSandbox {
        mode: config.sandbox,
        accounts: Vec::new(),
        outcomes: Vec::new(),
    };
    // After a change of user the process may no longer do this.
    let limited = match partial.mode {
        Sandbox::Off => Ok(()),
        Sandbox::Auto | Sandbox::Required => limit_capabilities(),
    };
    partial.accounts = become_account(config)?;
    partial.enter(Layer::NoNewPrivileges, || {
        set_no_new_privs(true).map_err(text).map(whole)
    });
    partial.enter(Layer::NoCapabilities, || {
        limited.and_then(|()| drop_capabilities()).map(whole)
    });
    partial.enter(Layer::NotDumpable, || {
        let set = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        set.map_err(text).map(whole)
    });
    partial.enter(Layer::Landlock, enter_landlock);
    fault::point("sandbox.begun");
    Ok(partial)
}

impl PartialSandbox {
    fn enter(
        &mut self,
        layer: Layer,
        enter: impl FnOnce() -> Result<Option<&'static str>, String>,
    ) {
        if self.mode == Sandbox::Off {
            return;
        }
        let failed = fault::fail(&format!("sandbox.{}", layer.name()));
        let outcome = failed.map_err(text).and_then(|()| enter());
        self.outcomes.push((layer, outcome));
    }

    /// Restricts every thread of this process to the system calls of its role. Returns the layers
    /// achieved and those missing.
    ///
    /// # Errors
    /// Why the process must not serve, in one line.
    pub(crate) fn finish(mut self, role: Role) -> Result<Sandboxed, String> {
        self.enter(Layer::Seccomp, || enter_seccomp(role).map(whole));
        let mut sandboxed = summarize(self.mode, self.outcomes)?;
        sandboxed.layers.splice(..0, self.accounts);
        Ok(sandboxed)
    }
}

/// Combines the results of the layers.
fn summarize(mode: Sandbox, outcomes: Outcomes) -> Result<Sandboxed, String> {
    let mut sandboxed = Sandboxed::default();
    for (layer, outcome) in outcomes {
        match outcome {
            Ok(None) => sandboxed.layers.push(layer.name().to_owned()),
            Ok(Some(parts)) => sandboxed.layers.push(format!("{}={parts}", layer.name())),
            Err(why) => sandboxed.missing.push(format!("{}: {why}", layer.name())),
        }
    }
    if mode == Sandbox::Required && !sandboxed.missing.is_empty() {
        return Err(format!(
            "cannot complete the required sandbox ({}); use a kernel and container that support \
             it, or set sandbox = auto",
            sandboxed.missing.join("; ")
        ));
    }
    Ok(sandboxed)
}

/// Changes to the configured user and group; returns the user.
fn become_account(config: &Config) -> Result<Vec<String>, String> {
    let (user, group) = (&config.user, &config.group);
    if user.is_none() && group.is_none() {
        return Ok(Vec::new());
    }
    let unknown = || "the user or group was not looked up".to_owned();
    let (user_id, primary) = match user {
        Some(user) => (Some(user.id.ok_or_else(unknown)?), user.primary_group),
        None => (None, None),
    };
    let group_id = match group {
        Some(group) => Some(group.id.ok_or_else(unknown)?),
        None => primary,
    };
    if group_id.is_none() {
        return Err("the user has no primary group; set group".to_owned());
    }
    accounts::become_account(user_id, group_id).map_err(|error| {
        format!(
            "cannot switch user or group: {error}; it requires CAP_SETUID and CAP_SETGID, and in a \
             user namespace a mapping for the user and setgroups"
        )
    })?;
    let named = |what: &str, name: &str| format!("{what}={name}");
    let user = user.iter().map(|user| named("user", &user.name));
    let group = group.iter().map(|group| named("group", &group.name));
    Ok(user.chain(group).collect())
}

/// Prevents any capability from coming back, even by executing a program as root: the bounding set
/// is emptied, and being root grants none. Only a process with `CAP_SETPCAP` can do so, and only it
/// needs to: without any capability `no_new_privs` suffices.
fn limit_capabilities() -> Result<(), String> {
    let mine = capabilities(None).map_err(text)?;
    if !mine.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    // In numerical order, up to the last one that the kernel supports.
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno.to_string()),
        }
    }
    // Changing the user must remove the capabilities: of NO_SETUID_FIXUP only the lock is set.
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(bits).map_err(text)
}

fn drop_capabilities() -> Result<(), String> {
    // An older kernel has no such set.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(text)
}

/// Handles everything that Landlock covers and allows nothing. Existing listening sockets, and
/// connections accepted from them, are not affected.
fn enter_landlock() -> Result<Option<&'static str>, String> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(LANDLOCK)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(LANDLOCK)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    let ruleset = ruleset.map_err(text)?;
    match (ruleset.ruleset, ruleset.landlock) {
        (
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced,
            LandlockStatus::Available { effective_abi, .. },
        ) => Ok(parts_of(effective_abi)),
        _ => Err("the kernel does not support it, or it is disabled".into()),
    }
}

/// Returns what a kernel with this Landlock version prevents, if that is not every goal.
fn parts_of(landlock: ABI) -> Option<&'static str> {
    if landlock >= LANDLOCK_WHOLE {
        None
    } else if landlock >= LANDLOCK_TCP {
        Some("files,tcp")
    } else {
        Some("files")
    }
}

/// A layer that a kernel supports fully or not at all.
const fn whole((): ()) -> Option<&'static str> {
    None
}

fn enter_seccomp(role: Role) -> Result<(), String> {
    let machine = TargetArch::try_from(std::env::consts::ARCH).map_err(text)?;
    let filter = SeccompFilter::new(
        calls::rules(role, std::process::id()).map_err(text)?,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        machine,
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(text)?;
    seccompiler::apply_filter_all_threads(&program).map_err(text)
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_missing() -> Outcomes {
        vec![
            (Layer::NoNewPrivileges, Ok(None)),
            (Layer::Landlock, Err("none here".to_owned())),
            (Layer::Seccomp, Ok(None)),
        ]
    }

    #[test]
    fn missing_layer_is_reported_or_refused() {
        let sandboxed = summarize(Sandbox::Auto, one_missing()).unwrap();
        assert_eq!(sandboxed.layers, ["no_new_privs", "seccomp"]);
        assert_eq!(sandboxed.missing, ["landlock: none here"]);
        let refused = summarize(Sandbox::Required, one_missing()).unwrap_err();
        assert!(refused.contains("landlock: none here"), "{refused}");
        assert!(summarize(Sandbox::Required, Vec::new()).is_ok());
    }

    #[test]
    fn older_landlock_is_described_by_parts() {
        let layers = |landlock| {
            let outcomes = vec![(Layer::Landlock, Ok(parts_of(landlock)))];
            summarize(Sandbox::Required, outcomes).unwrap().layers
        };
        assert_eq!(layers(ABI::V3), ["landlock=files"]);
        assert_eq!(layers(ABI::V5), ["landlock=files,tcp"]);
        assert_eq!(layers(ABI::V6), ["landlock"]);
        assert_eq!(layers(LANDLOCK), ["landlock"]);
    }

    #[test]
    fn table_makes_a_filter() {
        let machine = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        for role in [Role::Worker, Role::Admin] {
            let rules = calls::rules(role, 1).unwrap();
            let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
            let filter = SeccompFilter::new(rules, kill, allow, machine).unwrap();
            let program: BpfProgram = filter.try_into().unwrap();
            assert!(!program.is_empty() && program.len() < 4096, "{role:?}");
        }
    }
}
