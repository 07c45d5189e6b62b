//! The operations on a server, and the list of servers.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::echo::Echo;
use super::envoy::Envoy;
use super::group::Group;
use super::haproxy::Haproxy;
use super::nginx::Nginx;
use super::ours::Ours;
use super::prefork::Prefork;
use super::sozu::Sozu;

/// Number of workers, or of threads in a server without workers.
pub(crate) const WORKERS: usize = 2;
/// The same after more were asked for.
pub(crate) const MORE_WORKERS: usize = 4;

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Reload,
    Upgrade,
    More,
    Fewer,
    Kill,
}

impl Event {
    pub(crate) const ALL: [Self; 5] = [
        Self::Reload,
        Self::Upgrade,
        Self::More,
        Self::Fewer,
        Self::Kill,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Upgrade => "upgrade",
            Self::More => "more",
            Self::Fewer => "fewer",
            Self::Kill => "kill",
        }
    }
}

/// A running server. An operation returns when the server reports that it is done; where it reports
/// nothing, when its new processes run.
pub(crate) trait Server {
    fn address(&self) -> SocketAddr;

    fn group(&mut self) -> &mut Group;

    /// Returns the process that is meant to stay, if there is one now.
    fn main(&mut self) -> Option<u32>;

    fn reload(&mut self) -> io::Result<()>;

    /// Executes the program on disk, which a reload does in most servers.
    fn upgrade(&mut self) -> io::Result<()> {
        self.reload()
    }

    /// Changes the number of workers, or of threads.
    fn scale(&mut self, workers: usize) -> io::Result<()>;

    /// Kills one worker, or the only process.
    fn kill(&mut self) -> io::Result<()>;

    /// Restores what only an operator would restore, and waits for processes of earlier generations
    /// to exit. The clients have left.
    fn recover(&mut self) -> io::Result<()>;
}

/// A server that can be measured if it is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rival {
    Ours,
    Prefork,
    Nginx,
    NginxScript,
    Haproxy,
    Sozu,
    Envoy,
    Pingora,
    Ecdysis,
}

impl Rival {
    pub(crate) const ALL: [Self; 9] = [
        Self::Ours,
        Self::Prefork,
        Self::Nginx,
        Self::NginxScript,
        Self::Haproxy,
        Self::Sozu,
        Self::Envoy,
        Self::Pingora,
        Self::Ecdysis,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "uppercased",
            Self::Prefork => "C pre-fork",
            Self::Nginx => "nginx",
            Self::NginxScript => "nginx njs",
            Self::Haproxy => "HAProxy",
            Self::Sozu => "sozu",
            Self::Envoy => "Envoy",
            Self::Pingora => "pingora echo",
            Self::Ecdysis => "ecdysis echo",
        }
    }

    /// Returns its setup, and the method of each operation.
    pub(crate) const fn settings(self) -> &'static str {
        match self {
            Self::Ours => "defaults, 2 workers; its own commands",
            Self::Prefork => {
                "2 processes with SO_REUSEPORT, no supervisor; a reload starts new ones, then ends \
                 the old ones by SIGTERM"
            }
            Self::Nginx => {
                "stream proxy to the C server, 2 workers, reuseport; `-s reload`; upgrade by USR2, \
                 then QUIT to the old master; number of workers by configuration and reload"
            }
            Self::NginxScript => "the same, but a filter in JavaScript (njs) answers",
            Self::Haproxy => {
                "TCP proxy to the C server, master-worker mode, 2 threads; reload and upgrade by \
                 USR2 to the master; number of threads by configuration and reload"
            }
            Self::Sozu => "TCP proxy to the C server, 2 workers; its own commands",
            Self::Envoy => {
                "TCP proxy to the C server, 2 threads; every operation by a hot restart, after which \
                 the old process serves its connections for at most 15 min (default)"
            }
            Self::Pingora => {
                "2 threads; every operation starts a new process with --upgrade, then QUIT to the \
                 old one, which serves its connections for at most 5 min (default)"
            }
            Self::Ecdysis => {
                "2 threads; every operation by HUP; the old process serves its connections for at \
                 most 60 s, as in the library's example"
            }
        }
    }

    /// Returns the time after an event in which clients can see its effect.
    pub(crate) const fn watch(self) -> Duration {
        match self {
            // Its old process accepts for 5 s after it has passed its listener on.
            Self::Pingora => Duration::from_secs(7),
            _ => Duration::from_secs(2),
        }
    }

    pub(crate) fn version(self) -> String {
        match self {
            Self::Ours => env!("CARGO_PKG_VERSION").to_owned(),
            Self::Prefork => "-".to_owned(),
            Self::Nginx | Self::NginxScript => Nginx::version(),
            Self::Haproxy => Haproxy::version(),
            Self::Sozu => Sozu::version(),
            Self::Envoy => Envoy::version(),
            Self::Pingora => Echo::Pingora.version(),
            Self::Ecdysis => Echo::Ecdysis.version(),
        }
    }

    /// Starts it with its files in `folder`.
    ///
    /// # Errors
    /// The reason why the server is unavailable here.
    pub(crate) fn start(self, folder: &Path) -> io::Result<Box<dyn Server>> {
        Ok(match self {
            Self::Ours => Box::new(Ours::start(folder)?),
            Self::Prefork => Box::new(Prefork::start(folder)?),
            Self::Nginx => Box::new(Nginx::start(folder, false)?),
            Self::NginxScript => Box::new(Nginx::start(folder, true)?),
            Self::Haproxy => Box::new(Haproxy::start(folder)?),
            Self::Sozu => Box::new(Sozu::start(folder)?),
            Self::Envoy => Box::new(Envoy::start(folder)?),
            Self::Pingora => Box::new(Echo::Pingora.start(folder)?),
            Self::Ecdysis => Box::new(Echo::Ecdysis.start(folder)?),
        })
    }
}
