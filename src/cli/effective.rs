//! The output of `check`: a result, or the effective configuration with each value's origin.
//!
//! Invariant: the effective configuration is a configuration file that produces the same
//! configuration. Must not: write (the caller prints).

use std::fmt::Write as _;
use std::path::Path;

use crate::config::{Config, Origins};
use uppercased_ctl::escape::visible;

/// The column at which origins begin, if the values are short enough.
const ORIGIN_COLUMN: usize = 36;

/// Returns one line for a valid configuration, and one per remark.
pub(super) fn check_result(file: Option<&Path>, remarks: &[String]) -> String {
    let mut text = file.map_or_else(
        || "configuration is valid (no file)\n".to_owned(),
        |path| {
            let path = visible(&path.display().to_string());
            format!("configuration is valid (file {path})\n")
        },
    );
    push(&mut text, "", remarks);
    text
}

fn push(text: &mut String, comment: &str, remarks: &[String]) {
    for remark in remarks {
        let _ = writeln!(text, "{comment}{}", visible(remark));
    }
}

/// Returns the effective configuration as TOML, with the origins as comments.
pub(super) fn show(config: &Config, origins: &Origins, remarks: &[String]) -> String {
    let mut text = format!(
        "# Effective configuration of uppercased {}\n",
        env!("CARGO_PKG_VERSION")
    );
    push(&mut text, "# ", remarks);
    let mut heading = None;
    for (setting, origin) in origins.iter() {
        if heading != Some(setting.heading) {
            heading = Some(setting.heading);
            let _ = writeln!(text, "\n# {}", setting.heading);
        }
        let value = setting.show(config);
        let mut origin = origin.describe(setting);
        // A server with this file follows its machine, too.
        let shown = if let Some(word) = setting.following_word(config) {
            let _ = write!(origin, "; {value} here");
            word
        } else {
            &value
        };
        let line = format!("{} = {}", setting.key(), setting.in_toml(shown));
        // A comment ends at the end of its line, so a file name must not contain a line break.
        let origin = visible(&origin);
        let _ = writeln!(text, "{line:ORIGIN_COLUMN$}  # {origin}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Assignment, Facts, Origin, SETTINGS, from_file, resolve};

    const FACTS: Facts<'static> = Facts {
        cpus: 2,
        ..Facts::NONE
    };

    #[test]
    fn shown_configuration_reads_back_unchanged() {
        let examples: Vec<Assignment> = SETTINGS
            .iter()
            .map(|setting| Assignment {
                setting,
                text: match setting.key() {
                    "listen" => "[::1]:80, *:81, 82".to_owned(),
                    // A shared port and steering exclude each other.
                    "share_port" => setting.default.to_owned(),
                    _ => setting.example.to_owned(),
                },
                origin: Origin::Environment,
            })
            .collect();
        for assignments in [examples.as_slice(), &[]] {
            let (config, origins) = resolve(assignments, &FACTS).unwrap();
            let text = show(&config, &origins, &["UPPERCASED_A\nb".to_owned()]);
            let mut errors = Vec::new();
            let read = from_file(text.as_bytes(), Path::new("a\nb"), &mut errors);
            assert!(errors.is_empty(), "{errors:?}");
            assert_eq!(read.len(), SETTINGS.len());
            let (again, origins) = resolve(&read, &FACTS).unwrap();
            assert_eq!(again, config, "{text}");
            let text = show(&again, &origins, &[]);
            from_file(text.as_bytes(), Path::new("u"), &mut errors);
            assert!(errors.is_empty(), "{text}");
        }
    }
}
