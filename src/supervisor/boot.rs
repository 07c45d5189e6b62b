//! What happens before the first worker: limits, locks, the image; everything that can be refused
//! without having disturbed anybody.

use std::ffi::OsString;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::{Poll, Token};

use crate::config::{self, Config, Launch, ListenAddr};
use crate::listener;
use crate::log;
use crate::port::{self, Lock};
use crate::sys::accounts;
use crate::sys::image::Image;
use crate::sys::limits::{memory_room, raise_descriptor_limit};
use crate::sys::signals;
use crate::wire::Listen;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity::RequestId;
use uppercased_ctl::status::Rotation;

use super::admin::{self, AdminEndpoint};
use super::control::{self, ControlServer};
use super::fleet::releases::{Limits, NoRoom, Release, Releases, check_memory};
use super::fleet::totals::Former;
use super::machine::{Event, Machine, Policy};
use super::reaper::evidence::Evidence;
use super::reaper::orphans;
use super::signals::terminal::Terminal;
use super::systemd::Systemd;
use super::systemd::activation::{self, Given};
use super::systemd::notify::Notifier;
use super::telemetry::times::Times;
use super::tokens::CONTROL_FIRST;
use super::upgrade::Preflight;
use super::upgrade::program;
use super::{STOP_SIGNALS, Supervisor, policy, report};

/// Why a supervisor cannot even begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The limits asked for are not to be had.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// Sockets that were handed over are of no use.
    #[error(transparent)]
    Activation(#[from] activation::Error),
    /// An address is somebody else's.
    #[error(transparent)]
    Port(#[from] port::Error),
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// Health and metrics cannot be shown where they are to be.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The workers' memory cannot be had.
    #[error(transparent)]
    Memory(#[from] NoRoom),
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
            Self::Activation(activation::Error::Listener(_)) => 1,
            Self::Config(_) | Self::Activation(_) => 2,
            Self::Log(_)
            | Self::Port(_)
            | Self::Control(_)
            | Self::Admin(_)
            | Self::Memory(_)
            | Self::System { .. } => 1,
        }
    }
}

/// Whether a signal to stop ends the process where it is.
static EARLY_STOP: AtomicBool = AtomicBool::new(false);

/// Lets a signal to stop end the process until the supervisor handles it: the kernel drops what the
/// first process of a container has no handler for, and reading the configuration may wait for a
/// name server.
pub fn stop_while_starting() {
    if !orphans::come_here() {
        return;
    }
    EARLY_STOP.store(true, Ordering::Relaxed);
    for signal in STOP_SIGNALS {
        // Fails for a signal number that does not exist, and no other.
        let _ = signals::exit_on(signal, &EARLY_STOP);
    }
}

/// Ends what [`stop_while_starting`] has begun: whoever calls this handles those signals, or has no
/// need to.
pub fn handle_stops() {
    EARLY_STOP.store(false, Ordering::Relaxed);
}

