//! Error reports for invalid command lines: clap's report in one line, a pointer to help, and this
//! program's name for terms of other programs.
//!
//! Invariant: one line for any input. Must not: decide which input is valid.

use clap::error::{ContextKind, ContextValue};

use super::names;
use uppercased_ctl::escape::visible;

/// Terms of other programs, and their equivalents here.
const FOREIGN_TERMS: &[(&[&str], &str)] = &[
    (
        &["start", "run"],
        "start the server with `uppercased` or `uppercased serve`",
    ),
    (
        &["restart", "-r", "-s"],
        "`uppercased reload` replaces every worker, `uppercased upgrade` also the binary, and \
         `uppercased stop` stops the server",
    ),
    (
        &["version", "-v"],
        "`uppercased --version` prints the version, `--log-level debug` makes the server log more",
    ),
    (
        &["test", "configtest", "validate", "-t", "--test"],
        "`uppercased check` validates the configuration",
    ),
    (
        &["quit", "shutdown", "kill"],
        "`uppercased stop` stops gracefully",
    ),
    (
        &["-d", "-D", "--daemon", "--daemonize", "--background"],
        "the server stays in the foreground; start it with systemd, or with the shell's `&`",
    ),
    (
        &["-p", "-l", "--port", "--bind", "--address", "--host"],
        "use `--listen` for addresses and ports",
    ),
    (
        &["-w", "-n", "--threads", "--processes"],
        "use `--workers` for the number of worker processes",
    ),
    (
        &["true", "false", "yes", "no", "on", "off"],
        "a switch takes its value after an equals sign, as in `--pin=false`",
    ),
    #[cfg(not(feature = "bench"))]
    (
        &[names::BENCH],
        "this binary is built without the load generator; use one with the feature `bench`",
    ),
    #[cfg(not(feature = "top"))]
    (
        &[names::TOP],
        "this binary is built without the dashboard; use one with the feature `top`, or \
         `uppercased status --watch`",
    ),
];

/// Returns clap's message and tips without decoration, and where to find help.
pub(super) fn one_line(error: &clap::Error, command: &str) -> String {
    let text = error.to_string();
    let mut parts = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .map(|line| line.strip_prefix("error: ").unwrap_or(line))
        .map(|line| line.strip_prefix("tip: ").unwrap_or(line));
    let mut line = parts.next().unwrap_or_default().to_owned();
    if let Some(suggestion) = suggestion(error, command) {
        // A similar spelling is a useless tip for a term with a known equivalent.
        line.push_str("; ");
        line.push_str(&suggestion);
    } else {
        for part in parts {
            line.push_str(if line.ends_with(':') { " " } else { "; " });
            line.push_str(part);
        }
    }
    visible(&format!("{line}; see `{command} --help`"))
}

/// Returns the equivalent of the unknown word, if known.
fn suggestion(error: &clap::Error, command: &str) -> Option<String> {
    let unknown = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    let flag = unknown(ContextKind::InvalidArg);
    let mut names = command.split(' ').skip(1);
    #[cfg(feature = "bench")]
    if names.clone().next() == Some(names::BENCH) && names.clone().nth(1) != Some(names::COMPARE) {
        return flag.and_then(uppercased_bench::hint);
    }
    // Foreign flags are the server's.
    let is_server = names.all(|name| names::CONFIGURED.contains(&name));
    let word = unknown(ContextKind::InvalidSubcommand).or_else(|| flag.filter(|_| is_server))?;
    let row = FOREIGN_TERMS
        .iter()
        .find(|(words, _)| words.contains(&word));
    row.map(|(_, suggestion)| (*suggestion).to_owned())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::definition;
    use crate::cli::names::PROGRAM;

    fn line_for(args: &[&str]) -> String {
        let args: Vec<OsString> = [&[PROGRAM], args].concat().iter().map(Into::into).collect();
        super::super::parse(args, []).unwrap_err().to_string()
    }

    #[test]
    fn error_names_missing_argument_and_help() {
        assert_eq!(
            line_for(&["scale"]),
            "the following required arguments were not provided: <N>; see `uppercased scale --help`"
        );
        assert_eq!(
            line_for(&["scale", "0"]),
            "invalid value '0' for '<N>': use a number from 1 to 1024; see `uppercased scale \
             --help`"
        );
        #[cfg(feature = "bench")]
        assert_eq!(
            line_for(&["bench", "compare"]),
            "the following required arguments were not provided: <A.json>...; see `uppercased \
             bench compare --help`"
        );
        assert!(line_for(&["stop", "--timeout", "0s"]).contains("greater than zero"));
        assert!(line_for(&["stop", "--timeout", "5"]).contains("needs a unit"));
        assert!(line_for(&["nonsense"]).ends_with("see `uppercased --help`"));
    }

    #[test]
    fn errors_never_suggest_hidden_roles() {
        for word in [
            "admi",
            "admn",
            "workr",
            "wrker",
            "preflght",
            "pre-flight",
            "bench-prt",
        ] {
            let line = line_for(&[word]);
            for role in ["'admin'", "'worker'", "'preflight'", "'bench-part'"] {
                assert!(!line.contains(role), "{line}");
            }
        }
        // After a flag the word is not a role either.
        assert!(line_for(&["--pin", "worker"]).starts_with("unrecognized subcommand 'worker'"));
    }

    #[test]
    fn words_of_other_servers_are_recognised() {
        for (words, suggestion) in FOREIGN_TERMS {
            for word in *words {
                let line = line_for(&[word]);
                assert!(
                    line.contains(suggestion) && !line.contains("similar"),
                    "{line}"
                );
                assert!(!line.contains('\n'), "{line}");
            }
        }
        // `-n` has another meaning for other commands.
        assert!(!line_for(&["status", "-n"]).contains("--workers"));
        #[cfg(feature = "bench")]
        for (args, hint) in [
            (
                ["bench", "-q", "5"].as_slice(),
                "it applies to `bench rate`",
            ),
            (&["bench", "ping", "--rate=5"], "it applies to `bench rate`"),
            (&["bench", "churn", "-o", "json"], "`--json -`"),
            (&["bench", "-w", "1s"], "use `--warmup`"),
        ] {
            let line = line_for(args);
            assert!(line.contains(hint) && !line.contains("similar"), "{line}");
        }
    }

    #[test]
    fn suggested_commands_exist() {
        let root = definition::public_command();
        let known = |name: &str| {
            root.find_subcommand(name).is_some()
                || root.get_arguments().any(|arg| arg.get_long() == Some(name))
                || name == "version"
        };
        for (_, suggestion) in FOREIGN_TERMS {
            for code in suggestion.split('`').skip(1).step_by(2) {
                for word in code.split(' ').filter(|word| word.starts_with("--")) {
                    let name = word[2..].split('=').next().unwrap_or_default();
                    assert!(known(name), "{word}");
                }
                if let Some(command) = code.strip_prefix("uppercased ") {
                    let name = command.split(' ').next().unwrap_or_default();
                    assert!(name.starts_with('-') || known(name), "{name}");
                }
            }
        }
    }
}
