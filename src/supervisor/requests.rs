//! Requests for planned operations, by signal or over the control socket. Every refusal is made
//! here or in the machine, before anything has changed.

use crate::config::{Config, WORKERS, check_change};
use crate::fault;
use crate::log::{self, event};
use crate::sys::image::Image;
use crate::sys::limits::memory_room;
use uppercased_ctl::clock;
use uppercased_ctl::control::{Done, Options, Reply, Request};
use uppercased_ctl::identity::{ReleaseId, RequestId, WorkerId};
use uppercased_ctl::status::Rotation;

use super::allowed::check_account;
use super::fleet::releases::{Release, check_memory};
use super::machine::{Answer, Canceller, Event, Life, Notice, Policy, ScaleTo, Wanted};
use super::policy::policy;
use super::progress::Progress;
use super::{Supervisor, boot, control, report, signals};

impl Supervisor {
    /// Handles pending signals.
    pub(super) fn handle_signals(&mut self) {
        let requests = self.signals.on_ready();
        if !requests.is_empty() {
            // Signals are the last resort of a user who cannot find the socket.
            self.control.keep_file(self.poll.registry(), clock::now());
        }
        for request in requests {
            match request {
                signals::Request::Terminate => self.stop_or_leave(),
                signals::Request::Stop { by } => self.stop(&by),
                // The shell and the kernel may both have reported it: the second report is not a
                // second request.
                signals::Request::StopForTerminal => {
                    if !matches!(self.machine.life(), Life::Stopping { .. }) {
                        let by = "closed_terminal".to_owned();
                        self.apply(Event::Stop { by });
                    }
                }
                signals::Request::LogStatus => self.log_status(),
                signals::Request::Operation(wanted) => {
                    if matches!(wanted, Wanted::Reload | Wanted::Upgrade) {
                        self.systemd.note_reload_request();
                    }
                    self.request_without_client(wanted);
                }
            }
        }
    }

    /// Handles the events of control socket clients.
    pub(super) fn handle_requests(&mut self, events: Vec<control::Event>) {
        for event in events {
            match event {
                control::Event::Requested(id, request) => self.handle_request(id, request),
                control::Event::Withdrawn(request) => {
                    self.apply(Event::Withdrawn { request });
                }
            }
        }
    }

    fn handle_request(&mut self, id: RequestId, request: Request) {
        match request {
            Request::Reload(options) => self.requested(id, Wanted::Reload, options),
            Request::Upgrade(options) => self.requested(id, Wanted::Upgrade, options),
            Request::Scale { workers, options } => {
                self.requested(id, Wanted::Scale(workers), options);
            }
            Request::Cancel => self.cancel(id),
            Request::Rotation { to } => self.rotate(id, to),
            Request::Status => {
                let status = Reply::Status(Box::new(self.status()));
                self.reply(id, status);
            }
            // The answer is the end of the connection, which stays open until the server exits.
            Request::Stop => {
                let registry = self.poll.registry();
                let stopping = Progress::Stopping.to_string();
                self.control.progress(id, &stopping, registry);
                let by = "control_socket".to_owned();
                self.apply(Event::Stop { by });
            }
        }
    }

    fn requested(&mut self, request: RequestId, wanted: Wanted, options: Options) {
        self.apply(Event::Requested {
            request,
            wanted,
            wait: options.wait,
            drain: options.drain,
        });
    }

    /// Cancels the operation in progress.
    fn cancel(&mut self, request: RequestId) {
        let (pid, uid) = self.control.caller(request).unzip();
        let by = Canceller { pid, uid };
        self.apply(Event::Cancel { request, by });
    }

    /// Requests an operation for which no client waits: it is queued, never refused, while an
    /// operation is in progress.
    pub(super) fn request_without_client(&mut self, wanted: Wanted) {
        let options = Options {
            wait: true,
            drain: false,
        };
        self.requested(RequestId::NOBODY, wanted, options);
    }

