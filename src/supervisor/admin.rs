//! The supervisor's side of the admin endpoint: its listeners (for HTTP, for load balancers that
//! ask), and the process that answers there.
//!
//! Invariants: a listener is bound before the first worker starts and stays here, so that an
//! address that cannot be had is refused at the start, and a health check that comes while there is
//! no process waits a moment instead of being refused; the process runs this supervisor's own
//! program, and none is left when the supervisor ends or becomes another program.
//!
//! It must not accept, nor wait for the process.

use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use mio::Interest;
use mio::unix::SourceFd;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::clock::{self, Tick};
use crate::config::{AdminAddr, Config};
use crate::status::AdminStatus;
use crate::sys::image::{Image, Process};

use super::Supervisor;
use super::children::death_of;
use super::control::socket::{self, FileId, SocketFile};
use super::tokens::Source;

mod life;

use life::{Life, Pace};

/// Clients that may wait to be taken.
const BACKLOG: i32 = 16;

/// Why there is no admin endpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What it shows is asked for at the control socket.
    #[error(
        "cannot show health and metrics at {address}: there is no control socket to ask at; name a \
         path with --control"
    )]
    NoControl {
        /// The address asked for.
        address: AdminAddr,
    },
    /// The address cannot be had.
    #[error(
        "cannot show health and metrics at {address}: {why}; choose another address with --admin"
    )]
    Bind {
        /// The address asked for.
        address: AdminAddr,
        /// Why not.
        why: String,
    },
    /// What load balancers are told is asked for at the control socket.
    #[error(
        "cannot answer load balancers at {address}: there is no control socket to ask at; name a \
         path with --control"
    )]
    AgentNoControl {
        /// The address asked for.
        address: SocketAddr,
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
    control: PathBuf,
    life: Life,
    process: Option<Process>,
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
    /// Binds what `config` asks for, if anything; `control` is the path of the control socket.
    ///
    /// # Errors
    /// There is no control socket, or an address cannot be had.
    pub(super) fn open(config: &Config, control: Option<&Path>) -> Result<Option<Self>, Error> {
        let (http, agent) = (config.admin.as_ref(), config.agent);
        let Some(control) = control else {
            return match (http.cloned(), agent) {
                (Some(address), _) => Err(Error::NoControl { address }),
                (None, Some(address)) => Err(Error::AgentNoControl { address }),
                (None, None) => Ok(None),
            };
        };
        let http = http.map(|address| {
            bind(address).map_err(|why| Error::Bind {
                address: address.clone(),
                why,
            })
        });
        let agent =
            agent.map(|address| bind_tcp(address).map_err(|why| Error::AgentBind { address, why }));
        Ok(Self::resume(
            (http.transpose()?, agent.transpose()?),
            control,
        ))
    }

    /// Goes on after an exec with the listeners, for HTTP and for load balancers, that
    /// [`Self::saved_http`] and [`Self::saved_agent`] gave to the program before; `None` if there is
    /// neither.
    pub(super) fn resume(
        (http, agent): (Option<Listener>, Option<Listener>),
        control: &Path,
    ) -> Option<Self> {
        let now = clock::now();
        let seed = now.as_nanos() ^ u64::from(std::process::id());
        (http.is_some() || agent.is_some()).then(|| Self {
            http,
            agent,
            control: PathBuf::from(control),
            life: Life::new(now, seed),
            process: None,
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

    /// The descriptors that go with it, in the order in which the process gets them.
    pub(super) fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let both = [&self.http, &self.agent].into_iter().flatten();
        both.map(|one| one.listener.as_fd())
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
            pid: process.map(|process| process.pid().unsigned_abs()),
            deaths: self.life.deaths(),
        }
    }

    /// Ends the process and waits until it is gone: it was killed, so that is at once. What it has
    /// in hand is lost, the clients that wait are not.
    fn end_process(&mut self) {
        if let Some(process) = self.process.take() {
            process.destroy();
        }
    }

    fn spawn(&self) -> io::Result<Process> {
        let image = Image::of_this_process()?;
        let supervisor = std::process::id().to_string();
        let mut arguments = vec![
            OsStr::new("uppercased: admin"),
            OsStr::new("admin"),
            OsStr::new("--control"),
            self.control.as_os_str(),
            OsStr::new("--supervisor"),
            OsStr::new(&supervisor),
        ];
        let has = [(&self.http, "--http"), (&self.agent, "--agent")];
        let has = has.into_iter().filter(|(listener, _)| listener.is_some());
        arguments.extend(has.map(|(_, flag)| OsStr::new(flag)));
        let listeners: Vec<_> = self.listeners().collect();
        image.spawn(arguments, &listeners, |error| {
            eprintln!("uppercased: cannot execute the admin process's program: {error}");
        })
    }
}

impl Drop for AdminEndpoint {
    fn drop(&mut self) {
        self.life.end();
        self.end_process();
    }
}

impl Supervisor {
    /// Starts an admin process if it is time.
    pub(super) fn keep_admin(&mut self) {
        let now = clock::now();
        let pace = pace(self.config());
        let Some(admin) = &mut self.admin else {
            return;
        };
        if admin.life.due().is_none_or(|due| due > now) {
            return;
        }
        let process = match admin.spawn() {
            Ok(process) => process,
            Err(error) => {
                let delay = admin.life.died(now, pace);
                tracing::error!(%error, delay_ms = delay.as_millis(), "admin process not started");
                return;
            }
        };
        let number = process.as_fd().as_raw_fd();
        let token = Source::AdminProcess.token();
        let registry = self.poll.registry();
        if let Err(error) = registry.register(&mut SourceFd(&number), token, Interest::READABLE) {
            process.destroy();
            let delay = admin.life.died(now, pace);
            tracing::error!(%error, delay_ms = delay.as_millis(), "admin process not watched");
            return;
        }
        let shown = |one: &Listener| tracing::field::display(one.address.clone());
        let (address, agent) = (
            admin.http.as_ref().map(shown),
            admin.agent.as_ref().map(shown),
        );
        let admin_pid = process.pid();
        tracing::info!(address, agent, admin_pid, "admin endpoint open");
        admin.life.started(now);
        admin.process = Some(process);
    }

    /// Notices that the admin process has ended.
    pub(super) fn look_at_admin(&mut self) {
        let pace = pace(self.config());
        let Some(admin) = &mut self.admin else {
            return;
        };
        let Some(how) = admin.process.as_ref().and_then(death_of) else {
            return;
        };
        // Closing the pidfd ends its registration: no other descriptor refers to it.
        admin.process = None;
        let delay = admin.life.died(clock::now(), pace);
        tracing::error!(%how, delay_ms = delay.as_millis(), "admin process died");
    }

    /// Ends the admin process before this one becomes another program; it is started afresh by
    /// whichever program goes on.
    pub(super) fn pause_admin(&mut self) {
        if let Some(admin) = &mut self.admin {
            admin.end_process();
            admin.life.paused(clock::now());
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
            let (listener, file) = socket::bind(path).map_err(|error| error.why())?;
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
