//! Unit tests of `definition.rs`.

use super::*;

#[test]
fn command_definition_is_valid() {
    command().debug_assert();
}

#[test]
fn help_fits_terminal_and_names_every_setting() {
    let mut whole = command();
    whole.build();
    let mut texts = vec![whole.render_help().to_string()];
    for name in [
        SERVE,
        CHECK,
        CLIENT,
        #[cfg(feature = "bench")]
        BENCH,
        RELOAD,
        UPGRADE,
        SCALE,
        STATUS,
        STOP,
        COMPLETIONS,
        MAN,
        CANCEL,
        ROTATION,
        #[cfg(feature = "top")]
        TOP,
    ] {
        let sub = whole.find_subcommand_mut(name).unwrap();
        let text = sub.render_help().to_string();
        assert!(text.contains("Example"), "{name}");
        texts.push(text);
    }
    for text in &texts {
        let widest = text
            .lines()
            .max_by_key(|line| line.chars().count())
            .unwrap();
        assert!(widest.chars().count() <= HELP_COLUMNS, "{widest}");
    }
    for setting in SETTINGS {
        assert!(texts[0].contains(&format!("--{}", setting.flag())));
        let line = format!("{} [default: {}]\n", setting.help, setting.default);
        assert!(texts[0].contains(&line), "wrapped: {line}");
    }
    for role in ROLES {
        let listed = texts[0]
            .lines()
            .any(|line| line.trim_start().starts_with(role));
        assert!(!listed, "the role {role} is not for people");
    }
}

/// Maximum length of a help text's first line, without a setting's default.
const HELP_LINE_MAX: usize = 70;

/// Verbs that may begin a command's help.
const IMPERATIVES: [&str; 19] = [
    "Cancel", "Change", "Check", "Compare", "Find", "Hold", "Measure", "Open", "Print", "Reload",
    "Replace", "Run", "Send", "Serve", "Show", "Start", "Stop", "Take", "Validate",
];

/// Phrases removed from `--help` that must not return.
const BANNED: [&str; 12] = [
    "so long",
    "so many",
    "so often",
    "who ",
    "whoever",
    "anew",
    "renew",
    "verdict",
    "in order;",
    "under way",
    "stands still",
    "a second in",
];

fn with_subcommands(command: &Command) -> Vec<&Command> {
    let below = command.get_subcommands().flat_map(with_subcommands);
    [command].into_iter().chain(below).collect()
}

/// Returns the first help line of every argument that this program defines.
fn argument_lines(command: &Command) -> Vec<String> {
    let configured = [PROGRAM, SERVE, CHECK].contains(&command.get_name());
    let mut lines = Vec::new();
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        match Setting::find(id).filter(|_| configured) {
            Some(setting) => lines.push(setting.help.to_owned()),
            None if ROLES.contains(&command.get_name()) => {}
            None => lines.push(arg.get_help().unwrap().to_string()),
        }
    }
    lines
}

#[test]
fn help_lines_are_short_and_plain() {
    let root = command();
    for command in with_subcommands(&root) {
        let name = command.get_name();
        let about = command.get_about().unwrap().to_string();
        let verb = about.split(' ').next().unwrap();
        assert!(name == PROGRAM || IMPERATIVES.contains(&verb), "{about}");
        for line in [argument_lines(command), vec![about]].concat() {
            assert!(line.chars().count() <= HELP_LINE_MAX, "{name}: {line}");
            assert!(line.starts_with(char::is_uppercase), "{name}: {line}");
            assert!(!line.ends_with('.'), "{name}: {line}");
        }
        let after = command.get_after_help().map(ToString::to_string);
        for example in after.iter().flat_map(|text| text.lines()) {
            let is_example = example.starts_with("  ");
            assert!(
                !is_example || example.chars().count() <= HELP_COLUMNS,
                "{example}"
            );
        }
        let whole = command.clone().render_long_help().to_string();
        for phrase in BANNED {
            assert!(!whole.contains(phrase), "{name} says {phrase:?}: {whole}");
        }
    }
}

#[test]
fn roles_are_exactly_the_hidden_commands() {
    let command = command();
    let hidden = command.get_subcommands().filter(|one| one.is_hide_set());
    let mut hidden: Vec<&str> = hidden.map(Command::get_name).collect();
    hidden.sort_unstable();
    let mut roles = ROLES.to_vec();
    roles.sort_unstable();
    assert_eq!(hidden, roles);
}

const REFERENCE: &str = include_str!("../../../docs/reference.md");

/// Returns the page that must document the flags of a command.
fn page_of(command: &str) -> &'static str {
    match command {
        BENCH => include_str!("../../../docs/bench.md"),
        PROGRAM | SERVE | CHECK => include_str!("../../../docs/configuration.md"),
        _ => REFERENCE,
    }
}

/// Returns the words of each code span on a page.
fn in_code(page: &str) -> impl Iterator<Item = impl Iterator<Item = &str>> {
    let codes = page.split('`').skip(1).step_by(2);
    codes.map(|code| code.split([' ', '=']))
}

