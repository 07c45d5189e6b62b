//! A server's status as a screen for people.
//!
//! Invariants: no line is wider than [`COLUMNS`], no screen longer than [`LINES`], whatever the
//! numbers and texts are; what is left out is counted; without colour it says the same. Whatever a
//! text contains, it can neither end its line nor move the cursor.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{LastDeath, Neighbour, SlotStatus, Status};

/// What a terminal has at least.
const COLUMNS: usize = 80;
const LINES: usize = 24;
/// Slots in the table.
const ROWS_MAX: usize = 16;
/// Slots whose shares fit into a line; of more the table must do.
const SHARES_MAX: usize = 6;
const STATE_COLUMNS: usize = 12;
const SERVING: &str = "serving";

const HEADING: &str =
    "slot     pid   gen   rel state          age  open taken moved    in   out  died";

/// The screen, line by line.
pub(super) fn lines(status: &Status) -> Vec<String> {
    let mut lines = head(status);
    lines.push(HEADING.to_owned());
    // A line is kept for what there is no room for.
    let rows = ROWS_MAX.min(LINES - 1 - lines.len());
    lines.extend(status.slots.iter().take(rows).map(row));
    let notes: Vec<String> = status.slots.iter().flat_map(notes).collect();
    let hidden = status.slots.get(rows..).unwrap_or_default();

    let room = LINES - lines.len();
    if hidden.is_empty() && notes.len() <= room {
        lines.extend(notes);
    } else {
        let shown = notes.len().min(room - 1);
        let more = more(hidden, notes.len() - shown);
        lines.extend(notes.into_iter().take(shown));
        lines.push(more);
    }
    lines.iter().map(|line| cut(line, COLUMNS)).collect()
}

/// At most ten lines, and at most nine of many slots.
fn head(status: &Status) -> Vec<String> {
    let mut lines = vec![
        format!(
            "uppercased {}, pid {}: {} for {}, release {}",
            status.version,
            status.pid,
            status.phase,
            age(status.uptime_ms),
            status.release
        ),
        format!("listening on {}", status.addresses.join(" ")),
    ];
    if let Some(path) = &status.control {
        lines.push(format!("control      {path}"));
    }
    if let Some(word) = status.out_of_rotation() {
        lines.push(format!(
            "rotation     {word}: new clients are sent elsewhere"
        ));
    }
    if let Some(operation) = &status.operation {
        lines.push(format!("operation    {operation}"));
    }
    lines.extend(sandbox(&status.slots));
    let traffic = &status.totals.traffic;
    lines.push(format!(
        "connections  {} open, {} taken, {} moved; {}B in, {}B out; {} died",
        short(traffic.open),
        short(traffic.accepted),
        short(traffic.moved_in),
        short(traffic.bytes_in),
        short(traffic.bytes_out),
        short(status.totals.deaths),
    ));
    if !traffic.closed.is_empty() {
        lines.push(format!("closed       {}", by_frequency(&traffic.closed)));
    }
    if !traffic.refused.is_empty() {
        lines.push(format!("refused      {}", by_frequency(&traffic.refused)));
    }
    if (2..=SHARES_MAX).contains(&status.slots.len()) {
        lines.push(shares(&status.slots));
    }
    lines
}

/// What happened how often; the most frequent first, for the end of a long list is cut.
fn by_frequency(counts: &BTreeMap<String, u64>) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
    let counts: Vec<String> = counts
        .iter()
        .map(|(what, times)| format!("{} {what}", short(**times)))
        .collect();
    counts.join(", ")
}

