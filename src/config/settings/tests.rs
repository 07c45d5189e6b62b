//! Unit tests of `settings.rs`.

use super::*;
use crate::config::{Config, Facts, Origin, resolve};
use std::fmt::Write as _;

const FACTS: Facts<'static> = Facts {
    cpus: 2,
    ..Facts::NONE
};

#[test]
fn defaults_and_examples_are_accepted_and_canonical() {
    let (config, _) = resolve(&[], &FACTS).unwrap();
    for setting in SETTINGS {
        let shown = setting.show(&config);
        if setting.key() == "workers" {
            assert_eq!(shown, "2", "auto follows the facts");
        } else {
            assert_eq!(shown, setting.default, "{setting:?}");
        }
        let mut changed = config.clone();
        setting
            .apply(&mut changed, setting.example, &FACTS)
            .unwrap();
        assert_ne!(changed, config, "{setting:?}: the example is the default");
        assert_eq!(setting.show(&changed), setting.example, "{setting:?}");
    }
}

#[test]
fn every_offered_word_is_accepted() {
    let offered = |setting: &&Setting| !setting.words().is_empty();
    assert!(SETTINGS.iter().filter(offered).count() > 5);
    let mut config = Config::default();
    for setting in SETTINGS {
        for word in setting.words() {
            setting.apply(&mut config, word, &FACTS).unwrap();
            assert_eq!(setting.show(&config), word, "{setting:?}");
        }
    }
}

#[test]
fn documented_bounds_are_enforced_bounds() {
    let mut config = Config::default();
    for setting in SETTINGS {
        let accepts = setting.accepts();
        let range = accepts.split(", or ").next().unwrap_or_default();
        let Some((least, most)) = range.split_once(" to ") else {
            continue;
        };
        for bound in [least, most] {
            setting.apply(&mut config, bound, &FACTS).unwrap();
            assert_eq!(setting.show(&config), bound, "{setting:?}");
        }
        // One unit more exceeds the maximum, in any unit.
        let end = most
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(most.len());
        let (digits, unit) = most.split_at(end);
        let beyond = format!("{}{unit}", digits.parse::<u64>().unwrap() + 1);
        let why = setting.apply(&mut config, &beyond, &FACTS).unwrap_err();
        assert!(why.contains(&accepts), "{setting:?}: {why}");
    }
}

#[test]
fn setting_name_has_three_spellings() {
    let setting = Setting::find("idle_timeout").unwrap();
    assert_eq!(setting.flag(), "idle-timeout");
    assert_eq!(setting.variable(), "UPPERCASED_IDLE_TIMEOUT");
    assert_eq!(Origin::Flag.name_of(setting), "--idle-timeout");
}

#[test]
fn short_help_is_short_and_plain() {
    for setting in SETTINGS {
        assert!(!setting.help.ends_with('.'), "{setting:?}");
        assert!(setting.long_help.ends_with('.'), "{setting:?}");
    }
}

/// Returns the reference between the two marks in `docs/configuration.md`.
fn reference() -> String {
    let mut text = String::new();
    let mut heading = None;
    for setting in SETTINGS {
        if heading != Some(setting.heading) {
            heading = Some(setting.heading);
            let _ = writeln!(text, "\n### {}", setting.heading);
        }
        let (key, example) = (setting.key(), setting.example);
        let _ = write!(
            text,
            "\n#### `{key}`\n\n{}. {}\n\n\
                 - flag: `--{} {example}`\n\
                 - environment: `{}={example}`\n\
                 - file: `{key} = {}`\n\
                 - accepts: {}\n\
                 - default: `{}`\n",
            setting.help,
            setting.long_help,
            setting.flag(),
            setting.variable(),
            setting.in_toml(example),
            setting.accepts(),
            setting.default,
        );
    }
    // A switch accepts a missing value.
    for switch in SETTINGS.iter().filter(|setting| setting.is_switch()) {
        let flag = format!("`--{}", switch.flag());
        text = text.replace(&format!("{flag} true`"), &format!("{flag}`"));
    }
    text
}

/// With `UPDATE_DOCS=1` in the environment, writes the reference instead of comparing it.
#[test]
fn the_documentation_agrees_with_the_table() {
    const BEGIN: &str = "<!-- reference: begin -->\n";
    const END: &str = "\n<!-- reference: end -->";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let document = format!("{before}{BEGIN}{}{END}{after}", reference());
        std::fs::write(path, document).unwrap();
        return;
    }
    assert_eq!(
        written,
        reference(),
        "run UPDATE_DOCS=1 cargo test --lib the_documentation_agrees"
    );
}
