//! Unit tests of `view.rs`.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ratatui_core::backend::TestBackend;
use ratatui_core::terminal::Terminal;

use super::super::keys::Key;
use super::super::model::tests::sample;
use std::time::Duration;

use super::*;
use uppercased_ctl::control::Reply;
use uppercased_ctl::identity::{Generation, SlotId};
use uppercased_ctl::status::{
    AcceptQueueStatus, Crash, LastOperation, ProcessStatus, Sockets, Source, Usage,
};

const NOW: Tick = Tick::from_millis(10_000);

fn shown(model: &Model, colour: bool, (width, height): (u16, u16)) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let palette = Palette { colour };
    terminal
        .draw(|frame| {
            draw(model, palette, NOW, frame.area(), frame.buffer_mut());
        })
        .unwrap();
    terminal
}

/// Returns the screen line by line, without trailing blanks.
fn lines(model: &Model, size: (u16, u16)) -> Vec<String> {
    let terminal = shown(model, false, size);
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer.content().iter().map(|cell| cell.symbol()).collect();
    let lines = cells.chunks(usize::from(size.0).max(1));
    lines
        .map(|line| line.concat().trim_end().to_owned())
        .collect()
}

/// Returns a model of a server with several problems.
fn busy() -> Model {
    let mut model = Model::default();
    let mut sample = sample(3, 45_000.0);
    let status = &mut sample.status;
    status.last_operation = Some(LastOperation {
        operation: "reload".to_owned(),
        result: "done".to_owned(),
        error: None,
        duration_ms: 312,
        age_ms: 120_000,
    });
    status.slots[1].generation = Generation(4);
    status.slots[1].accept_queues = vec![AcceptQueueStatus {
        length: 12,
        limit: 512,
        ..AcceptQueueStatus::default()
    }];
    status.capacity = 3000;
    status.history = vec![0, 500, 1000, 45_000];
    status.slots[0].history = vec![0, 500, 1000, 45_000];
    status.slots[1].history = vec![0, 166, 333, 15_000];
    status.slots[2].state = "backing off".to_owned();
    status.slots[2].queue = "lent".to_owned();
    status.slots[2].pid = None;
    status.slots[2].crashes = 7;
    status.slots[2].last_crashes = vec![Crash {
        generation: Generation(9),
        exit: Some("signal 9 (SIGKILL)".to_owned()),
        error: None,
        age_ms: 3000,
    }];
    status.sum_up();
    let states = [("ESTABLISHED", 2400), ("LISTEN", 3)];
    sample.sockets = Some(Sockets {
        states: states
            .map(|(state, count)| (state.to_owned(), count))
            .into(),
        ..Sockets::default()
    });
    let rates = sample.rates.as_mut().unwrap();
    rates.slots.get_mut(&SlotId(1)).unwrap().messages /= 3.0;
    rates.slots.get_mut(&SlotId(1)).unwrap().busy = 0.95;
    rates.slots.remove(&SlotId(2));
    model.add_sample(sample, NOW);
    model
}

#[test]
fn view_fits_80_by_24() {
    let model = busy();
    let expected = [
        "uppercased 0.1.0, pid 4711: serving for 3d, release 0, crashes 7",
        "degraded     1 of 3 workers missing; slot 2 is backing off, its queue lent",
        "0.0.0.0:9999",
        "0 open of 3000, 0 acc/s, 45.0k msg/s, busy 0.50/3, 0B/s in, 0B/s out",
        "last         reload done 2m ago, took 312 ms",
        "sockets      2400 ESTABLISHED, 3 LISTEN",
        "messages/s of all workers (peak 45.0k)",
        "45.0k                                                                          █",
        "                                                                               █",
        "                                                                               █",
        "                                                                               █",
        "                                                                               █",
        "22.5k                                                                          █",
        "                                                                               █",
        "                                                                               █",
        "                                                                               █",
        "    0                                                                         ▁█",
        "      -74s                                                                   now",
        "slot     pid   gen state         open queue acc/s msg/s  in/s busy  cpu msg/s",
        ">  0    4712     0 serving          0     0     0 45.0k     0  50%    -  ▁▁█",
        "   1    4713     4 serving          0    12     0 15.0k     0  95%    -  ▁▁▃",
        "   2       -     0 backing off      0     0     -     -     -    -    -",
        "slot 2: generation 9 exited 3s ago, signal 9 (SIGKILL)",
        "q quit  r reload  u upgrade  + - scale  Enter detail  s sort  c clients  ? help",
    ];
    assert_eq!(lines(&model, (80, 24)), expected);
}

