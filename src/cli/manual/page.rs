//! Renders manual pages from the command-line definition, plus other sections.
//!
//! Invariants: options, notes and examples come from the definition, settings from their table,
//! signals and exit codes from theirs; no text is duplicated here. Must not: write.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::{exit, names};
use crate::config::{SETTINGS, Setting};

/// The page of the configuration file.
pub(super) const FILE: &str = "uppercased.toml";

const DESCRIPTION: &str = "A supervisor starts worker processes that share one port. The server \
                           echoes every byte back in ASCII upper case. Without a command, \
                           uppercased starts the server; reload, upgrade and scale change it while \
                           it serves, and migrate established connections to other workers instead \
                           of closing them.";

const SPELLINGS: &str = "Every server option has one name in three forms, for example \
                         --idle-timeout 30s, in the environment UPPERCASED_IDLE_TIMEOUT=30s, in \
                         the file idle_timeout = \"30s\". Options override the environment, and \
                         the environment overrides the file.";

const FILE_DESCRIPTION: &str = "A TOML file of keys and values, without tables. --config or \
                                UPPERCASED_CONFIG names it; there is none by default. Durations \
                                (\"30s\") and sizes (\"64KiB\") are strings with a unit, numbers \
                                and booleans may be unquoted, and lists may be arrays. An unknown \
                                key is an error. `uppercased check --config FILE` validates a \
                                file; `uppercased check --print` prints one with every setting.";

const VARIABLES: &[(&str, &str)] = &[
    (
        "UPPERCASED_*",
        "A server setting, named after its option. An unknown setting is an error.",
    ),
    ("UPPERCASED_CONFIG", "Configuration file, like --config."),
    (
        "RUNTIME_DIRECTORY",
        "Directory of the control socket; systemd sets it for RuntimeDirectory=.",
    ),
    (
        "XDG_RUNTIME_DIR",
        "A server not run by root creates its control socket in uppercased below it.",
    ),
    (
        "NO_COLOR, TERM",
        "Log lines are not coloured if NO_COLOR is set or TERM is dumb.",
    ),
];

const VARIABLES_OF_REMOTE_COMMANDS: &[(&str, &str)] = &[
    ("UPPERCASED_CONTROL", "Control socket, like --control."),
    (
        "RUNTIME_DIRECTORY, XDG_RUNTIME_DIR",
        "Directories searched for control sockets if none is named.",
    ),
];

const FILES: &[(&str, &str)] = &[
    (
        "FILE of --config",
        "The configuration, in TOML; see uppercased.toml(5). There is none by default.",
    ),
    (
        "PID.sock",
        "The control socket, created with mode 0600 in $RUNTIME_DIRECTORY, else in /run/uppercased \
         (root), else in $XDG_RUNTIME_DIR/uppercased, unless --control names another path.",
    ),
];

/// One manual page.
#[derive(Debug)]
pub(super) struct Page {
    /// The title: `uppercased-reload`.
    pub(super) title: String,
    /// The section of the manual.
    section: &'static str,
    /// The contents, for `troff`.
    pub(super) text: String,
}

impl Page {
    /// Returns the file name: `uppercased-reload.1`.
    pub(super) fn file_name(&self) -> String {
        format!("{}.{}", self.title, self.section)
    }
}

/// Returns the page title of a command, or of the program for `None`.
pub(super) fn title(word: Option<&str>) -> String {
    match word {
        None => names::PROGRAM.to_owned(),
        Some(FILE) => FILE.to_owned(),
        Some(command) => format!("{}-{command}", names::PROGRAM),
    }
}

/// Returns every page: the program's, one per command, and the configuration file's.
pub(super) fn all(root: Command) -> Vec<Page> {
    let mut root = root.disable_help_subcommand(true);
    root.build();
    let mut commands = Vec::new();
    collect(&root, &mut commands);
    let of_commands = commands.iter().map(|command| Page {
        title: page_title(command),
        section: "1",
        text: of_command(command),
    });
    let of_file = Page {
        title: FILE.to_owned(),
        section: "5",
        text: of_file(&root),
    };
    of_commands.chain([of_file]).collect()
}

fn collect(command: &Command, into: &mut Vec<Command>) {
    into.push(command.clone());
    for below in command.get_subcommands() {
        collect(below, into);
    }
}

/// Returns a title such as `uppercased-bench-compare`: clap's name of a built command.
fn page_title(command: &Command) -> String {
    let name = command.get_display_name();
    name.unwrap_or_else(|| command.get_name()).to_owned()
}

