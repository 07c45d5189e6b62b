//! The three sources of settings, each parsed into the same plain assignments.
//!
//! Invariants: every value has the text form that its flag accepts, so one parser and one error
//! text serve all three; an unknown setting is an error that names the most similar one. Must not:
//! open the file or read the environment (the command line does and passes the contents in), or
//! check a value.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::error::Error;
use super::service_links::is_service_link;
use super::settings::{SETTINGS, Setting};
use uppercased_ctl::process::ENV_PREFIX;

/// The environment variable that names the configuration file, as `--config` does.
pub const CONFIG_VARIABLE: &str = "UPPERCASED_CONFIG";

/// The source of a value. Later ones override earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The default.
    Default,
    /// The configuration file.
    File {
        /// The path of the file, as given.
        path: Arc<Path>,
        /// The line of the key, counted from 1.
        line: usize,
    },
    /// An environment variable.
    Environment,
    /// The command line.
    Flag,
}

impl Origin {
    /// Returns the name of `setting` in this source, for the beginning of an error.
    #[must_use]
    pub fn name_of(&self, setting: &Setting) -> String {
        match self {
            Self::Default => format!("the default of {}", setting.key()),
            Self::File { path, line } => format!("{}:{line}: {}", path.display(), setting.key()),
            Self::Environment => setting.variable(),
            Self::Flag => format!("--{}", setting.flag()),
        }
    }

    /// Describes the source of a value of `setting`: `environment UPPERCASED_WORKERS`.
    #[must_use]
    pub fn describe(&self, setting: &Setting) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::File { path, line } => format!("file {}:{line}", path.display()),
            Self::Environment => format!("environment {}", setting.variable()),
            Self::Flag => format!("flag --{}", setting.flag()),
        }
    }
}

/// The source of each value of a [`Config`](super::Config).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins(pub(super) Vec<Origin>);

impl Origins {
    /// Returns every setting with the origin of its value, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Setting, &Origin)> {
        SETTINGS.iter().zip(&self.0)
    }

    /// Returns the name of the setting with this key in the source of its value.
    pub(crate) fn name_of(&self, key: &str) -> String {
        self.iter()
            .find(|(setting, _)| setting.key() == key)
            .map_or_else(String::new, |(setting, origin)| origin.name_of(setting))
    }
}

/// An assignment to one setting.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The setting.
    pub setting: &'static Setting,
    /// The text, not yet checked.
    pub text: String,
    /// The source.
    pub origin: Origin,
}

/// Parses the contents of a configuration file; `path` is used in errors.
///
/// # Errors
///
/// An error for the first part of the file that is not TOML, not a setting, or of a type that the
/// setting cannot have.
pub fn from_file(contents: &[u8], path: &Path) -> Result<Vec<Assignment>, Error> {
    let syntax = |offset: usize, why: String| {
        let (line, column) = position(contents, offset);
        Error::Syntax {
            path: PathBuf::from(path),
            line,
            column,
            why,
        }
    };
    let text = std::str::from_utf8(contents)
        .map_err(|error| syntax(error.valid_up_to(), "this byte is not UTF-8".to_owned()))?;
    let table = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        syntax(
            offset,
            error.message().lines().collect::<Vec<_>>().join(", "),
        )
    })?;

    let mut entries: Vec<_> = table.get_ref().iter().collect();
    // The table is sorted by key; the first error to report is the first in the file.
    entries.sort_by_key(|(key, _)| key.span().start);
    let path: Arc<Path> = Arc::from(path);
    let assign = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let name: &str = AsRef::<str>::as_ref(key.get_ref());
        let (line, _) = position(contents, key.span().start);
        let origin = Origin::File {
            path: Arc::clone(&path),
            line,
        };
        let Some(setting) = Setting::find(name) else {
            return Err(unknown_key(name, value.get_ref(), &path, line));
        };
        let text = value_text(setting, value.get_ref()).ok_or_else(|| Error::WrongType {
            name: origin.name_of(setting),
            found: value.get_ref().type_str(),
            example: setting.in_toml(setting.example),
        })?;
        Ok(Assignment {
            setting,
            text,
            origin,
        })
    };
    entries.into_iter().map(assign).collect()
}

/// Reads the settings in an environment. An empty variable counts as unset, as container templates
/// leave it (`${VAR:-}`); so does one that [`is_service_link`] recognises.
///
/// # Errors
///
/// An error for the first variable that begins with `UPPERCASED_` but is not a setting, or not
/// UTF-8.
pub fn from_environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<Assignment>, Error> {
    let mut assignments = Vec::new();
    for (name, value) in variables {
        if name == CONFIG_VARIABLE || is_service_link(&name, &value) {
            continue;
        }
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        let key = rest.to_ascii_lowercase();
        let setting = Setting::find(&key)
            .filter(|setting| setting.variable() == name)
            .ok_or_else(|| Error::UnknownVariable {
                name: name.clone().into_owned(),
                nearest: nearest(&key).map_or_else(String::new, |row| {
                    format!("; did you mean {}?", row.variable())
                }),
            })?;
        if value.is_empty() {
            continue;
        }
        let text = value.into_string().map_err(|_| Error::NotUtf8 {
            name: setting.variable(),
        })?;
        assignments.push(Assignment {
            setting,
            text,
            origin: Origin::Environment,
        });
    }
    Ok(assignments)
}

fn unknown_key(name: &str, value: &DeValue<'_>, path: &Path, line: usize) -> Error {
    let path = PathBuf::from(path);
    let name = name.to_owned();
    if matches!(value, DeValue::Table(_)) {
        return Error::Table { path, line, name };
    }
    let nearest = nearest(&name).map_or_else(String::new, |row| {
        format!("; did you mean {:?}?", row.key())
    });
    Error::UnknownKey {
        path,
        line,
        name,
        nearest,
    }
}

/// Minimum similarity at which a setting is suggested for an unknown name: that of `idle` and
/// `idle_timeout`, but not of `config` and `backoff_initial`.
const ALIKE: f64 = 0.75;

/// Returns the setting whose key is most similar to `name`, if similar enough.
fn nearest(name: &str) -> Option<&'static Setting> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let alike = SETTINGS
        .iter()
        .map(|row| (strsim::jaro_winkler(&name, row.key()), row));
    let (score, row) = alike.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
    (score >= ALIKE).then_some(row)
}

/// Returns a TOML value as the flag's text; `None` if `setting` cannot have a value of its type.
fn value_text(setting: &Setting, value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::Array(values) if setting.is_list() => {
            let texts: Option<Vec<_>> = values
                .iter()
                .map(|value| match value.get_ref() {
                    DeValue::Array(_) => None,
                    value => value_text(setting, value),
                })
                .collect();
            texts.map(|texts| texts.join(","))
        }
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Boolean(on) => Some(on.to_string()),
        DeValue::Integer(number) => {
            // Rewritten in base 10 without a sign; beyond 128 bits any text is out of range.
            let plain = i128::from_str_radix(number.as_str(), number.radix());
            Some(plain.map_or_else(|_| number.to_string(), |number| number.to_string()))
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// Returns line and column, both counted from 1, the column in bytes.
fn position(contents: &[u8], offset: usize) -> (usize, usize) {
    let before = &contents[..offset.min(contents.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    (line, before.len() - start + 1)
}

#[cfg(test)]
mod tests;