/// How the workers have locked themselves in, if any has said so.
fn sandbox(slots: &[SlotStatus]) -> Option<String> {
    let mut said = slots.iter().filter_map(|slot| slot.sandbox.as_ref());
    let first = said.next()?;
    if said.any(|other| other != first) {
        return Some("sandbox      not the same for all workers; see status --json".to_owned());
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

/// How connections are spread over the slots, and the CPUs where those have one each.
fn shares(slots: &[SlotStatus]) -> String {
    let list = |share: &dyn Fn(&SlotStatus) -> String| {
        let shown: Vec<String> = slots.iter().map(share).collect();
        shown.join(" ")
    };
    let taken = list(&|slot| slot.accepted_percent.to_string());
    let open = list(&|slot| slot.open_percent.to_string());
    let mut line = format!("shares       taken {taken} %; open {open} %");
    if slots.iter().any(|slot| slot.cpu.is_some()) {
        let cpus = list(&|slot| {
            slot.cpu
                .map_or_else(|| "-".to_owned(), |cpu| cpu.to_string())
        });
        let _ = write!(line, "; on CPU {cpus}");
    }
    line
}

fn row(slot: &SlotStatus) -> String {
    let traffic = &slot.traffic;
    let mut line = format!("{:>4}", slot.slot.0);
    let pid = slot
        .pid
        .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    // Writing to a text cannot fail.
    let _ = write!(
        line,
        " {:>7} {:>5} {:>5} {:<STATE_COLUMNS$} {:>5}",
        cut(&pid, 7),
        short(slot.generation.0.into()),
        short(slot.release.0.into()),
        cut(&slot.state, STATE_COLUMNS),
        age(slot.age_ms),
    );
    for number in [
        traffic.open,
        traffic.accepted,
        traffic.moved_in,
        traffic.bytes_in,
        traffic.bytes_out,
        slot.deaths,
    ] {
        let _ = write!(line, " {:>5}", short(number));
    }
    line
}

/// What does not fit into a slot's row.
fn notes(slot: &SlotStatus) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |what: String| notes.push(format!("slot {}: {what}", slot.slot));
    if let Some(to) = slot.lent_to {
        note(format!("its queue is lent to slot {to}"));
    } else if slot.queue == "unserved" {
        note("nobody serves its queue".to_owned());
    }
    if let Some(successor) = &slot.successor {
        note(format!("successor {}", neighbour(successor)));
    }
    if let Some(predecessor) = &slot.predecessor {
        note(format!("predecessor {}", neighbour(predecessor)));
    }
    if let Some(LastDeath {
        generation,
        how,
        cause,
        age_ms,
    }) = &slot.last_death
    {
        let how = how.as_deref().unwrap_or("not even started");
        let cause = cause
            .as_deref()
            .map_or_else(String::new, |cause| format!(": {cause}"));
        let ago = age(*age_ms);
        note(format!(
            "generation {generation} died {ago} ago, {how}{cause}"
        ));
    }
    notes
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

/// What there was no room for.
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

/// At most five characters, three digits of them exact and never rounded up.
fn short(number: u64) -> String {
    const UNITS: [char; 6] = ['k', 'M', 'G', 'T', 'P', 'E'];
    if number < 10_000 {
        return number.to_string();
    }
    let mut scale = 1000;
    let mut units = UNITS.iter().peekable();
    let mut unit = units.next().unwrap_or(&' ');
    while number / scale >= 1000
        && let Some(next) = units.next()
    {
        scale *= 1000;
        unit = next;
    }
    let (whole, thousandths) = (number / scale, number % scale / (scale / 1000));
    match whole {
        0..10 => format!("{whole}.{:02}{unit}", thousandths / 10),
        10..100 => format!("{whole}.{}{unit}", thousandths / 100),
        _ => format!("{whole}{unit}"),
    }
}

/// A length of time in at most five characters.
fn age(ms: u64) -> String {
    const SECOND: u64 = 1000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    // Two units of the smaller kind still say more than one of the larger.
    match ms {
        0..SECOND => format!("{ms}ms"),
        SECOND..MINUTE => format!("{}s", ms / SECOND),
        MINUTE..HOUR => format!("{}m", ms / MINUTE),
        HOUR..DAY => format!("{}h", ms / HOUR),
        _ => format!("{}d", (ms / DAY).min(9999)),
    }
}

/// `text` in at most `columns` characters, the last of them `…` if something is missing.
fn cut(text: &str, columns: usize) -> String {
    let mut letters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut shown: String = letters.by_ref().take(columns).collect();
    if letters.next().is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Traffic;
    use super::*;
    use crate::identity::{Generation, ReleaseId, SlotId};
    use crate::wire::Sandboxed;

    fn slot(number: u16) -> SlotStatus {
        SlotStatus {
            slot: SlotId(number),
            pid: Some(4712 + u32::from(number)),
            generation: Generation(3),
            release: ReleaseId(2),
            state: SERVING.to_owned(),
            age_ms: 750_000,
            queue: "served".to_owned(),
            traffic: Traffic {
                open: 1200,
                accepted: 1_234_567,
                moved_in: 100,
                moved_out: 0,
                closed: BTreeMap::from([("peer_closed".to_owned(), 1_233_000)]),
                refused: BTreeMap::new(),
                untracked: 0,
                bytes_in: 1_000_000_000_000,
                bytes_out: 999_999_999_999,
                ..Traffic::default()
            },
            ..SlotStatus::default()
        }
    }

    fn status(slots: u16) -> Status {
        let mut status = Status {
            version: "0.1.0".to_owned(),
            pid: 4711,
            uptime_ms: 3 * 86_400_000,
            phase: "running".to_owned(),
            release: ReleaseId(2),
            addresses: vec!["0.0.0.0:9999".to_owned(), "[::1]:9999".to_owned()],
            control: Some("/run/uppercased/4711.sock".to_owned()),
            slots: (0..slots).map(slot).collect(),
            ..Status::default()
        };
        status.sum_up();
        status
    }

    fn screen(status: &Status) -> String {
        let lines = status.lines();
        assert!(lines.len() <= LINES, "{lines:#?}");
        for line in &lines {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
        lines.join("\n")
    }

    #[test]
    fn a_quiet_server() {
        let expected = "\
uppercased 0.1.0, pid 4711: running for 3d, release 2
listening on 0.0.0.0:9999 [::1]:9999
control      /run/uppercased/4711.sock
connections  2400 open, 2.46M taken, 200 moved; 2.00TB in, 1.99TB out; 0 died
closed       2.46M peer_closed
shares       taken 50 50 %; open 50 50 %
slot     pid   gen   rel state          age  open taken moved    in   out  died
   0    4712     3     2 serving        12m  1200 1.23M   100 1.00T  999G     0
   1    4713     3     2 serving        12m  1200 1.23M   100 1.00T  999G     0";
        assert_eq!(screen(&status(2)), expected);
    }

    #[test]
    fn a_server_in_trouble() {
        let mut status = status(3);
        status.operation = Some("restart: 1 of 3 slots renewed".to_owned());
        status.slots[0].traffic.refused = BTreeMap::from([("denied".to_owned(), 12_345)]);
        status.slots[0].successor = Some(Neighbour {
            generation: Generation(4),
            release: ReleaseId(3),
            pid: Some(4800),
            state: "starting".to_owned(),
            open: 0,
        });
        status.slots[1].predecessor = Some(Neighbour {
            generation: Generation(2),
            release: ReleaseId(1),
            pid: None,
            state: "handing over".to_owned(),
            open: 12_345,
        });
        status.slots[2] = SlotStatus {
            pid: None,
            state: "backing off".to_owned(),
            age_ms: 312,
            queue: "lent".to_owned(),
            lent_to: Some(SlotId(0)),
            deaths: 7,
            last_death: Some(LastDeath {
                generation: Generation(3),
                how: Some("exit code 1".to_owned()),
                cause: Some("cannot\nraise the limit of open files, and so on".to_owned()),
                age_ms: 1312,
            }),
            ..slot(2)
        };
        status.sum_up();
        let expected = "\
uppercased 0.1.0, pid 4711: running for 3d, release 2
listening on 0.0.0.0:9999 [::1]:9999
control      /run/uppercased/4711.sock
operation    restart: 1 of 3 slots renewed
connections  3600 open, 3.70M taken, 300 moved; 3.00TB in, 2.99TB out; 7 died
closed       3.69M peer_closed
refused      12.3k denied
shares       taken 33 33 33 %; open 33 33 33 %
slot     pid   gen   rel state          age  open taken moved    in   out  died
   0    4712     3     2 serving        12m  1200 1.23M   100 1.00T  999G     0
   1    4713     3     2 serving        12m  1200 1.23M   100 1.00T  999G     0
   2       -     3     2 backing off  312ms  1200 1.23M   100 1.00T  999G     7
slot 0: successor generation 4, pid 4800, release 3: starting, 0 open
slot 1: predecessor generation 2, release 1: handing over, 12.3k open
slot 2: its queue is lent to slot 0
slot 2: generation 3 died 1s ago, exit code 1: cannot raise the limit of open f…";
        assert_eq!(screen(&status), expected);
    }

    #[test]
    fn the_sandbox_is_one_line() {
        let entered = |missing: &[&str]| {
            let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
            Some(Sandboxed {
                layers: owned(&[
                    "user=nobody",
                    "no_new_privs",
                    "no_caps",
                    "no_dump",
                    "seccomp",
                ]),
                missing: owned(missing),
            })
        };
        let mut status = status(16);
        status.operation = Some("restart".to_owned());
        for slot in &mut status.slots {
            slot.sandbox = entered(&["landlock: none here"]);
        }
        let shown = screen(&status);
        let line =
            "sandbox      user=nobody no_new_privs no_caps no_dump seccomp; without landlock\n";
        assert!(shown.contains(line), "{shown}");
        status.slots[1].sandbox = entered(&[]);
        assert!(screen(&status).contains("sandbox      not the same for all workers"));
        for slot in &mut status.slots {
            slot.sandbox = Some(Sandboxed::default());
        }
        assert!(screen(&status).contains("sandbox      off\n"));
    }

    #[test]
    fn sixteen_slots_fit_and_more_are_counted() {
        let screen16 = screen(&status(16));
        assert_eq!(screen16.lines().filter(|l| l.contains(SERVING)).count(), 16);
        assert!(!screen16.contains('…'));

        let mut many = status(1024);
        many.slots[1000].state = "starting".to_owned();
        many.slots[3].lent_to = Some(SlotId(4));
        many.operation = Some("restart".to_owned());
        let last = screen(&many).lines().last().map(str::to_owned).unwrap();
        assert_eq!(
            last,
            "… slots not shown: 1008 (1 not serving); notes not shown: 1; see status --json"
        );
        assert_eq!(screen(&many).lines().count(), LINES);
    }

    #[test]
    fn numbers_have_five_characters_at_most() {
        for (number, text) in [
            (0, "0"),
            (9999, "9999"),
            (10_000, "10.0k"),
            (99_999, "99.9k"),
            (999_999, "999k"),
            (1_000_000, "1.00M"),
            (1_000_000_000_000, "1.00T"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(short(number), text);
        }
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1000, "1s"),
            (59_999, "59s"),
            (60_000, "1m"),
            (3_599_999, "59m"),
            (86_399_999, "23h"),
            (86_400_000, "1d"),
            (u64::MAX, "9999d"),
        ] {
            assert_eq!(age(ms), text);
        }
    }

    proptest! {
        #[test]
        fn no_line_is_too_wide_and_no_screen_too_long(
            numbers in prop::array::uniform6(any::<u64>()),
            small in any::<(u16, u32, u32, u32)>(),
            text in ".{0,200}", slots in 0usize..40, extras: bool,
        ) {
            let traffic = Traffic {
                open: numbers[0], accepted: numbers[1], moved_in: numbers[2],
                moved_out: numbers[3], bytes_in: numbers[4], bytes_out: numbers[5],
                closed: BTreeMap::from([(text.clone(), numbers[0])]),
                refused: BTreeMap::from([(text.clone(), numbers[1])]), untracked: numbers[2],
                ..Traffic::default()
            };
            let neighbour = extras.then(|| Neighbour {
                generation: Generation(small.1), release: ReleaseId(small.2),
                pid: Some(small.3), state: text.clone(), open: numbers[0],
            });
            let one = SlotStatus {
                slot: SlotId(small.0), pid: Some(small.1), cpu: extras.then_some(small.0),
                accepted_percent: 100, open_percent: 100, generation: Generation(small.2),
                release: ReleaseId(small.3), state: text.clone(), age_ms: numbers[0],
                sandbox: extras.then(|| Sandboxed {
                    layers: vec![text.clone()], missing: vec![text.clone()],
                }),
                queue: text.clone(), lent_to: None, accept_queues: Vec::new(), traffic, deaths: numbers[1],
                last_death: extras.then(|| LastDeath {
                    generation: Generation(small.1), how: Some(text.clone()),
                    cause: Some(text.clone()), age_ms: numbers[2],
                }),
                successor: neighbour.clone(), predecessor: neighbour,
            };
            let mut status = Status {
                version: text.clone(), pid: small.1, uptime_ms: numbers[0], phase: text.clone(),
                operation: Some(text.clone()), release: ReleaseId(small.2),
                addresses: vec![text.clone(), text.clone()], control: Some(text),
                slots: vec![one; slots], ..Status::default()
            };
            status.sum_up();
            let lines = status.lines();
            prop_assert!(lines.len() <= LINES);
            for line in lines {
                prop_assert!(line.chars().count() <= COLUMNS);
                prop_assert!(!line.chars().any(char::is_control));
            }
        }
    }
}
