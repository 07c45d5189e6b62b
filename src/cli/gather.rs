//! Reads the sources of the configuration: flags, environment, file and machine.
//!
//! Invariant: every external input of the configuration is read only here. Must not: bind, write,
//! or decide (`config::resolve` does).

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};

use super::error::Error;
use super::{definition, names};
use crate::config::{
    self, Assignment, CONFIG_FILE_MAX_BYTES, CONFIG_VARIABLE, Config, Draft, Facts, Ignored,
    Machine, Origin, Origins, SETTINGS, Setting,
};
use crate::listener::longest_backlog;
use crate::sys::accounts;
use crate::sys::quota::Quota;

/// A configuration and its sources.
pub(super) struct Gathered {
    pub(super) config: Config,
    pub(super) origins: Origins,
    /// The configuration file, if one was named.
    pub(super) file: Option<PathBuf>,
    /// Ignored input.
    pub(super) ignored: Vec<Ignored>,
}

/// Resolves flags (of the program and of its command), environment and file.
///
/// # Errors
/// Every error in these sources.
pub(super) fn gather(
    typed: &[&ArgMatches],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Gathered, Error> {
    let environment: Vec<_> = environment.into_iter().collect();
    let mut unreadable = Vec::new();
    let file = valid(file_name(typed, &environment), &mut unreadable).flatten();
    let contents = file.as_deref().map(read).transpose();
    let contents = valid(contents, &mut unreadable).flatten();

    let mut errors = Vec::new();
    // In ascending precedence.
    let mut assignments = match (&contents, &file) {
        (Some(contents), Some(path)) => config::from_file(contents, path, &mut errors),
        _ => Vec::new(),
    };
    let mut ignored = Vec::new();
    let links = config::service_links(&environment);
    if !links.is_empty() {
        ignored.push(Ignored::ServiceLinks(links));
    }
    assignments.extend(config::from_environment(environment, &mut errors));
    for setting in SETTINGS {
        assignments.extend(valid(from_flags(setting, typed), &mut unreadable).flatten());
    }

    let absent = RefCell::new(Vec::new());
    let facts = Facts {
        cpus: usable_cpus(),
        lookup: &|host, port| {
            let found = look_up(host, port)?;
            let (here, others) = without_absent_ipv6(found, is_absent);
            absent
                .borrow_mut()
                .extend(others.into_iter().map(|address| Ignored::AbsentAddress {
                    address,
                    host: host.to_owned(),
                }));
            Ok(here)
        },
    };
    let mut draft = Draft::new(&assignments, &facts, errors);
    look_up_accounts(&mut draft);
    valid(check_descriptors(&mut draft), &mut unreadable);
    ignored.extend(absent.take());
    match draft.finish() {
        Ok((config, origins)) if unreadable.is_empty() => Ok(Gathered {
            config,
            origins,
            file,
            ignored,
        }),
        result => {
            let found = result.err().into_iter().flat_map(|config::Errors(all)| all);
            unreadable.extend(found.map(Error::Config));
            Err(Error::of_all(unreadable))
        }
    }
}

/// Returns the value of `result`; an error is added to `errors`.
fn valid<T>(result: Result<T, Error>, errors: &mut Vec<Error>) -> Option<T> {
    result.map_err(|error| errors.push(error)).ok()
}

/// Returns the properties of this machine that a configuration may ignore.
pub(super) fn machine() -> Machine {
    let most = |file| fs::read_to_string(file).ok()?.trim().parse().ok();
    Machine {
        cpus: usable_cpus(),
        longest_backlog: longest_backlog(),
        recv_buffer_max: most("/proc/sys/net/core/rmem_max"),
        send_buffer_max: most("/proc/sys/net/core/wmem_max"),
    }
}

/// Returns the control socket of a server whose configuration has an error, from the sources that can
/// be read.
pub(super) fn control(
    typed: &[&ArgMatches],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> config::Control {
    let environment: Vec<_> = environment.into_iter().collect();
    let ignored = &mut Vec::new();
    let path = file_name(typed, &environment).ok().flatten();
    let contents = path.as_deref().and_then(|path| read(path).ok());
    let mut assignments = match (&contents, &path) {
        (Some(contents), Some(path)) => config::from_file(contents, path, ignored),
        _ => Vec::new(),
    };
    assignments.extend(config::from_environment(environment, ignored));
    for setting in SETTINGS {
        assignments.extend(from_flags(setting, typed).ok().flatten());
    }
    assignments.retain(|one| one.setting.key() == names::CONTROL);
    let resolved = config::resolve(&assignments, &Facts::NONE);
    resolved
        .map_or_else(|_| Config::default(), |(config, _)| config)
        .control
}

/// Returns the named configuration file; a flag overrides the environment.
fn file_name(
    typed: &[&ArgMatches],
    environment: &[(OsString, OsString)],
) -> Result<Option<PathBuf>, Error> {
    let mut named = typed
        .iter()
        .filter_map(|flags| flags.get_one::<PathBuf>(names::CONFIG));
    let flag = named.next();
    if named.next().is_some() {
        return Err(given_twice(names::CONFIG));
    }
    if let Some(path) = flag {
        return Ok(Some(path.clone()));
    }
    let mut variables = environment.iter();
    // An empty variable counts as unset, as for settings.
    let variable = variables.find(|(name, path)| name == CONFIG_VARIABLE && !path.is_empty());
    Ok(variable.map(|(_, path)| PathBuf::from(path)))
}

/// Returns the values of `setting` in the flags; a list may be given before and after the command.
fn from_flags(
    setting: &'static Setting,
    typed: &[&ArgMatches],
) -> Result<Option<Assignment>, Error> {
    let given: Vec<Vec<&str>> = typed
        .iter()
        .filter_map(|flags| flags.get_many::<String>(setting.key()))
        .map(|values| values.map(String::as_str).collect())
        .collect();
    if given.is_empty() {
        return Ok(None);
    }
    if given.len() > 1 && !setting.is_list() {
        return Err(given_twice(&setting.flag()));
    }
    Ok(Some(Assignment {
        setting,
        text: given.concat().join(","),
        origin: Origin::Flag,
    }))
}

fn given_twice(flag: &str) -> Error {
    definition::conflict(format!(
        "--{flag} is given twice, before and after the command; remove one"
    ))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |why: io::Error| Error::ReadFile {
        path: PathBuf::from(path),
        why,
    };
    // Opening a FIFO without a writer, or reading one with an idle writer, would block
    // indefinitely; during a reload it would block the supervisor.
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(unreadable)?;
    let kind = file.metadata().map_err(unreadable)?.file_type();
    if kind.is_fifo() || kind.is_socket() {
        return Err(Error::NotAFile {
            path: PathBuf::from(path),
        });
    }
    let mut contents = Vec::new();
    file.take(CONFIG_FILE_MAX_BYTES + 1)
        .read_to_end(&mut contents)
        .map_err(unreadable)?;
    if contents.len() as u64 > CONFIG_FILE_MAX_BYTES {
        return Err(Error::FileTooLarge {
            path: PathBuf::from(path),
        });
    }
    Ok(contents)
}

/// Returns the number of CPUs allowed by affinity and cgroup quota; 1 if the system does not report
/// them.
fn usable_cpus() -> u16 {
    Quota::of_this_process().cpus().unwrap_or(1)
}

fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    (host, port)
        .to_socket_addrs()
        .map(Iterator::collect)
        .map_err(|error| error.to_string())
}

/// Splits the addresses of a name that also has IPv4 addresses into those to use and the IPv6
/// addresses that this machine lacks. Container images list `::1` as localhost even where IPv6 is
/// disabled.
fn without_absent_ipv6(
    found: Vec<SocketAddr>,
    is_absent: impl Fn(&SocketAddr) -> bool,
) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let has_ipv4 = found.iter().any(SocketAddr::is_ipv4);
    let keep = |address: &SocketAddr| !has_ipv4 || address.is_ipv4() || !is_absent(address);
    found.into_iter().partition(keep)
}

