//! Formats a server's status as a screen for people.
//!
//! Invariants: no line is wider than [`COLUMNS`], no screen longer than requested, for any numbers
//! and texts; omitted lines are counted; no information depends on colour. No text can end its line
//! or move the cursor.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::data::{
    AcceptQueueStatus, AdminStatus, Crash, LastOperation, Neighbour, ServiceManagerStatus,
    SlotStatus, Status,
};
use super::processes::{ProcessStatus, Usage};
use super::rates::{Rate, Rates};
use super::rescues::Rescues;
use super::sockets::{SocketStatus, Sockets};
use crate::units::{age, busy, counted, cut, per_second, percent, short, time_ms, took};

/// Minimum width of a terminal.
pub(super) const COLUMNS: usize = 80;
pub(super) const LINES: usize = 24;
/// Maximum number of slots whose shares fit into a line; with more, only the table shows them.
const SHARES_MAX: usize = 6;
/// Maximum number of foreign listeners with their own line.
const OTHERS_MAX: usize = 3;
/// Age above which a list of sockets is shown with its age.
const OLD_MS: u64 = 1000;
const STATE_COLUMNS: usize = 12;
const SERVING: &str = "serving";

const TOTALS_HEADING: &str =
    "slot     pid   gen state          age  open queue   acc  migr    in   out crash";
const RATES_HEADING: &str =
    "slot     pid   gen state          age  open queue acc/s msg/s  in/s  busy crash";

const PROCESSES_HEADING: &str = "process            pid   mem  cpu   fds   age restarts";

impl Status {
    /// Returns a screen for people, 80 columns wide and at most 24 lines long; the last line counts
    /// omitted ones. The table of the processes is left out if it does not fit.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let view = View {
            status: self,
            sockets: None,
            rates: None,
        };
        lines(view, LINES)
    }
}

/// The data to show.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) status: &'a Status,
    /// The sockets, if they were read.
    pub(super) sockets: Option<&'a Sockets>,
    /// The rates, if there was an earlier sample.
    pub(super) rates: Option<&'a Rates>,
}

/// Returns the lines of the screen, at most `height` of them.
pub(super) fn lines(view: View<'_>, height: usize) -> Vec<String> {
    let slots = &view.status.slots;
    let mut lines = head(view);
    lines.push(heading(view.rates).to_owned());
    // One line is reserved for the count of omitted ones.
    let rows = height.saturating_sub(lines.len() + 1);
    lines.extend(slots.iter().take(rows).map(|slot| row(slot, view.rates)));
    let notes: Vec<String> = slots
        .iter()
        .flat_map(|slot| notes(slot, view.status))
        .collect();
    let hidden = slots.get(rows..).unwrap_or_default();

    let room = height.saturating_sub(lines.len());
    if hidden.is_empty() && notes.len() <= room {
        lines.extend(notes);
        lines.extend(processes(view, height.saturating_sub(lines.len())));
    } else {
        let shown = notes.len().min(room.saturating_sub(1));
        let more = more(hidden, notes.len() - shown);
        lines.extend(notes.into_iter().take(shown));
        lines.push(more);
    }
    lines.truncate(height);
    lines.iter().map(|line| cut(line, COLUMNS)).collect()
}

const fn heading(rates: Option<&Rates>) -> &'static str {
    match rates {
        Some(_) => RATES_HEADING,
        None => TOTALS_HEADING,
    }
}

