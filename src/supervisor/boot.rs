//! What happens before the first worker: limits, locks, the image; everything that can be refused
//! without having disturbed anybody.

use std::io;

use mio::Poll;

use crate::clock;
use crate::config::{self, Config};
use crate::listener;
use crate::log;
use crate::memory::layout::Layout;
use crate::port;
use crate::sys::image::Image;
use crate::sys::limits::raise_descriptor_limit;
use crate::wire::{Listen, Start};

use super::children::SlotResources;
use super::machine::{ListenerSource, Machine};
use super::{Supervisor, policy, signals};

/// Why a supervisor cannot even begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The limits asked for are not to be had.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// An address is somebody else's.
    #[error(transparent)]
    Port(#[from] port::Error),
    /// The system refused something.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was to be done.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// 2 for what the configuration got wrong, 1 for what the system refused.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Log(_) | Self::Port(_) | Self::System { .. } => 1,
        }
    }
}

/// What every worker is told, settled once.
#[derive(Debug)]
pub(super) struct Limits {
    /// Addresses, ports known as soon as the first slot is Ready.
    pub(super) listen: Vec<Listen>,
    max_connections: u32,
    descriptors: u32,
}

impl Limits {
    /// The first message to a worker.
    pub(super) fn start(&self, config: &Config, listener: ListenerSource) -> Start {
        Start {
            config: config.clone(),
            listen: self.listen.clone(),
            adopt: listener == ListenerSource::Adopt,
            standby: false,
            max_connections: self.max_connections,
            descriptors: self.descriptors,
        }
    }

    fn layout(&self, config: &Config) -> Layout {
        Layout {
            descriptors: self.descriptors,
            buffers: self.max_connections,
            buffer_bytes: config.pending_output,
        }
    }
}

impl Supervisor {
    /// Checks and acquires everything that a start needs, and starts nothing.
    ///
    /// # Errors
    /// Any [`Error`]; nothing that runs was disturbed.
    pub fn prepare(config: Config) -> Result<Self, Error> {
        let failed = |operation| move |source| Error::System { operation, source };
        log::init(config.log_level, config.log_format)?;
        let limits = limits(&config)?;
        warn_about_backlog(&config);
        let mut locks = Vec::new();
        if !config.share_port {
            for listen in limits
                .listen
                .iter()
                .filter(|listen| listen.addr.port() != 0)
            {
                locks.extend(port::lock(listen)?);
                if let Some(holder) = port::holder(listen) {
                    let wanted = listen.addr.to_string();
                    return Err(port::Error::Held { wanted, holder }.into());
                }
            }
        }
        let slots = (0..config.workers).map(|_| SlotResources::new(limits.layout(&config)));
        let slots = slots.collect::<io::Result<_>>();
        // The jitter of backoffs needs to differ between instances, no more.
        let seed = clock::now().as_nanos() ^ u64::from(std::process::id());
        let supervisor = Self {
            image: Image::of_this_process().map_err(failed("open /proc/self/exe"))?,
            poll: Poll::new().map_err(failed("create an epoll instance"))?,
            signals: signals().map_err(failed("handle signals"))?,
            machine: Machine::new(policy(&config), seed),
            slots: slots.map_err(failed("make a worker's memory"))?,
            locks,
            limits,
            config,
            verdict: None,
        };
        supervisor.watch_basics().map_err(failed("watch signals"))?;
        Ok(supervisor)
    }
}

fn limits(config: &Config) -> Result<Limits, Error> {
    let nofile = raise_descriptor_limit().map_err(|source| Error::System {
        operation: "raise the descriptor limit",
        source,
    })?;
    let max_connections = config::connection_limit(
        config.max_connections,
        nofile,
        config.listen.len(),
        config.workers,
    )?;
    let listen = config.listen.iter().map(|one| Listen {
        addr: one.addr,
        dual_stack: one.dual_stack,
    });
    // The kernel gives out the lowest free number, so none is higher than all that may be open.
    let reserve = config::descriptor_reserve(config.listen.len(), config.workers);
    let numbers = reserve.saturating_add(max_connections.into()).min(nofile);
    Ok(Limits {
        listen: listen.collect(),
        max_connections,
        descriptors: u32::try_from(numbers).unwrap_or(Layout::MAX_DESCRIPTORS),
    })
}

/// The kernel cuts a longer backlog without a word.
fn warn_about_backlog(config: &Config) {
    if let (Some(asked), Some(granted)) = (config.backlog, listener::longest_backlog())
        && asked > granted
    {
        tracing::warn!(
            asked,
            granted,
            "the accept queue is limited by net.core.somaxconn"
        );
    }
}
