//! Tests of manual pages and completions with `man`, `mandoc`, `lexgrog` and the shells. Checks
//! that need an absent program are skipped with a notice.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_uppercased");

fn uppercased(args: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("UPPERCASED_") {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

/// Returns the standard output of a run that must succeed without errors.
fn printed(args: &[&str]) -> String {
    let output = uppercased(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    assert_eq!(output.stderr, b"", "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the error message of a run, which must be one line with exit code `code`.
fn complaint(args: &[&str], code: i32) -> String {
    let output = uppercased(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    assert_eq!(output.stdout, b"", "{args:?}: {output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    text
}

fn installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    if !found {
        // Not `eprintln!`: the test runner hides its output when a test passes.
        drop(writeln!(io::stderr(), "SKIPPED: {tool} is not installed"));
    }
    found
}

/// Returns a directory with every page, removed when dropped, and the paths of the pages.
fn pages() -> (TempDir, Vec<PathBuf>) {
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("made/if/need/be");
    assert_eq!(printed(&["man", "--dir", dir.to_str().unwrap()]), "");
    let mut pages: Vec<PathBuf> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    pages.sort();
    (folder, pages)
}

fn name(page: &Path) -> &str {
    page.file_name().unwrap().to_str().unwrap()
}

#[test]
fn manual_covers_each_command_and_file() {
    let (_folder, pages) = pages();
    let names: Vec<&str> = pages.iter().map(|page| name(page)).collect();
    // In byte order, like the sorted list above.
    let expected = [
        #[cfg(feature = "bench")]
        "uppercased-bench-capacity.1",
        #[cfg(feature = "bench")]
        "uppercased-bench-churn.1",
        #[cfg(feature = "bench")]
        "uppercased-bench-compare.1",
        #[cfg(feature = "bench")]
        "uppercased-bench-hold.1",
        #[cfg(feature = "bench")]
        "uppercased-bench-idle.1",
        #[cfg(feature = "bench")]
        "uppercased-bench-ping.1",
        #[cfg(feature = "bench")]
        "uppercased-bench-rate.1",
        #[cfg(feature = "bench")]
        "uppercased-bench-stall.1",
        #[cfg(feature = "bench")]
        "uppercased-bench-stream.1",
        #[cfg(feature = "bench")]
        "uppercased-bench-versus.1",
        #[cfg(feature = "bench")]
        "uppercased-bench.1",
        "uppercased-cancel.1",
        "uppercased-check.1",
        "uppercased-client.1",
        "uppercased-completions.1",
        "uppercased-drain-leftovers.1",
        "uppercased-man.1",
        "uppercased-reload.1",
        "uppercased-rotation.1",
        "uppercased-scale.1",
        "uppercased-serve.1",
        "uppercased-status.1",
        "uppercased-stop.1",
        #[cfg(feature = "top")]
        "uppercased-top.1",
        "uppercased-upgrade.1",
        "uppercased.1",
        "uppercased.toml.5",
    ];
    assert_eq!(names, expected);
    for (asked, page) in [
        (["man"].as_slice(), "uppercased.1"),
        (&["man", "reload"], "uppercased-reload.1"),
        #[cfg(feature = "bench")]
        (&["man", "bench-compare"], "uppercased-bench-compare.1"),
        (&["man", "uppercased.toml"], "uppercased.toml.5"),
    ] {
        let path = pages.iter().find(|path| name(path) == page).unwrap();
        assert_eq!(printed(asked), fs::read_to_string(path).unwrap());
    }
}

#[test]
fn formatters_accept_every_page() {
    let (_folder, pages) = pages();
    for page in &pages {
        if installed("man") {
            let output = Command::new("man")
                .args(["--warnings", "-E", "UTF-8", "-l"])
                .arg(page)
                .env("LC_ALL", "C.UTF-8")
                .env("MANWIDTH", "80")
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            let warnings = String::from_utf8_lossy(&output.stderr);
            assert_eq!(warnings, "", "{}", page.display());
        }
        if installed("mandoc") {
            let output = Command::new("mandoc")
                .args(["-T", "lint", "-W", "warning"])
                .arg(page)
                .output()
                .unwrap();
            let warnings = String::from_utf8_lossy(&output.stdout);
            // Expected: pages have no date, so that builds are reproducible.
            let meant = |line: &&str| line.contains("missing date");
            let others: Vec<&str> = warnings.lines().filter(|line| !meant(line)).collect();
            assert!(others.is_empty(), "{others:?}");
        }
        if installed("lexgrog") {
            // The entry for `apropos` and `whatis`.
            let output = Command::new("lexgrog").arg(page).output().unwrap();
            let error = String::from_utf8_lossy(&output.stdout);
            let (title, _) = name(page).rsplit_once('.').unwrap();
            assert!(error.contains(&format!("\"{title} - ")), "{error}");
        }
    }
}

#[test]
fn bash_completes_commands_flags_and_values() {
    // Every system on which these tests run has bash.
    assert!(installed("bash"));
    let folder = TempDir::new().unwrap();
    let script = folder.path().join("uppercased.bash");
    fs::write(&script, printed(&["completions", "bash"])).unwrap();
    // Arguments as bash passes them: command, current word, previous word.
    let complete = r#"
        source "$1"; shift
        [[ $(complete -p uppercased) == *" -F _uppercased uppercased" ]] || exit 1
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _uppercased uppercased "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let completed = |words: &[&str]| {
        let output = Command::new("bash")
            .args(["--norc", "-c", complete, "bash"])
            .arg(&script)
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        assert_eq!(output.stderr, b"", "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (words, expected) in [
        (["uppercased", "rel"].as_slice(), "reload\n"),
        (&["uppercased", "--idle"], "--idle-timeout\n"),
        (&["uppercased", "reload", "--t"], "--timeout\n"),
        #[cfg(feature = "bench")]
        (&["uppercased", "bench", "comp"], "compare\n"),
        #[cfg(feature = "bench")]
        (&["uppercased", "bench", "churn", "--close", "h"], "half\n"),
        #[cfg(feature = "bench")]
        (&["uppercased", "bench", "rate", "--arr"], "--arrivals\n"),
        (&["uppercased", "completions", "z"], "zsh\n"),
        (&["uppercased", "--log-level", "d"], "debug\n"),
        (&["uppercased", "serve", "--log-format", "j"], "json\n"),
        // A role reserved for the supervisor.
        (&["uppercased", "prefl"], "\n"),
    ] {
        assert_eq!(completed(words), expected, "{words:?}");
    }
}

#[test]
fn zsh_and_fish_accept_scripts() {
    let folder = TempDir::new().unwrap();
    for shell in ["zsh", "fish"] {
        if !installed(shell) {
            continue;
        }
        let script = folder.path().join(shell);
        fs::write(&script, printed(&["completions", shell])).unwrap();
        let output = Command::new(shell).arg("-n").arg(&script).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stderr, b"", "{output:?}");
    }
    if installed("fish") {
        let script = folder.path().join("fish");
        let mut asked = vec![("uppercased rel", "reload\t")];
        if cfg!(feature = "bench") {
            asked.push(("uppercased bench ver", "versus\t"));
            asked.push(("uppercased bench capacity --p99.", "--p99.9\t"));
        }
        for (line, first) in asked {
            let output = Command::new("fish")
                .args(["--no-config", "-c", "source $argv[1]; complete -C $argv[2]"])
                .arg(&script)
                .arg(line)
                .env("HOME", folder.path())
                .output()
                .unwrap();
            let offered = String::from_utf8_lossy(&output.stdout);
            assert!(offered.starts_with(first), "{line}: {output:?}");
        }
    }
}

/// Completes a line in an interactive zsh, and prints every match. Its arguments are the folder of
/// the script and the line. The shell inside reports that it is ready, because a key that came
/// before would be lost, and exits after the completion.
const ZSH: &str = r#"
    zmodload zsh/zpty
    zpty inside zsh -f -i
    zpty -w inside "source $1/inside.zsh $1"
    zpty -r -m inside printed '*<ready>*'
    zpty -w -n inside "$2"$'\t'
    while zpty -r inside printed; do print -rn -- "$printed"; done
"#;
const INSIDE: &str = r#"
    fpath=($1 $fpath)
    autoload -Uz compinit
    compinit -u -D
    bindkey '^I' complete-word
    compadd() {
        local -a found
        # The functions of the completion filter with these flags.
        if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\ * ]]; then
            builtin compadd -A found "$@"
            printf '\n<match>%s\n' $found
        fi
        builtin compadd "$@"
    }
    comppostfuncs=(exit)
    PROMPT=
    print '<ready>'
"#;

#[test]
fn zsh_completes_commands_flags_and_values() {
    if !installed("zsh") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let script = printed(&["completions", "zsh"]);
    fs::write(folder.path().join("_uppercased"), script).unwrap();
    fs::write(folder.path().join("inside.zsh"), INSIDE).unwrap();
    let completed = |line: &str| -> BTreeSet<String> {
        // Otherwise a line that completes nothing would wait forever.
        let output = Command::new("timeout")
            .args(["60", "zsh", "-f", "-c", ZSH, "zsh"])
            .args([folder.path().as_os_str(), line.as_ref()])
            .env("HOME", folder.path())
            .env("TERM", "dumb")
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        let printed = String::from_utf8_lossy(&output.stdout);
        let lines = printed.lines().map(str::trim_end);
        let matches = lines.filter_map(|line| line.strip_prefix("<match>"));
        matches.map(str::to_owned).collect()
    };
    let expected = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    for (line, words) in [
        ("uppercased rel", ["reload"].as_slice()),
        ("uppercased reload --t", &["--timeout"]),
        ("uppercased completions z", &["zsh"]),
        ("uppercased serve --log-format j", &["json"]),
        #[cfg(feature = "bench")]
        ("uppercased bench churn --close h", &["half"]),
        #[cfg(feature = "bench")]
        ("uppercased bench versus --fail", &["--fail-if"]),
        #[cfg(feature = "bench")]
        (
            "uppercased bench rate --arrivals ",
            &["constant", "poisson"],
        ),
    ] {
        let words: BTreeSet<String> = expected(words);
        assert_eq!(completed(line), words, "{line}");
    }
    #[cfg(feature = "bench")]
    {
        let commands = completed("uppercased bench ");
        for word in ["capacity", "compare", "rate", "versus"] {
            assert!(commands.contains(word), "{word}: {commands:?}");
        }
    }
}

#[test]
fn unknown_page_or_shell_is_refused() {
    let why = complaint(&["completions", "tcsh"], 2);
    assert!(why.contains("bash, zsh, fish"), "{why}");
    let why = complaint(&["man", "preflight"], 2);
    let page = if cfg!(feature = "bench") {
        "bench-compare"
    } else {
        "reload"
    };
    assert!(why.contains(page), "{why}");
    complaint(&["man", "reload", "--dir", "here"], 2);
    // A system error, not a usage error.
    let why = complaint(&["man", "--dir", "/dev/null/pages"], 1);
    assert!(why.contains("/dev/null/pages"), "{why}");
}
