//! The meaning of exit codes by command: one table for help, manual pages and documentation.
//!
//! Must not: end a process; each command exits by itself, with one of these.

use clap::Command;

use super::names::{self, BAD_INPUT};

/// An exit code and its meaning.
pub(super) type Meaning = (u8, &'static str);

/// Exit codes common to all commands, for the short help.
pub(super) const COMMON: [Meaning; 3] = [
    (0, "done"),
    (1, "failure"),
    (BAD_INPUT, "bad usage or configuration"),
];

const SERVER: &[Meaning] = &[
    (0, "The server stopped as requested."),
    (
        1,
        "The server could not run: an address is in use, a permission is missing, a worker cannot \
         start.",
    ),
    (
        BAD_INPUT,
        "Bad usage or configuration. Nothing was started.",
    ),
];

const CHECK: &[Meaning] = &[
    (0, "The configuration is valid."),
    (1, "The result could not be written."),
    (BAD_INPUT, "Bad usage or invalid configuration."),
];

const CLIENT: &[Meaning] = &[
    (0, "Every byte came back in upper case."),
    (1, "A reply was wrong, missing or refused."),
    (BAD_INPUT, "Bad usage or an invalid address."),
];

const BENCH: &[Meaning] = &[
    (
        0,
        "Every byte was correct, nothing failed and the plan was completed.",
    ),
    (
        1,
        "A failure, an incomplete plan, or output that could not be written.",
    ),
    (BAD_INPUT, "Bad usage or conflicting flags."),
];

const COMPARE: &[Meaning] = &[
    (0, "The comparison was printed."),
    (1, "The output could not be written."),
    (BAD_INPUT, "Bad usage, or a file that is not a measurement."),
];

const REMOTE: &[Meaning] = &[
    (0, "The server completed the request."),
    (
        1,
        "The request failed or was refused, the server closed the connection, or no answer came in \
         time.",
    ),
    (
        BAD_INPUT,
        "Bad usage, or no server to ask: none is running, several are, or it belongs to another \
         user. Nothing has happened.",
    ),
];

const TEXT: &[Meaning] = &[
    (0, "The output was written."),
    (1, "The output could not be written."),
    (BAD_INPUT, "Bad usage."),
];

/// Returns the exit codes of a command; none for an unknown command.
pub(super) fn meanings(command: &Command) -> &'static [Meaning] {
    let takes = |flag: &str| command.get_arguments().any(|arg| arg.get_id() == flag);
    match command.get_name() {
        names::PROGRAM | names::SERVE => SERVER,
        names::CHECK => CHECK,
        names::CLIENT => CLIENT,
        names::BENCH => BENCH,
        names::COMPARE => COMPARE,
        names::MAN | names::COMPLETIONS => TEXT,
        // Every request to a running server can name it.
        _ if takes(names::CONTROL) => REMOTE,
        _ => &[],
    }
}

/// Returns the common exit codes as help text.
pub(super) fn in_short() -> String {
    let each = COMMON.map(|(code, meaning)| format!("{code} {meaning}"));
    format!("Exit codes: {}.", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::definition;
    use std::collections::BTreeSet;

    #[test]
    fn reference_lists_every_exit_code() {
        let page = include_str!("../../docs/reference.md");
        let (_, section) = page.split_once("\n## Exit codes\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let documented: BTreeSet<u8> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.split(" |").next()?.parse().ok())
            .collect();
        let root = definition::for_people();
        let mut commands: Vec<&Command> = root.get_subcommands().collect();
        let below = commands
            .iter()
            .flat_map(|command| command.get_subcommands());
        commands.extend(below.collect::<Vec<_>>());
        commands.push(&root);
        let mut known = BTreeSet::new();
        for command in commands {
            let meanings = meanings(command);
            assert!(!meanings.is_empty(), "of {}", command.get_name());
            known.extend(meanings.iter().map(|(code, _)| *code));
        }
        assert_eq!(documented, known);
        assert_eq!(known, COMMON.iter().map(|(code, _)| *code).collect());
    }
}
