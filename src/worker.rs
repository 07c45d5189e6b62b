//! The worker role: receives the start message, binds or adopts listeners, reports Ready, stands by
//! or serves, hands over, stops.
//!
//! The worker accepts commands only from the supervisor's channel: it blocks signals. When the
//! supervisor has exited it is an orphan (`orphan`).
//!
//! Invariants: it reports Ready only when every step that can fail has succeeded and it is
//! sandboxed; it never outlives its supervisor by more than `orphan_timeout` and the deadline of
//! the phase that follows, and not even by that if its lease ends; it does not exit while connections migrate from it or to it, unless its
//! time is over; a panic ends its process at once, without unwinding, because destructors would
//! close connections that its keeper continues; its phase, and whether it ends by itself, are in the
//! working memory before it acts on them.
//!
//! It must not import the supervisor: they share `wire` and `memory`.

mod adoption;
mod introduction;
mod keeper;
mod migration;
#[cfg(debug_assertions)]
mod misbehaviour;
mod orphan;
mod phase;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use crate::channel::{self, Channel};
use crate::config::{Config, OOM_SCORE_STEP};
use crate::fault;
use crate::listener;
use crate::log::{self, event};
use crate::memory::layout::Layout;
use crate::memory::transit::Source;
use crate::memory::{self, Memory};
use crate::reactor::{Reactor, Reports};
use crate::sandbox::{self, calls::Role};
use crate::sys::cpus;
use crate::sys::fd::inherited_channel;
use crate::sys::keeper::{grow_table, own_pidfd};
use crate::sys::limits::be_killed_before_parent;
use crate::sys::signals::end_process;
use crate::wire::{Envelope, FromWorker, Listen, Ready, Start, Stop, ToWorker};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::WorkerId;
use uppercased_ctl::metrics::{CloseReason, Counter};
use uppercased_ctl::stderr;

use introduction::Adoption;
use phase::{Orphan, Phase};

/// The exit code of a process that has panicked: the standard library's.
const PANIC_EXIT_CODE: i32 = 101;

/// This worker's end of its channel.
type SupervisorChannel = Channel<FromWorker, ToWorker>;

/// A worker's state.
#[derive(Debug)]
struct Worker {
    id: WorkerId,
    config: Config,
    channel: SupervisorChannel,
    /// A pidfd of the supervisor.
    supervisor: OwnedFd,
    /// Ends when no supervisor will come; see [`mod@crate::sys::lease`].
    lease: OwnedFd,
    /// Present once the supervisor has exited.
    orphan: Option<Orphan>,
    /// `None` if no later supervisor can adopt it.
    adoption: Option<Adoption>,
    reactor: Reactor,
    /// Of this process; its keeper waits for it. `None` if it is to have none.
    pidfd: Option<OwnedFd>,
    /// Whether the supervisor requests another keeper.
    needs_keeper: bool,
    phase: Phase,
    /// Requests that wait until a partial handover is resolved.
    deferred: VecDeque<(ToWorker, Vec<OwnedFd>)>,
    #[cfg(debug_assertions)]
    misbehaviour: misbehaviour::Misbehaviour,
}

/// What a worker reports when it can serve.
#[derive(Debug)]
struct Announcement {
    ready: Ready,
    /// Duplicates of its listeners, for the supervisor.
    deposit: Vec<OwnedFd>,
}

/// Why serving ended.
enum ServingEnd {
    Exit(ExitCode),
    /// The supervisor requests another keeper.
    Keep,
}

