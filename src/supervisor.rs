//! The supervisor: waits for what happens, lets the machine decide, carries out what it decides.
//!
//! A thin shell round [`machine`]: signals, channels, pidfds and one deadline become events;
//! actions become forks, messages, kills and log lines.
//!
//! Invariants: one thread, always (fork and exec depend on it); a duplicate of every slot's
//! listeners stays here from the slot's first Ready to the stop, so that no accept queue dies with
//! a worker; no wait but the event loop's; it serves no client.
//!
//! It must not decide (the machine does) nor import the worker (they share `wire` and `memory`).

pub mod backoff;
mod boot;
mod children;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "wired in with the operations it serves")
)]
mod control;
pub mod exchange;
pub mod machine;
mod report;
pub mod slot;
pub mod snapshot;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::clock;
use crate::config::{Config, LogFormat};
use crate::identity::{SlotId, WorkerId};
use crate::port::Lock;
use crate::wire::{self, Message, Stop};

use children::{Child, Heard, SlotResources};
use machine::{Action, Event, ListenerSource, Machine, Policy, Verdict};

pub use boot::Error;

/// Readiness reports taken from the kernel at once.
const EVENTS_PER_TURN: usize = 256;
const SIGNALS: Token = Token(0);
/// Each asks for a stop; the second one for an end at once.
const STOP_SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGQUIT];
/// Caught because their default would kill or stop the supervisor, and people send them to servers
/// in good faith.
const IDLE_SIGNALS: [i32; 5] = [SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU];
/// Slot `i` has its channel at this plus `2 i`, its pidfd right after it.
const FIRST_SLOT: usize = 1;
/// Locks come after all slots there can be.
const FIRST_LOCK: usize = FIRST_SLOT + 2 * (u16::MAX as usize + 1);

type Signals = SignalDelivery<UnixStream, SignalOnly>;

/// A running supervisor.
#[derive(Debug)]
pub struct Supervisor {
    config: Config,
    limits: boot::Limits,
    image: crate::sys::image::Image,
    poll: Poll,
    signals: Signals,
    locks: Vec<Lock>,
    machine: Machine,
    /// Slot `i` is at index `i`.
    slots: Vec<SlotResources>,
    verdict: Option<Verdict>,
}

