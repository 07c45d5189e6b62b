//! Makes the one configuration from what the sources assign.
//!
//! Invariant: a value that a setting refuses is an error even where another source overrides it.

use std::net::SocketAddr;

use super::data::{BLANK, Config};
use super::error::Error;
use super::rules;
use super::settings::SETTINGS;
use super::source::{Assignment, Origin, Origins};
use super::value::Facts;

/// Settles what is set: of several assignments to one setting the last one wins, so `assignments`
/// come in rising precedence (file, environment, flags).
///
/// # Errors
///
/// The first value that its setting does not accept (also one that another source overrides: it
/// would be a trap for whoever takes that source away), then the first rule between settings that
/// does not hold.
pub fn resolve(assignments: &[Assignment], facts: &Facts<'_>) -> Result<(Config, Origins), Error> {
    let mut config = BLANK;
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
        // A name that nobody will listen on is not looked up: it may well be another machine's.
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

/// Checks a configuration that came as data from another process: it keeps what [`resolve`]
/// promises. No name is looked up.
///
/// # Errors
///
/// The first value that its setting does not accept, then the first rule that does not hold.
pub fn verify(config: &Config) -> Result<(), Error> {
    let facts = Facts {
        cpus: 1,
        lookup: &|_, _| Err("it is a name, not an address".to_owned()),
    };
    let mut copy = BLANK;
    for setting in SETTINGS {
        let refused = |why| Error::Value {
            name: setting.key().to_owned(),
            why,
        };
        let text = setting.show(config);
        setting.apply(&mut copy, &text, &facts).map_err(refused)?;
    }
    let origins = Origins(vec![Origin::Default; SETTINGS.len()]);
    rules::check(config, &origins)
}

impl Default for Config {
    /// What `resolve` gives when nothing is set, on a machine with one CPU.
    fn default() -> Self {
        let facts = Facts {
            cpus: 1,
            lookup: &|_, _| Err("the default has no names".to_owned()),
        };
        resolve(&[], &facts)
            .map(|(config, _)| config)
            .expect("invariant: every default is accepted (tested row by row in settings.rs)")
    }
}
