//! The `completions` command: generates shell completion scripts.
//!
//! Invariant: scripts are generated from the one command-line definition, without the internal
//! roles. Must not: know a command or a flag by name.

use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;

use super::names::{self, COMPLETIONS};
use crate::config::Setting;
use uppercased_ctl::output::print;

const SHELL: &str = "shell";

/// The shells that packages install scripts for.
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// Returns the definition of the command.
pub(super) fn command() -> Command {
    let shells = PossibleValuesParser::new(SHELLS).try_map(|shell| shell.parse::<Shell>());
    Command::new(COMPLETIONS)
        .about("Print a shell completion script")
        .after_help(
            "Examples:\n  source <(uppercased completions bash)\n  \
             uppercased completions zsh > ~/.zfunc/_uppercased\n  \
             uppercased completions fish > ~/.config/fish/completions/uppercased.fish",
        )
        .arg(
            Arg::new(SHELL)
                .value_name("SHELL")
                .required(true)
                .value_parser(shells)
                .help("Name of the shell"),
        )
}

/// Returns the requested shell.
pub(super) fn typed(typed: &ArgMatches) -> Shell {
    let shell = typed.get_one(SHELL).copied();
    shell.expect("invariant: clap requires it")
}

/// Prints the script.
pub(super) fn run(shell: Shell, command: Command) -> ExitCode {
    print(&script(shell, command))
}

/// Adds the settings' keywords: the definition lacks them, since values are checked elsewhere.
fn with_words(command: Command) -> Command {
    command.mut_args(|arg| {
        let setting = Setting::find(arg.get_id().as_str());
        match setting
            .map(Setting::words)
            .filter(|words| !words.is_empty())
        {
            Some(words) => arg.value_parser(PossibleValuesParser::new(words)),
            None => arg,
        }
    })
}

/// Removes the positional arguments of a command that has commands: zsh would expect the command
/// after all of them.
fn without_positionals(command: Command) -> Command {
    if !command.has_subcommands() {
        return command;
    }
    let flags = command.get_arguments().filter(|arg| !arg.is_positional());
    Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .args(flags.cloned())
        .subcommands(command.get_subcommands().cloned())
}

fn script(shell: Shell, command: Command) -> String {
    let command = with_words(command).mut_subcommands(without_positionals);
    let mut command = names::CONFIGURED
        .into_iter()
        .fold(command, |command, name| {
            command.mut_subcommand(name, with_words)
        });
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::definition;
    use super::*;

    #[test]
    fn completions_omit_hidden_roles() {
        for shell in SHELLS {
            let script = script(shell.parse().unwrap(), definition::public_command());
            for word in ["reload", "idle-timeout", "completions"] {
                assert!(script.contains(word), "{shell:?}: {word}");
            }
            assert_eq!(script.contains("compare"), cfg!(feature = "bench"));
            for role in [names::PREFLIGHT, "bench-part"] {
                assert!(!script.contains(role), "{shell:?}: {role}");
            }
        }
    }
}