#[test]
fn view_fits_40_by_11() {
    let mut model = busy();
    model.press(Key::Char('r'));
    let expected = [
        "uppercased 0.1.0, pid 4711: serving for…",
        "degraded     1 of 3 workers missing; sl…",
        "0.0.0.0:9999",
        "0 open of 3000, 0 acc/s, 45.0k msg/s, b…",
        "last         reload done 2m ago, took 3…",
        "sockets      2400 ESTABLISHED, 3 LISTEN",
        "slot state         open queue msg/s busy",
        ">  0 serving          0     0 45.0k  50%",
        "   1 serving          0    12 15.0k  95%",
        "   2 backing off      0     0     -    -",
        "Reload and replace every worker? [y/N]",
    ];
    assert_eq!(lines(&model, (40, 11)), expected);
}

#[test]
fn view_fits_200_by_50() {
    let mut model = busy();
    let slot = &mut model.sample.as_mut().unwrap().status.slots[0];
    slot.keeper_pid = Some(4799);
    slot.rescues.note(3, 0, Duration::from_millis(2));
    model.press(Key::Char('+'));
    model.press(Key::Char('y'));
    model.handle_reply(Reply::Progress("slot 3: worker ready".to_owned()));
    let shown = lines(&model, (200, 50));
    let head = [
        "uppercased 0.1.0, pid 4711: serving for 3d, release 0, crashes 7",
        "degraded     1 of 3 workers missing; slot 2 is backing off, its queue lent",
        "0.0.0.0:9999",
        "0 open of 3000, 0 acc/s, 45.0k msg/s, busy 0.50/3, 0B/s in, 0B/s out",
        "last         reload done 2m ago, took 312 ms",
        "rescues      1 of 3 connections, 0B owed; 2.00 ms on average",
        "sockets      2400 ESTABLISHED, 3 LISTEN",
        "messages/s of all workers (peak 45.0k)",
    ];
    assert_eq!(shown[..8], head);
    // The chart takes the rows that nothing else needs.
    for (row, line) in shown[8..41].iter().enumerate() {
        let (value, bars) = match row {
            0 => ("45.0k", "█"),
            16 => ("22.5k", "█"),
            32 => ("    0", "▂▅█"),
            _ => ("", "█"),
        };
        let expected = format!("{value:<5}{bars:>195}");
        assert_eq!(*line, expected, "{row}");
    }
    assert_eq!(shown[41], format!("      -194s{:>189}", "now"));
    let rest = [
        "slot     pid  keeper   gen state          age  open queue acc/s msg/s  in/s out/s busy crash   mem  cpu   fds start msg/s",
        ">  0    4712    4799     0 serving        0ms     0     0     0 45.0k     0     0  50%     0     -    -     -     0  ▁▁█",
        "   1    4713       -     4 serving        0ms     0    12     0 15.0k     0     0  95%     0     -    -     -     0  ▁▁▃",
        "   2       -       -     0 backing off    0ms     0     0     -     -     -     -    -     7     -    -     -     0",
        "slot 2: generation 9 exited 3s ago, signal 9 (SIGKILL)",
        "scale …",
        "slot 3: worker ready",
        "q quit  r reload  u upgrade  + - scale  Enter detail  s sort  c clients  ? help",
    ];
    assert_eq!(shown[42..], rest);
}

