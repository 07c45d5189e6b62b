//! Planned operations as they are asked for: by signal or over the control socket. Everything that
//! can be refused is refused here or in the machine, before anything has changed.

use mio::Token;

use crate::config::{Config, WORKERS, check_change};
use crate::fault;
use crate::log;
use crate::memory;
use crate::sys::image::Image;
use crate::sys::limits::memory_room;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::control::{Done, Options, Reply, Request};
use uppercased_ctl::identity::{ReleaseId, RequestId, SlotId, WorkerId};
use uppercased_ctl::status::Rotation;

use super::actions::millis;
use super::control::Heard;
use super::fleet::releases::{Holding, Limits, Release, check_memory};
use super::machine::{Answer, Event, Notice, Policy, ScaleTo, Wanted};
use super::{Supervisor, boot, policy, report};

impl Supervisor {
    pub(super) fn look_at_control(&mut self, token: Token) {
        let Some(control) = &mut self.control else {
            return;
        };
        for heard in control.ready(token, self.poll.registry(), clock::now()) {
            self.control_heard(heard);
        }
    }

    /// Acts on deadlines of the control socket's clients.
    pub(super) fn control_timeout(&mut self, now: Tick) {
        let Some(control) = &mut self.control else {
            return;
        };
        for heard in control.handle_timeout(self.poll.registry(), now) {
            self.control_heard(heard);
        }
    }

    fn control_heard(&mut self, heard: Heard) {
        let (request, asked) = match heard {
            Heard::Asked(request, asked) => (request, asked),
            Heard::Left(request) => return self.happened(Event::Withdrawn { request }),
        };
        match asked {
            Request::Reload(options) => self.requested(request, Wanted::Reload, options),
            Request::Upgrade(options) => self.requested(request, Wanted::Upgrade, options),
            Request::Scale { workers, options } => {
                self.requested(request, Wanted::Scale(workers), options);
            }
            Request::Cancel => self.cancel(request),
            Request::Rotation { to } => self.rotate(request, to),
            Request::Status => {
                let status = Reply::Status(Box::new(self.status()));
                self.reply(request, status);
            }
            // The end of the connection is the answer: it lives as long as the server.
            Request::Stop => {
                self.tell(request, "stopping");
                let by = "the control socket".to_owned();
                self.happened(Event::Stop { by });
            }
        }
    }

    fn requested(&mut self, request: RequestId, wanted: Wanted, options: Options) {
        self.happened(Event::Requested {
            request,
            wanted,
            wait: options.wait,
            drain: options.drain,
        });
    }

    /// Ends the operation in progress.
    fn cancel(&mut self, request: RequestId) {
        let caller = self.control.as_ref().and_then(|it| it.caller(request));
        let by = caller.map_or_else(
            || "`uppercased cancel`".to_owned(),
            |(pid, uid)| format!("`uppercased cancel` (process {pid} of user {uid})"),
        );
        self.happened(Event::Cancel { request, by });
    }

    /// A request that nobody can be told about, so it waits for its turn and is never refused for
    /// what is in progress.
    pub(super) fn remember(&mut self, wanted: Wanted) {
        let options = Options {
            wait: true,
            drain: false,
        };
        self.requested(RequestId::NOBODY, wanted, options);
    }