fn head(view: View<'_>) -> Vec<String> {
    let View {
        status,
        sockets,
        rates,
    } = view;
    let mut lines = vec![
        format!(
            "uppercased {}, pid {}: {} for {}, release {}, crashes {}",
            status.version,
            status.pid,
            status.phase,
            age(status.uptime_ms),
            status.release,
            short(status.totals.crashes),
        ),
        format!("listening on {}", status.addresses.join(" ")),
    ];
    lines.extend(not_ready(status));
    if let Some(path) = &status.control {
        lines.push(format!("control      {path}"));
    }
    if let Some(word) = status.out_of_rotation() {
        lines.push(format!(
            "rotation     {word}: load balancers send new clients elsewhere"
        ));
    }
    lines.extend(status.admin.as_ref().map(admin));
    lines.extend(status.service_manager.iter().flat_map(service_manager));
    match (&status.operation, &status.last_operation) {
        (Some(under_way), _) => lines.push(format!("operation    {under_way}")),
        (None, Some(last)) => lines.push(last_operation(last)),
        (None, None) => {}
    }
    if let Some(error) = &status.config.error {
        lines.push(format!("config       refused: {error}"));
    }
    if !status.pending.is_empty() {
        lines.push(format!("pending      {}", status.pending.join(", ")));
    }
    lines.extend(sandbox(&status.slots));
    let traffic = &status.totals.traffic;
    lines.push(format!(
        "connections  {}, {} accepted, {} migrated",
        open(status),
        short(traffic.accepted),
        short(traffic.migrated_in),
    ));
    lines.push(format!(
        "traffic      {}B in, {}B out",
        short(traffic.received_bytes),
        short(traffic.sent_bytes),
    ));
    let workers = status.slots.len();
    lines.extend(rates.map(|rates| totals_rate(rates, workers)));
    if !traffic.closed.is_empty() {
        lines.push(format!("closed       {}", by_frequency(&traffic.closed)));
    }
    if !traffic.refused.is_empty() {
        lines.push(format!("refused      {}", by_frequency(&traffic.refused)));
    }
    lines.extend(queues(&status.slots));
    if (2..=SHARES_MAX).contains(&status.slots.len()) {
        lines.push(shares(&status.slots));
    }
    lines.extend(keepers(status));
    lines.extend(rescues(status));
    lines.extend(sockets.into_iter().flat_map(on_the_ports));
    lines
}

/// Returns the reason why the server is not ready, if no other line shows it.
pub(super) fn not_ready(status: &Status) -> Option<String> {
    let explained = status.phase != SERVING || status.out_of_rotation().is_some();
    let why = status.unready().filter(|_| !explained);
    why.map(|why| format!("not ready    {why}"))
        .or_else(|| Some(format!("degraded     {}", status.degraded()?)))
}

/// Returns the number of open connections and its limit.
pub(super) fn open(status: &Status) -> String {
    let open = short(status.totals.traffic.open);
    match status.capacity {
        0 => format!("{open} open"),
        capacity => format!("{open} open of {}", short(capacity)),
    }
}

fn admin(admin: &AdminStatus) -> String {
    let state = admin
        .pid
        .map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}"));
    let died = short(admin.crashes);
    let http = Some(admin.address.clone()).filter(|address| !address.is_empty());
    let agent = admin.agent.as_ref().map(|agent| format!("agent {agent}"));
    let places: Vec<String> = http.into_iter().chain(agent).collect();
    format!(
        "admin        {}, {state}, crashes {died}",
        places.join(", ")
    )
}

/// Returns the problems between server and service manager; usually none.
fn service_manager(manager: &ServiceManagerStatus) -> Vec<String> {
    let mut lines = Vec::new();
    if manager.refused > 0 || manager.pending > 0 {
        let (refused, pending) = (short(manager.refused), short(manager.pending));
        let sent = short(manager.sent);
        lines.push(format!(
            "systemd      {sent} notifications sent, {refused} attempts refused, {pending} pending"
        ));
    }
    if let Some(cause) = &manager.watchdog_paused {
        lines.push(format!("watchdog     not fed: {cause}"));
    }
    lines
}

pub(super) fn last_operation(last: &LastOperation) -> String {
    let error = last.error.as_deref();
    let error = error.map_or_else(String::new, |error| format!(": {error}"));
    format!(
        "last         {} {} {} ago, took {}{error}",
        last.operation,
        last.result,
        age(last.age_ms),
        took(last.duration_ms)
    )
}

