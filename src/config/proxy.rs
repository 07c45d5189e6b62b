//! The listeners that require a PROXY header: syntax.
//!
//! Must not: know the addresses to listen on (`rules` compares them with `listen`).

use serde::{Deserialize, Serialize};

use super::listen::Listen;
use super::types::ListenAddr;
use super::value::{Facts, Grammar};

/// The listeners on which a PROXY header must precede a client's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyListeners {
    /// None: a header is treated as client data.
    #[default]
    None,
    /// All of them.
    All,
    /// Those of these addresses.
    These(Vec<ListenAddr>),
}

const NONE: &str = "none";
const ALL: &str = "all";

/// `none`, `all`, or addresses as [`Listen`] reads them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeaderListeners;

impl Grammar for HeaderListeners {
    type Value = ProxyListeners;

    fn parse(&self, text: &str, facts: &Facts<'_>) -> Result<ProxyListeners, String> {
        match text {
            NONE => Ok(ProxyListeners::None),
            ALL => Ok(ProxyListeners::All),
            addresses => Listen.parse(addresses, facts).map(ProxyListeners::These),
        }
    }

    fn show(&self, value: &ProxyListeners) -> String {
        match value {
            ProxyListeners::None => NONE.to_owned(),
            ProxyListeners::All => ALL.to_owned(),
            ProxyListeners::These(addresses) => Listen.show(addresses),
        }
    }

    fn accepts(&self) -> String {
        format!("{NONE}, {ALL}, or addresses as in listen")
    }
}
