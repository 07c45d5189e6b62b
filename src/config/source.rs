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
/// Adds an error to `errors` for every part of the file that is not TOML, not a setting, or of a
/// type that the setting cannot have; returns the others.
pub fn from_file(contents: &[u8], path: &Path, errors: &mut Vec<Error>) -> Vec<Assignment> {
    let syntax = |offset: usize, why: String| {
        let (line, column) = position(contents, offset);
        let path = PathBuf::from(path);
        let error = Error::Syntax {
            path,
            line,
            column,
            why,
        };
        (line, error)
    };
    let text = match std::str::from_utf8(contents) {
        Ok(text) => text,
        Err(error) => {
            let why = "this byte is not UTF-8".to_owned();
            errors.push(syntax(error.valid_up_to(), why).1);
            return Vec::new();
        }
    };
    let (table, malformed) = DeTable::parse_recoverable(text);
    let malformed = malformed.into_iter().map(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let why = error.message().lines().collect::<Vec<_>>().join(", ");
        syntax(offset, why)
    });
    let mut of_lines: Vec<(usize, Error)> = malformed.collect();
    let malformed: Vec<usize> = of_lines.iter().map(|(line, _)| *line).collect();

    let mut entries: Vec<_> = table.get_ref().iter().collect();
    // The table is sorted by key, and the lines of the file are read in their order.
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
            return Err((line, unknown_key(name, value.get_ref(), &path, line)));
        };
        let text = value_text(setting, value.get_ref()).ok_or_else(|| {
            let wrong = Error::WrongType {
                name: origin.name_of(setting),
                found: value.get_ref().type_str(),
                example: setting.in_toml(setting.example),
            };
            (line, wrong)
        })?;
        Ok(Assignment {
            setting,
            text,
            origin,
        })
    };
    let mut assignments = Vec::new();
    for (key, value) in entries {
        let (first, _) = position(contents, key.span().start);
        let (last, _) = position(contents, value.span().end.max(key.span().start));
        match assign((key, value)) {
            // The value is what the parser made of the rest of the line.
            Ok(_) if malformed.iter().any(|line| (first..=last).contains(line)) => {}
            Ok(assignment) => assignments.push(assignment),
            Err(error) => of_lines.push(error),
        }
    }
    // Of a line that is not TOML, everything after the first error is a consequence.
    of_lines.sort_by_key(|(line, _)| *line);
    of_lines.dedup_by_key(|(line, _)| *line);
    errors.extend(of_lines.into_iter().map(|(_, error)| error));
    assignments
}

/// Reads the settings in an environment. An empty variable counts as unset, as container templates
/// leave it (`${VAR:-}`); so does one that [`is_service_link`] recognises.
///
/// Adds an error to `errors` for every variable that begins with `UPPERCASED_` but is not a
/// setting, or not UTF-8.
pub fn from_environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    errors: &mut Vec<Error>,
) -> Vec<Assignment> {
    let named = variables
        .into_iter()
        .filter(|(name, value)| name != CONFIG_VARIABLE && !is_service_link(name, value));
    named
        .filter_map(|(name, value)| {
            from_variable(&name.to_string_lossy(), value)
                .map_err(|error| errors.push(error))
                .ok()?
        })
        .collect()
}

/// Reads one variable; `None` if it is of another program, or empty.
fn from_variable(name: &str, value: OsString) -> Result<Option<Assignment>, Error> {
    let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
        return Ok(None);
    };
    let key = rest.to_ascii_lowercase();
    let setting = Setting::find(&key)
        .filter(|setting| setting.variable() == name)
        .ok_or_else(|| Error::UnknownVariable {
            name: name.to_owned(),
            nearest: nearest(&key).map_or_else(String::new, |row| {
                format!("; did you mean {}?", row.variable())
            }),
        })?;
    if value.is_empty() {
        return Ok(None);
    }
    let text = value.into_string().map_err(|_| Error::NotUtf8 {
        name: setting.variable(),
    })?;
    Ok(Some(Assignment {
        setting,
        text,
        origin: Origin::Environment,
    }))
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