fn totals_rate(rates: &Rates, workers: usize) -> String {
    let Rate {
        accepted,
        messages,
        received_bytes,
        sent_bytes,
        busy: used,
    } = rates.totals;
    format!(
        "rates {:<6} {} acc/s, {} msg/s; {}B/s in, {}B/s out; {}",
        age(rates.span_ms),
        per_second(accepted),
        per_second(messages),
        per_second(received_bytes),
        per_second(sent_bytes),
        busy(used, workers),
    )
}

/// Returns the lengths of the accept queues, if known.
fn queues(slots: &[SlotStatus]) -> Option<String> {
    let queues = slots.iter().flat_map(|slot| &slot.accept_queues);
    let limit = queues.clone().map(|queue| queue.limit).min()?;
    let waiting = slots.iter().map(SlotStatus::waiting);
    let waiting = waiting.fold(0, u64::saturating_add);
    let full = queues.filter(|queue| is_full(queue)).count();
    let full = match full {
        0 => String::new(),
        _ => format!("; {full} full"),
    };
    let waiting = short(waiting);
    let limit = short(limit);
    Some(format!(
        "queues       {waiting} pending, limit {limit} per queue{full}"
    ))
}

/// Returns whether the queue is full. The kernel admits one more than the backlog.
const fn is_full(queue: &AcceptQueueStatus) -> bool {
    queue.length > queue.limit
}

/// Returns the lines about the sockets on the server's ports, foreign ones included.
pub(super) fn on_the_ports(sockets: &Sockets) -> Vec<String> {
    if let Some(why) = &sockets.unknown {
        return vec![format!("sockets      unknown: {why}")];
    }
    let mut line = "sockets      ".to_owned();
    if sockets.age_ms >= OLD_MS {
        let _ = write!(line, "{} ago: ", age(sockets.age_ms));
    }
    line.push_str(&by_frequency(&sockets.states));
    if sockets.unaccepted > 0 {
        let _ = write!(line, "; {} not accepted", short(sockets.unaccepted));
    }
    let mut lines = vec![line];
    if !sockets.local_clients.is_empty() {
        let clients = by_frequency(&sockets.local_clients);
        lines.push(format!("local clients {clients}"));
    }
    let others = sockets.others.iter().take(OTHERS_MAX);
    lines.extend(others.map(|other| format!("also bound   {}", foreign_socket(other))));
    let unlisted = sockets.others.len().saturating_sub(OTHERS_MAX) as u64;
    let unlisted = unlisted.saturating_add(sockets.others_omitted);
    if unlisted > 0 {
        lines.push(format!(
            "also bound   {unlisted} more; see status --sockets"
        ));
    }
    lines
}

fn foreign_socket(other: &SocketStatus) -> String {
    let program = other.owner.program.as_deref().unwrap_or("?");
    match other.owner.pid {
        Some(pid) => format!("pid {pid} ({program}) on {}", other.local),
        None => format!("a process of another user, on {}", other.local),
    }
}

/// Formats counts by name, the most frequent first, as the end of a long list is cut.
pub(super) fn by_frequency(counts: &BTreeMap<String, u64>) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
    let counts: Vec<String> = counts
        .iter()
        .map(|(what, times)| format!("{} {what}", short(**times)))
        .collect();
    counts.join(", ")
}

/// Returns how the workers are sandboxed, if reported.
fn sandbox(slots: &[SlotStatus]) -> Option<String> {
    let mut sandboxes = slots.iter().filter_map(|slot| slot.sandbox.as_ref());
    let first = sandboxes.next()?;
    if sandboxes.any(|other| other != first) {
        return Some("sandbox      differs between workers; see status --json".to_owned());
    }
    let mut line = match first.layers[..] {
        [] => "sandbox      off".to_owned(),
        _ => format!("sandbox      {}", first.layers.join(" ")),
    };
    let missing = first.missing.iter();
    let missing: Vec<&str> = missing
        .map(|what| what.split(':').next().unwrap_or_default())
        .collect();
    if !missing.is_empty() {
        let _ = write!(line, "; without {}", missing.join(" "));
    }
    Some(line)
}