impl Supervisor {
    /// Checks and acquires everything that a start needs, and starts nothing.
    ///
    /// # Errors
    /// Any [`Error`]; nothing that runs was disturbed.
    pub fn prepare(launch: Launch) -> Result<Self, Error> {
        let Launch {
            config,
            typed,
            ignored,
        } = launch;
        let failed = |operation| move |source| Error::System { operation, source };
        log::init(config.log_level, config.log_format)?;
        // Handling SIGHUP hides whether it was ignored.
        let terminal = Terminal::of_this_process();
        // From here on a stop is remembered, and carried out once the loop runs.
        let signals = super::signals().map_err(failed("handle signals"))?;
        handle_stops();
        check_account(&config)?;
        let nofile = raise_descriptor_limit().map_err(failed("raise the descriptor limit"))?;
        let mut wanted: Vec<Listen> = config.listen.iter().map(address).collect();
        listener::fall_back_to_ipv4(&mut wanted, listener::has_ipv6());
        let given = Given::take(&config, &wanted)?;
        let workers = config.workers.max(given.slots());
        let limits = Limits::settle(&config, workers, nofile)?;
        let room = memory_room().map_err(failed("read the limits on memory"))?;
        check_memory(&config, limits, workers, room)?;
        warn_about_backlog(&config);
        let mut addresses = given.addresses().to_vec();
        let locks = lock(&config, &addresses, &given.inodes())?;
        let poll = Poll::new().map_err(failed("create an epoll instance"))?;
        let image = Image::of_this_process().map_err(failed("open /proc/self/exe"))?;
        let name = typed.args.first().map(OsString::as_os_str);
        let program = program::path_of_this(name).map_err(failed("read /proc/self/exe"))?;
        let first_request = RequestId(RequestId::NOBODY.0 + 1);
        let tokens = Token(CONTROL_FIRST);
        let control = ControlServer::open(&config.control, poll.registry(), tokens, first_request)?;
        let admin = AdminEndpoint::open(&config)?;
        let (adopted, activated) = (given.slots(), given.unit_slots());
        let (slots, outdated) = given.hand_out(&mut addresses, &config)?;
        let policy = Policy {
            workers,
            ..policy(&config)
        };
        // The jitter of backoffs needs to differ between instances, no more.
        let seed = clock::now().as_nanos() ^ u64::from(std::process::id());
        let mut supervisor = Self {
            typed,
            program,
            started: clock::now(),
            machine: Machine::new(policy, seed).with_listeners(adopted, clock::now()),
            releases: Releases::new(Release {
                image,
                config,
                limits,
            }),
            addresses,
            nofile,
            poll,
            signals,
            locks,
            control,
            admin,
            systemd: Systemd::from_environment(Notifier::new),
            activated,
            slots,
            evidence: Evidence::gathered(),
            former: Former::default(),
            rotation: Rotation::default(),
            times: Times::default(),
            next_serial: 0,
            asking: RequestId::NOBODY,
            preflight: Preflight::Idle,
            terminal,
            killed: Vec::new(),
            rebinds: Vec::new(),
            rebind_at: None,
            queues_due: Tick::ZERO,
            closing: None,
            announcement: None,
            locks_rest_until: None,
            verdict: None,
        };
        supervisor.watch_basics().map_err(failed("watch signals"))?;
        supervisor.store_all_listeners(outdated);
        report::starting(supervisor.config(), &ignored);
        supervisor.happened(Event::Boot);
        Ok(supervisor)
    }
}

/// Only a process with certain capabilities can run workers as somebody else, and end them; it is
/// better said now than by each worker, or by one that cannot be ended.
pub(super) fn check_account(config: &Config) -> Result<(), config::Error> {
    let named = [("user", &config.user), ("group", &config.group)];
    let Some((name, _)) = named.into_iter().find(|(_, account)| account.is_some()) else {
        return Ok(());
    };
    let refused = |why: String| config::Error::Value {
        name: name.to_owned(),
        why,
    };
    if !accounts::is_root() {
        return Err(refused(
            "only root can run workers as somebody else; start the server as root, or leave it out"
                .to_owned(),
        ));
    }
    let user = config.user.as_ref().and_then(|user| user.id);
    match accounts::missing_capability(user) {
        Some(capability) => Err(refused(format!(
            "the server lacks the capability {capability}, without which it cannot run workers as \
             somebody else, or end them; grant it, or leave {name} out"
        ))),
        None => Ok(()),
    }
}

const fn address(one: &ListenAddr) -> Listen {
    Listen {
        addr: one.addr,
        dual_stack: one.dual_stack,
    }
}

/// Keeps other instances off every address whose port is known, and looks for strangers there.
/// Sockets that this instance has been given (`own`) are no strangers, whoever else has them.
fn lock(config: &Config, addresses: &[Listen], own: &[u64]) -> Result<Vec<Lock>, Error> {
    if config.share_port {
        return Ok(Vec::new());
    }
    let known = addresses.iter().filter(|listen| listen.addr.port() != 0);
    let known: Vec<Listen> = known.cloned().collect();
    let locks = port::lock(&known)?;
    for listen in &known {
        if let Some(holder) = port::holder(listen, own) {
            let wanted = listen.addr.to_string();
            return Err(port::Error::Held { wanted, holder }.into());
        }
    }
    Ok(locks)
}

/// The kernel cuts a longer backlog without a word.
pub(super) fn warn_about_backlog(config: &Config) {
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
