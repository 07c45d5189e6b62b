//! The `man` command: prints one manual page, or writes all of them into a directory.
//!
//! Invariant: a failed write reports one line on standard error and exit code 1. Must not: know the
//! contents of a page (`page` does).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PathBufValueParser, PossibleValuesParser};
use clap::{Arg, ArgMatches, Command, ValueHint};

use super::names::MAN;
use page::Page;
use uppercased_ctl::output::print;
use uppercased_ctl::stderr::write_error;

mod page;

const PAGE: &str = "command";
const DIR: &str = "dir";

/// The requested pages and their destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manual {
    /// One page, on standard output: that of a command, of the configuration file, or of the
    /// program.
    Print(Option<String>),
    /// All pages, as files in this directory, which is created if missing.
    Write(PathBuf),
}

/// Returns the command's definition, for the pages of the commands in `root`. Hidden roles have no
/// page.
pub(super) fn command(root: &Command) -> Command {
    let mut pages = Vec::new();
    for command in root.get_subcommands().filter(|one| !one.is_hide_set()) {
        let name = command.get_name();
        pages.push(name.to_owned());
        let below = command.get_subcommands();
        pages.extend(below.map(|below| format!("{name}-{}", below.get_name())));
    }
    pages.push(MAN.to_owned());
    pages.push(page::FILE.to_owned());
    Command::new(MAN)
        .about("Print a manual page, or write all of them")
        .after_help(
            "Examples:\n  uppercased man | man -l -\n  uppercased man reload | man -l -\n  \
             uppercased man --dir pages",
        )
        .arg(
            Arg::new(PAGE)
                .value_name("COMMAND")
                .value_parser(PossibleValuesParser::new(pages))
                .help("Page of a command or of the configuration file [default: program]"),
        )
        .arg(
            Arg::new(DIR)
                .long(DIR)
                .value_name("DIR")
                .value_parser(PathBufValueParser::new())
                .value_hint(ValueHint::DirPath)
                .conflicts_with(PAGE)
                .help("Write every page to this directory, created if missing"),
        )
}

/// Returns the parsed arguments.
pub(super) fn typed(typed: &ArgMatches) -> Manual {
    match typed.get_one::<PathBuf>(DIR) {
        Some(dir) => Manual::Write(dir.clone()),
        None => Manual::Print(typed.get_one(PAGE).cloned()),
    }
}

/// Prints a page, or writes all of them.
pub(super) fn run(asked: &Manual, command: Command) -> ExitCode {
    let pages = page::all(command);
    match asked {
        Manual::Print(name) => {
            let wanted = page::title(name.as_deref());
            let page = pages.iter().find(|page| page.title == wanted);
            print(&page.expect("invariant: what may be typed has a page").text)
        }
        Manual::Write(dir) => match write(dir, &pages) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                write_error(&why);
                ExitCode::FAILURE
            }
        },
    }
}

fn write(dir: &Path, pages: &[Page]) -> Result<(), String> {
    let refused = |path: &Path, error| {
        let path = path.display();
        format!("cannot write {path}: {error}; use a writable directory")
    };
    fs::create_dir_all(dir).map_err(|error| refused(dir, error))?;
    for page in pages {
        let path = dir.join(page.file_name());
        fs::write(&path, &page.text).map_err(|error| refused(&path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::definition;
    use super::*;

    #[test]
    fn manual_has_exactly_the_offered_pages() {
        let root = definition::public_command();
        let typed = root.find_subcommand(MAN).unwrap();
        let names = typed.get_positionals().next().unwrap();
        let mut typed: Vec<String> = names
            .get_possible_values()
            .iter()
            .map(|name| page::title(Some(name.get_name())))
            .chain([page::title(None)])
            .collect();
        let mut there: Vec<String> = page::all(root).into_iter().map(|page| page.title).collect();
        typed.sort();
        there.sort();
        assert_eq!(typed, there);
    }
}
