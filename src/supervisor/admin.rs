//! The supervisor's side of the admin endpoint: its listeners (for HTTP and for load balancers),
//! and the process that answers there.
//!
//! Invariants: a listener is bound before the first worker starts and is kept here, so an
//! unavailable address is refused at the start, and a health check that arrives while there is no
//! process waits briefly instead of being refused; the process runs this supervisor's own program,
//! and has exited when the supervisor exits or execs another program; a process whose settings have
//! changed is replaced.
//!
//! It must not accept, nor wait for the process.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};

use mio::Registry;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::config::{ADMIN_REQUESTS_MAX, AGENT_CLIENTS_MAX, AdminAddr, Config};
use crate::log::event;
use crate::sys::fd::{Descriptor, Inherited, Kept};
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::status::Rotation;
use uppercased_ctl::status::{AdminStatus, Status};

use super::machine::ExitStatus;
use super::socket_file::{self, FileId, SocketFile};
use super::subprocess::Ended;

mod life;
mod process;

use life::Life;
use process::{AdminProcess, Received};

/// Backlog of a listener.
const BACKLOG: i32 = 16;
/// Messages of the process received per turn: twice as many as it can have in flight. Messages of
/// workers are received between two turns.
const MESSAGES_PER_TURN: usize = 2 * (ADMIN_REQUESTS_MAX + AGENT_CLIENTS_MAX);

/// The reason why there is no admin endpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The HTTP address is not available.
    #[error("cannot listen on admin address {address}: {why}; choose another address with --admin")]
    Bind {
        /// The configured address.
        address: AdminAddr,
        /// The cause.
        why: String,
    },
    /// The agent check's address is not available.
    #[error("cannot listen on agent address {address}: {why}; choose another address with --agent")]
    AgentBind {
        /// The configured address.
        address: SocketAddr,
        /// The cause.
        why: io::Error,
    },
}

/// The admin endpoint of a running server. Without an address it does nothing.
#[derive(Debug)]
pub(crate) struct Admin {
    /// For HTTP.
    http: Option<Listener>,
    /// For load balancers.
    agent: Option<Listener>,
    /// The state that is reported to load balancers.
    rotation: Rotation,
    life: Life,
    process: Option<AdminProcess>,
    /// The missing parts of the last process's sandbox, so that they are logged once.
    missing: Vec<String>,
}

/// The admin endpoint in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    http: Option<SavedListener>,
    agent: Option<SavedListener>,
    rotation: Rotation,
    /// Unexpected exits of admin processes.
    crashes: u64,
}

/// A socket that the process accepts from.
#[derive(Debug)]
struct Listener {
    address: String,
    listener: OwnedFd,
    /// File of a Unix socket; removed with this.
    file: Option<SocketFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedListener {
    address: String,
    listener: Descriptor,
    file: Option<FileId>,
}

impl Listener {
    fn save<'a>(&'a self, kept: &mut Kept<'a>) -> SavedListener {
        SavedListener {
            address: self.address.clone(),
            listener: kept.keep(&self.listener),
            file: self.file.as_ref().map(|file| file.id.clone()),
        }
    }

    fn restore(saved: SavedListener, inherited: &mut Inherited) -> io::Result<Self> {
        Ok(Self {
            address: saved.address,
            listener: inherited.take(saved.listener)?,
            file: saved.file.map(SocketFile::inherited),
        })
    }
}

