//! The supervisor's side of the admin endpoint: its listeners (for HTTP, for load balancers that
//! ask), and the process that answers there.
//!
//! Invariants: a listener is bound before the first worker starts and stays here, so that an
//! address that cannot be had is refused at the start, and a health check that comes while there is
//! no process waits a moment instead of being refused; the process runs this supervisor's own
//! program, and none is left when the supervisor ends or becomes another program; a process that is
//! to be locked in otherwise than it is makes way for another one.
//!
//! It must not accept, nor wait for the process.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use mio::Registry;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::channel::packets::Packets;
use crate::config::{ADMIN_REQUESTS_MAX, AGENT_CLIENTS_MAX, AdminAddr, Config};
use crate::sys::image::Process;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::status::AdminStatus;

use super::Supervisor;
use super::socket_file::{self, FileId, SocketFile};

mod life;
mod process;

use life::{Life, Pace};
use process::{AdminProcess, Heard};

/// Clients that may wait to be taken.
const BACKLOG: i32 = 16;
/// Messages of the process that are heard in one go: twice what it can have to say. Whatever
/// becomes of it, workers are heard between two goes.
const MESSAGES_PER_TURN: usize = 2 * (ADMIN_REQUESTS_MAX + AGENT_CLIENTS_MAX);

/// Why there is no admin endpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address for HTTP cannot be had.
    #[error(
        "cannot show health and metrics at {address}: {why}; choose another address with --admin"
    )]
    Bind {
        /// The address asked for.
        address: AdminAddr,
        /// Why not.
        why: String,
    },
    /// The agent's address cannot be had.
    #[error(
        "cannot answer load balancers at {address}: {why}; choose another address with --agent"
    )]
    AgentBind {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        why: io::Error,
    },
}

/// The admin endpoint of a running server.
#[derive(Debug)]
pub(super) struct AdminEndpoint {
    /// For HTTP.
    http: Option<Listener>,
    /// For load balancers.
    agent: Option<Listener>,
    life: Life,
    process: Option<AdminProcess>,
    /// Not wanted any more, and to be killed by the supervisor, which reaps them.
    killed: Vec<(Process, Packets)>,
    /// What the last process lacked, so that it is said once.
    missing: Vec<String>,
}

/// A socket that the process accepts from.
#[derive(Debug)]
pub(super) struct Listener {
    address: String,
    listener: OwnedFd,
    /// Of a Unix socket; removed with this.
    file: Option<SocketFile>,
}

/// What a new program must be told to go on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedListener {
    address: String,
    file: Option<FileId>,
    pub(super) listener: RawFd,
}

impl Listener {
    fn saved(&self) -> SavedListener {
        SavedListener {
            address: self.address.clone(),
            file: self.file.as_ref().map(|file| file.0.clone()),
            listener: self.listener.as_raw_fd(),
        }
    }
}

impl SavedListener {
    /// The listener again, after an exec.
    pub(super) fn resume(self, listener: OwnedFd) -> Listener {
        Listener {
            address: self.address,
            listener,
            file: self.file.map(SocketFile),
        }
    }
}

impl AdminEndpoint {
    /// Binds what `config` asks for, if anything.
    ///
    /// # Errors
    /// An address cannot be had.
    pub(super) fn open(config: &Config) -> Result<Option<Self>, Error> {
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

    /// With the listeners for HTTP and for load balancers, as they were bound or as, after an exec,
    /// the program before has left them ([`Self::saved_http`], [`Self::saved_agent`]), and how many
    /// processes have died; `None` if there is neither.
    pub(super) fn over(
        http: Option<Listener>,
        agent: Option<Listener>,
        deaths: u64,
    ) -> Option<Self> {
        let now = clock::now();
        let seed = now.as_nanos() ^ u64::from(std::process::id());
        (http.is_some() || agent.is_some()).then(|| Self {
            http,
            agent,
            life: Life::new(now, seed, deaths),
            process: None,
            killed: Vec::new(),
            missing: Vec::new(),
        })
    }

    /// What a new program needs to go on with HTTP.
    pub(super) fn saved_http(&self) -> Option<SavedListener> {
        self.http.as_ref().map(Listener::saved)
    }

    /// What a new program needs to go on with load balancers.
    pub(super) fn saved_agent(&self) -> Option<SavedListener> {
        self.agent.as_ref().map(Listener::saved)
    }

    /// The descriptors that go with it: HTTP first.
    pub(super) fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let both = [&self.http, &self.agent].into_iter().flatten();
        both.map(|one| one.listener.as_fd())
    }

    /// Processes that ended and should not have.
    pub(super) const fn deaths(&self) -> u64 {
        self.life.deaths()
    }

    /// When there is something to do.
    pub(super) const fn poll_timeout(&self) -> Option<Tick> {
        self.life.due()
    }

