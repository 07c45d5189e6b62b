//! The supervisor's side of the admin endpoint: its listener, and the process that answers there.
//!
//! Invariants: the listener is bound before the first worker starts and stays here, so that an
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
}

/// The admin endpoint of a running server.
#[derive(Debug)]
pub(super) struct AdminEndpoint {
    address: String,
    listener: OwnedFd,
    /// Of a Unix socket; removed with this.
    file: Option<SocketFile>,
    control: PathBuf,
    life: Life,
    process: Option<Process>,
}

/// What a new program must be told to go on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedAdmin {
    address: String,
    file: Option<FileId>,
    pub(super) listener: RawFd,
}

impl AdminEndpoint {
    /// Binds `wanted`, if it is any; `control` is the path of the control socket.
    ///
    /// # Errors
    /// There is no control socket, or the address cannot be had.
    pub(super) fn open(
        wanted: Option<&AdminAddr>,
        control: Option<&Path>,
    ) -> Result<Option<Self>, Error> {
        let Some(wanted) = wanted else {
            return Ok(None);
        };
        let address = || wanted.clone();
        let control = control.ok_or_else(|| Error::NoControl { address: address() })?;
        let bound = bind(wanted);
        let (listener, shown, file) = bound.map_err(|why| Error::Bind {
            address: address(),
            why,
        })?;
        Ok(Some(Self::over(listener, shown, file, control)))
    }

    /// Goes on after an exec with what [`Self::saved`] gave to the program before.
    pub(super) fn resume(saved: SavedAdmin, listener: OwnedFd, control: &Path) -> Self {
        let file = saved.file.map(SocketFile);
        Self::over(listener, saved.address, file, control)
    }

    fn over(listener: OwnedFd, address: String, file: Option<SocketFile>, control: &Path) -> Self {
        let now = clock::now();
        let seed = now.as_nanos() ^ u64::from(std::process::id());
        Self {
            address,
            listener,
            file,
            control: PathBuf::from(control),
            life: Life::new(now, seed),
            process: None,
        }
    }

    /// What a new program needs to go on.
    pub(super) fn saved(&self) -> SavedAdmin {
        SavedAdmin {
            address: self.address.clone(),
            file: self.file.as_ref().map(|file| file.0.clone()),
            listener: self.listener.as_raw_fd(),
        }
    }

    /// The descriptor that goes with it.
    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// When there is something to do.
    pub(super) const fn poll_timeout(&self) -> Option<Tick> {
        self.life.due()
    }

    /// For the status.
    pub(super) fn status(&self) -> AdminStatus {
        let process = self.process.as_ref();
        AdminStatus {
            address: self.address.clone(),
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
        let arguments = [
            OsStr::new("uppercased: admin"),
            OsStr::new("admin"),
            OsStr::new("--control"),
            self.control.as_os_str(),
            OsStr::new("--supervisor"),
            OsStr::new(&supervisor),
        ];
        image.spawn(arguments, &self.listener, |error| {
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
        let (address, admin_pid) = (&admin.address, process.pid());
        tracing::info!(%address, admin_pid, "admin endpoint open");
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

/// A listener at `wanted`, where that is, and the file that belongs to it.
fn bind(wanted: &AdminAddr) -> Result<(OwnedFd, String, Option<SocketFile>), String> {
    match wanted {
        AdminAddr::Tcp(address) => {
            let listener = bind_tcp(*address).map_err(|error| error.to_string())?;
            let bound = listener.local_addr().map_err(|error| error.to_string())?;
            Ok((listener.into(), bound.to_string(), None))
        }
        AdminAddr::Unix(path) => {
            let (listener, file) = socket::bind(path).map_err(|error| error.why())?;
            Ok((listener.into(), path.display().to_string(), Some(file)))
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A server that was just stopped has left connections behind that wait out their time.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