/// Returns the distribution of connections over the slots, with the CPUs if each slot has one.
fn shares(slots: &[SlotStatus]) -> String {
    let list = |share: &dyn Fn(&SlotStatus) -> String| {
        let shown: Vec<String> = slots.iter().map(share).collect();
        shown.join(" ")
    };
    let taken = list(&|slot| slot.accepted_percent.to_string());
    let open = list(&|slot| slot.open_percent.to_string());
    let mut line = format!("balance      accepted {taken} %; open {open} %");
    if slots.iter().any(|slot| slot.cpu.is_some()) {
        let cpus = list(&|slot| {
            slot.cpu
                .map_or_else(|| "-".to_owned(), |cpu| cpu.to_string())
        });
        let _ = write!(line, "; CPUs {cpus}");
    }
    line
}

/// Returns the line about the processes that continue workers, if there are or were any.
fn keepers(status: &Status) -> Option<String> {
    let slots = &status.slots;
    let kept = slots.iter().filter(|slot| slot.keeper_pid.is_some());
    let kept = kept.count();
    let rescues = all_rescues(status);
    if kept == 0 && rescues.is_empty() {
        return None;
    }
    let mut line = format!("keepers      {}", by_slot(slots, kept));
    if rescues.keepers_lost > 0 {
        let (lost, replaced) = (rescues.keepers_lost, rescues.keepers_replaced);
        let _ = write!(line, "; {} lost, {} replaced", short(lost), short(replaced));
    }
    Some(line)
}

/// Returns the line about the rescues, if there were any.
pub(super) fn rescues(status: &Status) -> Option<String> {
    let rescues = all_rescues(status);
    let average = rescues.times.sum_us.checked_div(rescues.times.count)?;
    Some(format!(
        "rescues      {} of {}, {}B owed; {} on average",
        short(rescues.times.count),
        counted(rescues.connections, "connection"),
        short(rescues.owed_bytes),
        time_ms(average as f64 / 1e3),
    ))
}

fn all_rescues(status: &Status) -> Rescues {
    let ever = status.slots.iter().chain(&status.former);
    Rescues::sum(ever.map(|slot| &slot.rescues))
}

/// Returns the keeper of each slot, or, of many, how many have one.
fn by_slot(slots: &[SlotStatus], kept: usize) -> String {
    if slots.len() > SHARES_MAX {
        return format!("{kept} of {} workers", slots.len());
    }
    let pid = |slot: &SlotStatus| {
        slot.keeper_pid
            .map_or_else(|| "-".to_owned(), |it| it.to_string())
    };
    slots.iter().map(pid).collect::<Vec<_>>().join(" ")
}

/// Returns the table of the processes, if it fits.
fn processes(view: View<'_>, room: usize) -> Vec<String> {
    let processes = &view.status.processes;
    if processes.is_empty() || processes.len() >= room {
        return Vec::new();
    }
    let rows = processes.iter().map(|it| process(it, view));
    std::iter::once(PROCESSES_HEADING.to_owned())
        .chain(rows)
        .collect()
}

fn process(process: &ProcessStatus, view: View<'_>) -> String {
    let [memory, cpu, descriptors] = usage_cells(process, view.rates);
    format!(
        "{:<14} {:>7} {memory:>5} {cpu:>4} {descriptors:>5} {:>5} {:>8}",
        cut(&process.name(), 14),
        cut(&process.pid.to_string(), 7),
        process
            .usage
            .map_or_else(|| "-".to_owned(), |usage| age(usage.age_ms)),
        short(process.restarts_10m.into()),
    )
}

/// Returns memory, CPU share and descriptors of a process; dashes where they are unknown.
pub(super) fn usage_cells(process: &ProcessStatus, rates: Option<&Rates>) -> [String; 3] {
    let unknown = || "-".to_owned();
    let of = |value: fn(Usage) -> Option<u64>| {
        let value = process.usage.and_then(value);
        value.map_or_else(unknown, short)
    };
    let share = rates.and_then(|rates| rates.cpu.get(&process.pid));
    [
        of(|usage| usage.resident_bytes),
        share.map_or_else(unknown, |share| percent(*share)),
        of(|usage| usage.descriptors),
    ]
}

