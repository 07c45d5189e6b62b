//! Warnings: values that are valid, and probably not intended.
//!
//! Pure. Must not: refuse anything (`rules` does), or read a property of the machine (the caller
//! passes them in).

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::admin::AdminAddr;
use super::sandbox::Sandbox;
use super::settings::Config;
use super::source::Origins;
use super::types::LogLevel;

/// How long service managers wait for a stop by default: `TimeoutStopSec` of systemd.
const STOP_TIMEOUT_USUAL: Duration = Duration::from_secs(90);
/// A shorter `hang_timeout` may end a worker that only waits for a CPU.
const HANG_TIMEOUT_CAUTIOUS: Duration = Duration::from_secs(1);
/// A shorter `idle_timeout` ends connections whose packet was lost once.
const IDLE_TIMEOUT_CAUTIOUS: Duration = Duration::from_secs(1);

/// Properties of the machine that a configuration may contradict. `None`: unknown.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// CPUs available to this process.
    pub cpus: u16,
    /// `net.core.somaxconn`.
    pub longest_backlog: Option<u32>,
    /// `net.core.rmem_max`, in bytes.
    pub recv_buffer_max: Option<u32>,
    /// `net.core.wmem_max`, in bytes.
    pub send_buffer_max: Option<u32>,
}

/// Returns the setting to blame, and why its value is unwise with a remedy.
type Check = fn(&Config, &Machine) -> Option<(&'static str, String)>;

const CHECKS: &[Check] = &[
    |config, machine| {
        let (workers, cpus) = (config.workers, machine.cpus);
        (workers > cpus).then(|| {
            let why = format!("{workers} workers compete for {cpus} CPUs; use auto");
            ("workers", why)
        })
    },
    |config, machine| {
        let most = machine.longest_backlog?;
        let asked = config.backlog.filter(|asked| *asked > most)?;
        let why = format!(
            "the kernel limits {asked} to net.core.somaxconn, which is {most}; raise that, or use \
             auto"
        );
        Some(("backlog", why))
    },
    |config, machine| {
        capped(
            config.recv_buffer,
            machine.recv_buffer_max,
            "net.core.rmem_max",
        )
        .map(|why| ("recv_buffer", why))
    },
    |config, machine| {
        capped(
            config.send_buffer,
            machine.send_buffer_max,
            "net.core.wmem_max",
        )
        .map(|why| ("send_buffer", why))
    },
    |config, _| {
        let idle = config
            .idle_timeout
            .filter(|idle| *idle < IDLE_TIMEOUT_CAUTIOUS)?;
        let why = format!(
            "{idle:?} is shorter than the retransmission of a lost packet; use at least \
             {IDLE_TIMEOUT_CAUTIOUS:?}"
        );
        Some(("idle_timeout", why))
    },
    |config, _| {
        (config.idle_timeout.is_none() && config.keepalive.is_none()).then(|| {
            let why = "without idle_timeout, clients that vanish keep their connection forever; \
                       set one of the two";
            ("keepalive", why.to_owned())
        })
    },
    |config, _| {
        config.write_stall_timeout.is_none().then(|| {
            let why = "a client that never reads keeps its buffers forever; set a timeout";
            ("write_stall_timeout", why.to_owned())
        })
    },
    |config, _| {
        let denied = |one: &IpNet| config.deny.iter().any(|wide| wide.contains(one));
        (!config.allow.is_empty() && config.allow.iter().all(denied)).then(|| {
            let why = "deny contains every allowed network, so no client is served; remove one \
                       of the two";
            ("allow", why.to_owned())
        })
    },
    |config, _| {
        let anybody = config
            .proxy_trust
            .iter()
            .find(|one| one.prefix_len() == 0)?;
        let why = format!(
            "with {anybody} any client can claim any address; list the load balancers only"
        );
        Some(("proxy_trust", why))
    },
    |config, _| {
        let AdminAddr::Tcp(address) = config.admin.as_ref()? else {
            return None;
        };
        is_public(address.ip()).then(|| {
            let why = format!(
                "{address} is a public address, and the pages are not encrypted; use a private one"
            );
            ("admin", why)
        })
    },
    |config, _| {
        let anybody = config
            .admin_allow
            .iter()
            .find(|one| one.prefix_len() == 0)?;
        let why = format!(
            "with {anybody} every client may read; list the networks of Prometheus and of the \
             health checks"
        );
        Some(("admin_allow", why))
    },
    |config, machine| {
        (config.busy_poll.is_some() && config.workers >= machine.cpus).then(|| {
            let why = "polling workers occupy every CPU and delay their clients; use fewer \
                       workers than CPUs, or off";
            ("busy_poll", why.to_owned())
        })
    },
    |config, _| {
        let longest = config.lame_duck + config.drain_timeout;
        (longest > STOP_TIMEOUT_USUAL).then(|| {
            let why = format!(
                "with lame_duck a stop may take {longest:?}, more than the {STOP_TIMEOUT_USUAL:?} \
                 that service managers usually wait before they kill; raise TimeoutStopSec or \
                 terminationGracePeriodSeconds, or lower this"
            );
            ("drain_timeout", why)
        })
    },
    |config, _| {
        let hang = config
            .hang_timeout
            .filter(|hang| *hang < HANG_TIMEOUT_CAUTIOUS)?;
        let why = format!(
            "{hang:?} without a CPU is usual on a busy machine, and would end a healthy process; \
             use at least {HANG_TIMEOUT_CAUTIOUS:?}"
        );
        Some(("hang_timeout", why))
    },
    |config, _| {
        (config.sandbox == Sandbox::Off).then(|| {
            let why = "a compromised worker has every right of its user; use auto";
            ("sandbox", why.to_owned())
        })
    },
    |config, _| {
        (config.log_level == LogLevel::Trace).then(|| {
            let why = "the log contains the bytes of clients; use debug or less in production";
            ("log_level", why.to_owned())
        })
    },
];

/// Returns whether the address is reachable from the internet; an unspecified one may be.
fn is_public(address: IpAddr) -> bool {
    !match address {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || shared
        }
        IpAddr::V6(ip) => {
            let local = ip.is_unique_local() || ip.is_unicast_link_local();
            local || ip.is_loopback() || ip.is_unspecified()
        }
    }
}

