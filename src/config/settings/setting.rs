//! A row of the table of settings.

use std::fmt;

use uppercased_ctl::process::ENV_PREFIX;

use super::super::value::{Facts, Grammar as _, Switch};

/// One setting of a configuration `C`: a row of the table.
pub struct Row<C> {
    /// The name in the configuration file: `idle_timeout`.
    pub(super) key: &'static str,
    /// The heading under which it is listed.
    pub heading: &'static str,
    /// The placeholder of the value in help (`TIME`, `SIZE`, `N`).
    pub value_name: &'static str,
    /// The default, as text.
    pub default: &'static str,
    /// A useful value other than the default.
    pub example: &'static str,
    /// The reason why it cannot change while the server runs, if so.
    pub(in crate::config) fixed: &'static [&'static str],
    /// One line of help without a full stop.
    pub help: &'static str,
    /// The purpose, and what to consider when changing it.
    pub long_help: &'static str,
    pub(super) apply: fn(&mut C, &str, &Facts<'_>) -> Result<(), String>,
    pub(super) show: fn(&C) -> String,
    pub(super) accepts: fn() -> String,
    pub(super) words: fn() -> Vec<&'static str>,
}

/// Declares the configuration and the table of its settings: a field and a row for each.
macro_rules! settings {
    ($($heading:literal { $(
        $(#[$doc:meta])*
        $key:ident: $type:ty = $grammar:expr;
            $value_name:literal, default $default:literal, example $example:literal
            $(, fixed because $fixed:literal)?;
            $help:literal
            $long_help:literal
    )+ })+) => {
        /// All settings, validated.
        ///
        /// Sent to the workers as JSON. During an upgrade the two ends may have different versions,
        /// so an unknown field is skipped and a missing field has its default.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Config {
            $($($(#[$doc])* pub $key: $type,)+)+
            /// Whether the number of workers follows the CPUs: it was given as `auto`.
            pub follows_cpus: bool,
        }

        impl Config {
            /// Returns the value to which every setting is applied. It is not a valid
            /// configuration.
            pub(super) fn blank() -> Self {
                Self {
                    $($($key: Default::default(),)+)+
                    follows_cpus: false,
                }
            }
        }

        /// Every setting, in the order of help, documentation and `check --print`.
        pub static SETTINGS: &[Setting] = &[$($({
            fn grammar() -> impl Grammar<Value = $type> {
                $grammar
            }
            Setting {
                key: stringify!($key),
                heading: $heading,
                value_name: $value_name,
                default: $default,
                example: $example,
                fixed: &[$($fixed)?],
                help: $help,
                long_help: $long_help,
                apply: |config, text, facts| {
                    config.$key = grammar().parse(text, facts)?;
                    Ok(())
                },
                show: |config| grammar().show(&config.$key),
                accepts: || grammar().accepts(),
                words: || grammar().words(),
            }
        },)+)+];
    };
}

impl<C> fmt::Debug for Row<C> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Setting({})", self.key())
    }
}

impl<C> Row<C> {
    /// Returns the name in the configuration file: `idle_timeout`.
    #[must_use]
    pub fn key(&self) -> &'static str {
        self.key
    }

    /// Returns the name on the command line, without dashes: `idle-timeout`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.key().replace('_', "-")
    }

    /// Returns the name in the environment: `UPPERCASED_IDLE_TIMEOUT`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENV_PREFIX}{}", self.key().to_ascii_uppercase())
    }

    /// Returns the accepted values, as the end of the sentence "write …": `10ms to 30days, or off`.
    #[must_use]
    pub fn accepts(&self) -> String {
        (self.accepts)()
    }

    /// Returns all accepted values if they are keywords; none otherwise.
    #[must_use]
    pub fn words(&self) -> Vec<&'static str> {
        (self.words)()
    }

    /// Returns whether the flag alone, without a value, means `true`.
    #[must_use]
    pub fn is_switch(&self) -> bool {
        self.accepts() == Switch.accepts()
    }

    /// Returns whether it may be given several times (a list in the file, commas in the
    /// environment).
    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(
            self.key(),
            "listen" | "allow" | "deny" | "proxy_protocol" | "proxy_trust" | "admin_allow"
        )
    }

    /// Returns a value in the configuration file's syntax. Keywords, numbers with units and
    /// addresses need no escaping in TOML.
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

    /// Returns the value in `config` as text, which this setting parses back.
    #[must_use]
    pub fn show(&self, config: &C) -> String {
        (self.show)(config)
    }

    /// Parses `text` into its field of `config`; the error gives the cause and the accepted values.
    pub(in crate::config) fn apply(
        &self,
        config: &mut C,
        text: &str,
        facts: &Facts<'_>,
    ) -> Result<(), String> {
        (self.apply)(config, text, facts).map_err(|why| {
            format!(
                "{why}; use for example {} ({})",
                self.example,
                self.accepts()
            )
        })
    }
}