/// Returns whether no interface has the address, or its family is unsupported. A UDP socket tests
/// it, so no TCP port is used.
fn is_absent(address: &SocketAddr) -> bool {
    let mut any_port = *address;
    any_port.set_port(0);
    UdpSocket::bind(any_port).is_err_and(|error| {
        error.kind() == io::ErrorKind::AddrNotAvailable
            || error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
    })
}

/// Adds the IDs of the user and the group that workers run as.
fn look_up_accounts(draft: &mut Draft) {
    let unknown = |why: String| format!("{why}; use an existing one, or its number");
    let Config { user, group, .. } = draft.config_mut();
    let mut wrong = Vec::new();
    if let Some(user) = user {
        match accounts::user(&user.name) {
            Ok((id, None)) if group.is_none() => {
                let why = format!("user {id} has no primary group; set group as well");
                wrong.push(("user", why));
            }
            Ok((id, primary_group)) => {
                user.id = Some(id);
                user.primary_group = primary_group;
            }
            Err(why) => wrong.push(("user", unknown(why))),
        }
    }
    if let Some(group) = group {
        match accounts::group(&group.name) {
            Ok(id) => group.id = Some(id),
            Err(why) => wrong.push(("group", unknown(why))),
        }
    }
    for (key, why) in wrong {
        draft.reject(key, why);
    }
}

/// Rejects limits that exceed the machine's hard limit, to which the server raises the soft limit
/// at start.
fn check_descriptors(draft: &mut Draft) -> Result<(), Error> {
    if !draft.accepts(&["max_connections", "listen", "workers"]) {
        return Ok(());
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(Error::DescriptorLimit)?;
    let config = draft.config_mut();
    let (asked, listeners) = (config.max_connections, config.listen.len());
    if let Err(error) = config::connection_limit(asked, hard, listeners, config.workers) {
        draft.add(error);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_falls_back_to_ipv4_without_ipv6() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let split = |found: &[&str], absent: &[&str]| {
            let absent = addresses(absent);
            let (here, others) =
                without_absent_ipv6(addresses(found), |address| absent.contains(address));
            (here.len(), others)
        };
        let (one, four) = ("[::1]:9", "127.0.0.1:9");
        assert_eq!(split(&[one, four], &[]), (2, vec![]));
        assert_eq!(split(&[one, four], &[one]), (1, addresses(&[one])));
        // Without this address none is left, so its error is reported.
        assert_eq!(split(&[one], &[one]), (1, vec![]));
        assert_eq!(split(&[one, four], &[four]), (2, vec![]));
    }

    #[test]
    fn unassigned_address_is_absent() {
        assert!(!is_absent(&"127.0.0.1:1".parse().unwrap()));
        assert!(is_absent(&"192.0.2.1:1".parse().unwrap()));
    }
}