    /// For the status.
    pub(super) fn status(&self) -> AdminStatus {
        let process = self.process.as_ref();
        let shown = |one: &Listener| one.address.clone();
        AdminStatus {
            address: self.http.as_ref().map_or_else(String::new, shown),
            agent: self.agent.as_ref().map(shown),
            agent_answers: process
                .filter(|_| self.agent.is_some())
                .map(AdminProcess::agent),
            pid: process.map(|process| process.pid().unsigned_abs()),
            deaths: self.deaths(),
            sandbox: process.and_then(|process| process.sandbox().cloned()),
        }
    }

    /// Kills the process, which is then among [`Self::killed`]. What it has in hand is lost, the
    /// clients that wait are not.
    pub(super) fn end_process(&mut self) {
        self.killed
            .extend(self.process.take().map(AdminProcess::into_parts));
    }

    /// Returns the processes that are to be killed and reaped, with their sockets.
    pub(super) fn killed(&mut self) -> Vec<(Process, Packets)> {
        std::mem::take(&mut self.killed)
    }

    /// Starts a process, which is then due again if it cannot be.
    fn start(&mut self, config: &Config, registry: &Registry, now: Tick) {
        let shown = [&self.http, &self.agent].map(|one| one.as_ref().map(|it| it.listener.as_fd()));
        let started = AdminProcess::start(config, shown);
        let watched = started.and_then(|process| {
            let watched = process.watch(registry);
            self.process = Some(process);
            watched
        });
        match watched {
            Ok(()) => self.life.started(now),
            Err(error) => {
                self.end_process();
                let delay = self.life.died(now, pace(config));
                tracing::error!(%error, delay_ms = delay.as_millis(), "admin process not started");
            }
        }
    }

    /// The process answers from now on.
    fn opened(&mut self) {
        let Some(process) = &self.process else {
            return;
        };
        let shown = |one: &Listener| tracing::field::display(one.address.clone());
        let (address, agent) = (
            self.http.as_ref().map(shown),
            self.agent.as_ref().map(shown),
        );
        let admin_pid = process.pid();
        tracing::info!(address, agent, admin_pid, "admin endpoint open");
        let missing = process.sandbox().map(|it| it.missing.clone());
        let missing = missing.unwrap_or_default();
        if !missing.is_empty() && missing != self.missing {
            let missing = missing.join("; ");
            tracing::warn!(%missing, "the admin process's sandbox is incomplete");
        }
        self.missing = missing;
    }
}

impl Drop for AdminEndpoint {
    fn drop(&mut self) {
        self.life.end();
        if let Some(process) = &self.process {
            process.kill();
        }
    }
}

impl Supervisor {
    /// Starts an admin process if it is time, also in the place of one that is to be locked in
    /// otherwise.
    pub(super) fn keep_admin(&mut self) {
        let now = clock::now();
        let config = &self.releases.in_force().config;
        let Some(admin) = &mut self.admin else {
            return;
        };
        if let Some(process) = &admin.process
            && !process.is_as(config)
        {
            admin.end_process();
            admin.life.paused(now);
        }
        if admin.life.due().is_some_and(|due| due <= now) {
            admin.start(config, self.poll.registry(), now);
        }
        let killed = admin.killed();
        self.take_killed(killed);
    }

    /// Hears what the admin process has to say: that it is ready, and what it asks.
    pub(super) fn hear_admin(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(admin) = &mut self.admin else {
                return;
            };
            match admin.process.as_mut().and_then(AdminProcess::hear) {
                None => return,
                Some(Heard::Ready) => admin.opened(),
                Some(Heard::Asked(number)) => self.tell_admin(number),
            }
        }
        // There may be more: that is reported anew.
        if let Some(process) = self.admin.as_mut().and_then(|it| it.process.as_mut()) {
            process.watch_again(self.poll.registry());
        }
    }

    fn tell_admin(&mut self, number: u64) {
        let status = self.status();
        if let Some(process) = self.admin.as_mut().and_then(|it| it.process.as_mut()) {
            process.tell(number, &status);
        }
    }

    /// Notices that the admin process has ended.
    pub(super) fn look_at_admin(&mut self) {
        // Its last words come first.
        self.hear_admin();
        let pace = pace(self.config());
        let Some(admin) = &mut self.admin else {
            return;
        };
        let Some(how) = admin.process.as_ref().and_then(AdminProcess::reap) else {
            return;
        };
        let now = clock::now();
        let said = admin.process.take().and_then(AdminProcess::cause);
        let cause = said.or_else(|| self.evidence.cause_of(how, now));
        let delay = admin.life.died(now, pace);
        tracing::error!(%how, cause, delay_ms = delay.as_millis(), "admin process died");
    }

    /// Ends the admin process before this one becomes another program; it is started afresh by
    /// whichever program goes on.
    pub(super) fn pause_admin(&mut self) {
        if let Some(admin) = &mut self.admin {
            admin.end_process();
            admin.life.paused(clock::now());
            let killed = admin.killed();
            self.take_killed(killed);
        }
    }
}

const fn pace(config: &Config) -> Pace {
    Pace {
        initial: config.backoff_initial,
        max: config.backoff_max,
        reset: config.backoff_reset,
    }
}

/// A listener at `wanted`.
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
    // A server that was just stopped has left connections behind that wait out their time.
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
