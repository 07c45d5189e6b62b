//! What a worker gives up before it serves, so that a bug in it that a peer can reach is worth
//! little: other users' rights, privileges, files, new sockets, and every system call it does not
//! make.
//!
//! The layers, in order, each independent of the others: another user and group, `no_new_privs`
//! (nothing that is executed gains rights; the two last layers need it), no capabilities, not dumpable
//! (nobody of the same user may look into it), Landlock (no file, no bind, no connect, no signal to
//! others), and last, because it takes the calls for all the rest away, seccomp.
//!
//! Invariants: it is entered once everything is open that the worker will ever need, and before it
//! says Ready; whoever is to be another user and cannot does not serve, whatever `sandbox` says; a
//! layer counts as achieved only if the kernel said so. The worker has one thread, so what
//! holds for the thread holds for the process.
//!
//! Must not: open a way back.

mod calls;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::config::{Config, Sandbox};
use crate::fault;
use crate::sys::accounts;
use crate::wire::Sandboxed;

/// The newest Landlock that is asked for; an older kernel gives what it has.
const LANDLOCK: ABI = ABI::V6;

/// What a worker can be locked in with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    NoNewPrivileges,
    NoCapabilities,
    NotDumpable,
    Landlock,
    Seccomp,
}

impl Layer {
    /// In the order in which they are entered.
    const ALL: [Self; 5] = [
        Self::NoNewPrivileges,
        Self::NoCapabilities,
        Self::NotDumpable,
        Self::Landlock,
        Self::Seccomp,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::NoNewPrivileges => "no_new_privs",
            Self::NoCapabilities => "no_caps",
            Self::NotDumpable => "no_dump",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
        }
    }

    fn enter(self) -> Result<(), String> {
        match self {
            Self::NoNewPrivileges => set_no_new_privs(true).map_err(|errno| errno.to_string()),
            Self::NoCapabilities => drop_capabilities(),
            Self::NotDumpable => set_dumpable_behavior(DumpableBehavior::NotDumpable)
                .map_err(|errno| errno.to_string()),
            Self::Landlock => enter_landlock(),
            Self::Seccomp => enter_seccomp(),
        }
    }
}

/// Locks this process in as `config` says, for good: what was achieved, and what was not.
///
/// # Errors
/// Why the worker must not serve, in one line.
pub(super) fn enter(config: &Config) -> Result<Sandboxed, String> {
    let mut layers = become_account(config)?;
    let mut outcomes = Vec::new();
    if config.sandbox != Sandbox::Off {
        let lacking = fault::value("worker.sandbox_lacks");
        for layer in Layer::ALL {
            // Tests look into workers, and not everybody who runs them is root.
            if layer == Layer::NotDumpable && fault::value("worker.dumpable").is_some() {
                continue;
            }
            let outcome = match lacking {
                Some(name) if name == layer.name() => Err("a test takes it away".to_owned()),
                _ => layer.enter(),
            };
            outcomes.push((layer, outcome));
        }
    }
    let mut entered = settle(config.sandbox, outcomes)?;
    layers.append(&mut entered.layers);
    entered.layers = layers;
    Ok(entered)
}

/// What comes of how each layer went.
fn settle(mode: Sandbox, outcomes: Vec<(Layer, Result<(), String>)>) -> Result<Sandboxed, String> {
    let mut sandboxed = Sandboxed::default();
    for (layer, outcome) in outcomes {
        match outcome {
            Ok(()) => sandboxed.layers.push(layer.name().to_owned()),
            Err(why) => sandboxed.missing.push(format!("{}: {why}", layer.name())),
        }
    }
    if mode == Sandbox::Required && !sandboxed.missing.is_empty() {
        return Err(format!(
            "the sandbox is required and incomplete ({}); use a kernel and a container that have \
             it, or set sandbox to auto",
            sandboxed.missing.join("; ")
        ));
    }
    Ok(sandboxed)
}

/// Becomes the user and the group that are asked for; who that is.
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
        format!("cannot become another user or group: {error}; only root can, so start as root")
    })?;
    let named = |what: &str, name: &str| format!("{what}={name}");
    let user = user.iter().map(|user| named("user", &user.name));
    let group = group.iter().map(|group| named("group", &group.name));
    Ok(user.chain(group).collect())
}

/// The bounding set stays as it is: it matters to what is executed, and nothing is.
fn drop_capabilities() -> Result<(), String> {
    // An older kernel has no such set, and then nothing is in it.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|errno| errno.to_string())
}

/// Everything that Landlock knows is handled and nothing is allowed. Listening sockets that are
/// there, and what they accept, are not its concern.
fn enter_landlock() -> Result<(), String> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(LANDLOCK)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(LANDLOCK)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    match ruleset.map(|status| status.ruleset) {
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => Ok(()),
        Ok(RulesetStatus::NotEnforced) => Err("the kernel has none, or it is switched off".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn enter_seccomp() -> Result<(), String> {
    let text = |error: seccompiler::BackendError| error.to_string();
    let machine = TargetArch::try_from(std::env::consts::ARCH).map_err(text)?;
    let filter = SeccompFilter::new(
        calls::rules(std::process::id()).map_err(text)?,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        machine,
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(text)?;
    seccompiler::apply_filter(&program).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_missing() -> Vec<(Layer, Result<(), String>)> {
        let outcome = |layer| match layer {
            Layer::Landlock => (layer, Err("none here".to_owned())),
            _ => (layer, Ok(())),
        };
        Layer::ALL.map(outcome).to_vec()
    }

    #[test]
    fn what_is_missing_is_said_or_refused() {
        let said = settle(Sandbox::Auto, one_missing()).unwrap();
        assert_eq!(
            said.layers,
            ["no_new_privs", "no_caps", "no_dump", "seccomp"]
        );
        assert_eq!(said.missing, ["landlock: none here"]);
        let refused = settle(Sandbox::Required, one_missing()).unwrap_err();
        assert!(refused.contains("landlock: none here"), "{refused}");
        assert!(settle(Sandbox::Required, Vec::new()).is_ok());
    }

    #[test]
    fn seccomp_comes_last_and_what_it_needs_comes_first() {
        assert_eq!(Layer::ALL.first(), Some(&Layer::NoNewPrivileges));
        assert_eq!(Layer::ALL.last(), Some(&Layer::Seccomp));
    }

    #[test]
    fn a_filter_can_be_made_of_the_table() {
        let machine = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        let rules = calls::rules(1).unwrap();
        let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
        let filter = SeccompFilter::new(rules, kill, allow, machine).unwrap();
        let program: BpfProgram = filter.try_into().unwrap();
        assert!(!program.is_empty() && program.len() < 4096);
    }
}
