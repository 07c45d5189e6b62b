//! The supervisor: waits for what happens, lets the machine decide, carries out what it decides.
//!
//! A thin shell round [`machine`]: signals, channels, pidfds, requests and one deadline become
//! events; actions become forks, messages, kills, answers and log lines.
//!
//! Invariants: one thread, always (fork and exec depend on it); a duplicate of every slot's
//! listeners stays here from the slot's first Ready until the machine lets go of it, so that no
//! accept queue dies with a worker; no wait but the event loop's; it serves no client.
//!
//! It must not decide (the machine does) nor import the worker (they share `wire` and `memory`).

mod actions;
mod admin;
pub mod backoff;
mod boot;
mod control;
mod fleet;
pub mod machine;
mod reaper;
mod report;
mod requests;
mod resume;
mod signals;
mod socket_file;
mod state;
mod status;
mod systemd;
mod telemetry;
mod timers;
mod tokens;
mod upgrade;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::{
    SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2,
};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::config::{CommandLine, Config, LOCK_ASKERS_REST, Launch, LogFormat, STALL_CHECK_EVERY};
use crate::port::Lock;
use crate::sys::hangup;
use crate::wire::{FromWorker, Listen};
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity::{RequestId, WorkerId};
use uppercased_ctl::status::Rotation;
use uppercased_ctl::stderr;

use admin::AdminEndpoint;
use control::ControlServer;
use fleet::children::{Child, Unusable};
use fleet::releases::{Release, Releases};
use fleet::relisten::Rebind;
use fleet::resources::SlotResources;
use fleet::totals::Former;
use machine::{Event, Machine, Policy, ScaleTo, Verdict, Wanted};
use reaper::Killed;
use reaper::evidence::Evidence;
use signals::terminal::{Hangup, Terminal};
use systemd::Systemd;
use telemetry::announcement::Announcement;
use telemetry::times::Times;
use timers::{Look, Timers};
use tokens::Source;

pub use admin::Error as AdminError;
pub use boot::{Error, handle_stops, stop_while_starting};
pub use control::Error as ControlError;
pub use resume::{examine, is_resuming};
pub use systemd::activation::Error as ActivationError;

/// Readiness reports taken from the kernel at once.
const EVENTS_PER_TURN: usize = 256;
/// How long the end of the process waits for children that were killed to be gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Each asks for a stop; the second one for an end at once.
const STOP_SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGQUIT];
/// Each asks for something else.
const OTHER_SIGNALS: [i32; 5] = [SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU];
/// All that have an effect; help and documentation list the same.
pub(crate) const HANDLED_SIGNALS: [&[i32]; 2] = [&STOP_SIGNALS, &OTHER_SIGNALS];

type Signals = SignalDelivery<UnixStream, SignalOnly>;

/// A running supervisor.
#[derive(Debug)]
pub struct Supervisor {
    /// Where the configuration comes from, so that it can come from there again.
    typed: CommandLine,
    /// Where a restart finds the program.
    program: PathBuf,
    /// When this instance started; upgrades do not count.
    started: Tick,
    releases: Releases,
    /// What all slots listen on, ports known as soon as the first slot is Ready.
    addresses: Vec<Listen>,
    /// The limit on descriptors, of this process and of each worker.
    nofile: u64,
    poll: Poll,
    signals: Signals,
    locks: Vec<Lock>,
    /// Too many have asked for them.
    locks_rest_until: Option<Tick>,
    control: Option<ControlServer>,
    admin: Option<AdminEndpoint>,
    systemd: Option<Systemd>,
    /// So many slots have a socket of a socket unit, which must be served as long as that is there.
    activated: u16,
    evidence: Evidence,
    machine: Machine,
    /// Slot `i` is at index `i`.
    slots: Vec<SlotResources>,
    /// What slots that are no more have counted.
    former: Former,
    /// What load balancers are told.
    rotation: Rotation,
    times: Times,
    next_serial: u64,
    /// Who waits for the operation that is under way.
    asking: RequestId,
    preflight: upgrade::Preflight,
    /// That from which the server was started.
    terminal: Terminal,
    /// Children that have been killed and are not reaped yet.
    killed: Vec<Killed>,
    /// What standard output has not taken yet.
    announcement: Option<Announcement>,
    verdict: Option<Verdict>,
    /// Workers that wait for listeners in place of lost ones, and of which slot.
    rebinds: Vec<Rebind>,
    /// When that is tried again.
    rebind_at: Option<Tick>,
    /// When the lengths of the accept queues are looked at again.
    queues_due: Tick,
    /// All is over: how long to wait for the last children.
    closing: Option<Tick>,
}

