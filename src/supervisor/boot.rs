//! Starts a server, up to its first worker: limits, locks, listeners, the image. A failed start
//! changes nothing.

use mio::Poll;

use crate::config::{self, Config, Launch, ListenAddr};
use crate::listener;
use crate::log::{self, event};
use crate::port::{self, Lock};
use crate::sys::accounts;
use crate::sys::image::Image;
use crate::sys::limits::memory_room;
use crate::wire::Listen;
use uppercased_ctl::clock;
use uppercased_ctl::process::raise_descriptor_limit;

use super::admin::Admin;
use super::control::Control;
use super::error::Error;
use super::fleet::Fleet;
use super::fleet::releases::{Limits, Release, check_memory};
use super::locks::PortLocks;
use super::machine::{Event, Machine, Policy};
use super::policy::policy;
use super::reaper::Reaper;
use super::signals::{Signals, handle_stops};
use super::systemd::Systemd;
use super::systemd::activation::Given;
use super::systemd::inquiry::Inquiry;
use super::telemetry::Telemetry;
use super::upgrade::Upgrade;
use super::{Supervisor, report};

impl Supervisor {
    /// Checks and acquires everything that a start needs, and starts nothing.
    ///
    /// # Errors
    /// Any [`Error`]; running servers were not disturbed.
    pub fn prepare(launch: Launch) -> Result<Self, Error> {
        let Launch {
            config,
            args,
            ignored,
        } = launch;
        let failed = |operation| move |source| Error::System { operation, source };
        log::init(config.log_level, config.log_format)?;
        // From here on a stop is recorded, and handled once the loop runs.
        let signals = Signals::handle().map_err(failed("handle signals"))?;
        handle_stops();
        check_account(&config)?;
        let nofile = raise_descriptor_limit().map_err(failed("raise the descriptor limit"))?;
        let mut wanted: Vec<Listen> = config.listen.iter().map(address).collect();
        listener::fall_back_to_ipv4(&mut wanted, listener::has_ipv6());
        let given = Given::take(&config, &wanted)?;
        let workers = config.workers.max(given.slots());
        let limits = Limits::of_worker(&config, workers, nofile)?;
        let room = memory_room().map_err(failed("read the limits on memory"))?;
        check_memory(&config, limits, workers, room)?;
        warn_about_backlog(&config);
        let mut addresses = given.addresses().to_vec();
        let locks = lock(&config, &addresses, &given.inodes())?;
        let poll = Poll::new().map_err(failed("create an epoll instance"))?;
        let registry = poll.registry();
        let image = Image::of_this_process().map_err(failed("open /proc/self/exe"))?;
        let upgrade = Upgrade::new(args).map_err(failed("read /proc/self/exe"))?;
        let control = Control::open(&config.control, registry)?;
        let admin = Admin::open(&config)?;
        let (adopted, activated) = (given.slots(), given.unit_slots());
        let (listeners, outdated) = given.hand_out(&mut addresses, &config)?;
        let policy = Policy {
            workers,
            ..policy(&config)
        };
        let first = Release {
            image,
            config,
            limits,
        };
        let fleet = Fleet::new(first, addresses, listeners, (activated, nofile));
        let mut systemd = Systemd::from_environment();
        systemd.remove(outdated);
        for slot in fleet.listening() {
            systemd.store(slot);
        }
        signals.watch(registry).map_err(failed("watch signals"))?;
        let locks = PortLocks::new(locks, registry).map_err(failed("watch the locks"))?;
        report::starting(fleet.config(), &ignored);
        let now = clock::now();
        // The seed need only make the jitter of backoffs differ between instances.
        let seed = now.as_nanos() ^ u64::from(std::process::id());
        let mut supervisor = Self {
            poll,
            machine: Machine::new(policy, seed).with_listeners(adopted, now),
            fleet,
            control,
            admin,
            systemd,
            upgrade,
            telemetry: Telemetry::new(now),
            signals,
            inquiry: Inquiry::default(),
            locks,
            reaper: Reaper::new(),
            outcome: None,
            closing: None,
        };
        supervisor.apply(Event::Boot);
        Ok(supervisor)
    }
}

/// Checks that this process may run workers as another user, and kill them: an error now is better
/// than one from each worker, or a worker that cannot be killed.
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
            "only root can run workers as another user; start the server as root, or omit the setting"
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

/// Locks every address whose port is known against other instances, and checks that no other
/// program listens there. The inherited sockets of this instance, `own`, do not count.
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

/// Warns about a backlog that the kernel truncates silently.
pub(super) fn warn_about_backlog(config: &Config) {
    if let (Some(asked), Some(granted)) = (config.backlog, listener::longest_backlog())
        && asked > granted
    {
        event!(backlog_limited, asked, granted);
    }
}