#[test]
fn colour_repeats_words_only() {
    let mut model = busy();
    model.press(Key::Char('u'));
    let with = shown(&model, true, (80, 24));
    let without = shown(&model, false, (80, 24));
    let symbols = |terminal: &Terminal<TestBackend>| -> Vec<String> {
        let cells = terminal.backend().buffer().content().iter();
        cells.map(|cell| cell.symbol().to_owned()).collect()
    };
    assert_eq!(symbols(&with), symbols(&without));
    let coloured = |terminal: &Terminal<TestBackend>| {
        let mut cells = terminal.backend().buffer().content().iter();
        cells.any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(coloured(&with));
    assert!(!coloured(&without));
}

#[test]
fn view_marks_stale_paused_and_missing() {
    let mut model = Model::default();
    assert_eq!(lines(&model, (40, 3))[0], "connecting …");
    model.set_error("nobody there".to_owned());
    assert_eq!(lines(&model, (40, 3))[0], "nobody there");
    model.add_sample(sample(1, 5.0), Tick::from_millis(2000));
    model.press(Key::Char('p'));
    assert!(lines(&model, (80, 24))[0].ends_with(" [paused]"));
    model.set_error("nobody there".to_owned());
    let words = "no answer for 8s, retrying: nobody there";
    assert_eq!(lines(&model, (80, 24))[1], words);
    model.press(Key::Char('?'));
    let help = lines(&model, (80, 24)).join("\n");
    assert!(HELP.iter().all(|line| help.contains(line)), "{help}");
}

#[test]
fn view_counts_and_scrolls_hidden_rows() {
    let mut model = Model::default();
    let mut many = sample(64, 5.0);
    many.status.slots[40].state = "starting".to_owned();
    model.add_sample(many, NOW);
    let draw_at = |model: &mut Model| {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 80, 20));
        let palette = Palette { colour: false };
        let first = draw(model, palette, NOW, buffer.area, &mut buffer);
        model.scrolled_to(first);
        lines(model, (80, 20))
    };
    let screen = draw_at(&mut model);
    assert_eq!(screen[18], "rows 1 to 14 of 64, 1 not serving; up, down");
    assert!(screen[4].starts_with(">  0 "), "{screen:#?}");
    for _ in 0..10 {
        model.press(Key::PageDown);
    }
    let screen = draw_at(&mut model);
    assert_eq!(screen[18], "rows 51 to 64 of 64, 1 not serving; up, down");
    assert!(screen[17].starts_with("> 63 "), "{screen:#?}");
    // The rows stay while the selected one is among them.
    for _ in 0..13 {
        model.press(Key::Up);
    }
    let screen = draw_at(&mut model);
    assert_eq!(screen[18], "rows 51 to 64 of 64, 1 not serving; up, down");
    assert!(screen[4].starts_with("> 50 "), "{screen:#?}");
    model.press(Key::Up);
    let screen = draw_at(&mut model);
    assert_eq!(screen[18], "rows 50 to 63 of 64, 1 not serving; up, down");
}

/// Returns the model of a server whose processes, sources and slots have all the details.
fn detailed() -> Model {
    let mut model = busy();
    let sample = model.sample.as_mut().unwrap();
    let usage = Usage {
        started_at_ms: 1_700_000_000_000,
        age_ms: 750_000,
        cpu_ms: 12_000,
        resident_bytes: Some(12_345_678),
        descriptors: Some(1234),
    };
    let process = |process: &str, pid| ProcessStatus {
        process: process.to_owned(),
        slot: Some(SlotId(1)),
        pid,
        restarts_10m: 1,
        usage: Some(usage),
    };
    let status = &mut sample.status;
    status.processes = vec![
        process(ProcessStatus::WORKER, 4713),
        process(ProcessStatus::KEEPER, 4799),
    ];
    sample.rates.as_mut().unwrap().cpu = BTreeMap::from([(4713, 0.5)]);
    let slot = &mut status.slots[1];
    slot.keeper_pid = Some(4799);
    slot.turn_age_ms = Some(250);
    slot.accept_queues[0].address = "0.0.0.0:9999".to_owned();
    slot.accept_queues[0].inode = 55;
    slot.traffic.open = 900;
    slot.traffic.closed = BTreeMap::from([("peer_closed".to_owned(), 7)]);
    let pauses = "accept_pauses.connection_limit".to_owned();
    slot.traffic.counters.insert(pauses, 2);
    slot.starts.note(Duration::from_millis(6));
    slot.last_crashes = vec![Crash {
        generation: Generation(2),
        exit: Some("exit code 1".to_owned()),
        error: Some("worker panicked".to_owned()),
        age_ms: 9000,
    }];
    let source = |address: &str, connections| Source {
        address: address.to_owned(),
        connections,
        recv_queue: 12,
        send_queue: 3400,
    };
    let sockets = sample.sockets.as_mut().unwrap();
    sockets.sources = vec![
        source("192.0.2.1", 1800),
        source("2001:db8::1234:5678", 600),
    ];
    sockets.sources_omitted = 3;
    model
}