/// Serves as `config` says until told to stop; errors are printed.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    let mut supervisor = match Supervisor::prepare(config) {
        Ok(supervisor) => supervisor,
        Err(error) => {
            eprintln!("uppercased: {error}");
            return ExitCode::from(error.exit_code());
        }
    };
    match supervisor.supervise() {
        Ok(Verdict::Clean) => ExitCode::SUCCESS,
        Ok(Verdict::Failed { cause }) => {
            // One line in either format; whoever reads JSON reads nothing else.
            match supervisor.config.log_format {
                LogFormat::Human => eprintln!("uppercased: {cause}"),
                LogFormat::Json => tracing::error!(cause, "cannot start"),
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            // Dropping the channels tells the workers; they finish what they owe and exit.
            eprintln!("uppercased: the supervisor's event loop failed: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Supervisor {
    /// Runs until the machine says that everything is over.
    ///
    /// # Errors
    /// What `epoll_wait` returned.
    pub fn supervise(&mut self) -> io::Result<Verdict> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        report::starting(&self.config);
        self.happened(Event::Boot);
        loop {
            self.carry_out();
            if let Some(verdict) = self.verdict.take() {
                return Ok(verdict);
            }
            let timeout = self
                .machine
                .poll_timeout()
                .map(|due| due.since(clock::now()));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Err(_) | Ok(()) => {}
            }
            for event in &events {
                self.look(event.token());
            }
            self.machine.handle_timeout(clock::now());
        }
    }

    fn happened(&mut self, event: Event) {
        self.machine.handle(event, clock::now());
    }

    /// Turns a readiness report into events.
    fn look(&mut self, token: Token) {
        if token == SIGNALS {
            return self.look_at_signals();
        }
        if token.0 >= FIRST_LOCK {
            return self.locks[token.0 - FIRST_LOCK].dismiss_askers();
        }
        let (index, is_pidfd) = ((token.0 - FIRST_SLOT) / 2, (token.0 - FIRST_SLOT) % 2 == 1);
        // The last words first, also when it is the death that was reported.
        self.hear(index);
        if is_pidfd {
            self.reap(index);
        }
    }

    fn look_at_signals(&mut self) {
        let pending: Vec<i32> = self.signals.pending().collect();
        for number in pending {
            let by = signal_hook::low_level::signal_name(number).unwrap_or("a signal");
            if STOP_SIGNALS.contains(&number) {
                self.happened(Event::Stop { by: by.to_owned() });
            } else {
                tracing::warn!(signal = by, "a signal that has no effect");
            }
        }
    }

    fn hear(&mut self, index: usize) {
        while let Some((worker, heard)) = self.slots[index].hear() {
            match heard {
                Heard::Ready(listen) => {
                    self.learn_addresses(&listen);
                    self.happened(Event::Ready { worker });
                }
                Heard::Failed(cause) => self.happened(Event::StartFailed { worker, cause }),
                Heard::Draining(connections) => report::draining(worker, connections),
                Heard::Closed => {
                    // The cause of death is what its pidfd reports next. The kill changes nothing
                    // for one that is ending (a worker never closes its end, so its exit code is
                    // settled by now); a live one could not be told anything any more.
                    self.unwatch_channel(index);
                    self.slots[index].kill(worker);
                    return;
                }
                Heard::Broken(cause) => {
                    self.unwatch_channel(index);
                    self.happened(Event::ChannelBroken { worker, cause });
                    return;
                }
            }
        }
    }

    /// The first slot's real addresses are everybody's: with port 0 the kernel chose then.
    fn learn_addresses(&mut self, listen: &[wire::Listen]) {
        if self.limits.listen.iter().all(|one| one.addr.port() != 0) {
            return;
        }
        self.limits.listen = listen.to_vec();
        if !self.config.share_port {
            self.lock_late();
        }
    }

    fn reap(&mut self, index: usize) {
        let Some((worker, how)) = self.slots[index].reap() else {
            return;
        };
        self.unwatch_channel(index);
        if let Some(child) = self.slots[index].bury() {
            // Fails only if it was not watched.
            let _ = self
                .poll
                .registry()
                .deregister(&mut SourceFd(&child.process_number()));
        }
        self.happened(Event::Exited { worker, how });
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Spawn {
                    worker, listener, ..
                } => self.spawn(worker, listener),
                Action::Kill { worker } => self.slots[worker.slot.index()].kill(worker),
                Action::EndCustody => {
                    for slot in &mut self.slots {
                        slot.release_listeners();
                    }
                }
                Action::StopWorker { worker } => {
                    let stop = Stop {
                        lame_duck_ms: millis(self.config.lame_duck),
                        drain_timeout_ms: millis(self.config.drain_timeout),
                    };
                    self.say(worker, Message::Stop(stop), None);
                }
                Action::Lend { slot, to } => {
                    self.say(to, Message::Lend(wire::Lend { slot }), Some(slot));
                }
                Action::Recall { slot, from } => {
                    self.say(from, Message::Recall(wire::Recall { slot }), None);
                }
                Action::Serve { .. }
                | Action::HandOver { .. }
                | Action::Leave { .. }
                | Action::TakePulse { .. }
                | Action::Ping { .. }
                | Action::Steer { .. }
                | Action::Unsteer
                | Action::CloseListeners { .. }
                | Action::DropSlot { .. }
                | Action::Preflight
                | Action::AbortPreflight
                | Action::Exec
                | Action::Commit { .. }
                | Action::Answer { .. } => {}
                Action::Notice(notice) => report::notice(&notice, &self.slots),
                Action::Announce => {
                    report::announce(&self.config, &self.limits.listen);
                }
                Action::Exit(verdict) => {
                    report::ended(&verdict, &self.slots);
                    self.verdict = Some(verdict);
                }
            }
        }
    }

    fn spawn(&mut self, worker: WorkerId, listener: ListenerSource) {
        let index = worker.slot.index();
        let start = self.limits.start(&self.config, listener);
        let spawned = self.slots[index].spawn(worker, start, &self.image);
        let watched = spawned.and_then(|()| self.watch_child(index));
        if let Err(error) = watched {
            self.slots[index].discard_child();
            let cause = format!("cannot start a worker process: {error}");
            self.happened(Event::SpawnFailed { worker, cause });
        }
    }

    fn watch_child(&self, index: usize) -> io::Result<()> {
        let Some(child) = self.slots[index].child() else {
            return Ok(());
        };
        let token = FIRST_SLOT + 2 * index;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.watch(child.channel_number(), Token(token), both)?;
        self.watch(child.process_number(), Token(token + 1), Interest::READABLE)
    }

    fn watch(&self, number: i32, token: Token, interest: Interest) -> io::Result<()> {
        self.poll
            .registry()
            .register(&mut SourceFd(&number), token, interest)
    }

    fn unwatch_channel(&self, index: usize) {
        if let Some(number) = self.slots[index].child().map(Child::channel_number) {
            // Fails only if it is not watched any more.
            let _ = self.poll.registry().deregister(&mut SourceFd(&number));
        }
    }

    fn say(&mut self, worker: WorkerId, message: Message, lent: Option<SlotId>) {
        let listeners = lent.map(|slot| self.slots[slot.index()].listeners());
        let listeners = match listeners.transpose() {
            Ok(listeners) => listeners.unwrap_or_default(),
            Err(error) => {
                tracing::error!(%worker, %error, "cannot duplicate a listener to lend it");
                return;
            }
        };
        if let Err(cause) = self.slots[worker.slot.index()].say(worker, message, &listeners) {
            self.happened(Event::ChannelBroken { worker, cause });
        }
    }

    /// Watches what is there from the start.
    fn watch_basics(&self) -> io::Result<()> {
        self.watch(
            self.signals.get_read().as_raw_fd(),
            SIGNALS,
            Interest::READABLE,
        )?;
        self.watch_locks(0)
    }

    fn watch_locks(&self, from: usize) -> io::Result<()> {
        for (index, lock) in self.locks.iter().enumerate().skip(from) {
            let number = lock.as_fd().as_raw_fd();
            self.watch(number, Token(FIRST_LOCK + index), Interest::READABLE)?;
        }
        Ok(())
    }

    /// Locks addresses whose port was not known before.
    fn lock_late(&mut self) {
        let before = self.locks.len();
        for listen in &self.limits.listen {
            match crate::port::lock(listen) {
                Ok(locks) => self.locks.extend(locks),
                // The socket is bound already: only the courtesy to a later instance is lost.
                Err(error) => tracing::debug!(%error, "no lock"),
            }
        }
        if let Err(error) = self.watch_locks(before) {
            tracing::debug!(%error, "a lock is not watched");
        }
    }
}

fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn signals() -> io::Result<Signals> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    let caught = [STOP_SIGNALS.as_slice(), &IDLE_SIGNALS].concat();
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
        linger_timeout: config.linger_timeout,
        bake_time: config.bake_time,
        handover_timeout: config.handover_timeout,
        handshake_timeout: config.handshake_timeout,
        hang_timeout: config.hang_timeout,
    }
}