/// Serves as `launch` says until told to stop; errors are printed.
#[must_use]
pub fn run(launch: Launch) -> ExitCode {
    let format = launch.config.log_format;
    match Supervisor::prepare(launch) {
        Ok(supervisor) => supervisor.run(),
        Err(error) => {
            last_words(format, &error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Why a start has failed: one line in either format, for whoever reads JSON reads nothing else.
fn last_words(format: LogFormat, cause: &str) {
    match format {
        LogFormat::Human => stderr::complain(cause),
        LogFormat::Json => {
            stderr::await_room();
            tracing::error!(cause, "cannot start");
        }
    }
}

/// Goes on where the earlier program of this process has stopped ([`is_resuming`] says that there
/// was one); gives the process back to it if that is impossible.
#[must_use]
pub fn resume(typed: CommandLine) -> ExitCode {
    match resume::resume(typed) {
        Ok(supervisor) => supervisor.run(),
        Err(cause) => resume::give_back(&cause),
    }
}

impl Supervisor {
    fn run(mut self) -> ExitCode {
        let verdict = self.supervise();
        if let Some(cause) = self.left_alone() {
            last_words(self.config().log_format, &cause);
            return ExitCode::FAILURE;
        }
        match verdict {
            Ok(Verdict::Clean) => ExitCode::SUCCESS,
            Ok(Verdict::Failed { cause }) => {
                last_words(self.config().log_format, &cause);
                ExitCode::FAILURE
            }
            Err(error) => {
                // Dropping the channels tells the workers; they finish what they owe and exit.
                stderr::complain(&format!("the supervisor's event loop failed: {error}"));
                ExitCode::FAILURE
            }
        }
    }

    /// Runs until the machine says that everything is over.
    ///
    /// # Errors
    /// What `epoll_wait` returned.
    pub fn supervise(&mut self) -> io::Result<Verdict> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        let mut more_orphans = false;
        let mut timers = Timers::default();
        loop {
            self.carry_out();
            self.notify();
            if self.is_over() {
                return Ok(self.verdict.take().unwrap_or(Verdict::Clean));
            }
            self.keep_admin();
            let began = clock::now();
            let until = if more_orphans {
                Some(began)
            } else {
                timers.wait_until(self.next_deadline())
            };
            let timeout = until.map(|until| until.since(began));
            let interrupted = match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Err(_) => true,
                Ok(()) => false,
            };
            let look = Look {
                began,
                until,
                ended: clock::now(),
                emptied: !interrupted && events.iter().count() < EVENTS_PER_TURN,
            };
            for event in &events {
                self.look(event.token());
            }
            more_orphans = self.bury_orphans();
            if let Some(now) = timers.looked(look) {
                self.machine.handle_timeout(now);
                self.retry_killed(now);
                self.rebind_due(now);
                self.check_queues(now);
                self.control_timeout(now);
                if let Some(control) = &mut self.control
                    && control.file_due() <= now
                {
                    control.keep_file(self.poll.registry(), now);
                }
                self.dismiss_more_askers(now);
            }
        }
    }

    /// Lets go of whoever asked for a lock. After a turn with too many of them all locks rest.
    fn dismiss_askers(&mut self, index: usize) {
        if self.locks_rest_until.is_none()
            && self.locks.get(index).is_some_and(Lock::dismiss_askers)
        {
            self.locks_rest_until = Some(clock::now() + LOCK_ASKERS_REST);
        }
    }

    fn dismiss_more_askers(&mut self, now: Tick) {
        if self.locks_rest_until.is_some_and(|until| until <= now) {
            self.locks_rest_until = None;
            for index in 0..self.locks.len() {
                self.dismiss_askers(index);
            }
        }
    }

    /// Whether nothing is left to be done. Begins to close once the machine has given its verdict.
    fn is_over(&mut self) -> bool {
        if self.verdict.is_none() {
            return false;
        }
        if let Some(mut admin) = self.admin.take() {
            admin.end_process();
            self.take_killed(admin.killed());
        }
        if let Some(control) = self.control.take() {
            control.remove();
        }
        let now = clock::now();
        let until = *self.closing.get_or_insert(now + CLOSE_TIMEOUT);
        self.killed.is_empty() || until <= now
    }

    /// The configuration in force.
    fn config(&self) -> &Config {
        &self.release_in_force().config
    }

    fn release_in_force(&self) -> &Release {
        self.releases.in_force()
    }

    fn next_deadline(&self) -> Option<Tick> {
        let control = self.control.as_ref().and_then(ControlServer::poll_timeout);
        let admin = self.admin.as_ref().and_then(AdminEndpoint::poll_timeout);
        let file = self.control.as_ref().map(ControlServer::file_due);
        let notify = self.notify_timeout();
        let killed = self.killed_timeout();
        let timeouts = [self.machine.poll_timeout(), control, admin, notify, killed];
        let queues = Some(self.queues_due);
        let others = [
            self.closing,
            self.locks_rest_until,
            file,
            self.rebind_at,
            queues,
        ];
        timeouts.into_iter().chain(others).flatten().min()
    }

    fn happened(&mut self, event: Event) {
        self.machine.handle(event, clock::now());
    }

    /// Turns a readiness report into events.
    fn look(&mut self, token: Token) {
        match Source::of(token) {
            Some(Source::Signals) => self.look_at_signals(),
            Some(Source::Control) => self.look_at_control(token),
            Some(Source::Lock(index)) => {
                self.dismiss_askers(index);
            }
            Some(Source::PreflightChannel | Source::PreflightProcess) => self.look_at_preflight(),
            Some(Source::Killed) => self.reap_killed(),
            Some(Source::Announcement) => {
                self.go_on_announcing();
            }
            Some(Source::AdminProcess) => self.look_at_admin(),
            Some(Source::Barrier) => self.look_at_barrier(),
            Some(Source::AdminChannel) => self.hear_admin(),
            Some(Source::Channel(serial)) => {
                if let Some(worker) = self.worker_with(serial) {
                    self.hear(worker);
                }
            }
            Some(Source::Process(serial)) => {
                if let Some(worker) = self.worker_with(serial) {
                    // The last words first, also when it is the death that was reported.
                    self.hear(worker);
                    self.reap(worker);
                }
            }
            None => {}
        }
    }

    fn look_at_signals(&mut self) {
        let pending: Vec<i32> = self.signals.pending().collect();
        for number in pending {
            self.obey_signal(number);
        }
    }

    fn obey_signal(&mut self, number: i32) {
        let by = signal_hook::low_level::signal_name(number).unwrap_or("a signal");
        // Signals are what is left to somebody who does not find the socket any more.
        if let Some(control) = &mut self.control {
            control.keep_file(self.poll.registry(), clock::now());
        }
        match number {
            SIGTERM | SIGINT | SIGQUIT => self.happened(Event::Stop { by: by.to_owned() }),
            SIGHUP => self.obey_hangup(),
            SIGUSR1 => self.log_status(),
            SIGUSR2 => {
                self.note_reload_asked();
                self.remember(Wanted::Upgrade);
            }
            SIGTTIN => self.remember(Wanted::Scale(ScaleTo::By(1))),
            SIGTTOU => self.remember(Wanted::Scale(ScaleTo::By(-1))),
            // It was to end the wait; see `bury_orphans`.
            SIGCHLD => {}
            _ => tracing::warn!(signal = by, "a signal that has no effect"),
        }
    }

    /// A person asks for a reload, or the terminal has been closed.
    fn obey_hangup(&mut self) {
        let Hangup {
            stop,
            survived,
            reload,
        } = self
            .terminal
            .meaning_of(hangup::take(), signals::terminal::is_open);
        if survived {
            tracing::info!("terminal closed, serving on");
        }
        // The shell and the kernel may both have told: the second is no second request.
        if stop && !matches!(self.machine.life(), machine::Life::Stopping { .. }) {
            let by = "the closed terminal".to_owned();
            self.happened(Event::Stop { by });
        } else if reload && !stop {
            self.note_reload_asked();
            self.remember(Wanted::Reload);
        }
    }

    fn hear(&mut self, worker: WorkerId) {
        while let Some(received) = self.child_mut(worker).and_then(Child::receive) {
            let (message, descriptors) = match received {
                Ok(received) => received,
                Err(Unusable::Closed) => {
                    // The cause of death is what its pidfd reports next. The kill changes nothing
                    // for one that is ending (a worker never closes its end, so its exit code is
                    // settled by now); a live one could not be told anything any more.
                    self.unwatch_channel(worker);
                    if let Some(child) = self.child(worker) {
                        child.kill();
                    }
                    self.happened(Event::ChannelClosed { worker });
                    return;
                }
                Err(Unusable::Broken(cause)) => {
                    self.channel_broke(worker, cause);
                    return;
                }
            };
            match message {
                FromWorker::Ready(ready) => {
                    let deposits = !descriptors.is_empty();
                    let kept = self.slots[worker.slot.index()].keep(descriptors, &ready.listen);
                    if let Err(cause) = kept {
                        self.channel_broke(worker, cause);
                        return;
                    }
                    self.learn_addresses(&ready.listen);
                    if deposits {
                        self.store_listeners(worker.slot);
                        // It may run a release that is not in force, or never will be.
                        self.set_options_of(worker.slot);
                    }
                    self.note_sandbox(worker, ready.sandbox);
                    self.happened(Event::Ready { worker });
                }
                FromWorker::Failed { cause } => self.happened(Event::StartFailed { worker, cause }),
                FromWorker::Draining { connections } => report::draining(worker, connections),
                FromWorker::HandedOver(ended) if ended.part => self.happened(Event::Rebalanced {
                    worker,
                    moved: ended.moved,
                    end: ended.end,
                }),
                FromWorker::HandedOver(ended) => self.happened(Event::HandedOver {
                    worker,
                    moved: ended.moved,
                    left: ended.left,
                    end: ended.end,
                }),
                FromWorker::ListenerLost { slot } => self.listener_lost(worker, slot),
            }
        }
    }

    fn channel_broke(&mut self, worker: WorkerId, cause: String) {
        self.unwatch_channel(worker);
        self.happened(Event::ChannelBroken { worker, cause });
    }

    /// The first slot's real addresses are everybody's: with port 0 the kernel chose then.
    fn learn_addresses(&mut self, listen: &[Listen]) {
        if self.addresses.iter().all(|one| one.addr.port() != 0) {
            return;
        }
        self.addresses = listen.to_vec();
        if !self.config().share_port {
            self.lock_late();
        }
    }

    fn reap(&mut self, worker: WorkerId) {
        let Some(how) = self.child(worker).and_then(Child::reap) else {
            return;
        };
        self.unwatch_channel(worker);
        if let Some(number) = self.child(worker).map(Child::process_number) {
            // Fails only if it was not watched.
            let _ = self.poll.registry().deregister(&mut SourceFd(&number));
        }
        self.slots[worker.slot.index()].bury(worker);
        let cause = self.evidence.cause_of(how, clock::now());
        self.happened(Event::Exited { worker, how, cause });
    }

    fn child(&self, worker: WorkerId) -> Option<&Child> {
        self.slots.get(worker.slot.index())?.child(worker)
    }

    fn child_mut(&mut self, worker: WorkerId) -> Option<&mut Child> {
        self.slots.get_mut(worker.slot.index())?.child_mut(worker)
    }

    fn worker_with(&self, serial: u64) -> Option<WorkerId> {
        let mut children = self.slots.iter().flat_map(SlotResources::children);
        let child = children.find(|child| child.serial == serial)?;
        Some(child.worker)
    }

    fn watch(&self, number: i32, source: Source, interest: Interest) -> io::Result<()> {
        self.poll
            .registry()
            .register(&mut SourceFd(&number), source.token(), interest)
    }

    fn watch_child(&self, child: &Child) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.watch(child.channel_number(), Source::Channel(child.serial), both)?;
        self.watch(
            child.process_number(),
            Source::Process(child.serial),
            Interest::READABLE,
        )
    }

    fn unwatch_channel(&self, worker: WorkerId) {
        if let Some(number) = self.child(worker).map(Child::channel_number) {
            // Fails only if it is not watched any more.
            let _ = self.poll.registry().deregister(&mut SourceFd(&number));
        }
    }

    /// Watches what is there from the start.
    fn watch_basics(&self) -> io::Result<()> {
        self.watch(
            self.signals.get_read().as_raw_fd(),
            Source::Signals,
            Interest::READABLE,
        )?;
        self.watch_locks(0)
    }

    fn watch_locks(&self, from: usize) -> io::Result<()> {
        for (index, lock) in self.locks.iter().enumerate().skip(from) {
            let number = lock.as_fd().as_raw_fd();
            self.watch(number, Source::Lock(index), Interest::READABLE)?;
        }
        Ok(())
    }

    /// Locks addresses whose port was not known before.
    fn lock_late(&mut self) {
        let before = self.locks.len();
        match crate::port::lock_bound(&self.addresses) {
            Ok(locks) => self.locks.extend(locks),
            // The sockets are bound already: only the courtesy to a later instance is lost.
            Err(error) => tracing::debug!(%error, "no lock"),
        }
        if let Err(error) = self.watch_locks(before) {
            tracing::debug!(%error, "a lock is not watched");
        }
    }
}

fn signals() -> io::Result<Signals> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    hangup::watch()?;
    let mut caught = HANDLED_SIGNALS.concat();
    if reaper::orphans::come_here() {
        caught.push(SIGCHLD);
    }
    Signals::with_pipe(read, write, SignalOnly, caught)
}

fn policy(config: &Config) -> Policy {
    Policy {
        workers: config.workers,
        start_timeout: config.start_timeout,
        drain_timeout: config.drain_timeout,
        lame_duck: config.lame_duck,
        backoff_initial: config.backoff_initial,
        backoff_max: config.backoff_max,
        backoff_reset: config.backoff_reset,
        lend_after: config.lend_after,
        restart_connections: config.restart_connections,
        boot: config.boot,
        linger_timeout: config.linger_timeout,
        bake_time: config.bake_time,
        handover_timeout: config.handover_timeout,
        handshake_timeout: config.handshake_timeout,
        hang_timeout: config.hang_timeout,
        stall_check: Some(STALL_CHECK_EVERY),
        rebalance: config.rebalance.then_some(config.rebalance_threshold),
    }
}
