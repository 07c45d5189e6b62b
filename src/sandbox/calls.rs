//! The system calls that a sandboxed process makes: what the filter allows.
//!
//! Pure: a table for each role, and the filter's rules made from it. Any other call ends the
//! process, so a new call in a loop needs a row here. Calls on the serving path have no condition:
//! the kernel then decides from a bitmap and runs no filter.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// The role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Serves clients.
    Worker,
    /// Serves the admin endpoint, with threads.
    Admin,
}

/// Calls of both roles, allowed with any arguments. Those marked as seen were traced in sandboxed
/// workers during all end-to-end tests; the others have the reason beside them.
const COMMON: &[libc::c_long] = &[
    // Connections: accept, receive, send, end; all seen.
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_close,
    // The proxy that a client came through, for the log; seen.
    libc::SYS_getpeername,
    // The channel and a handover: messages with descriptors; seen.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    // Log lines: seen; and into a shared file, or a terminal, which is polled first.
    libc::SYS_write,
    libc::SYS_ppoll,
    // The time, where the vDSO does not provide it (some virtual machines).
    libc::SYS_clock_gettime,
    // Memory: the allocator grows (seen), grows in place, and releases memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // The standard library: locks (seen), the seed of a hash map.
    libc::SYS_futex,
    libc::SYS_getrandom,
    // The C library's message about a corrupted heap, and an abort (seen).
    libc::SYS_writev,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    // Return from the handler of a fault, and from a stop during a wait.
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    // The end of the first thread and of the process; seen.
    libc::SYS_sigaltstack,
    libc::SYS_exit_group,
];

/// The event loop; seen, where the architecture has no older call.
const WORKER: &[libc::c_long] = &[
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    // Which listener a connection of a dead process came from.
    libc::SYS_getsockname,
];

const ADMIN: &[libc::c_long] = &[
    // The supervisor's answers; seen.
    libc::SYS_read,
    // Threads: they wait for each other, get their own memory, and exit.
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
];

/// `uretprobe` and `uprobe`: called by code that the kernel inserted, and refused elsewhere. Not in
/// every C library's list yet.
#[cfg(target_arch = "x86_64")]
const PROBES: &[libc::c_long] = &[335, 336];
#[cfg(not(target_arch = "x86_64"))]
const PROBES: &[libc::c_long] = &[];

/// Calls that only older architectures have.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// Allowed `fcntl` commands: testing whether a descriptor is open (debug builds do so before each
/// close, seen), and duplicating one (for unsent data). None of those that send signals.
const FCNTL_COMMANDS: [libc::c_int; 2] = [libc::F_GETFD, libc::F_DUPFD_CLOEXEC];

/// Socket options that may be set, at the level `SOL_SOCKET`. A listener is shared with the
/// supervisor, and its group with every sibling: an option could give all new connections to one
/// worker.
const fn socket_options(role: Role) -> &'static [libc::c_int] {
    match role {
        // Selects between reset and graceful, non-blocking close; seen. A compromised worker could
        // set it on a shared listener, so every close by a worker clears it
        // ([`crate::sys::socket::Socket::close`]), and so does the receiver of every descriptor
        // from a channel. Resetting a connection by another call would need `connect` to dissolve
        // it, which would also allow connecting it again.
        Role::Worker => &[libc::SO_LINGER],
        // The timeout for a client, also cleared on what a channel delivers; seen.
        Role::Admin => &[libc::SO_LINGER, libc::SO_RCVTIMEO, libc::SO_SNDTIMEO],
    }
}

/// How a worker clones its keeper: sharing descriptors and parent, in no other way.
const CLONE_FLAGS: libc::c_int =
    libc::CLONE_FILES | libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;