#[test]
fn every_command_and_flag_is_documented() {
    let root = public_command();
    let mut missing = Vec::new();
    for command in [&root].into_iter().chain(root.get_subcommands()) {
        let name = command.get_name();
        let call = [PROGRAM, name];
        if name != PROGRAM && !in_code(REFERENCE).any(|code| code.take(2).eq(call)) {
            missing.push(name.to_owned());
        }
        let below = command.get_subcommands().filter(|_| name != PROGRAM);
        let all = [command].into_iter().chain(below);
        let flags = all
            .flat_map(Command::get_arguments)
            .filter_map(Arg::get_long);
        for flag in flags.map(|flag| format!("--{flag}")) {
            if !in_code(page_of(name)).flatten().any(|word| word == flag) {
                missing.push(format!("{name} {flag}"));
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/: {missing:?}");
}

#[test]
fn supervisor_handles_listed_signals() {
    let mut listed = SIGNALS.map(|(signal, _)| format!("SIG{signal}")).to_vec();
    listed.sort();
    let handled = crate::supervisor::signals::HANDLED_SIGNALS
        .into_iter()
        .flatten();
    let mut handled: Vec<String> = handled
        .map(|signal| nix::sys::signal::Signal::try_from(*signal).unwrap())
        .map(|signal| signal.as_str().to_owned())
        // The server does not handle it, but the page describes its effect on workers.
        .chain(["SIGKILL".to_owned()])
        .collect();
    handled.sort();
    assert_eq!(listed, handled);
}

#[test]
fn help_and_operations_list_the_same_signals() {
    let (_, section) = REFERENCE.split_once("## Signals to").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    // The first column of the table.
    let rows = section.lines().filter(|line| line.starts_with("| `SIG"));
    let mut documented: Vec<&str> = rows
        .flat_map(|row| row.split('|').nth(1).unwrap_or_default().split(','))
        .filter_map(|name| name.trim().trim_matches('`').strip_prefix("SIG"))
        .collect();
    documented.sort_unstable();
    let mut listed = SIGNALS.map(|(signal, _)| signal);
    listed.sort_unstable();
    assert_eq!(listed.as_slice(), documented);
    for line in signals().lines() {
        assert!(line.chars().count() <= HELP_COLUMNS, "{line}");
    }
    let help = command().render_long_help().to_string();
    assert!(help.contains(&signals()), "{help}");
}

/// Returns the table of flags between the two marks in `docs/bench.md`: a row for each flag and
/// meaning, with the commands that have it.
#[cfg(feature = "bench")]
fn table_of_bench() -> String {
    let mut bench = uppercased_bench::command();
    bench.build();
    let commands = || {
        bench
            .get_subcommands()
            .filter(|one| one.get_name() != "help")
    };
    let mut rows: Vec<(String, Vec<&str>)> = Vec::new();
    for command in commands() {
        let flags = command.get_arguments().filter(|arg| !arg.is_positional());
        for flag in flags
            .filter(|arg| arg.get_id() != "help")
            .map(flag_and_help)
        {
            let name = command.get_name();
            match rows.iter_mut().find(|(known, _)| *known == flag) {
                Some((_, commands)) => commands.push(name),
                None => rows.push((flag, vec![name])),
            }
        }
    }
    // The rows of one flag stand together.
    let flag = |row: &str| row.split(" | ").next().map(str::to_owned);
    let first = |row: &str| rows.iter().position(|(known, _)| flag(known) == flag(row));
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|at| first(&rows[*at].0));
    let measuring = commands().filter(|one| one.get_name() != COMPARE).count();
    let mut table = "| flag | meaning | commands |\n|---|---|---|\n".to_owned();
    for (flag, commands) in order.into_iter().map(|at| &rows[at]) {
        let commands = match commands.len() == measuring {
            true => "all".to_owned(),
            false => format!("`{}`", commands.join("`, `")),
        };
        table += &format!("| {flag} | {commands} |\n");
    }
    table
}

/// Returns the cells of a flag and of its help.
#[cfg(feature = "bench")]
fn flag_and_help(flag: &Arg) -> String {
    let long = format!("--{}", flag.get_long().unwrap());
    let value = flag
        .get_value_names()
        .filter(|_| flag.get_action().takes_values());
    let value = value.map_or_else(String::new, |names| format!(" {}", names[0]));
    let short = flag.get_short();
    let short = short.map_or_else(String::new, |short| format!("`-{short}`, "));
    let words = flag.get_possible_values();
    let words: Vec<&str> = words.iter().map(|word| word.get_name()).collect();
    let words = match words.as_slice() {
        [] => String::new(),
        // The value of a switch.
        ["true", "false"] => String::new(),
        words => format!(": `{}`", words.join("`, `")),
    };
    let help = flag.get_help().unwrap();
    // In a table a bar would begin the next cell, even in code.
    format!("{short}`{long}{value}` | {help}{words}").replace("N|ADDR", "N\\|ADDR")
}

#[cfg(feature = "bench")]
#[test]
fn the_documentation_agrees_with_the_flags() {
    crate::documented::agrees("bench.md", "flags", &table_of_bench());
}
