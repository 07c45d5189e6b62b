//! Combines the assignments of all sources into one configuration.
//!
//! Invariant: every error is reported, none of them a consequence of another setting's error.

use std::net::SocketAddr;

use super::error::{Error, Errors};
use super::rules;
use super::settings::{Config, SETTINGS, Setting};
use super::source::{Assignment, Origin, Origins};
use super::value::{Facts, PER_CPU};

/// A configuration that may contain errors.
#[derive(Debug)]
pub struct Draft {
    config: Config,
    origins: Origins,
    /// The settings whose value is an error; their field has no meaning.
    rejected: Vec<&'static str>,
    errors: Vec<Error>,
}

impl Draft {
    /// Applies the assignments and checks the rules between settings. The last of several
    /// assignments to a setting wins, so `assignments` are in ascending precedence (file,
    /// environment, flags). `errors` are those of the sources.
    ///
    /// A value that its setting rejects is an error even if another source overrides it, since it
    /// would take effect once that source is removed.
    #[must_use]
    pub fn new(assignments: &[Assignment], facts: &Facts<'_>, errors: Vec<Error>) -> Self {
        let mut draft = Self {
            config: Config::blank(),
            origins: Origins(Vec::with_capacity(SETTINGS.len())),
            rejected: Vec::new(),
            errors,
        };
        // Overridden names are not resolved: they may belong to another machine.
        let offline = Facts {
            lookup: &|_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]),
            ..*facts
        };
        for setting in SETTINGS {
            let mut given = assignments
                .iter()
                .filter(|one| one.setting.key() == setting.key())
                .peekable();
            let mut origin = Origin::Default;
            if given.peek().is_none() {
                draft.apply(setting, setting.default, &origin, facts);
            }
            while let Some(one) = given.next() {
                let wins = given.peek().is_none();
                let facts = if wins { facts } else { &offline };
                draft.apply(setting, &one.text, &one.origin, facts);
                origin = one.origin.clone();
            }
            draft.origins.0.push(origin);
        }
        let violated = rules::violations(&draft.config, &draft.origins, &draft.rejected);
        draft.errors.extend(violated);
        draft
    }

    fn apply(&mut self, setting: &'static Setting, text: &str, origin: &Origin, facts: &Facts<'_>) {
        if setting.key() == "workers" {
            self.config.follows_cpus = text == PER_CPU;
        }
        if let Err(why) = setting.apply(&mut self.config, text, facts) {
            self.rejected.push(setting.key());
            let name = origin.name_of(setting);
            self.errors.push(Error::Value { name, why });
        }
    }

    /// Returns the configuration. It may be invalid; check each setting with [`Self::accepts`].
    pub(crate) fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    /// Returns whether the values of these settings are valid.
    pub(crate) fn accepts(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| !self.rejected.contains(key))
    }

    /// Adds an error of the value of the setting with this key.
    pub(crate) fn reject(&mut self, key: &'static str, why: String) {
        self.rejected.push(key);
        let name = self.origins.name_of(key);
        self.errors.push(Error::Value { name, why });
    }

    /// Adds an error.
    pub(crate) fn add(&mut self, error: Error) {
        self.errors.push(error);
    }

    /// Returns the configuration, with the origin of each value.
    ///
    /// # Errors
    /// All errors, if there is one.
    pub fn finish(self) -> Result<(Config, Origins), Errors> {
        if self.errors.is_empty() {
            Ok((self.config, self.origins))
        } else {
            Err(Errors(self.errors))
        }
    }
}

impl Setting {
    /// Returns the word that gave `config` its value of this setting, if the value follows the
    /// machine.
    #[must_use]
    pub fn following_word(&self, config: &Config) -> Option<&'static str> {
        (self.key() == "workers" && config.follows_cpus).then_some(PER_CPU)
    }
}

/// Resolves the settings in `assignments`; see [`Draft::new`].
///
/// # Errors
/// Every value that its setting rejects, and every violated rule between settings.
pub fn resolve(assignments: &[Assignment], facts: &Facts<'_>) -> Result<(Config, Origins), Errors> {
    Draft::new(assignments, facts, Vec::new()).finish()
}

/// Checks a configuration from another process against the guarantees of [`resolve`]. No name is
/// resolved.
///
/// # Errors
/// As [`resolve`].
pub fn verify(config: &Config) -> Result<(), Errors> {
    let shown = |setting: &'static Setting| Assignment {
        setting,
        text: setting.show(config),
        origin: Origin::Default,
    };
    let shown: Vec<Assignment> = SETTINGS.iter().map(shown).collect();
    resolve(&shown, &Facts::NONE).map(drop)
}

impl Default for Config {
    /// Returns the result of `resolve` without assignments, on a machine with one CPU.
    fn default() -> Self {
        resolve(&[], &Facts::NONE)
            .map(|(config, _)| config)
            .expect("invariant: every default is accepted (tested row by row in settings.rs)")
    }
}