fn capped(asked: Option<u32>, most: Option<u32>, name: &str) -> Option<String> {
    let most = most?;
    let asked = asked.filter(|asked| *asked > most)?;
    Some(format!(
        "the kernel limits {asked} bytes to {name}, which is {most}; raise that, or lower this"
    ))
}

/// Returns a line for each unwise value of a valid configuration.
#[must_use]
pub fn warnings(config: &Config, origins: &Origins, machine: &Machine) -> Vec<String> {
    CHECKS
        .iter()
        .filter_map(|check| check(config, machine))
        .map(|(key, why)| format!("{}: {why}", origins.name_of(key)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Assignment, Facts, Origin, Setting, resolve};
    use super::*;

    const MACHINE: Machine = Machine {
        cpus: 2,
        longest_backlog: Some(4096),
        recv_buffer_max: Some(212_992),
        send_buffer_max: Some(212_992),
    };

    fn warned(given: &[(&str, &str)]) -> Vec<String> {
        let given: Vec<Assignment> = given
            .iter()
            .map(|(key, text)| Assignment {
                setting: Setting::find(key).unwrap(),
                text: (*text).to_owned(),
                origin: Origin::Flag,
            })
            .collect();
        let facts = Facts {
            cpus: MACHINE.cpus,
            ..Facts::NONE
        };
        let (config, origins) = resolve(&given, &facts).unwrap();
        warnings(&config, &origins, &MACHINE)
    }

    #[test]
    fn defaults_are_wise() {
        assert_eq!(warned(&[]), Vec::<String>::new());
    }

    #[test]
    fn each_warning_names_its_setting() {
        let unwise: &[&[(&str, &str)]] = &[
            &[("workers", "3")],
            &[("backlog", "5000")],
            &[("recv_buffer", "1MiB")],
            &[("send_buffer", "1MiB")],
            &[("idle_timeout", "20ms")],
            &[("keepalive", "off")],
            &[("write_stall_timeout", "off")],
            &[("allow", "10.1.0.0/16,10.2.0.0/16"), ("deny", "10.0.0.0/8")],
            &[("proxy_trust", "0.0.0.0/0")],
            &[
                ("admin", "198.51.100.1:9900"),
                ("admin_allow", "10.0.0.0/8"),
            ],
            &[("admin_allow", "::/0"), ("admin", "[::]:9900")],
            &[("busy_poll", "50us")],
            &[("drain_timeout", "2m")],
            &[("hang_timeout", "200ms")],
            &[("sandbox", "off")],
            &[("log_level", "trace")],
        ];
        assert_eq!(unwise.len(), CHECKS.len());
        for given in unwise {
            let warned = warned(given);
            let name = format!("--{}: ", given[0].0.replace('_', "-"));
            assert!(
                matches!(warned.as_slice(), [only] if only.starts_with(&name) && only.contains("; ")),
                "{given:?}: {warned:?}"
            );
        }
    }

    #[test]
    fn unknown_limits_give_no_warning() {
        let unknown = Machine {
            cpus: u16::MAX,
            longest_backlog: None,
            recv_buffer_max: None,
            send_buffer_max: None,
        };
        let config = Config {
            backlog: Some(u32::MAX),
            recv_buffer: Some(u32::MAX),
            send_buffer: Some(u32::MAX),
            ..Config::default()
        };
        let (_, origins) = resolve(&[], &Facts::NONE).unwrap();
        assert_eq!(warnings(&config, &origins, &unknown), Vec::<String>::new());
    }
}