fn row(slot: &SlotStatus, rates: Option<&Rates>) -> String {
    let traffic = &slot.traffic;
    let mut line = format!("{:>4}", slot.slot.0);
    let pid = slot
        .pid
        .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    // Writing to a `String` cannot fail.
    let _ = write!(
        line,
        " {:>7} {:>5} {:<STATE_COLUMNS$} {:>5}",
        cut(&pid, 7),
        short(slot.generation.0.into()),
        cut(&slot.condition(), STATE_COLUMNS),
        age(slot.age_ms),
    );
    let mut numbers = vec![short(traffic.open), short(slot.waiting())];
    match rates {
        None => numbers.extend([
            short(traffic.accepted),
            short(traffic.migrated_in),
            short(traffic.received_bytes),
            short(traffic.sent_bytes),
        ]),
        Some(rates) => numbers.extend(rate_cells(rates.slots.get(&slot.slot))),
    }
    numbers.push(short(slot.crashes));
    for number in numbers {
        let _ = write!(line, " {number:>5}");
    }
    line
}

/// Returns accepted, messages, bytes in and busy; dashes without an earlier sample.
fn rate_cells(rate: Option<&Rate>) -> [String; 4] {
    match rate {
        None => ["-"; 4].map(str::to_owned),
        Some(rate) => [
            per_second(rate.accepted),
            per_second(rate.messages),
            per_second(rate.received_bytes),
            percent(rate.busy),
        ],
    }
}

/// Returns notes that do not fit into the slot's row.
pub(super) fn notes(slot: &SlotStatus, status: &Status) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |what: String| notes.push(format!("slot {}: {what}", slot.slot));
    if slot.release != status.release {
        note(format!("running release {}", slot.release));
    }
    for queue in slot.accept_queues.iter().filter(|queue| is_full(queue)) {
        let AcceptQueueStatus { address, limit, .. } = queue;
        note(format!("the accept queue of {address} is full ({limit})"));
    }
    if let Some(to) = slot.lent_to {
        note(format!("its queue is lent to slot {to}"));
    } else if slot.queue == "unserved" {
        note("its queue is unserved".to_owned());
    }
    if let Some(successor) = &slot.successor {
        note(format!("successor {}", neighbour(successor)));
    }
    if let Some(predecessor) = &slot.predecessor {
        note(format!("predecessor {}", neighbour(predecessor)));
    }
    if let Some(crash) = slot.last_crashes.first() {
        note(exited(crash));
    }
    notes
}

/// Returns how a worker exited: "generation 3 exited 2s ago, signal 9 (SIGKILL)".
pub(super) fn exited(crash: &Crash) -> String {
    let exit = crash.exit.as_deref().unwrap_or("not started");
    let error = crash.error.as_deref();
    let error = error.map_or_else(String::new, |error| format!(": {error}"));
    let ago = age(crash.age_ms);
    format!(
        "generation {} exited {ago} ago, {exit}{error}",
        crash.generation
    )
}

fn neighbour(worker: &Neighbour) -> String {
    let pid = worker
        .pid
        .map_or_else(String::new, |pid| format!(", pid {pid}"));
    format!(
        "generation {}{pid}, release {}: {}, {} open",
        worker.generation,
        worker.release,
        worker.state,
        short(worker.open)
    )
}

/// Returns the line with the number of omitted slots and notes.
fn more(hidden: &[SlotStatus], notes: usize) -> String {
    let mut parts = Vec::new();
    if !hidden.is_empty() {
        let idle = hidden.iter().filter(|slot| slot.state != SERVING).count();
        parts.push(format!(
            "slots not shown: {} ({idle} not serving)",
            hidden.len()
        ));
    }
    if notes > 0 {
        parts.push(format!("notes not shown: {notes}"));
    }
    format!("… {}; see status --json", parts.join("; "))
}

#[cfg(test)]
mod tests;
