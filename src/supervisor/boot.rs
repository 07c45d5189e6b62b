//! Starts a server, up to its first worker: limits, locks, listeners, the image. A failed start
//! changes nothing.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Poll, Registry};
use nix::poll::poll;

use crate::config::{ADOPTION_RELEASE_CHECK_MS, ADOPTION_RELEASE_TIMEOUT, Config, Launch};
use crate::listener;
use crate::log::{self, event};
use crate::port::{self, Lock};
use crate::sys::image::Image;
use crate::sys::lease;
use crate::sys::limits::memory_room;
use crate::wire::Listen;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::process::raise_descriptor_limit;

use super::admin::Admin;
use super::adoption::{Adoption, in_order};
use super::allowed::{check_account, wanted};
use super::continued::allowed;
use super::control::Control;
use super::error::Error;
use super::fleet::Fleet;
use super::fleet::releases::{Limits, Release, check_memory};
use super::locks::PortLocks;
use super::machine::{Event, Machine, Policy, Wanted};
use super::policy::policy;
use super::reaper::Reaper;
use super::rendezvous::Directory;
use super::resize::Resize;
use super::signals::{Signals, handle_stops};
use super::systemd::Systemd;
use super::systemd::activation::{self, Given};
use super::systemd::inquiry::Inquiry;
use super::telemetry::Telemetry;
use super::tokens::Source;
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
            refused,
        } = allowed(launch)?;
        let failed = |operation| move |source| Error::System { operation, source };
        log::init(config.log_level, config.log_format)?;
        // From here on a stop is recorded, and handled once the loop runs.
        let signals = Signals::handle().map_err(failed("handle signals"))?;
        handle_stops();
        check_account(&config)?;
        let nofile = raise_descriptor_limit().map_err(failed("raise the descriptor limit"))?;
        let wanted = wanted(&config);
        let given = Given::take(&config, &wanted)?;
        let mut addresses = given.addresses().to_vec();
        let locks = lock(&config, &addresses)?;
        let directory = Directory::open(&config.control);
        let mut adoption = Adoption::find(directory.as_ref(), &addresses, config.adopt);
        if let Some(error) = refused.as_ref().filter(|_| adoption.orphans.is_empty()) {
            return Err(Error::Refused(error.clone()));
        }
        adoption.end_others();
        await_free(&config, &addresses, &given, &adoption)?;
        let workers = config.workers.max(given.slots()).max(adoption.slots());
        let config = adoption.in_order(config, &addresses);
        let limits = Limits::of_worker(&config, workers, nofile)?;
        let room = memory_room().map_err(failed("read the limits on memory"))?;
        check_memory(&config, limits, workers, room)?;
        warn_about_backlog(&config);
        let poll = Poll::new().map_err(failed("create an epoll instance"))?;
        let registry = poll.registry();
        let image = Image::of_this_process().map_err(failed("open /proc/self/exe"))?;
        let upgrade = Upgrade::new(args).map_err(failed("read /proc/self/exe"))?;
        let control = Control::open(&config.control, registry)?;
        let admin = Admin::open(&config)?;
        let activated = given.unit_slots();
        let (listeners, outdated) = hand_out(given, &mut addresses, &adoption, &config)?;
        let bound = u16::try_from(listeners.len()).unwrap_or(u16::MAX);
        let policy = Policy {
            workers,
            ..policy(&config)
        };
        let first = Release {
            image,
            config,
            limits,
        };
        let fleet = Fleet::new(first, addresses, listeners, directory, (activated, nofile));
        let mut systemd = Systemd::from_environment();
        systemd.remove(outdated);
        for slot in fleet.listening() {
            systemd.store(slot);
        }
        let lease = lease::create().and_then(|(lease, end)| {
            watch_lease(&lease, registry)?;
            systemd.store_lease(end, registry);
            Ok(lease)
        });
        let lease = lease.map_err(failed("create the lease"))?;
        signals.watch(registry).map_err(failed("watch signals"))?;
        let locks = PortLocks::new(locks, registry).map_err(failed("watch the locks"))?;
        report::starting(fleet.config(), &ignored);
        let now = clock::now();
        // The seed need only make the jitter of backoffs differ between instances.
        let seed = now.as_nanos() ^ u64::from(std::process::id());
        let resize = Resize::new(fleet.config().workers, now);
        let machine = Machine::new(policy, seed).with_listeners(bound, now);
        let mut supervisor = Self {
            poll,
            machine,
            fleet,
            control,
            admin,
            systemd,
            lease,
            upgrade,
            telemetry: Telemetry::new(now),
            signals,
            inquiry: Inquiry::default(),
            resize,
            locks,
            reaper: Reaper::new(),
            outcome: None,
            closing: None,
        };
        if adoption.orphans.is_empty() {
            supervisor.apply(Event::Boot);
        } else {
            supervisor.adopt(adoption, now);
            supervisor.replace_adopted(refused);
        }
        Ok(supervisor)
    }

    /// Goes on with the orphans.
    fn adopt(&mut self, adoption: Adoption, now: Tick) {
        self.machine
            .adopt(&adoption.adopted(), &adoption.leaving(), now);
        for orphan in adoption.orphans.into_iter().chain(adoption.leaving) {
            let release = self.machine.release();
            let registry = self.poll.registry();
            self.fleet
                .adopt(orphan, release, self.lease.as_fd(), registry);
        }
        self.take_fleet_events();
    }

    /// Replaces the adopted workers by a reload, unless the configuration was refused: then they
    /// continue with theirs.
    fn replace_adopted(&mut self, refused: Option<String>) {
        let Some(error) = refused else {
            return self.request_without_client(Wanted::Reload);
        };
        event!(stored_config_used, error);
        self.systemd
            .set_failure(Some(format!("reload refused: {error}")));
        self.telemetry.note_refused(error);
    }
}

