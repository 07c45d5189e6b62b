//! Variables that Kubernetes and Docker set for services: a pod must start even if a Service in its
//! namespace is named `uppercased` or `uppercased-admin`.
//!
//! Invariant: both name and value must match, so a mistyped setting is still refused:
//! `UPPERCASED_PORT=80` is an error, `UPPERCASED_PORT=tcp://10.0.0.1:80` is not. Must not: read the
//! environment.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, SocketAddr};

use uppercased_ctl::process::ENV_PREFIX;

/// Protocols of a service's port, as written in a value.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// Returns the sorted names of the service variables among `variables`, for a notice.
pub fn service_links<'a>(
    variables: impl IntoIterator<Item = &'a (OsString, OsString)>,
) -> Vec<String> {
    let links = variables
        .into_iter()
        .filter(|(name, value)| is_service_link(name, value));
    let mut names: Vec<String> = links
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Returns whether a variable is a service variable, by name and value.
#[must_use]
pub fn is_service_link(name: &OsStr, value: &OsStr) -> bool {
    let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
        return false;
    };
    // The service's name ends with the prefix or continues after it.
    let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
        return false;
    };
    let words: Vec<&str> = rest.split('_').collect();
    (0..words.len()).any(|behind| describes_service(&words[behind..], value))
}

/// Returns whether the rest of a name, and the value, are those of a service variable.
fn describes_service(words: &[&str], value: &str) -> bool {
    match words {
        ["SERVICE", "HOST"] => is_ip(value),
        ["SERVICE", "PORT", ..] => is_port(value),
        ["PORT"] => is_url(value),
        ["PORT", port, protocol, rest @ ..] if is_port(port) && is_protocol(protocol) => match rest
        {
            [] => is_url(value),
            ["PROTO"] => is_protocol(value),
            ["PORT"] => is_port(value),
            ["ADDR"] => is_ip(value),
            _ => false,
        },
        // A Docker link, `/web/uppercased`, with both names.
        ["NAME"] => value
            .strip_prefix('/')
            .is_some_and(|value| value.contains('/')),
        _ => false,
    }
}

fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn is_protocol(text: &str) -> bool {
    PROTOCOLS
        .iter()
        .any(|known| text.eq_ignore_ascii_case(known))
}

fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(protocol, address)| {
        is_protocol(protocol) && address.parse::<SocketAddr>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SETTINGS, Setting};

    const SUFFIXES: [(&str, &str); 12] = [
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_HOST", "fd00::1"),
        ("SERVICE_PORT", "9999"),
        ("SERVICE_PORT_UPPER_CASE", "9999"),
        ("PORT", "tcp://10.0.0.1:9999"),
        ("PORT", "udp://[fd00::1]:53"),
        ("PORT_9999_TCP", "tcp://10.0.0.1:9999"),
        ("PORT_9999_TCP_ADDR", "10.0.0.1"),
        ("PORT_9999_TCP_PORT", "9999"),
        ("PORT_9999_TCP_PROTO", "tcp"),
        ("PORT_132_SCTP_PROTO", "sctp"),
        ("NAME", "/web/uppercased"),
    ];

    #[test]
    fn services_of_any_name_are_recognised() {
        let settings = SETTINGS.iter().map(|setting| setting.variable() + "_");
        let others =
            ["", "METRICS_", "7_", "A_PORT_", "SERVICE_"].map(|name| ENV_PREFIX.to_owned() + name);
        // A Service named `uppercased-share` sets a variable named like a setting.
        for prefix in settings
            .chain(others)
            .chain(["UPPERCASED_SHARE_".to_owned()])
        {
            for (suffix, value) in SUFFIXES {
                let name = format!("{prefix}{suffix}");
                assert!(
                    is_service_link(name.as_ref(), value.as_ref()),
                    "{name}={value}"
                );
            }
        }
    }

    #[test]
    fn mistyped_variables_are_no_service() {
        for (name, value) in [
            ("PORT", "9999"),
            ("PORT", ""),
            ("PORT", "http://10.0.0.1:9999"),
            ("PORTS", "tcp://10.0.0.1:9999"),
            ("LISTEN_PORT", "9999"),
            ("SHARE_PORT", "true"),
            ("SHARED_PORT", "true"),
            ("SERVICE_HOST", "example.org"),
            ("SERVICE_PORT", "99999"),
            ("SERVICE_PORT", "+80"),
            ("PORT_9999", "tcp://10.0.0.1:9999"),
            ("PORT_9999_HTTP", "tcp://10.0.0.1:9999"),
            ("PORT_X_TCP", "tcp://10.0.0.1:9999"),
            ("PORT_9999_TCP_USER", "me"),
            ("NAME", "me"),
            ("WORKERS", "4"),
            ("WORKRES", "4"),
        ] {
            let name = format!("{ENV_PREFIX}{name}");
            assert!(
                !is_service_link(name.as_ref(), value.as_ref()),
                "{name}={value}"
            );
        }
        assert!(!is_service_link(
            "OTHER_PORT".as_ref(),
            "tcp://10.0.0.1:9".as_ref()
        ));
    }

    #[test]
    fn no_value_of_a_setting_reads_as_service() {
        for setting in SETTINGS {
            let variable = Setting::variable(setting);
            for value in [setting.example, setting.default] {
                assert!(
                    !is_service_link(variable.as_ref(), value.as_ref()),
                    "{variable}={value}"
                );
            }
        }
    }
}
