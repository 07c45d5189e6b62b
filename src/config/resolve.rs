//! Combines the assignments of all sources into one configuration.
//!
//! Invariant: a value that its setting rejects is an error even if another source overrides it.

use std::net::SocketAddr;

use super::error::Error;
use super::rules;
use super::settings::{Config, SETTINGS};
use super::source::{Assignment, Origin, Origins};
use super::value::Facts;

/// Resolves the settings. The last of several assignments to a setting wins, so `assignments` are
/// in ascending precedence (file, environment, flags).
///
/// # Errors
///
/// The first value that its setting rejects (even one that another source overrides, since it would
/// take effect once that source is removed), then the first violated rule between settings.
pub fn resolve(assignments: &[Assignment], facts: &Facts<'_>) -> Result<(Config, Origins), Error> {
    let mut config = Config::blank();
    let mut origins = Vec::with_capacity(SETTINGS.len());
    for setting in SETTINGS {
        let given: Vec<&Assignment> = assignments
            .iter()
            .filter(|one| one.setting.key() == setting.key())
            .collect();
        let apply = |config: &mut Config, text: &str, origin: &Origin, facts: &Facts<'_>| {
            let refused = |why| Error::Value {
                name: origin.name_of(setting),
                why,
            };
            setting.apply(config, text, facts).map_err(refused)
        };
        let Some((winner, overridden)) = given.split_last() else {
            apply(&mut config, setting.default, &Origin::Default, facts)?;
            origins.push(Origin::Default);
            continue;
        };
        // Overridden names are not resolved: they may belong to another machine.
        let offline = Facts {
            lookup: &|_, port| Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]),
            ..*facts
        };
        for one in overridden {
            apply(&mut config, &one.text, &one.origin, &offline)?;
        }
        apply(&mut config, &winner.text, &winner.origin, facts)?;
        origins.push(winner.origin.clone());
    }
    let origins = Origins(origins);
    rules::check(&config, &origins)?;
    Ok((config, origins))
}

/// Checks a configuration from another process against the guarantees of [`resolve`]. No name is
/// resolved.
///
/// # Errors
///
/// The first value that its setting rejects, then the first violated rule.
pub fn verify(config: &Config) -> Result<(), Error> {
    let mut copy = Config::blank();
    for setting in SETTINGS {
        let refused = |why| Error::Value {
            name: setting.key().to_owned(),
            why,
        };
        let text = setting.show(config);
        setting
            .apply(&mut copy, &text, &Facts::NONE)
            .map_err(refused)?;
    }
    let origins = Origins(vec![Origin::Default; SETTINGS.len()]);
    rules::check(config, &origins)
}

impl Default for Config {
    /// Returns the result of `resolve` without assignments, on a machine with one CPU.
    fn default() -> Self {
        resolve(&[], &Facts::NONE)
            .map(|(config, _)| config)
            .expect("invariant: every default is accepted (tested row by row in settings.rs)")
    }
}