    /// Prepares the next request and makes the machine begin it. A reload is prepared by a child,
    /// because reading a configuration may block.
    pub(super) fn begin(&mut self, request: RequestId, wanted: Wanted, drain: bool) {
        let prepared = match wanted {
            Wanted::Reload => return self.begin_resolution(request),
            Wanted::Upgrade => Ok(Event::Upgrade { request, drain }),
            Wanted::Scale(to) => {
                self.check_workers(to, drain)
                    .map(|()| Event::Scale { request, to, drain })
            }
        };
        let event = prepared.unwrap_or_else(|cause| Event::NotBegun {
            request,
            wanted,
            cause,
        });
        self.apply(event);
    }

    /// Begins a reload with the configuration that was read, or refuses it.
    pub(super) fn resolved(&mut self, request: RequestId, config: Result<Config, String>) {
        let drain = self.machine.may_drain_what_begins();
        let prepared = config.and_then(|config| self.prepare_release(config, drain));
        self.apply(match prepared {
            Ok((release, policy)) => Event::Reload {
                request,
                release,
                policy,
                drain,
            },
            Err(cause) => Event::NotBegun {
                request,
                wanted: Wanted::Reload,
                cause,
            },
        });
    }

    /// Refuses numbers of workers that the sockets or the limit on descriptors do not allow.
    fn check_workers(&self, to: ScaleTo, drain: bool) -> Result<(), String> {
        let workers = to.from(self.machine.policy().workers);
        // Numbers out of range are refused by the machine.
        if (WORKERS.least..=WORKERS.most).contains(&workers) {
            if let Some(cause) = self.fleet.too_few(workers) {
                return Err(cause);
            }
            let no_room = self.fleet.no_room(self.active_workers(), workers, None);
            if let Some(cause) = no_room.filter(|_| !drain) {
                return Err(cause);
            }
            let limits = self.fleet.limits(self.config(), workers);
            limits.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Scales down if an earlier instance has left listeners of more slots than are configured.
    /// Their queues are emptied as by any other scaling.
    pub(super) fn shed_surplus(&mut self) {
        let wanted = self.config().workers;
        if wanted < self.fleet.slot_count() {
            self.request_without_client(Wanted::Scale(ScaleTo::Exactly(wanted)));
        }
    }

    /// Changes the state reported to load balancers. Clients are served in either state.
    fn rotate(&mut self, request: RequestId, to: Rotation) {
        let from = self.admin.rotate(to);
        event!(rotation_changed, from = from.name(), to = to.name());
        let done = Done {
            workers: self.fleet.slot_count(),
            ..Done::default()
        };
        self.reply(request, Reply::Done(done));
    }

    /// Opens the new binary. Binds nothing.
    fn prepare_release(
        &mut self,
        config: Config,
        drain: bool,
    ) -> Result<(ReleaseId, Policy), String> {
        check_change(self.config(), &config).map_err(|error| error.to_string())?;
        let image = self.upgrade.open_program()?;
        self.add_release(image, config, drain)
    }

    /// Creates a release from a program and a configuration.
    pub(super) fn add_release(
        &mut self,
        image: Image,
        mut config: Config,
        drain: bool,
    ) -> Result<(ReleaseId, Policy), String> {
        // The same addresses, perhaps in another order: each slot's listeners keep theirs.
        config.listen.clone_from(&self.config().listen);
        let now = self.fleet.slot_count();
        let workers = self.fleet.workers_with(&config);
        if let Some(cause) = self.fleet.too_few(workers) {
            return Err(cause);
        }
        check_account(&config).map_err(|error| error.to_string())?;
        let limits = self.fleet.limits(&config, workers.max(now));
        let limits = limits.map_err(|error| error.to_string())?;
        let room =
            memory_room().map_err(|error| format!("cannot read the limits on memory: {error}"))?;
        check_memory(&config, limits, workers.max(now), room).map_err(|error| error.to_string())?;
        let active = self.active_workers();
        let no_room = self.fleet.no_room_with(&config, limits, active);
        if let Some(cause) = no_room.filter(|_| !drain) {
            return Err(cause);
        }
        let policy = Policy {
            workers,
            ..policy(&config)
        };
        let release = Release {
            image,
            config,
            limits,
        };
        Ok((self.fleet.add_release(release), policy))
    }

    /// Puts a release in force.
    pub(super) fn commit(&mut self, release: ReleaseId) {
        self.fleet.commit(release);
        let config = self.config();
        log::adjust(config.log_level, config.log_format);
        boot::warn_about_backlog(config);
        self.spread();
        fault::point("supervisor.committed");
    }

    /// Answers a request whose operation has ended, and drops releases that no slot runs.
    pub(super) fn answer(&mut self, request: RequestId, answer: Answer) {
        let reply = match answer {
            // Some may have ended since.
            Answer::Done(done) => Reply::Done(Done {
                draining: self.draining_connections(),
                ..done
            }),
            Answer::Failed { cause } => Reply::Failed(cause),
            Answer::Refused { cause } => Reply::Refused(cause),
        };
        if self.machine.operation().is_none() {
            let workers = self.machine.slots().flat_map(|slot| {
                let successor = slot.successor.map(|it| it.release);
                [Some(slot.release), successor].into_iter().flatten()
            });
            let in_use: Vec<ReleaseId> = workers.collect();
            self.fleet.keep_releases(&in_use);
            self.store_config();
        }
        // Last: its client may kill this process as soon as the reply arrives.
        self.reply(request, reply);
    }

    /// Stores the configuration in force for a later start whose own is refused.
    pub(super) fn store_config(&self) {
        self.fleet.store_config(self.machine.policy().workers);
    }

    /// Returns the connections of workers that drain.
    fn draining_connections(&self) -> u64 {
        let workers = self.machine.slots().flat_map(|slot| slot.predecessors);
        let leaving = workers.filter(|it| it.state == "leaving");
        let open = leaving.map(|it| u64::from(self.fleet.open_connections(it.worker)));
        open.fold(0, u64::saturating_add)
    }

    /// Reports progress to the client that waits for an operation.
    pub(super) fn report_progress(&mut self, notice: &Notice) {
        let registry = self.poll.registry();
        match notice {
            Notice::OperationStarted { request, .. } => self.control.set_asking(*request),
            Notice::OperationEnded { operation, answer } => {
                // A refused operation has not begun: the client of another still gets its progress.
                if !matches!(answer, Answer::Refused { .. }) {
                    self.control.set_asking(RequestId::NOBODY);
                }
                self.systemd
                    .set_failure(report::failure(*operation, answer));
            }
            Notice::NotBegun { operation, cause } => {
                let failure = format!("{operation} refused: {cause}");
                self.systemd.set_failure(Some(failure));
            }
            Notice::CancelRefused { cause } => {
                self.systemd
                    .set_failure(Some(format!("cancel refused: {cause}")));
            }
            Notice::RequestPending { request, .. } => {
                let operation = self.machine.operation();
                let obstacle = operation.as_deref().unwrap_or("old workers still drain");
                let waiting = Progress::Waiting { obstacle }.to_string();
                self.control.progress(*request, &waiting, registry);
            }
            _ => {}
        }
        if let Some(step) = Progress::of(notice) {
            let step = step.to_string();
            self.control.progress_of_operation(&step, registry);
            self.telemetry.add_step(step);
        }
    }

    fn reply(&mut self, request: RequestId, reply: Reply) {
        let registry = self.poll.registry();
        self.control.answer(request, reply, registry, clock::now());
    }

    /// Returns the active worker of every slot.
    pub(super) fn active_workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.machine.slots().map(|slot| WorkerId {
            slot: slot.id,
            generation: slot.generation,
        })
    }
}
