//! The supervisor: waits for events, lets the machine decide, and executes its actions.
//!
//! A thin shell around [`machine`]: signals, channels, pidfds, requests and one deadline become
//! events; actions become forks, messages, kills, answers and log lines. Each part owns its state
//! and returns events. Parts do not depend on each other; only the files that extend [`Supervisor`]
//! (`boot`, `actions`, `requests`, `status`, `exec`, `resume`) access all of them.
//!
//! Invariants: one thread, always (fork and exec depend on it); the supervisor keeps a duplicate of
//! every slot's listeners from the slot's first Ready until the machine drops it, so that no accept
//! queue is lost with a worker; it waits only in the event loop; it serves no client.
//!
//! It must not decide (the machine does) nor import the worker (they share `wire` and `memory`).

mod actions;
mod admin;
mod adoption;
mod allowed;
pub mod backoff;
mod boot;
mod continued;
mod control;
mod error;
mod exec;
mod fleet;
mod leftovers;
mod locks;
pub mod machine;
mod policy;
mod processes;
mod progress;
mod reaper;
mod rendezvous;
mod report;
mod requests;
mod resize;
mod resume;
pub(crate) mod signals;
pub mod socket_file;
mod state;
mod status;
mod stored;
mod subprocess;
mod systemd;
mod telemetry;
mod timers;
mod tokens;
mod upgrade;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use mio::{Events, Poll, Token};

use crate::config::{Config, Launch, LogFormat};
use crate::fault;
use crate::log::event;
use crate::sys::lease;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity;
use uppercased_ctl::stderr;

use admin::Admin;
use control::Control;
use fleet::Fleet;
use locks::PortLocks;
use machine::{Event, Life, Machine, Outcome, Queue, Rescue, ScaleTo, Wanted};
use reaper::Reaper;
use reaper::orphans::reap_orphans;
use resize::Resize;
use signals::Signals;
use subprocess::Ended;
use systemd::Systemd;
use systemd::inquiry::Inquiry;
use telemetry::Telemetry;
use timers::{PollTimes, Timers};
use tokens::Source;
use upgrade::{EarlierBinary, Upgrade};

pub use admin::Error as AdminError;
pub use continued::continue_stored;
pub use error::Error;
pub use leftovers::{Leftovers, drain_leftovers};
pub use signals::{handle_stops, stop_while_starting};
pub use socket_file::Error as ControlError;
pub use state::examine;
pub use systemd::activation::Error as ActivationError;
pub use upgrade::is_resuming;

/// Maximum readiness reports per poll.
const EVENTS_PER_TURN: usize = 256;
/// Time for killed children to exit before the supervisor does.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A running supervisor: its event loop and its parts.
#[derive(Debug)]
pub struct Supervisor {
    poll: Poll,
    machine: Machine,
    fleet: Fleet,
    control: Control,
    admin: Admin,
    systemd: Systemd,
    /// The workers' end of the lease.
    lease: OwnedFd,
    upgrade: Upgrade,
    telemetry: Telemetry,
    signals: Signals,
    locks: PortLocks,
    reaper: Reaper,
    inquiry: Inquiry,
    resize: Resize,
    outcome: Option<Outcome>,
    /// Time at which the process exits even if children have not been reaped.
    closing: Option<Tick>,
}