fn of_command(command: &Command) -> String {
    let help = command.get_after_help().map(ToString::to_string);
    let help: Vec<Block> = help.iter().flat_map(|help| blocks(help)).collect();
    let mut page = Text::begin(&page_title(command), "1", "User Commands");
    let man = Man::new(command.clone().subcommand_help_heading("COMMANDS"));
    page.add(|out| man.render_name_section(out));
    page.own(|roff| {
        synopsis(roff, command);
        description(roff, command, &help);
    });
    page.add(|out| man.render_options_section(out));
    if command.has_subcommands() {
        page.add(|out| man.render_subcommands_section(out));
    }
    page.own(|roff| {
        headed(roff, &help, |heading| !is_example(heading));
        if is_root(command) || command.get_name() == names::SERVE {
            let named = names::SIGNALS.map(|(name, effect)| (format!("SIG{name}"), effect));
            list(roff, "SIGNALS", named);
        }
        let meanings = exit::meanings(command).into_iter();
        let coded = meanings.map(|(code, meaning)| (code.to_string(), meaning));
        list(roff, "EXIT STATUS", coded);
        environment(roff, command);
        if is_root(command) {
            list(roff, "FILES", FILES.iter().copied());
        }
        headed(roff, &help, is_example);
        see_also(roff, &related_pages(command));
    });
    page.0
}

fn is_root(command: &Command) -> bool {
    command.get_name() == names::PROGRAM
}

/// Adds the command's purpose and the rest of its help.
fn description(roff: &mut Roff, command: &Command, help: &[Block]) {
    roff.control("SH", ["DESCRIPTION"]);
    let description = match command.get_about() {
        Some(about) if !is_root(command) => vec![format!("{about}.")],
        _ => vec![DESCRIPTION.to_owned(), SPELLINGS.to_owned()],
    };
    let noted = help.iter().filter(|block| block.heading.is_none());
    let noted = noted.map(|block| block.lines.join(" "));
    for (at, paragraph) in description.into_iter().chain(noted).enumerate() {
        if at > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(paragraph)]);
    }
}

