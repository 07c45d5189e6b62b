//! The meaning of each command's exit codes: one table for help, manual pages and documentation.
//!
//! Must not: end a process; each command exits by itself with one of these.

use clap::Command;

use super::names::{self, BAD_INPUT};

/// The meanings of the exit codes from 0 on.
type Meanings = &'static [&'static str];

/// Exit codes common to all commands, for the short help.
const COMMON: [&str; 1 + BAD_INPUT as usize] = ["done", "failure", "bad usage or configuration"];

const SERVER: Meanings = &[
    "The server stopped as requested.",
    "The server could not run: an address is in use, a permission is missing, a worker cannot \
     start.",
    "Bad usage or configuration. Nothing was started.",
];

const CHECK: Meanings = &[
    "The configuration is valid.",
    "The result could not be written.",
    "Bad usage or invalid configuration.",
];

const CLIENT: Meanings = &[
    "Every byte came back in upper case.",
    "A reply was wrong, missing or refused.",
    "Bad usage or an invalid address.",
];

const BENCH: Meanings = &[
    "Every byte was correct, nothing failed and the plan was completed.",
    "A failure, an incomplete plan, or output that could not be written.",
    "Bad usage or conflicting flags.",
    "Only a condition of --fail-if held; nothing failed otherwise.",
];

const VERSUS: Meanings = &[
    "Every run was complete, every byte correct, and nothing failed; either server may be faster.",
    "A failure, an incomplete run, or output that could not be written.",
    "Bad usage or conflicting flags.",
];

const COMPARE: Meanings = &[
    "The comparison was printed.",
    "The output could not be written.",
    "Bad usage, or a file that is not a measurement.",
];

const REMOTE: Meanings = &[
    "The server completed the request.",
    "The request failed or was refused, the server closed the connection, or no answer came in \
     time.",
    "Bad usage, or no server to ask: none is running, several are, or it belongs to another user. \
     Nothing has happened.",
];

const TEXT: Meanings = &[
    "The output was written.",
    "The output could not be written.",
    "Bad usage.",
];

const LEFTOVERS: Meanings = &[
    "No worker is left, or systemd does not stop the service.",
    "A worker still runs, or cannot be signalled.",
    "Bad usage.",
];

/// Returns a command's exit codes with their meanings; none for an unknown command.
pub(super) fn meanings(command: &Command) -> Vec<(u8, &'static str)> {
    let takes = |flag: &str| command.get_arguments().any(|arg| arg.get_id() == flag);
    let meanings = match command.get_name() {
        names::PROGRAM | names::SERVE => SERVER,
        names::CHECK => CHECK,
        names::CLIENT => CLIENT,
        names::COMPARE => COMPARE,
        names::VERSUS => VERSUS,
        names::DRAIN_LEFTOVERS => LEFTOVERS,
        names::MAN | names::COMPLETIONS => TEXT,
        _ if takes(names::CONNECTIONS) => BENCH,
        // Every request to a running server can name it.
        _ if takes(names::CONTROL) => REMOTE,
        _ => return Vec::new(),
    };
    (0..).zip(meanings.iter().copied()).collect()
}

/// Returns the common exit codes as help text.
pub(super) fn in_short() -> String {
    let [done, failure, bad_input] = COMMON;
    format!("Exit codes: 0 {done}, 1 {failure}, {BAD_INPUT} {bad_input}.")
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
        let root = definition::public_command();
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
        #[cfg(feature = "bench")]
        assert_eq!(known, (0..=uppercased_bench::CRITERION_FAILED).collect());
    }
}
