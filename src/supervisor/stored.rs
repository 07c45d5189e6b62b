//! The configuration in force, stored beside the workers' rendezvous: a start whose own
//! configuration is refused continues the workers of a dead supervisor with it.
//!
//! Invariants: only this user can write the file; it is whole, bounded, and passes the ordinary
//! parser before it is used; it exists while workers do; nothing in it comes from a worker.
//!
//! It must not decide whether the configuration is used (`continued` does).

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::{CONFIG_FILE_MAX_BYTES, Config, ListenAddr, ProxyListeners, verify};
use crate::wire::Listen;

const SUFFIX: &str = ".json";
/// Of a file that is being written.
const NEW_SUFFIX: &str = ".new";

/// Stores the configuration of a server that listens on these addresses.
///
/// # Errors
/// What the system returned, or the configuration is too large.
pub(super) fn store(directory: &Path, config: Config, listen: &[Listen]) -> io::Result<()> {
    let bytes = serde_json::to_vec(&with_ports(config, listen))?;
    if bytes.len() as u64 > CONFIG_FILE_MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let new = place(directory, listen, NEW_SUFFIX);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&bytes)?;
    fs::rename(&new, place(directory, listen, SUFFIX))
}

/// Removes the configuration of a server that listens on these addresses.
pub(super) fn remove(directory: &Path, listen: &[Listen]) {
    // It may not have been stored.
    let _ = fs::remove_file(place(directory, listen, SUFFIX));
}

/// Removes every stored configuration.
pub(super) fn remove_all(directory: &Path) {
    for path in files(directory, &[SUFFIX, NEW_SUFFIX]) {
        // Another supervisor may have.
        let _ = fs::remove_file(path);
    }
}

/// Reads a stored configuration.
///
/// # Errors
/// Why it cannot be used, in one line.
pub(super) fn read(path: &Path) -> Result<Config, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let mut file = file.take(CONFIG_FILE_MAX_BYTES);
    file.read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    let config = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    verify(&config).map_err(|error| error.to_string())?;
    Ok(config)
}

/// Returns the configuration with the ports that the kernel has chosen; `listen` has the same order.
fn with_ports(mut config: Config, listen: &[Listen]) -> Config {
    let given = config.listen.clone();
    let choose = |one: &mut ListenAddr| {
        let pairs = given.iter().zip(listen);
        let mut bound = pairs.filter(|(asked, _)| *asked == one);
        if let Some((_, bound)) = bound.next().filter(|_| one.addr.port() == 0) {
            one.addr.set_port(bound.addr.port());
        }
    };
    config.listen.iter_mut().for_each(choose);
    if let ProxyListeners::These(listeners) = &mut config.proxy_protocol {
        listeners.iter_mut().for_each(choose);
    }
    config
}

/// Returns the path for a server that listens on these addresses, of which no two servers without
/// `share_port` have one in common.
fn place(directory: &Path, listen: &[Listen], suffix: &str) -> PathBuf {
    let first = listen.iter().map(Listen::to_string).min();
    let name = first.unwrap_or_default() + suffix;
    directory.join(name)
}

/// Returns the stored configurations.
pub(super) fn all(directory: &Path) -> Vec<PathBuf> {
    files(directory, &[SUFFIX])
}

/// Returns whether `path` is that of a server that listens on these addresses.
pub(super) fn is_of(path: &Path, listen: &[Listen]) -> bool {
    let directory = path.parent();
    directory.is_some_and(|directory| place(directory, listen, SUFFIX) == path)
}

fn files(directory: &Path, suffixes: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let paths = entries.flatten().map(|entry| entry.path());
    let is_wanted = |path: &PathBuf| {
        let name = path.to_string_lossy();
        suffixes.iter().any(|suffix| name.ends_with(suffix))
    };
    paths.filter(is_wanted).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn stored_configuration_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        let at = |text: &str| ListenAddr {
            addr: text.parse().unwrap(),
            dual_stack: false,
        };
        let config = Config {
            listen: vec![at("127.0.0.1:0"), at("127.0.0.2:7")],
            proxy_protocol: ProxyListeners::These(vec![at("127.0.0.1:0")]),
            workers: 3,
            ..Config::default()
        };
        let listen = ["127.0.0.1:9", "127.0.0.2:7"].map(|text| Listen {
            addr: text.parse().unwrap(),
            dual_stack: false,
        });
        for _ in 0..2 {
            store(directory, config.clone(), &listen).unwrap();
        }
        let path = directory.join("127.0.0.1:9.json");
        assert_eq!(files(directory, &[""]), std::slice::from_ref(&path));
        assert!(is_of(&path, &listen) && !is_of(&path, &listen[1..]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let expected = Config {
            listen: vec![at("127.0.0.1:9"), at("127.0.0.2:7")],
            proxy_protocol: ProxyListeners::These(vec![at("127.0.0.1:9")]),
            ..config
        };
        assert_eq!(read(&path), Ok(expected));
        for damaged in ["", "{", "{\"workers\":0}", "{\"listen\":[]}"] {
            fs::write(&path, damaged).unwrap();
            assert!(read(&path).is_err(), "{damaged}");
        }
        remove(directory, &listen);
        assert_eq!(all(directory), <[PathBuf; 0]>::default());
    }
}