/// Socket options that a worker may read, with their level: what tells the connections and the
/// handovers of a dead process from other sockets, the kernel's byte counters of each and its number
/// for the log, and the user of a process that connects to adopt the worker.
const READ_OPTIONS: [(libc::c_int, libc::c_int); 7] = [
    (libc::SOL_SOCKET, libc::SO_COOKIE),
    (libc::SOL_SOCKET, libc::SO_TYPE),
    (libc::SOL_SOCKET, libc::SO_PROTOCOL),
    (libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
    (libc::SOL_SOCKET, libc::SO_PEERCRED),
    (libc::IPPROTO_TCP, libc::TCP_INFO),
    (libc::IPPROTO_TCP, libc::TCP_ULP),
];

/// Requests that a worker may make: bytes not read, and bytes not acknowledged, of a connection.
const REQUESTS: [libc::Ioctl; 2] = [libc::FIONREAD, libc::TIOCOUTQ];

/// Returns the filter's rules for the process with ID `pid`: a call without rules is always
/// allowed.
///
/// # Errors
/// A condition that cannot be expressed; none of these is known to be.
pub(crate) fn rules(role: Role, pid: u32) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let only = |argument, how, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, Dword, how, value)?])
    };
    let is = |argument, value: libc::c_int| {
        SeccompCondition::new(argument, Dword, Eq, value.unsigned_abs().into())
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        always(role).map(|call| (call, Vec::new())).collect();
    // To itself only: an abort, by either of the two calls that C libraries use.
    for call in [libc::SYS_tkill, libc::SYS_tgkill] {
        rules.insert(call, vec![only(0, Eq, pid.into())?]);
    }
    // Memory, but none that is executable, and no mapping of an open file.
    let executable = MaskedEq(libc::PROT_EXEC.unsigned_abs().into());
    let anonymous = u64::from(libc::MAP_ANONYMOUS.unsigned_abs());
    let plain = SeccompCondition::new(2, Dword, executable.clone(), 0)?;
    let fresh = SeccompCondition::new(3, Dword, MaskedEq(anonymous), anonymous)?;
    rules.insert(libc::SYS_mmap, vec![SeccompRule::new(vec![plain, fresh])?]);
    rules.insert(libc::SYS_mprotect, vec![only(2, executable, 0)?]);
    let commands = FCNTL_COMMANDS.map(|command| only(1, Eq, u64::from(command.unsigned_abs())));
    let commands: Result<Vec<_>, _> = commands.into_iter().collect();
    rules.insert(libc::SYS_fcntl, commands?);
    let options = socket_options(role).iter();
    let options = options
        .map(|&option| SeccompRule::new(vec![is(1, libc::SOL_SOCKET)?, is(2, option)?]))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_setsockopt, options);
    // The other ways would end a shared listener for every worker, permanently.
    let end = vec![only(1, Eq, libc::SHUT_WR.unsigned_abs().into())?];
    rules.insert(libc::SYS_shutdown, end);
    // At the current file position, without waiting: not over data written by others.
    let current = SeccompCondition::new(3, Qword, Eq, u64::MAX)?;
    let line = SeccompRule::new(vec![current, is(5, libc::RWF_NOWAIT)?])?;
    rules.insert(libc::SYS_pwritev2, vec![line]);
    if role == Role::Worker {
        rules.extend(survival_rules()?);
    }
    Ok(rules)
}