/// Watches for the end of the lease.
pub(super) fn watch_lease(lease: &OwnedFd, registry: &Registry) -> io::Result<()> {
    let number = lease.as_raw_fd();
    registry.register(
        &mut SourceFd(&number),
        Source::Lease.token(),
        Interest::READABLE,
    )
}

/// Locks every address whose port is known against other instances.
fn lock(config: &Config, addresses: &[Listen]) -> Result<Vec<Lock>, Error> {
    if config.share_port {
        return Ok(Vec::new());
    }
    Ok(port::lock(&known(addresses))?)
}

/// Checks that no other program listens on any address whose port is known. The sockets that this
/// instance was given do not count, nor those of orphans that it adopts; those of orphans that it
/// ends are awaited.
fn await_free(
    config: &Config,
    addresses: &[Listen],
    given: &Given,
    adoption: &Adoption,
) -> Result<(), Error> {
    if config.share_port {
        return Ok(());
    }
    let mut own = given.inodes();
    own.extend(adoption.inodes());
    let until = clock::now() + ADOPTION_RELEASE_TIMEOUT;
    for listen in &known(addresses) {
        while port::is_held(listen, &own) {
            if (!adoption.are_leaving || clock::now() >= until)
                && let Some(holder) = port::holder(listen, &own)
            {
                let wanted = listen.addr.to_string();
                return Err(port::Error::Held { wanted, holder }.into());
            }
            // Only time is awaited; an interruption merely shortens the wait.
            let _ = poll(&mut [], ADOPTION_RELEASE_CHECK_MS);
        }
    }
    Ok(())
}

fn known(addresses: &[Listen]) -> Vec<Listen> {
    let known = addresses.iter().filter(|listen| listen.addr.port() != 0);
    known.cloned().collect()
}

/// Returns the listeners of each slot in the order of the addresses, which are then the real ones,
/// and the names to be removed from the store. A slot has those of its orphan, or those that the
/// service manager passed; a slot without either below one that has some gets new ones.
fn hand_out(
    given: Given,
    addresses: &mut Vec<Listen>,
    adoption: &Adoption,
    config: &Config,
) -> Result<(Vec<Vec<OwnedFd>>, Vec<SlotId>), Error> {
    let (mut listeners, outdated) = given.hand_out(addresses, config)?;
    let Some(ordered) = adoption.addresses() else {
        return Ok((listeners, outdated));
    };
    let slots = listeners.len().max(adoption.slots().into());
    listeners.resize_with(slots, Vec::new);
    for (slot, passed) in (0..).map(SlotId).zip(&mut listeners) {
        let own = adoption.listeners_of(slot);
        let own = own.or_else(|| in_order(std::mem::take(passed), ordered));
        *passed = match own {
            Some(own) => own,
            None => {
                let bound = ordered.iter().map(|one| listener::bind(one, config));
                let bound = bound.map(|one| one.map(|(socket, _)| socket));
                let bound: Result<_, _> = bound.collect();
                bound.map_err(activation::Error::from)?
            }
        };
    }
    *addresses = ordered.to_vec();
    Ok((listeners, outdated))
}

/// Warns about a backlog that the kernel truncates silently.
pub(super) fn warn_about_backlog(config: &Config) {
    if let (Some(asked), Some(granted)) = (config.backlog, listener::longest_backlog())
        && asked > granted
    {
        event!(backlog_limited, asked, granted);
    }
}
