//! The results: a table, and JSON.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};
use uppercased_ctl::units;

use super::clients::{ESTABLISHED, MESSAGES_EACH, NEW, RATE};
use super::server::{Event, Rival};
use super::{Options, Round};

/// The rounds of one server with one event, or the reason why there are none.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) rival: Rival,
    pub(crate) event: Event,
    pub(crate) rounds: Result<Vec<Round>, String>,
}

/// A figure of a round.
type Of = fn(&Round) -> f64;

const FIGURES: [(&str, Of); 6] = [
    ("lost", |round| round.seen.lost as f64),
    ("reset", |round| round.seen.reset as f64),
    ("refused", |round| round.seen.refused as f64),
    ("longest_wait_ms", |round| {
        round.seen.longest_wait.as_secs_f64() * 1e3
    }),
    ("took_ms", |round| round.took.as_secs_f64() * 1e3),
    ("old_processes", |round| round.left as f64),
];

/// Width of a figure's column.
const COLUMN: usize = 24;

impl Cell {
    pub(crate) fn rounds(&self) -> impl Iterator<Item = &Round> {
        self.rounds.iter().flatten()
    }
}

pub(crate) fn head(options: &Options) {
    println!(
        "{ESTABLISHED} established connections with {RATE} messages/s, {NEW} new connections at a \
         time with {MESSAGES_EACH} message each; median (range) of {} rounds",
        options.rounds
    );
    let names = FIGURES.map(|(name, _)| format!("{name:>COLUMN$}")).concat();
    println!("{:13} {:20} {:8}{names}", "server", "version", "event");
}

pub(crate) fn row(cell: &Cell) {
    let name = cell.rival.name();
    match &cell.rounds {
        Ok(rounds) => {
            let figures = FIGURES.map(|(_, of)| format!("{:>COLUMN$}", spread(rounds, of)));
            println!(
                "{name:13} {:20} {:8}{}",
                cell.rival.version(),
                cell.event.name(),
                figures.concat()
            );
        }
        Err(cause) => println!("{name:13} {} not measured: {cause}", cell.event.name()),
    }
}

pub(crate) fn settings(rivals: &[Rival]) {
    println!();
    for rival in rivals {
        println!("{}: {}", rival.name(), rival.settings());
    }
}

pub(crate) fn write_json(cells: &[Cell], file: &Path) -> io::Result<()> {
    let cells = cells.iter().map(|cell| {
        let rounds = cell.rounds().map(|round| {
            let figures = FIGURES.map(|(name, of)| (name.to_owned(), json!(of(round))));
            Value::Object(figures.into_iter().collect())
        });
        json!({
            "server": cell.rival.name(),
            "version": cell.rival.version(),
            "settings": cell.rival.settings(),
            "event": cell.event.name(),
            "not_measured": cell.rounds.as_ref().err(),
            "rounds": rounds.collect::<Vec<Value>>(),
        })
    });
    let all = json!({
        "established": ESTABLISHED,
        "messages_per_s": RATE,
        "new": NEW,
        "messages_each": MESSAGES_EACH,
        "cells": cells.collect::<Vec<Value>>(),
    });
    fs::write(file, serde_json::to_string_pretty(&all)? + "\n")
}

/// Shows median, minimum and maximum.
fn spread(rounds: &[Round], of: Of) -> String {
    let mut sorted: Vec<f64> = rounds.iter().map(of).collect();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
    let median = sorted[sorted.len() / 2];
    if least == most {
        return number(median);
    }
    format!("{} ({} to {})", number(median), number(least), number(most))
}

fn number(figure: f64) -> String {
    if figure.fract() == 0.0 {
        return figure.to_string();
    }
    units::ratio(figure)
}