/// Runs the worker role in a process that a supervisor started for it.
#[must_use]
pub fn run() -> ExitCode {
    let Some(channel) = inherited_channel() else {
        stderr::write_error(
            "cannot run as a worker: only the supervisor starts one; run `uppercased serve`",
        );
        return ExitCode::from(2);
    };
    // Names the process in ps and top; a failure is harmless.
    let _ = nix::sys::prctl::set_name(c"uppercased");
    let mut channel = Channel::over(channel);
    let (id, start, descriptors) = match await_start(&mut channel) {
        Ok(start) => start,
        Err(error) => {
            stderr::write_error(&format!("cannot read the worker's start message: {error}"));
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = log::init(start.config.log_level, start.config.log_format) {
        return report_failure(channel, id, &error.to_string());
    }
    let span = log::worker_span(id.slot.0, id.generation.0).entered();
    if let Err(error) = be_killed_before_parent(OOM_SCORE_STEP) {
        event!(oom_score_not_raised, %error);
    }
    end_on_panic();
    match Worker::prepare(id, *start, descriptors, channel) {
        Ok((worker, announcement)) => worker.run(announcement, span),
        Err((channel, cause)) => report_failure(channel, id, &cause),
    }
}

impl Worker {
    /// Performs every step that can fail. Returns the channel with an error, so that the error can
    /// be reported.
    fn prepare(
        id: WorkerId,
        start: Start,
        descriptors: Vec<OwnedFd>,
        channel: SupervisorChannel,
    ) -> Result<(Self, Announcement), (SupervisorChannel, String)> {
        fault::point("worker.starting");
        fault::point(&format!("worker.starting.slot{}", id.slot));
        let fail = |channel, cause: &dyn std::fmt::Display| (channel, cause.to_string());
        if let Some(cpu) = start.cpu
            && let Err(error) = cpus::pin(cpu)
        {
            // The CPU was allowed a moment ago. Any CPU is better than none.
            event!(cpu_pinning_failed, cpu, %error);
        }
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next();
        let (Some(memory), Some(supervisor), Some(lease)) = (next(), next(), next()) else {
            return Err(fail(channel, &"the start message lacks descriptors"));
        };
        let adoption = match Adoption::of(&start, &mut descriptors) {
            Ok(adoption) => adoption,
            Err(cause) => return Err(fail(channel, &cause)),
        };
        let reactor = reactor_over(memory, &start).and_then(|reactor| {
            reactor.watch_control(&channel)?;
            reactor.watch_control(&supervisor)?;
            if let Some(adoption) = &adoption {
                reactor.watch_control(&adoption.rendezvous)?;
            }
            let pidfd = start.config.crash_rescue.then(own_pidfd);
            Ok((reactor, pidfd.transpose()?))
        });
        let (mut reactor, pidfd) = match reactor {
            Ok(both) => both,
            Err(error) => {
                return Err(fail(
                    channel,
                    &format!("cannot prepare the worker: {error}"),
                ));
            }
        };
        if let Some(pidfd) = &pidfd {
            // It only takes longer later if this fails.
            let _ = grow_table(pidfd, start.descriptors);
        }
        reactor.memory_mut().set_process(std::process::id());
        let mut worker = Self {
            id,
            config: start.config,
            channel,
            supervisor,
            lease,
            orphan: None,
            adoption,
            reactor,
            pidfd,
            needs_keeper: false,
            phase: Phase::Serving,
            deferred: VecDeque::new(),
            #[cfg(debug_assertions)]
            misbehaviour: misbehaviour::Misbehaviour::default(),
        };
        if start.standby {
            worker.enter(Phase::StandingBy);
            worker.reactor.pause_accepting();
        } else {
            worker.enter(Phase::Serving);
        }
        match worker.start(&start.listen, start.adopt, descriptors.collect()) {
            Ok(announcement) => Ok((worker, announcement)),
            Err(cause) => Err((worker.channel, cause)),
        }
    }

    /// Binds the slot's listeners or adopts them, and sandboxes the process.
    fn start(
        &mut self,
        listen: &[Listen],
        adopt: bool,
        adopted: Vec<OwnedFd>,
    ) -> Result<Announcement, String> {
        let (listeners, listen) = if adopt {
            if adopted.len() != listen.len() {
                let (got, wanted) = (adopted.len(), listen.len());
                return Err(format!("received {got} listeners for {wanted} addresses"));
            }
            fault::point("worker.adopting");
            // Unchanged: the supervisor sets their options.
            (adopted, listen.to_vec())
        } else {
            let bound = listen.iter().map(|one| listener::bind(one, &self.config));
            let bound = bound
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| error.to_string())?;
            bound.into_iter().unzip()
        };
        let deposit = if adopt {
            &listeners[..0]
        } else {
            &listeners[..]
        };
        let deposit: io::Result<Vec<_>> = deposit.iter().map(OwnedFd::try_clone).collect();
        let deposit = deposit.map_err(|error| format!("cannot duplicate a listener: {error}"))?;
        for (index, listener) in listeners.into_iter().enumerate() {
            let proxied = self.config.requires_header(index);
            let served = self.reactor.add_listener(self.id.slot, listener, proxied);
            served.map_err(|error| format!("cannot poll a listener: {error}"))?;
        }
        let sandbox = sandbox::begin(&self.config)?.finish(Role::Worker)?;
        fault::point("worker.sandboxed");
        if let Some(adoption) = &mut self.adoption {
            adoption.introduction.listen.clone_from(&listen);
            adoption.introduction.sandbox = sandbox.clone();
        }
        Ok(Announcement {
            ready: Ready { listen, sandbox },
            deposit,
        })
    }

    /// Reports Ready with the bound listeners. From now on the worker's keeper continues it.
    fn announce(&mut self, announcement: Announcement) -> Result<(), String> {
        let ready = Envelope {
            worker: self.id,
            message: FromWorker::Ready(announcement.ready),
        };
        let deposit: Vec<_> = announcement.deposit.iter().map(AsFd::as_fd).collect();
        fault::point("worker.ready");
        self.channel
            .send(&ready, &deposit)
            .map_err(|error| error.to_string())?;
        fault::count_stores("store");
        self.reactor.memory_mut().set_ready();
        if matches!(self.phase, Phase::StandingBy) {
            fault::point("worker.standing_by");
        }
        Ok(())
    }

    /// Serves until the worker's end, or until another keeper is needed.
    fn serve(&mut self, reports: &mut Reports) -> ServingEnd {
        while !matches!(self.phase, Phase::Done) {
            if let Err(error) = self.turn(reports, self.deadline()) {
                event!(event_loop_failed, %error);
                return ServingEnd::Exit(ExitCode::FAILURE);
            }
            if std::mem::take(&mut self.needs_keeper) {
                return ServingEnd::Keep;
            }
        }
        self.reactor.memory_mut().retire();
        self.log_totals();
        ServingEnd::Exit(ExitCode::SUCCESS)
    }

    /// Makes one turn of the event loop, which waits no longer than until `deadline`.
    fn turn(&mut self, reports: &mut Reports, deadline: Option<Tick>) -> io::Result<()> {
        self.reactor.wait(reports, deadline)?;
        if self.reactor.handle_reports(reports) {
            self.receive_messages();
        }
        if self.reactor.work() {
            while let Some(slot) = self.reactor.next_lost_listener() {
                self.send(FromWorker::ListenerLost { slot });
            }
            self.advance();
        }
        #[cfg(debug_assertions)]
        self.misbehaviour
            .act(self.id, &mut self.channel, &self.reactor);
        Ok(())
    }

    /// Changes the phase.
    fn enter(&mut self, phase: Phase) {
        self.reactor.memory_mut().set_standing(phase.standing());
        self.phase = phase;
    }

    fn deadline(&self) -> Option<Tick> {
        let of_phase = match self.phase {
            Phase::LameDuck { until, .. }
            | Phase::Leaving { until }
            | Phase::Draining { until } => Some(until),
            Phase::StandingBy
            | Phase::Serving
            | Phase::HandingOver { .. }
            | Phase::Undecided { .. }
            | Phase::Done => None,
        };
        let of_orphan = self.orphan.and_then(|orphan| orphan.deadline(self.phase));
        [of_phase, of_orphan].into_iter().flatten().min()
    }

    /// Reads the channel until it is empty.
    fn receive_messages(&mut self) {
        self.handle_messages();
        self.check_supervisor();
        self.meet_visitors();
    }

    fn handle_messages(&mut self) {
        while self.has_channel() {
            let memory = self.reactor.memory_mut();
            // Nothing names the descriptors before the message was handled.
            let prepare = || memory.set_unnamed(Source::Channel, true);
            match self.channel.receive_after(prepare) {
                Ok(None) => return,
                Ok(Some(received)) if received.envelope.worker != self.id => {
                    event!(
                        stale_message_dropped,
                        to_slot = received.envelope.worker.slot.0,
                        to_generation = received.envelope.worker.generation.0
                    );
                }
                Ok(Some(received)) => {
                    fault::point("worker.received");
                    self.handle(received.envelope.message, received.descriptors);
                }
                Err(error) => self.handle_channel_end(&error),
            }
            self.note_unnamed();
        }
    }

    /// Stores whether descriptors from the supervisor still exist that nothing names: those of
    /// requests that wait.
    fn note_unnamed(&mut self) {
        let unnamed = !self.deferred.is_empty();
        let memory = self.reactor.memory_mut();
        memory.set_unnamed(Source::Channel, unnamed);
    }

    fn handle(&mut self, message: ToWorker, descriptors: Vec<OwnedFd>) {
        match message {
            ToWorker::Lend { slot } => {
                // They may replace sockets that no longer listen.
                self.reactor.release_listeners(slot);
                // Sorted by address, like this worker's own.
                for (index, listener) in descriptors.into_iter().enumerate() {
                    let proxied = self.config.requires_header(index);
                    let served = self.reactor.add_listener(slot, listener, proxied);
                    if let Err(error) = served {
                        event!(lent_listener_not_served, %error, from_slot = slot.0);
                    }
                }
                if slot == self.id.slot {
                    event!(listeners_replaced);
                } else {
                    event!(sibling_queue_served, from_slot = slot.0);
                }
            }
            ToWorker::Recall { slot, last } => {
                if last {
                    self.reactor.empty_listeners(slot);
                }
                self.reactor.release_listeners(slot);
                event!(sibling_queue_returned, from_slot = slot.0);
            }
            ToWorker::Stop(stop) => self.stop(stop),
            // The turn that the message caused is the answer.
            ToWorker::Ping => {}
            ToWorker::Keep => self.needs_keeper = true,
            ToWorker::Confirm => self.reactor.memory_mut().confirm_rescues(),
            ToWorker::Adopt => self.become_adopted(&descriptors),
            ToWorker::Serve => self.start_serving(),
            ToWorker::TakeOver(request) => self.take_over(request, descriptors),
            ToWorker::HandOver(request) => self.hand_over(request, descriptors),
            ToWorker::Leave { drain_timeout_ms } => {
                self.leave(Duration::from_millis(drain_timeout_ms));
            }
            ToWorker::Start(_) => event!(second_start_ignored),
        }
    }

    fn stop(&mut self, stop: Stop) {
        let drain_timeout = Duration::from_millis(stop.drain_timeout_ms);
        self.reactor.stop_handing_over();
        match stop.lame_duck_ms {
            0 => self.drain(drain_timeout),
            lame_duck_ms => {
                let until = self.reactor.now() + Duration::from_millis(lame_duck_ms);
                self.enter(Phase::LameDuck {
                    until,
                    drain_timeout,
                });
            }
        }
    }

    fn drain(&mut self, drain_timeout: Duration) {
        self.reactor.end_accepting();
        self.reactor.finish_connections();
        let connections = self.reactor.open_connections();
        event!(drain_started, connections);
        self.enter(Phase::Draining {
            until: self.reactor.now() + drain_timeout,
        });
        self.send(FromWorker::Draining { connections });
    }

    /// Sends a message to the supervisor, if there is one.
    fn send(&mut self, message: FromWorker) {
        if !self.is_orphan() {
            self.deliver(message);
        }
    }

    fn deliver(&mut self, message: FromWorker) {
        let envelope = Envelope {
            worker: self.id,
            message,
        };
        if let Err(error) = self.channel.send(&envelope, &[]) {
            self.handle_channel_end(&error);
        }
    }

    fn advance(&mut self) {
        self.conclude_handover();
        self.keep_slot();
        self.handle_deferred();
        self.note_unnamed();
        let now = self.reactor.now();
        self.advance_orphan(now);
        let connections = self.reactor.open_connections();
        let ended = connections == 0 && !self.reactor.is_moving();
        match self.phase {
            Phase::LameDuck {
                until,
                drain_timeout,
            } if until <= now => self.drain(drain_timeout),
            Phase::Leaving { .. } | Phase::Draining { .. } if ended => self.enter(Phase::Done),
            Phase::Leaving { until } if until <= now => {
                event!(leave_timed_out, connections);
                self.reactor.finish_connections();
                self.enter(Phase::Draining {
                    until: now + self.config.linger_timeout,
                });
            }
            Phase::Draining { until } if until <= now => {
                event!(drain_timed_out, connections);
                self.reactor.cut_connections();
                self.enter(Phase::Done);
            }
            Phase::StandingBy
            | Phase::Serving
            | Phase::LameDuck { .. }
            | Phase::HandingOver { .. }
            | Phase::Undecided { .. }
            | Phase::Leaving { .. }
            | Phase::Draining { .. }
            | Phase::Done => {}
        }
    }

    fn log_totals(&self) {
        let shared = self.reactor.memory().shared();
        let count = |counter| memory::counter(shared, counter);
        event!(
            worker_finished,
            accepted = count(Counter::Accepted),
            received_bytes = count(Counter::BytesIn),
            sent_bytes = count(Counter::BytesOut),
            abandoned_bytes = count(Counter::BytesAbandoned),
            cut_connections = count(Counter::Closed(CloseReason::DrainTimeout))
        );
    }
}

/// Starts up like a worker with the start message `start`, without disturbing the running server:
/// with its own memory and event loop, without a listener.
///
/// # Errors
/// The system call that failed.
pub fn rehearse(start: &Start) -> io::Result<()> {
    reactor_over(memory::create(layout(start))?, start).map(drop)
}

fn layout(start: &Start) -> Layout {
    Layout {
        descriptors: start.descriptors,
        // Migrated connections are adopted beyond the limit for new connections.
        buffers: start.room.max(start.max_connections),
        buffer_bytes: start.config.pending_output,
    }
}

fn reactor_over(memory: OwnedFd, start: &Start) -> io::Result<Reactor> {
    Reactor::new(
        Memory::adopt(memory, layout(start))?,
        &start.config,
        start.max_connections,
    )
}

/// Waits for the first message, which must be the start message.
fn await_start(
    channel: &mut SupervisorChannel,
) -> Result<(WorkerId, Box<Start>, Vec<OwnedFd>), channel::Error> {
    let received = channel.receive_first()?;
    match received.envelope.message {
        ToWorker::Start(start) => Ok((received.envelope.worker, start, received.descriptors)),
        _ => Err(channel::Error::System {
            operation: "receive",
            source: io::ErrorKind::InvalidData.into(),
        }),
    }
}

/// Reports the error on the channel; the supervisor prints it.
fn report_failure(mut channel: SupervisorChannel, worker: WorkerId, cause: &str) -> ExitCode {
    let message = FromWorker::Failed {
        cause: cause.to_owned(),
    };
    if let Err(error) = channel.send(&Envelope { worker, message }, &[]) {
        stderr::write_error(&format!(
            "{worker}: {cause} (cannot report it to the supervisor: {error})"
        ));
    }
    leave_open(channel);
    ExitCode::FAILURE
}

/// Leaves the channel for the kernel to close: the supervisor then sees the end of the channel only
/// when the exit status is final.
fn leave_open(channel: SupervisorChannel) {
    std::mem::forget(channel);
}

/// Makes a panic log an error and end the process, in every build. Not by an abort: that is a signal
/// to the process by its number, which the sandbox has fixed for the first life of a worker.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        event!(worker_panicked, error = %panic);
        end_process(PANIC_EXIT_CODE);
    }));
}