/// Adds each part of a help whose heading is wanted, as a section.
fn headed(roff: &mut Roff, help: &[Block], wanted: fn(&str) -> bool) {
    for block in help {
        let Some(heading) = block.heading.as_deref().filter(|it| wanted(it)) else {
            continue;
        };
        let heading = if is_example(heading) {
            // The plural is conventional even for one example.
            "EXAMPLES".to_owned()
        } else {
            heading.to_uppercase()
        };
        roff.control("SH", [heading.as_str()]);
        roff.control("nf", []);
        for line in &block.lines {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
}

/// Returns the page of the configuration file, from the table of settings.
fn of_file(root: &Command) -> String {
    let mut page = Text::begin(FILE, "5", "File Formats");
    page.own(|roff| {
        roff.control("SH", ["NAME"]);
        roff.text([roman(format!(
            "{FILE} - configuration file of {}(1)",
            root.get_name()
        ))]);
        roff.control("SH", ["DESCRIPTION"]);
        roff.text([roman(FILE_DESCRIPTION)]);
        for settings in SETTINGS.chunk_by(|one, next| one.heading == next.heading) {
            let heading = settings[0].heading.to_uppercase();
            list(roff, &heading, settings.iter().map(described));
        }
        see_also(roff, &[format!("{}(1)", root.get_name())]);
    });
    page.0
}

fn described(setting: &'static Setting) -> (&'static str, String) {
    let text = format!(
        "{}. {} Accepts {}. Default: {}. Example: {}.",
        setting.help,
        setting.long_help,
        setting.accepts(),
        setting.default,
        setting.example
    );
    (setting.key(), text)
}

fn synopsis(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["SYNOPSIS"]);
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:");
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    for (line, form) in usage.lines().map(str::trim).enumerate() {
        if line > 0 {
            roff.control("br", []);
        }
        let arguments = form.strip_prefix(name).unwrap_or(form);
        roff.text([bold(name), roman(arguments)]);
    }
}

fn environment(roff: &mut Roff, command: &Command) {
    let variables = if is_root(command) {
        VARIABLES
    } else if takes(command, names::CONFIG) {
        // The remaining variables, for the control socket and the log format, do not apply here.
        &VARIABLES[..2]
    } else if takes(command, names::CONTROL) {
        VARIABLES_OF_REMOTE_COMMANDS
    } else {
        return;
    };
    list(roff, "ENVIRONMENT", variables.iter().copied());
}

/// Returns the pages related to a command's: its ancestors, its subcommands, and the configuration
/// file's if the command reads one.
fn related_pages(command: &Command) -> Vec<String> {
    let own = page_title(command);
    let above = own.match_indices('-').map(|(at, _)| own[..at].to_owned());
    let below = command.get_subcommands().map(page_title);
    let mut pages: Vec<String> = above
        .chain(below)
        .map(|page| format!("{page}(1)"))
        .collect();
    if takes(command, names::CONFIG) {
        pages.push(format!("{FILE}(5)"));
    }
    pages
}

fn takes(command: &Command, flag: &str) -> bool {
    command.get_arguments().any(|arg| arg.get_id() == flag)
}

fn see_also(roff: &mut Roff, pages: &[String]) {
    roff.control("SH", ["SEE ALSO"]);
    // Names must not be hyphenated or broken.
    roff.control("nh", []);
    roff.control("ad", ["l"]);
    roff.text([roman(pages.join(", "))]);
}

/// Adds a section of names and their meanings.
fn list<N: Into<String>, M: Into<String>>(
    roff: &mut Roff,
    heading: &str,
    entries: impl IntoIterator<Item = (N, M)>,
) {
    roff.control("SH", [heading]);
    for (name, meaning) in entries {
        roff.control("TP", []);
        roff.text([bold(name)]);
        roff.text([roman(meaning)]);
    }
}

/// A part of a command's closing help, between empty lines.
struct Block {
    /// The first line, if it ends with a colon and heads the others.
    heading: Option<String>,
    lines: Vec<String>,
}

fn is_example(heading: &str) -> bool {
    heading.starts_with("Example")
}

/// Splits a closing help into parts. Exit codes have a section of their own, from their table.
fn blocks(help: &str) -> Vec<Block> {
    let parts = help
        .split("\n\n")
        .filter(|part| !part.starts_with("Exit codes"));
    let block = |part: &str| {
        let mut lines: Vec<String> = part.lines().map(str::to_owned).collect();
        let heading = lines.first().and_then(|line| line.strip_suffix(':'));
        let heading = heading.map(str::to_owned);
        if heading.is_some() {
            lines.remove(0);
        }
        Block { heading, lines }
    };
    parts.map(block).collect()
}

/// A page under construction.
struct Text(String);

impl Text {
    fn begin(title: &str, section: &str, manual: &str) -> Self {
        let version = format!("{} {}", names::PROGRAM, env!("CARGO_PKG_VERSION"));
        let mut roff = Roff::new();
        // Builds are reproducible, so a page has no date. An omitted argument would have to be
        // quoted.
        let title = title.to_uppercase();
        roff.control("TH", [&title, section, "\"\"", &version, manual]);
        Self(roff.render())
    }

    /// Adds sections written here.
    fn own(&mut self, write: impl FnOnce(&mut Roff)) {
        let mut roff = Roff::new();
        write(&mut roff);
        self.append(&roff.render());
    }

    /// Adds a section that clap renders.
    fn add(&mut self, render: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) {
        let mut section = Vec::new();
        render(&mut section).expect("invariant: a write to memory succeeds");
        self.append(&String::from_utf8_lossy(&section));
    }

    /// Adds a rendered section without its repeated preamble, and without empty lines and without
    /// breaks around a section, which formatters warn about.
    fn append(&mut self, section: &str) {
        let preamble = Roff::new().render();
        let section = section.strip_prefix(&preamble).unwrap_or(section);
        let section = section.replace("\n.br\n\n.br\n", "\n.sp\n");
        self.0.push_str(&section.replace("\n\n", "\n.sp\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::definition;

    fn page(word: Option<&str>) -> String {
        let wanted = title(word);
        let pages = all(definition::public_command());
        let page = pages.into_iter().find(|page| page.title == wanted);
        page.unwrap().text
    }

    #[test]
    fn every_page_has_its_sections() {
        for page in all(definition::public_command()) {
            let sections: &[&str] = match page.section {
                "1" => &[
                    "NAME",
                    "SYNOPSIS",
                    "DESCRIPTION",
                    "EXIT STATUS",
                    "EXAMPLES",
                    "SEE ALSO",
                ],
                _ => &["NAME", "DESCRIPTION", "SEE ALSO"],
            };
            for section in sections {
                let line = match section.contains(' ') {
                    true => format!("\n.SH \"{section}\"\n"),
                    false => format!("\n.SH {section}\n"),
                };
                assert_eq!(page.text.matches(&line).count(), 1, "{section} {page:?}");
            }
            assert!(!page.text.contains("\n\n"), "{}", page.text);
        }
    }

    #[test]
    fn program_page_names_every_setting_and_signal() {
        let text = page(None);
        for setting in SETTINGS {
            let flag = format!("\\-\\-{}", setting.flag().replace('-', "\\-"));
            assert!(text.contains(&format!("\\fB{flag}\\fR")), "{flag}");
        }
        for (signal, _) in names::SIGNALS {
            assert!(text.contains(&format!("\\fBSIG{signal}\\fR")), "{signal}");
        }
    }

    #[test]
    fn file_page_names_every_key() {
        let text = page(Some(FILE));
        for setting in SETTINGS {
            assert!(text.contains(&format!("\\fB{}\\fR", setting.key())));
        }
    }

    #[test]
    fn page_distinguishes_notes_from_headed_lines() {
        let help =
            "One note\nin two lines.\n\nPatterns:\n  a  b\n\nExit codes: 0.\n\nExample:\n  x";
        let blocks = blocks(help);
        let seen: Vec<(Option<&str>, String)> = blocks
            .iter()
            .map(|block| (block.heading.as_deref(), block.lines.join(" ")))
            .collect();
        let expected = [
            (None, "One note in two lines.".to_owned()),
            (Some("Patterns"), "  a  b".to_owned()),
            (Some("Example"), "  x".to_owned()),
        ];
        assert_eq!(seen, expected);
    }
}
