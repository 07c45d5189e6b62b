//! The sandbox of workers and the account they run as: values and syntax.
//!
//! Invariant: a parsed [`Account`] has a name and no number; the number is added where names may be
//! resolved, which completes the [`super::Config`]. Must not: resolve a name.

use serde::{Deserialize, Serialize};

use super::value::{Facts, Grammar, OrWord};
use uppercased_ctl::words;

words! {
    /// Whether workers are sandboxed before they serve.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Sandbox {
        /// With every layer that the kernel supports; missing ones are logged.
        Auto = "auto",
        /// With every layer, or the worker does not start.
        Required = "required",
        /// No sandbox.
        #[default]
        Off = "off",
    }
}

/// A user or a group, as given and as the kernel identifies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The name or number, as given.
    pub name: String,
    /// The number; `None` until resolved.
    #[serde(default)]
    pub id: Option<u32>,
    /// Of a user: the number of its primary group, if it has one.
    #[serde(default)]
    pub primary_group: Option<u32>,
}

/// Grammar of an account, or the keyword for the supervisor's own user.
pub(crate) const ACCOUNT: OrWord<AccountName> = OrWord("unchanged", AccountName);

/// Grammar of the name or the number of a user or a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccountName;

impl Grammar for AccountName {
    type Value = Account;

    fn parse(&self, text: &str, _: &Facts<'_>) -> Result<Account, String> {
        let invalid = |c: char| c.is_whitespace() || c.is_control() || c == ':' || c == '/';
        if text.is_empty() || text.starts_with('-') || text.contains(invalid) {
            return Err(format!("{text:?} is not a valid account name"));
        }
        // The kernel interprets the highest number as "leave unchanged".
        if text.bytes().all(|byte| byte.is_ascii_digit())
            && !text.parse().is_ok_and(|id: u32| id != u32::MAX)
        {
            return Err(format!("{text} is too high"));
        }
        Ok(Account {
            name: text.to_owned(),
            id: None,
            primary_group: None,
        })
    }

    fn show(&self, value: &Account) -> String {
        value.name.clone()
    }

    fn accepts(&self) -> String {
        "a name or a number".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_names_or_numbers() {
        let facts = Facts::NONE;
        for good in ["nobody", "www-data", "0", "4294967294", "user@realm"] {
            assert_eq!(AccountName.parse(good, &facts).unwrap().name, good);
        }
        for bad in ["", "-1", "a b", "a:b", "4294967295", "99999999999"] {
            assert!(AccountName.parse(bad, &facts).is_err(), "{bad}");
        }
        assert_eq!(ACCOUNT.parse("unchanged", &facts), Ok(None));
    }
}
