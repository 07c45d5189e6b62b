//! Kernel state of the processes and sockets under test: descriptors, process states, queues, and
//! the owner of a connection.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollTimeout, poll};
use nix::sys::signal::Signal;
use procfs::net::{TcpNetEntry, TcpState};
use socket2::SockRef;

use super::bytes::pattern;
use super::client::Client;
use super::process::{Deadline, Watched};
use super::server::Server;

/// Longer than [`super::DEADLINE`]: the awaited state may be the work of several processes.
const PATIENCE: Duration = Duration::from_secs(90);

/// The polling interval of [`until`].
const INTERVAL_MS: u8 = 2;

/// Polls `probe` until it returns a value. Only for state that the kernel reports by no event, such
/// as a process state or the length of a queue.
#[track_caller]
pub fn until_some<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    some_within(PATIENCE, probe).unwrap_or_else(|| panic!("not within {PATIENCE:?}: {what}"))
}

/// Like [`until_some`], with a deadline; `None` if `probe` returns no value until then.
pub fn some_within<T>(within: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Deadline::after(within);
    loop {
        // Before the probe, so that an event in time counts as in time.
        let is_last = deadline.left().is_zero();
        let answer = probe();
        if answer.is_some() || is_last {
            return answer;
        }
        // An interruption only makes it poll sooner.
        let _ = poll(&mut [], PollTimeout::from(INTERVAL_MS));
    }
}

/// Polls `probe` until it returns true; see [`until_some`].
#[track_caller]
pub fn until(what: &str, mut probe: impl FnMut() -> bool) {
    until_some(what, || probe().then_some(()));
}

/// Returns the open descriptors of a process with their targets.
#[track_caller]
pub fn descriptors(pid: u32) -> BTreeMap<i32, String> {
    try_descriptors(pid).unwrap_or_else(|| panic!("process {pid} shows no descriptors"))
}

/// Like [`descriptors`], for a process that may exit; `None` if it has.
pub fn try_descriptors(pid: u32) -> Option<BTreeMap<i32, String>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let held = entries.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        Some((number, target.to_string_lossy().into_owned()))
    });
    Some(held.collect())
}

/// Stops the process with `SIGSTOP` and waits until it has stopped.
#[track_caller]
pub fn freeze(process: &Watched) {
    process.signal(Signal::SIGSTOP);
    until("the process is stopped", || {
        state(process.pid()) == Some('T')
    });
}

/// Returns the state letter of a process, as in ps(1).
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // It follows the name, which is in parentheses and may contain parentheses.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Returns the number of the system call in which a process waits or is stopped; `None` if it is in
/// none.
pub fn system_call(pid: u32) -> Option<libc::c_long> {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    let number = call.split_ascii_whitespace().next()?.parse().ok()?;
    (number >= 0).then_some(number)
}

/// Returns whether a process waits for events, or is stopped while it does.
pub fn waits_for_events(pid: u32) -> bool {
    #[cfg(target_arch = "x86_64")]
    const WAITS: [libc::c_long; 2] = [libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
    #[cfg(not(target_arch = "x86_64"))]
    const WAITS: [libc::c_long; 1] = [libc::SYS_epoll_pwait];
    system_call(pid).is_some_and(|number| WAITS.contains(&number))
}

/// Returns the arguments of a process.
pub fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    line.split_terminator('\0').map(str::to_owned).collect()
}

/// Returns the only running worker of `slot`. Waits while there is none or more than one: after a
/// handover the predecessor runs for a moment, and must not receive a signal for its successor.
#[track_caller]
pub fn worker_of(server: &Server, slot: u16) -> Watched {
    until_some("exactly one worker in the slot", || {
        let [pid] = workers_of(server, slot)[..] else {
            return None;
        };
        Watched::open(pid)
    })
}

/// Kills the only worker of `slot` and its keeper, so that no process continues its connections.
#[track_caller]
pub fn lose_worker(server: &Server, slot: u16) -> Watched {
    let worker = until_some("the slot has a worker with a keeper", || {
        let worker = worker_of(server, slot);
        (!waiting_keepers(server, slot).is_empty()).then_some(worker)
    });
    // So that it cannot clone another keeper.
    freeze(&worker);
    kill_keepers(server, slot);
    worker.signal(Signal::SIGKILL);
    worker
}

/// Kills the keeper of the slot's worker, which is frozen.
#[track_caller]
pub fn kill_keepers(server: &Server, slot: u16) {
    let keepers = until_some("the worker has a keeper", || {
        Some(waiting_keepers(server, slot)).filter(|keepers| !keepers.is_empty())
    });
    for keeper in keepers {
        // Open fails if the keeper has been reaped.
        Watched::open(keeper).inspect(|keeper| keeper.signal(Signal::SIGKILL));
    }
}

/// Returns the keepers of `slot` that wait for the end of a process.
fn waiting_keepers(server: &Server, slot: u16) -> Vec<u32> {
    let mut keepers = keepers_of(server, slot);
    keepers.retain(|pid| state(*pid) == Some('S'));
    keepers
}

