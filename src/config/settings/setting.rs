//! A row of the table of settings.

use std::fmt;

use uppercased_ctl::process::ENV_PREFIX;

use super::super::data::Config;
use super::super::value::{Facts, Switch};
use super::category::Category;

/// The link between a row of the table and a field of [`Config`].
pub(super) struct Binding {
    pub(super) key: &'static str,
    pub(super) apply: fn(&mut Config, &str, &Facts<'_>) -> Result<(), String>,
    pub(super) show: fn(&Config) -> String,
    pub(super) accepts: fn() -> String,
    pub(super) words: fn() -> Vec<&'static str>,
}

/// Links a field to its grammar. The key is the field's name, so they cannot diverge.
macro_rules! bind {
    ($field:ident, $grammar:expr) => {
        Binding {
            key: stringify!($field),
            apply: |config, text, facts| {
                config.$field = $grammar.parse(text, facts)?;
                Ok(())
            },
            show: |config| $grammar.show(&config.$field),
            accepts: || $grammar.to_string(),
            words: || $grammar.words(),
        }
    };
}

/// One setting: a row of the table.
pub struct Setting {
    pub(super) binding: Binding,
    /// The heading it is listed under.
    pub category: Category,
    /// The placeholder of the value in help (`TIME`, `SIZE`, `N`).
    pub value_name: &'static str,
    /// The default, as text.
    pub default: &'static str,
    /// A useful value other than the default.
    pub example: &'static str,
    /// One line: what it is, without a full stop.
    pub help: &'static str,
    /// Its purpose, and what to consider when changing it.
    pub long_help: &'static str,
}

impl fmt::Debug for Setting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Setting({})", self.key())
    }
}

impl Setting {
    /// Returns its name in the configuration file: `idle_timeout`.
    #[must_use]
    pub fn key(&self) -> &'static str {
        self.binding.key
    }

    /// Returns its name on the command line, without the dashes: `idle-timeout`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.key().replace('_', "-")
    }

    /// Returns its name in the environment: `UPPERCASED_IDLE_TIMEOUT`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENV_PREFIX}{}", self.key().to_ascii_uppercase())
    }

    /// Returns the accepted values, as the end of the sentence "write …": `10ms to 30days, or off`.
    #[must_use]
    pub fn accepts(&self) -> String {
        (self.binding.accepts)()
    }

    /// Returns all accepted values, if they are a few words; none otherwise.
    #[must_use]
    pub fn words(&self) -> Vec<&'static str> {
        (self.binding.words)()
    }

    /// Returns whether the flag alone, without a value, means `true`.
    #[must_use]
    pub fn is_switch(&self) -> bool {
        self.accepts() == Switch.to_string()
    }

    /// Returns whether it may be given several times (a list in the file, commas in the
    /// environment).
    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(
            self.key(),
            "listen" | "allow" | "deny" | "proxy_protocol" | "proxy_trust"
        )
    }

    /// Returns a value in the configuration file's syntax. No value needs escaping in TOML: they
    /// are words, numbers with units and addresses.
    #[must_use]
    pub fn in_toml(&self, value: &str) -> String {
        if self.is_list() && value.contains(',') {
            let quoted: Vec<String> = value.split(',').map(|one| format!("\"{one}\"")).collect();
            format!("[{}]", quoted.join(", "))
        } else if self.is_switch() || value.bytes().all(|byte| byte.is_ascii_digit()) {
            value.to_owned()
        } else {
            format!("\"{value}\"")
        }
    }

    /// Returns the value in `config`, as text that this setting reads back.
    #[must_use]
    pub fn show(&self, config: &Config) -> String {
        (self.binding.show)(config)
    }

    /// Reads `text` into its field of `config`; the error gives the cause and what to write.
    pub(in crate::config) fn apply(
        &self,
        config: &mut Config,
        text: &str,
        facts: &Facts<'_>,
    ) -> Result<(), String> {
        (self.binding.apply)(config, text, facts).map_err(|why| {
            format!(
                "{why}; use for example {} ({})",
                self.example,
                self.accepts()
            )
        })
    }
}