impl Admin {
    /// Binds the configured addresses, if any.
    ///
    /// # Errors
    /// An address is not available.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let http = config.admin.as_ref().map(|address| {
            bind(address).map_err(|why| Error::Bind {
                address: address.clone(),
                why,
            })
        });
        let agent = config
            .agent
            .map(|address| bind_tcp(address).map_err(|why| Error::AgentBind { address, why }));
        Ok(Self::over(http.transpose()?, agent.transpose()?, 0))
    }

    fn over(http: Option<Listener>, agent: Option<Listener>, crashes: u64) -> Self {
        let now = clock::now();
        let seed = now.as_nanos() ^ u64::from(std::process::id());
        let mut life = Life::new(now, seed, crashes);
        if http.is_none() && agent.is_none() {
            life.end();
        }
        Self {
            http,
            agent,
            rotation: Rotation::default(),
            life,
            process: None,
            missing: Vec::new(),
        }
    }

    /// Starts a process if one is due. Returns a process that it replaces, to be killed, and one
    /// that cannot be watched.
    pub(crate) fn keep_process(
        &mut self,
        config: &Config,
        registry: &Registry,
        now: Tick,
    ) -> Vec<Ended> {
        let is_outdated = |process: &AdminProcess| !process.is_as(config);
        let mut ended = Vec::new();
        if self.process.as_ref().is_some_and(is_outdated) {
            ended.extend(self.pause(now));
        }
        if self.deadline().is_some_and(|due| due <= now) {
            ended.extend(self.start(config, registry, now));
        }
        ended
    }

    /// Receives the process's messages. Returns the numbers of its status requests.
    pub(crate) fn on_ready(&mut self, registry: &Registry) -> Vec<u64> {
        let mut questions = Vec::new();
        for _ in 0..MESSAGES_PER_TURN {
            match self.process.as_mut().and_then(AdminProcess::receive) {
                None => return questions,
                Some(Received::Ready) => self.log_open(),
                Some(Received::Question(number)) => questions.push(number),
            }
        }
        // There may be more: readiness is reported again.
        if let Some(process) = &mut self.process {
            process.watch_again(registry);
        }
        questions
    }

    /// Sends the answer to a status request.
    pub(crate) fn answer(&mut self, number: u64, status: &Status) {
        if let Some(process) = &mut self.process {
            process.answer(number, status);
        }
    }

    /// Reaps the process, if it has exited. `explain` returns the cause of a crash that neither
    /// side has reported.
    pub(crate) fn on_exit(
        &mut self,
        config: &Config,
        now: Tick,
        explain: impl FnOnce(ExitStatus) -> Option<String>,
    ) {
        let Some(exit) = self.process.as_ref().and_then(AdminProcess::reap) else {
            return;
        };
        let named = self.process.take().and_then(AdminProcess::cause);
        let cause = named.or_else(|| explain(exit));
        let delay = self.life.died(now, config);
        event!(
            admin_died,
            exit_code = exit.exit_code(),
            signal = exit.signal(),
            error = cause,
            delay_ms = delay.as_millis()
        );
    }

    /// Ends the process; the next [`Self::keep_process`] starts another one. Requests in progress
    /// are lost, queued clients are not.
    pub(crate) fn pause(&mut self, now: Tick) -> Option<Ended> {
        self.life.paused(now);
        self.process.take().map(AdminProcess::into_ended)
    }

    /// Ends the process and removes the sockets; no other process is started.
    pub(crate) fn close(&mut self) -> Option<Ended> {
        self.life.end();
        self.http = None;
        self.agent = None;
        self.process.take().map(AdminProcess::into_ended)
    }

    pub(crate) const fn deadline(&self) -> Option<Tick> {
        self.life.due()
    }

    /// Sets the state that is reported to load balancers; returns the one before.
    pub(crate) fn rotate(&mut self, to: Rotation) -> Rotation {
        std::mem::replace(&mut self.rotation, to)
    }

    pub(crate) const fn rotation(&self) -> Rotation {
        self.rotation
    }

    /// Returns the process number, while there is a process.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(AdminProcess::pid)
    }

    /// Returns `None` without an address.
    pub(crate) fn status(&self) -> Option<AdminStatus> {
        if self.http.is_none() && self.agent.is_none() {
            return None;
        }
        let process = self.process.as_ref();
        let shown = |one: &Listener| one.address.clone();
        Some(AdminStatus {
            address: self.http.as_ref().map_or_else(String::new, shown),
            agent: self.agent.as_ref().map(shown),
            agent_answers: process
                .filter(|_| self.agent.is_some())
                .map(AdminProcess::agent),
            pid: self.pid().map(i32::unsigned_abs),
            crashes: self.life.crashes(),
            sandbox: process.and_then(|process| process.sandbox().cloned()),
        })
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        Saved {
            http: self.http.as_ref().map(|http| http.save(kept)),
            agent: self.agent.as_ref().map(|agent| agent.save(kept)),
            rotation: self.rotation,
            crashes: self.life.crashes(),
        }
    }

    /// Restores the state saved by the earlier binary of this process. That program keeps the
    /// sockets' files until [`Self::own_files`].
    ///
    /// # Errors
    /// A listener is missing.
    pub(crate) fn restore(saved: Saved, inherited: &mut Inherited) -> io::Result<Self> {
        let http = saved.http.map(|http| Listener::restore(http, inherited));
        let agent = saved.agent.map(|agent| Listener::restore(agent, inherited));
        let mut restored = Self::over(http.transpose()?, agent.transpose()?, saved.crashes);
        restored.rotation = saved.rotation;
        Ok(restored)
    }

    /// Takes ownership of the sockets' files.
    pub(crate) fn own_files(&mut self) {
        let listeners = [&mut self.http, &mut self.agent].into_iter().flatten();
        for file in listeners.filter_map(|listener| listener.file.as_mut()) {
            file.own();
        }
    }

    /// Starts a process; a failure delays the next attempt. Returns a process that cannot be
    /// watched.
    fn start(&mut self, config: &Config, registry: &Registry, now: Tick) -> Option<Ended> {
        let shown = [&self.http, &self.agent].map(|one| one.as_ref().map(|it| it.listener.as_fd()));
        let started = AdminProcess::start(config, shown);
        let watched = started.and_then(|process| {
            let watched = process.watch(registry);
            self.process = Some(process);
            watched
        });
        match watched {
            Ok(()) => {
                self.life.started(now);
                None
            }
            Err(error) => {
                let delay = self.life.died(now, config);
                event!(admin_start_failed, %error, delay_ms = delay.as_millis());
                self.process.take().map(AdminProcess::into_ended)
            }
        }
    }

    /// Logs that the process answers.
    fn log_open(&mut self) {
        let Some(process) = &self.process else {
            return;
        };
        let shown = |one: &Listener| tracing::field::display(one.address.clone());
        let (address, agent) = (
            self.http.as_ref().map(shown),
            self.agent.as_ref().map(shown),
        );
        event!(admin_ready, address, agent, admin_pid = process.pid());
        let missing = process.sandbox().map(|it| it.missing.clone());
        let missing = missing.unwrap_or_default();
        if !missing.is_empty() && missing != self.missing {
            let missing = missing.join("; ");
            event!(admin_sandbox_incomplete, %missing);
        }
        self.missing = missing;
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }
}

/// Returns a listener at `wanted`.
fn bind(wanted: &AdminAddr) -> Result<Listener, String> {
    match wanted {
        AdminAddr::Tcp(address) => bind_tcp(*address).map_err(|error| error.to_string()),
        AdminAddr::Unix(path) => {
            let (listener, file) = socket_file::bind(path).map_err(|error| error.why())?;
            Ok(Listener {
                address: path.display().to_string(),
                listener: listener.into(),
                file: Some(file),
            })
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A server that has just stopped leaves connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    Ok(Listener {
        address: listener.local_addr()?.to_string(),
        listener: listener.into(),
        file: None,
    })
}
