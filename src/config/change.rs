//! Decides which configuration changes a running server can apply, and which need a stop.
//!
//! Pure. Invariant: every change that [`check_change`] accepts takes effect with the restarted
//! workers (or at once, in the supervisor); none is applied partially without an error.

use super::settings::{Config, SETTINGS};
use super::types::ListenAddr;

/// A change of a setting that is fixed while the server runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot change {key} of a running server from {running} to {wanted}: {why}; change it back, or \
     stop and start the server"
)]
pub struct NeedsStop {
    /// The setting.
    pub key: &'static str,
    /// Its current value.
    pub running: String,
    /// Its new value.
    pub wanted: String,
    /// The reason why it is fixed.
    pub why: &'static str,
}

/// Checks whether a server that runs with `running` can change to `wanted`.
///
/// # Errors
/// [`NeedsStop`] for the first setting that cannot change.
pub fn check_change(running: &Config, wanted: &Config) -> Result<(), NeedsStop> {
    for setting in SETTINGS {
        let &[why] = setting.fixed else { continue };
        let (now, then) = (setting.show(running), setting.show(wanted));
        let changed = match setting.key() {
            // A name server may return addresses in a different order each time.
            "listen" => sorted(&running.listen) != sorted(&wanted.listen),
            "recv_buffer" | "send_buffer" => now != "auto" && then == "auto",
            _ => now != then,
        };
        if changed {
            return Err(NeedsStop {
                key: setting.key(),
                running: now,
                wanted: then,
                why,
            });
        }
    }
    Ok(())
}

fn sorted(addresses: &[ListenAddr]) -> Vec<String> {
    let mut texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.sort_unstable();
    texts
}

#[cfg(test)]
mod tests {
    use super::super::{Assignment, Facts, Origin, SETTINGS, resolve};
    use super::*;

    #[test]
    fn order_of_addresses_is_no_change() {
        let facts = Facts {
            cpus: 2,
            ..Facts::NONE
        };
        let listening = |text: &str| {
            let assignment = Assignment {
                setting: crate::config::Setting::find("listen").unwrap(),
                text: text.to_owned(),
                origin: Origin::Flag,
            };
            resolve(&[assignment], &facts).unwrap().0
        };
        let running = listening("10.0.0.1:80,10.0.0.2:80");
        let swapped = listening("10.0.0.2:80,10.0.0.1:80");
        assert_eq!(check_change(&running, &swapped), Ok(()));
        for other in ["10.0.0.1:80", "10.0.0.1:80,10.0.0.3:80"] {
            assert_eq!(
                check_change(&running, &listening(other)).unwrap_err().key,
                "listen"
            );
        }
    }

    /// A change of any single setting is accepted, or refused by that setting's name.
    #[test]
    fn every_setting_changes_or_reports_why() {
        let facts = Facts {
            cpus: 2,
            ..Facts::NONE
        };
        let (running, _) = resolve(&[], &facts).unwrap();
        let mut fixed = Vec::new();
        for setting in SETTINGS {
            let assignment = Assignment {
                setting,
                text: setting.example.to_owned(),
                origin: Origin::Flag,
            };
            let (wanted, _) = resolve(&[assignment], &facts).unwrap();
            if let Err(refused) = check_change(&running, &wanted) {
                assert_eq!(refused.key, setting.key());
                let text = refused.to_string();
                assert!(text.contains(setting.example), "{text}");
                fixed.push(refused.key);
            }
            assert_eq!(check_change(&wanted, &wanted), Ok(()));
        }
        let expected = [
            "listen",
            "share_port",
            "recv_buffer",
            "send_buffer",
            "agent",
            "control",
            "admin",
        ];
        assert_eq!(fixed, expected);
    }
}