/// Returns the rules for a worker whose supervisor or process dies: which signals it takes, and how
/// its keeper is made, waits, and repairs what a dead process left.
fn survival_rules() -> Result<[(i64, Vec<SeccompRule>); 7], BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    let is = |argument, length, value: libc::c_int| {
        let value = value.unsigned_abs().into();
        SeccompCondition::new(argument, length, SeccompCmpOp::Eq, value)
    };
    let of_keeper = vec![is(0, Qword, CLONE_FLAGS)?, is(1, Qword, 0)?];
    let options = READ_OPTIONS
        .map(|(level, option)| SeccompRule::new(vec![is(1, Dword, level)?, is(2, Dword, option)?]));
    let requests = REQUESTS.map(|request| {
        let request = SeccompCondition::new(1, Dword, SeccompCmpOp::Eq, request)?;
        SeccompRule::new(vec![request])
    });
    Ok([
        (libc::SYS_clone, vec![SeccompRule::new(of_keeper)?]),
        (
            libc::SYS_pidfd_open,
            vec![SeccompRule::new(vec![is(1, Dword, 0)?])?],
        ),
        (
            libc::SYS_rt_sigtimedwait,
            vec![SeccompRule::new(vec![is(1, Qword, 0)?])?],
        ),
        (
            libc::SYS_dup3,
            vec![SeccompRule::new(vec![is(2, Dword, libc::O_CLOEXEC)?])?],
        ),
        (
            libc::SYS_prctl,
            vec![SeccompRule::new(vec![is(0, Dword, libc::PR_SET_NAME)?])?],
        ),
        (
            libc::SYS_getsockopt,
            options.into_iter().collect::<Result<_, _>>()?,
        ),
        (
            libc::SYS_ioctl,
            requests.into_iter().collect::<Result<_, _>>()?,
        ),
    ])
}

fn always(role: Role) -> impl Iterator<Item = libc::c_long> {
    let own = match role {
        Role::Worker => WORKER,
        Role::Admin => ADMIN,
    };
    [COMMON, own, PROBES, OLD].into_iter().flatten().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 2] = [Role::Worker, Role::Admin];

    #[test]
    fn unused_calls_are_not_allowed() {
        let rules = ROLES.map(|role| rules(role, 7).unwrap());
        for call in [
            libc::SYS_openat,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_kill,
            libc::SYS_memfd_create,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone3,
            libc::SYS_setresuid,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_seccomp,
            libc::SYS_io_uring_setup,
            libc::SYS_unlinkat,
            libc::SYS_mount,
            // Could truncate any open file, such as the log.
            libc::SYS_fallocate,
        ] {
            assert!(rules.iter().all(|it| !it.contains_key(&call)), "{call}");
        }
    }

    #[test]
    fn only_serving_calls_have_no_condition() {
        let rules = rules(Role::Worker, 7).unwrap();
        for call in [libc::SYS_recvfrom, libc::SYS_sendto, libc::SYS_epoll_pwait] {
            assert_eq!(rules[&call].len(), 0, "{call}");
        }
        for call in [
            libc::SYS_tgkill,
            libc::SYS_mmap,
            libc::SYS_fcntl,
            libc::SYS_setsockopt,
            libc::SYS_shutdown,
            libc::SYS_pwritev2,
            libc::SYS_clone,
            libc::SYS_pidfd_open,
            libc::SYS_rt_sigtimedwait,
            libc::SYS_dup3,
            libc::SYS_prctl,
            libc::SYS_getsockopt,
            libc::SYS_ioctl,
        ] {
            assert_ne!(rules[&call].len(), 0, "{call}");
        }
    }

    #[test]
    fn only_workers_clone_keepers() {
        let [worker, admin] = ROLES.map(|role| rules(role, 7).unwrap());
        for call in [libc::SYS_clone, libc::SYS_prctl, libc::SYS_ioctl] {
            assert!(worker.contains_key(&call) && !admin.contains_key(&call));
        }
        assert_eq!(CLONE_FLAGS, crate::sys::keeper::CLONE_FLAGS);
    }

    #[test]
    fn filter_allows_profiler_calls() {
        for role in ROLES {
            let rules = rules(role, 7).unwrap();
            for &call in PROBES {
                assert!(rules[&call].is_empty(), "{role:?}: {call}");
            }
        }
    }

    #[test]
    fn no_call_is_listed_twice() {
        for role in ROLES {
            let mut calls: Vec<_> = always(role).collect();
            let count = calls.len();
            calls.sort_unstable();
            calls.dedup();
            assert_eq!(calls.len(), count, "{role:?}");
        }
    }
}