    /// Prepares a request whose turn it is, and has the machine begin it. A reload is prepared by a
    /// child, because reading a configuration may wait for others.
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
        self.happened(event);
    }

    /// The configuration of a reload has been read, or why it could not be.
    pub(super) fn resolved(&mut self, request: RequestId, config: Result<Config, String>) {
        let drain = self.machine.may_drain_what_begins();
        let prepared = config.and_then(|config| self.prepare_release(config, drain));
        self.happened(match prepared {
            Ok((release, policy)) => Event::Restart {
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
        // Numbers that nobody can have are refused by the machine.
        if (WORKERS.least..=WORKERS.most).contains(&workers) {
            if let Some(cause) = self.too_few(workers) {
                return Err(cause);
            }
            if let Some(cause) = self.no_room(workers, None).filter(|_| !drain) {
                return Err(cause);
            }
            Limits::settle(self.config(), workers, self.nofile)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// An earlier instance may have left listeners of more slots than there are to be. Their queues
    /// are emptied as in any other change of the number of workers.
    pub(super) fn shed_surplus(&mut self) {
        let wanted = self.config().workers;
        if usize::from(wanted) < self.slots.len() {
            self.remember(Wanted::Scale(ScaleTo::Exactly(wanted)));
        }
    }

    /// Why there cannot be so few workers, if so: a socket that a socket unit has goes on getting
    /// connections whether somebody serves it or not.
    fn too_few(&self, workers: u16) -> Option<String> {
        let least = self.activated;
        (workers < least).then(|| {
            format!(
                "{workers} workers are too few: the socket unit has {least} sockets for one \
                 address, each with a worker of its own; take lines ListenStream= from it first"
            )
        })
    }

    /// Why not every connection would be kept if only the first `stay` slots stayed, if so: with the
    /// workers that they have, or with new ones that have room for `renewed` connections each.
    fn no_room(&self, stay: u16, renewed: Option<u32>) -> Option<String> {
        let mains = self.machine.slots().map(|slot| WorkerId {
            slot: slot.id,
            generation: slot.generation,
        });
        let children = mains.filter_map(|worker| self.child(worker));
        let holdings = children.map(|child| Holding {
            slot: child.worker.slot,
            open: memory::open_connections(&child.memory),
            room: renewed
                .unwrap_or_else(|| memory::room(&child.memory))
                .into(),
        });
        Holding::too_many(holdings, stay)
    }

    /// Why workers that are renewed with `config` would not keep every connection, if so.
    pub(super) fn no_room_with(&self, config: &Config, limits: Limits) -> Option<String> {
        let room = self.room_for(config, limits);
        self.no_room(self.workers_with(config), Some(room))
    }

    /// The workers that there are to be with `config`: a number that was set by hand stays until the
    /// configuration names another.
    fn workers_with(&self, config: &Config) -> u16 {
        if config.workers == self.config().workers {
            u16::try_from(self.slots.len()).unwrap_or(u16::MAX)
        } else {
            config.workers
        }
    }

    /// Changes what load balancers are told. Nobody is refused for it.
    fn rotate(&mut self, request: RequestId, to: Rotation) {
        let from = std::mem::replace(&mut self.rotation, to);
        tracing::info!(from = from.name(), to = to.name(), "rotation changed");
        let workers = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        let done = Done {
            workers,
            ..Done::default()
        };
        self.reply(request, Reply::Done(done));
    }

    /// Opens the program on disk. Binds nothing.
    fn prepare_release(
        &mut self,
        config: Config,
        drain: bool,
    ) -> Result<(ReleaseId, Policy), String> {
        check_change(self.config(), &config).map_err(|error| error.to_string())?;
        let image = Image::open(&self.program).map_err(|error| {
            let program = self.program.display();
            format!("cannot open the program {program}: {error}; is it installed?")
        })?;
        self.add_release(image, config, drain)
    }

    /// Makes a release of a program and a configuration.
    pub(super) fn add_release(
        &mut self,
        image: Image,
        mut config: Config,
        drain: bool,
    ) -> Result<(ReleaseId, Policy), String> {
        // The same addresses, perhaps in another order: that of each slot's listeners stays.
        config.listen.clone_from(&self.config().listen);
        let now = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        let workers = self.workers_with(&config);
        if let Some(cause) = self.too_few(workers) {
            return Err(cause);
        }
        boot::check_account(&config).map_err(|error| error.to_string())?;
        let limits = Limits::settle(&config, workers.max(now), self.nofile)
            .map_err(|error| error.to_string())?;
        let room =
            memory_room().map_err(|error| format!("cannot read the limits on memory: {error}"))?;
        check_memory(&config, limits, workers.max(now), room).map_err(|error| error.to_string())?;
        if let Some(cause) = self.no_room_with(&config, limits).filter(|_| !drain) {
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
        Ok((self.releases.add(release), policy))
    }

    /// The release is everybody's now.
    pub(super) fn commit(&mut self, release: ReleaseId) {
        self.releases.commit(release);
        let config = self.config();
        log::adjust(config.log_level, config.log_format);
        boot::warn_about_backlog(config);
        for slot in self.machine.slots().map(|slot| slot.id).collect::<Vec<_>>() {
            self.set_options_of(slot);
        }
        self.spread();
        fault::point("supervisor.committed");
    }

    /// Has the connections that are accepted from a slot's listeners be as the release in force wants
    /// them, whichever release its worker runs.
    pub(super) fn set_options_of(&mut self, slot: SlotId) {
        let config = &self.releases.in_force().config;
        let set = self
            .slots
            .get(slot.index())
            .map(|it| it.set_options(&self.addresses, config));
        if let Some(Err(error)) = set {
            tracing::error!(slot = slot.0, error, "listener options not set");
            self.note_failure(Some(error));
        }
    }

    /// Tells whoever asked how an operation ended, and lets go of what nobody runs any more.
    pub(super) fn answer(&mut self, request: RequestId, answer: &Answer) {
        let mut reply = Reply::from(answer.clone());
        if let Reply::Done(done) = &mut reply {
            done.drained = self.draining_connections();
            done.closed_after_ms = millis(self.config().drain_timeout);
        }
        self.reply(request, reply);
        if self.machine.operation().is_none() {
            let seats = self.machine.slots().flat_map(|slot| {
                let successor = slot.successor.map(|seat| seat.release);
                [Some(slot.release), successor].into_iter().flatten()
            });
            let in_use: Vec<ReleaseId> = seats.collect();
            self.releases.keep_only(&in_use);
        }
    }

    /// Connections of workers that leave and serve them to their end.
    fn draining_connections(&self) -> u64 {
        let seats = self.machine.slots().flat_map(|slot| slot.predecessors);
        let leaving = seats.filter(|seat| seat.state == "leaving");
        let open = leaving.map(|seat| u64::from(self.open_connections(seat.worker)));
        open.fold(0, u64::saturating_add)
    }

    /// Tells whoever waits for an operation how far it is.
    pub(super) fn tell_progress(&mut self, notice: &Notice) {
        match notice {
            Notice::OperationStarted { request, .. } => self.asking = *request,
            Notice::OperationEnded { what, answer } => {
                // One that was refused has not begun: who waits for another goes on hearing of it.
                if !matches!(answer, Answer::Refused { .. }) {
                    self.asking = RequestId::NOBODY;
                }
                self.note_failure(report::failure(what, answer));
            }
            Notice::NotBegun { what, cause } => {
                self.note_failure(Some(format!("{what} refused: {cause}")));
            }
            Notice::RequestPending { request, .. } => {
                let waits_for = self.machine.operation();
                let waits_for = waits_for.as_deref().unwrap_or("it waits for old workers");
                self.tell(*request, &format!("waiting: {waits_for}"));
            }
            _ => {}
        }
        if let Some(text) = report::progress(notice) {
            self.tell(self.asking, &text);
        }
    }

    fn tell(&mut self, request: RequestId, text: &str) {
        if request != RequestId::NOBODY
            && let Some(control) = &mut self.control
        {
            control.progress(request, text, self.poll.registry());
        }
    }

    fn reply(&mut self, request: RequestId, reply: Reply) {
        if request != RequestId::NOBODY
            && let Some(control) = &mut self.control
        {
            control.answer(request, reply, self.poll.registry(), clock::now());
        }
    }
}