/// Returns the running workers of `slot`, ordered by PID. There are two during a handover.
pub fn workers_of(server: &Server, slot: u16) -> Vec<u32> {
    in_slot(server.worker_pids(), slot)
}

/// Returns the running keepers of `slot`, ordered by PID.
pub fn keepers_of(server: &Server, slot: u16) -> Vec<u32> {
    in_slot(server.keeper_pids(), slot)
}

fn in_slot(mut pids: Vec<u32>, slot: u16) -> Vec<u32> {
    let name = format!("uppercased: worker {slot}");
    pids.retain(|pid| arguments(*pid).first() == Some(&name));
    pids
}

/// Returns the TCP sockets of this network namespace with the local port `port`.
#[track_caller]
pub fn sockets(port: u16) -> Vec<TcpNetEntry> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    tables
        .into_iter()
        .flat_map(|table| table.expect("read /proc/net/tcp"))
        .filter(|entry| entry.local_address.port() == port)
        .collect()
}

/// Returns the number of sockets with `port` in `state`.
#[track_caller]
pub fn count_sockets(port: u16, state: TcpState) -> usize {
    let all = sockets(port);
    all.iter().filter(|entry| entry.state == state).count()
}

/// Returns the server's end of a client's connection. `inode` is 0 until it is accepted; `tx_queue`
/// is the number of bytes that the client has not received yet.
#[track_caller]
pub fn server_end(client: &Client, server: SocketAddr) -> Option<TcpNetEntry> {
    let client = client.local_addr();
    find_socket(server.port(), |entry| entry.remote_address == client)
}

/// Returns the socket with `port` that `wanted` accepts. Reads the table twice before giving up:
/// the kernel may omit a socket when another disappears during the read.
#[track_caller]
fn find_socket(port: u16, wanted: impl Fn(&TcpNetEntry) -> bool) -> Option<TcpNetEntry> {
    let look = || sockets(port).into_iter().find(&wanted);
    look().or_else(look)
}

/// Returns the number of bytes sent by the client and not acknowledged by the server's kernel.
#[track_caller]
pub fn unacknowledged(client: &Client) -> u32 {
    let local = client.local_addr();
    let own = find_socket(local.port(), |entry| entry.local_address == local);
    own.expect("the client's own socket").tx_queue
}

/// Returns the process among `processes` that holds the server's end of the client's connection;
/// `None` if it is in an accept queue or closed.
#[track_caller]
pub fn owner<'a>(
    client: &Client,
    server: SocketAddr,
    processes: &'a [Watched],
) -> Option<&'a Watched> {
    let inode = server_end(client, server)?.inode;
    let name = format!("socket:[{inode}]");
    processes
        .iter()
        .find(|process| descriptors(process.pid()).values().any(|d| *d == name))
}

/// Returns the number of connections in the accept queues of a process's listeners.
#[track_caller]
pub fn queued(pid: u32, port: u16) -> usize {
    let held = descriptors(pid);
    let has = |entry: &&TcpNetEntry| {
        let name = format!("socket:[{}]", entry.inode);
        held.values().any(|target| *target == name)
    };
    sockets(port)
        .iter()
        .filter(|entry| entry.state == TcpState::Listen)
        .filter(has)
        .map(|entry| entry.rx_queue as usize)
        .sum()
}

/// Returns the value of `key` in a text log line.
pub fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let at = line
        .split(' ')
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
    Some(at.trim_matches('"'))
}

/// Returns the numeric value of `key` in a text log line.
#[track_caller]
pub fn number(line: &str, key: &str) -> u64 {
    field(line, key)
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("no number {key} in: {line}"))
}

/// Waits, from line `start` of the log on, until the worker of this slot and generation is ready.
#[track_caller]
pub fn wait_ready(server: &Server, start: usize, slot: u16, generation: u64) {
    let (slot, generation) = (slot.to_string(), generation.to_string());
    server.wait_log_from(start, |line| {
        line.contains(" worker ready ")
            && field(line, "slot") == Some(&slot)
            && field(line, "generation") == Some(&generation)
    });
}

/// Bytes of pending reply after [`become_owed`]: more than the client's buffer, the server's send
/// buffer and the pending output hold together, but less than with the server's receive buffer in
/// addition.
pub const OWED_BYTES: usize = 300_000;

/// Sends [`OWED_BYTES`] from a client that reads nothing: the server's kernel receives all of it,
/// and the server can neither send nor buffer all replies.
#[track_caller]
pub fn become_owed(server: &Server, client: &mut Client) {
    SockRef::from(client.socket())
        .set_recv_buffer_size(16 * 1024)
        .expect("set SO_RCVBUF");
    client.send_all(&pattern(0, OWED_BYTES));
    until("everything has reached the server", || {
        unacknowledged(client) == 0
    });
    until("the server waits for the client to read", || {
        server_end(client, server.addr()).is_some_and(|end| end.tx_queue > 0)
    });
}

/// Waits until `workers` workers have logged that they drain: by then they have closed their
/// listeners.
#[track_caller]
pub fn wait_draining(server: &Server, workers: usize) {
    let mut seen = 0;
    server.wait_log(|line| {
        seen += usize::from(line.contains(" INFO drain started "));
        seen == workers
    });
}