#[test]
fn view_shows_worker_in_detail() {
    let mut model = detailed();
    model.press(Key::Down);
    model.press(Key::Enter);
    let expected = [
        "uppercased 0.1.0, pid 4711: serving for 3d, release 0, crashes 7",
        "degraded     1 of 3 workers missing; slot 2 is backing off, its queue lent",
        "0.0.0.0:9999",
        "0 open of 3000, 0 acc/s, 45.0k msg/s, busy 0.50/3, 0B/s in, 0B/s out",
        "last         reload done 2m ago, took 312 ms",
        "sockets      2400 ESTABLISHED, 3 LISTEN",
        "slot 1       serving for 0ms, generation 4, release 0, crashes 0",
        "process      pid 4713: memory 12.3M, cpu 50%, fds 1234, up 12m, 1 restart in 10m",
        "keeper       pid 4799: memory 12.3M, cpu -, fds 1234, up 12m, 1 restart in 10m",
        "slot 1: generation 2 exited 9s ago, exit code 1: worker panicked",
        "connections  900 open of 1000, 0 accepted, 0 migrated in, 0 out",
        "rates        0 acc/s, 15.0k msg/s, 0B/s in, 0B/s out, busy 95%",
        "traffic      0B in, 0B out",
        "listens on   0.0.0.0:9999: 12 pending, limit 512, inode 55",
        "closed       7 peer_closed",
        "paused       2 connection_limit",
        "last turn    250ms ago",
        "starts       1, average 6.00 ms, last 6.00 ms",
        "messages/s of slot 1 (peak 15.0k)",
        "15.0k                                                                          █",
        "                                                                               █",
        "    0                                                                          █",
        "      -74s                                                                   now",
        "q quit  r reload  u upgrade  + - scale  Enter detail  s sort  c clients  ? help",
    ];
    assert_eq!(lines(&model, (80, 24)), expected);
}

#[test]
fn view_lists_latest_crashes_of_worker() {
    let mut model = detailed();
    let sample = model.sample.as_mut().unwrap();
    let slot = &mut sample.status.slots[1];
    slot.last_crashes.push(Crash {
        generation: Generation(1),
        exit: Some("signal 11 (SIGSEGV)".to_owned()),
        error: None,
        age_ms: 61_000,
    });
    model.press(Key::Down);
    model.press(Key::Enter);
    let expected = [
        "slot 1: generation 2 exited 9s ago, exit code 1: worker panicked",
        "        generation 1 exited 1m ago, signal 11 (SIGSEGV)",
    ];
    assert_eq!(lines(&model, (80, 24))[9..11], expected);
}

#[test]
fn view_shows_busiest_sources() {
    let mut model = detailed();
    model.press(Key::Char('c'));
    let expected = [
        "source                                  open      unread unacked",
        "192.0.2.1                               1800  75%     12    3400",
        "2001:db8::1234:5678                      600  25%     12    3400",
        "… 3 more sources",
    ];
    assert_eq!(lines(&model, (80, 24))[6..10], expected);
    let expected = [
        "source          open      unread unacked",
        "192.0.2.1       1800  75%     12    3400",
        "… 4 more sources",
        "q quit r u + - Enter s c p ? help",
    ];
    assert_eq!(lines(&model, (40, 10))[6..], expected);
}

#[test]
fn view_shows_steps_of_foreign_operation() {
    let mut model = busy();
    let status = &mut model.sample.as_mut().unwrap().status;
    status.operation = Some("reload: 1 of 3 slots replaced".to_owned());
    status.operation_steps = (1..=5).map(|step| format!("step {step}")).collect();
    let expected = [
        "reload: 1 of 3 slots replaced",
        "  step 3",
        "  step 4",
        "  step 5",
    ];
    assert_eq!(lines(&model, (80, 24))[4..8], expected);
    // The own operation has its lines at the bottom.
    model.handle_reply(Reply::Progress("own step".to_owned()));
    let shown = lines(&model, (80, 24));
    assert_eq!(
        (shown[5].as_str(), shown[22].as_str()),
        ("sockets      2400 ESTABLISHED, 3 LISTEN", "own step")
    );
}

proptest! {
    #[test]
    fn view_draws_any_size_and_number(
        size in (1_u16..220, 1_u16..60), numbers in prop::array::uniform4(any::<u64>()),
        slots in 0_u16..70, text in ".{0,100}", keys in "[rud+?psc\r\x1b-]{0,6}",
    ) {
        let mut one = sample(slots, numbers[0] as f64);
        one.status.operation = Some(text.clone());
        one.status.phase.clone_from(&text);
        for slot in &mut one.status.slots {
            slot.state.clone_from(&text);
            slot.age_ms = numbers[1];
            slot.traffic.open = numbers[2];
            slot.crashes = numbers[3];
            slot.history = numbers.map(|number| number as u32).to_vec();
        }
        one.status.history = numbers.map(|number| number as u32).to_vec();
        one.sockets = Some(Sockets {
            states: BTreeMap::from([(text.clone(), numbers[0])]),
            sources: vec![Source { address: text.clone(), connections: numbers[1], ..Source::default() }],
            ..Sockets::default()
        });
        let mut model = Model::default();
        model.add_sample(one, NOW);
        for key in keys.chars() {
            model.press(match key {
                '\r' => Key::Enter,
                '\x1b' => Key::Down,
                other => Key::Char(other),
            });
        }
        model.handle_reply(Reply::Progress(text));
        shown(&model, true, size);
    }
}