/// Serves with the configuration of `launch` until a stop; prints errors.
#[must_use]
pub fn run(launch: Launch) -> ExitCode {
    let format = launch.config.log_format;
    match Supervisor::prepare(launch) {
        Ok(supervisor) => supervisor.run(),
        Err(error) => {
            write_error(format, &error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints the cause of a failed start or run: one line in the log's format, because a JSON parser
/// accepts nothing else.
fn write_error(format: LogFormat, cause: &str) {
    match format {
        LogFormat::Human => stderr::write_error(cause),
        LogFormat::Json | LogFormat::OpenTelemetry => {
            stderr::await_room();
            event!(server_start_failed, error = cause);
        }
    }
}

/// Takes over from the earlier binary of this process (see [`is_resuming`]), or execs the earlier
/// program if that is impossible.
#[must_use]
pub fn resume(args: Vec<OsString>) -> ExitCode {
    match Supervisor::resume(args) {
        Ok(supervisor) => supervisor.run(),
        Err(cause) => return_to_earlier(&cause),
    }
}

/// Execs the earlier binary, because this one cannot take over. Returns only if that fails, too.
fn return_to_earlier(cause: &str) -> ExitCode {
    let error = match EarlierBinary::find() {
        Ok(earlier) if earlier.cause.is_some() => "this is the earlier binary".to_owned(),
        Ok(earlier) => match earlier.exec(cause) {
            Ok(never) => match never {},
            Err(error) => error.to_string(),
        },
        Err(error) => error,
    };
    stderr::write_error(&format!(
        "cannot continue the running server: {cause}; cannot return to the earlier binary: {error}; \
         its workers finish pending replies"
    ));
    ExitCode::FAILURE
}

impl Supervisor {
    fn run(mut self) -> ExitCode {
        let code = self.supervise_to_end();
        fault::point("supervisor.ended");
        // The end of its connection tells a client that the server has stopped: by then its
        // addresses must be free.
        let connections = self.control.take_connections();
        drop(self);
        drop(connections);
        code
    }

    fn supervise_to_end(&mut self) -> ExitCode {
        let outcome = self.supervise();
        if let Some(cause) = self.reaper.unreaped() {
            write_error(self.config().log_format, &cause);
            return ExitCode::FAILURE;
        }
        match outcome {
            Ok(Outcome::Clean) => ExitCode::SUCCESS,
            Ok(Outcome::Failed { cause }) => {
                write_error(self.config().log_format, &cause);
                ExitCode::FAILURE
            }
            Err(error) => {
                // The workers find their channels closed, finish their pending output and exit.
                stderr::write_error(&format!("cannot wait for events: {error}"));
                ExitCode::FAILURE
            }
        }
    }

    /// Runs until the machine has ended.
    ///
    /// # Errors
    /// The error of `epoll_wait`.
    pub fn supervise(&mut self) -> io::Result<Outcome> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        let mut more_orphans = false;
        let mut timers = Timers::default();
        loop {
            self.execute();
            self.leave_if_idle();
            self.notify();
            if self.is_over() {
                return Ok(self.outcome.take().unwrap_or(Outcome::Clean));
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
            let times = PollTimes {
                began,
                until,
                ended: clock::now(),
                emptied: !interrupted && events.iter().count() < EVENTS_PER_TURN,
            };
            for event in &events {
                self.on_ready(event.token());
            }
            more_orphans = reap_orphans(|pid| self.is_own(pid));
            if let Some(now) = timers.polled(times) {
                self.handle_timeout(now);
            }
        }
    }

    /// Returns whether the supervisor is done. Starts closing once the machine has ended.
    fn is_over(&mut self) -> bool {
        if self.outcome.is_none() {
            return false;
        }
        let process = self.admin.close();
        self.end(process);
        self.control.close();
        let now = clock::now();
        let leaves = self.inquiry.is_restart();
        if self.closing.is_none() && !leaves {
            self.fleet.kill_all_keepers();
            self.fleet.close_directory();
        }
        let until = *self.closing.get_or_insert(now + CLOSE_TIMEOUT);
        self.reaper.is_empty() && (leaves || !self.fleet.has_keepers()) || until <= now
    }

    fn config(&self) -> &Config {
        self.fleet.config()
    }

    fn next_deadline(&self) -> Option<Tick> {
        let deadlines = [
            self.machine.poll_timeout(),
            self.fleet.deadline(),
            self.control.deadline(),
            self.admin.deadline(),
            self.systemd.deadline(),
            self.locks.deadline(),
            self.reaper.deadline(),
            self.inquiry.deadline(),
            self.config().follows_cpus.then(|| self.resize.deadline()),
            Some(self.telemetry.deadline()),
            self.closing,
        ];
        deadlines.into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, now: Tick) {
        let registry = self.poll.registry();
        self.machine.handle_timeout(now);
        self.reaper.handle_timeout(registry, now);
        self.fleet.handle_timeout(now, is_lent(&self.machine));
        self.locks.handle_timeout(now);
        self.inquiry_answered(now);
        self.follow_cpus(now);
        let fleet = &self.fleet;
        self.telemetry.handle_timeout(now, || fleet.messages());
        let registry = self.poll.registry();
        let events = self.control.handle_timeout(registry, now);
        self.take_fleet_events();
        self.handle_requests(events);
    }

    /// Scales to the number of CPUs, if that has changed and the configuration asks for it.
    fn follow_cpus(&mut self, now: Tick) {
        let workers = self.machine.policy().workers;
        if self.config().follows_cpus
            && let Some(cpus) = self.resize.handle_timeout(workers, now)
            && self.machine.life() == Life::Serving
        {
            event!(cpus_changed, workers, cpus);
            self.request_without_client(Wanted::Scale(ScaleTo::Exactly(cpus)));
        }
    }

    fn apply(&mut self, event: Event) {
        self.machine.handle(event, clock::now());
    }

    /// Passes a readiness report to its part.
    fn on_ready(&mut self, token: Token) {
        let source = Source::of(token);
        if let Some(Source::Channel(_) | Source::Keeper(_) | Source::Process(_)) = source {
            let others = self.others().collect();
            self.fleet.set_others(others);
        }
        let registry = self.poll.registry();
        let now = clock::now();
        match source {
            Some(Source::Signals) => self.handle_signals(),
            Some(Source::Control) => {
                let events = self.control.on_ready(token, registry, now);
                self.handle_requests(events);
            }
            Some(Source::Lock(index)) => self.locks.on_ready(index, now),
            Some(Source::PreflightChannel | Source::PreflightProcess) => self.preflight_ended(),
            Some(Source::InquiryChannel | Source::InquiryProcess) => self.inquiry_answered(now),
            Some(Source::Killed) => self.reaper.on_ready(),
            Some(Source::Announcement) => self.telemetry.on_ready(),
            Some(Source::AdminProcess) => self.admin_ended(),
            Some(Source::AdminChannel) => self.answer_admin(),
            Some(Source::Barrier) => self.store_released(),
            Some(Source::Lease) => self.lease_ready(),
            Some(Source::Channel(serial)) => {
                self.fleet.on_channel(serial, registry);
                self.take_fleet_events();
            }
            Some(Source::Keeper(serial)) => {
                self.fleet.on_keeper_exit(serial, registry);
                self.take_fleet_events();
            }
            Some(Source::Process(serial)) => {
                self.fleet.on_exit(serial, registry);
                self.take_fleet_events();
            }
            None => {}
        }
    }

    /// Passes events of the workers to the machine and to the parts concerned.
    fn take_fleet_events(&mut self) {
        while let Some(event) = self.fleet.poll_event() {
            match event {
                fleet::Event::Machine(event) => self.apply(event),
                fleet::Event::Exited { worker, exit } => {
                    let cause = self.reaper.cause_of(exit, clock::now());
                    self.apply(Event::Exited {
                        worker,
                        exit,
                        cause,
                    });
                }
                fleet::Event::Rescued {
                    worker,
                    exit,
                    is_hang,
                    rescued,
                } => {
                    let cause = self.reaper.cause_of(exit, clock::now());
                    let rescue = Rescue {
                        exit,
                        is_hang,
                        cause,
                        connections: rescued.connections,
                        owed_bytes: rescued.owed_bytes,
                        reset: rescued.reset,
                        is_handing_over: rescued.is_handing_over,
                        took: Duration::from_micros(rescued.took_us),
                    };
                    self.apply(Event::Rescued { worker, rescue });
                }
                fleet::Event::KeeperLost(slot) => self.telemetry.keeper_lost(slot),
                fleet::Event::KeeperReplaced(slot) => {
                    self.telemetry.keeper_replaced(slot, clock::now());
                }
                fleet::Event::Draining {
                    worker,
                    connections,
                } => report::draining(worker, connections),
                fleet::Event::ListenersChanged(slot) => self.systemd.store(slot),
                fleet::Event::AddressesKnown => {
                    if !self.config().share_port {
                        let addresses = self.fleet.addresses();
                        self.locks.add_bound(addresses, self.poll.registry());
                    }
                }
                fleet::Event::ListenerLost { worker, slot } => {
                    let is_lent = is_lent(&self.machine);
                    self.fleet
                        .listener_lost(worker, slot, clock::now(), is_lent);
                }
                fleet::Event::OptionsNotSet(error) => self.systemd.set_failure(Some(error)),
                fleet::Event::Ended(process) => self.end(Some(process)),
            }
        }
    }

    /// Kills processes; they are reaped when they have exited.
    fn end(&mut self, processes: impl IntoIterator<Item = Ended>) {
        for process in processes {
            self.reaper.kill(process, self.poll.registry());
        }
    }

    /// Returns whether a part awaits the exit of this child.
    fn is_own(&self, pid: i32) -> bool {
        self.fleet.pids().chain(self.others()).any(|own| own == pid)
    }

    /// Returns the processes of all parts but the fleet.
    fn others(&self) -> impl Iterator<Item = i32> + '_ {
        let single = [self.upgrade.pid(), self.admin.pid(), self.inquiry.pid()];
        single.into_iter().flatten().chain(self.reaper.pids())
    }

    /// Stops at `SIGTERM`, or leaves the workers if the service manager restarts the service.
    fn stop_or_leave(&mut self) {
        let may_leave = self.systemd.is_present()
            && !self.config().orphan_timeout.is_zero()
            && self.machine.life() == Life::Serving
            && self.inquiry.is_none();
        if may_leave {
            match self.inquiry.begin(self.poll.registry(), clock::now()) {
                Ok(()) => return,
                Err(error) => event!(service_job_unknown, %error),
            }
        }
        self.stop("SIGTERM");
    }

    /// Stops, whatever the service manager answers.
    fn stop(&mut self, by: &str) {
        let child = self.inquiry.end();
        self.end(child);
        let by = by.to_owned();
        self.apply(Event::Stop { by });
    }

    fn inquiry_answered(&mut self, now: Tick) {
        let Some(child) = self.inquiry.poll(now) else {
            return;
        };
        self.end(Some(child));
        if self.inquiry.is_restart() {
            event!(
                server_leaving,
                reason = "restart",
                workers = self.active_workers().count(),
                connections = self.fleet.all_connections()
            );
        } else {
            self.stop("SIGTERM");
        }
    }

    /// Ends the supervisor and leaves its workers to the next one, unless an operation is in
    /// progress: that has a deadline.
    fn leave_if_idle(&mut self) {
        if self.inquiry.is_restart() && self.machine.operation_kind().is_none() {
            self.outcome = Some(Outcome::Clean);
        }
    }

    /// Voids a lease that the service manager has let go of: it has other means to end this server, so
    /// that tells nothing about a later supervisor.
    fn lease_ready(&self) {
        if lease::void(&self.lease) {
            event!(lease_voided);
        }
    }

    /// Starts an admin process if one is due.
    fn keep_admin(&mut self) {
        let (config, registry) = (self.fleet.config(), self.poll.registry());
        let (before, now) = (self.admin.pid(), clock::now());
        let ended = self.admin.keep_process(config, registry, now);
        if self.admin.pid().is_some_and(|pid| before != Some(pid)) {
            self.telemetry.admin_started(now);
        }
        self.end(ended);
    }

    /// Answers the admin process's status requests.
    fn answer_admin(&mut self) {
        for question in self.admin.on_ready(self.poll.registry()) {
            let status = self.status();
            self.admin.answer(question, &status);
        }
    }

    fn admin_ended(&mut self) {
        // Receive its last messages first.
        self.answer_admin();
        let now = clock::now();
        let explain = |exit| self.reaper.cause_of(exit, now);
        self.admin.on_exit(self.fleet.config(), now, explain);
    }
}

/// Returns a predicate: whether the slot's queue is lent to the worker.
fn is_lent(machine: &Machine) -> impl Fn(identity::SlotId, identity::WorkerId) -> bool + '_ {
    move |slot, worker| {
        let lent = |queue| matches!(queue, Queue::Lent { to, .. } if to == worker);
        let mut slots = machine.slots();
        slots.any(|view| view.id == slot && lent(view.queue))
    }
}
