//! The supervisor becomes another program: the pre-flight, and the exec in place.
//!
//! In order: the program on disk is opened once; as a child it reads the very state that it would
//! be given, and comes up as far as a worker does; only the file that passed is executed. The state
//! goes over in a memfd, descriptors by their numbers. Signals are blocked from before the state is
//! written until the new program handles them ([`mod@super::resume`]); what comes meanwhile stays
//! pending in the kernel, and what had come already travels in the state.
//!
//! Invariant: whatever fails before exec leaves everything as it was.

pub(crate) mod program;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mio::Interest;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow};

use crate::channel::{self, Channel};
use crate::config::{Config, verify};
use crate::fault;
use crate::sys::hangup;
use crate::sys::image::{Image, Process};
use crate::sys::limits::explain;
use crate::sys::shared::SharedMemory;
use crate::wire::{Envelope, FromPreflight, ToPreflight};
use uppercased_ctl::identity::{RequestId, WorkerId};

use super::Supervisor;
use super::admin::AdminEndpoint;
use super::fleet::children::{Child, death_of, send_failure};
use super::fleet::releases::Limits;
use super::fleet::resources::SlotResources;
use super::machine::{Death, Event};
use super::reaper::Killed;
use super::state::{SavedChild, SavedControl, SavedRelease, SavedSlot, State};
use super::tokens::Source;

/// What the child of a reload or of an upgrade is doing.
#[derive(Debug, Default)]
pub(super) enum Preflight {
    /// There is none.
    #[default]
    Idle,
    /// It has not answered.
    Running {
        task: Task,
        process: Process,
        channel: PreflightChannel,
    },
    /// The new program could take over; this file is executed next, with the configuration that it
    /// has read.
    Passed {
        image: Image,
        config: serde_json::Value,
    },
}

type PreflightChannel = Channel<ToPreflight, FromPreflight>;

/// What a child is for.
#[derive(Debug)]
pub(super) enum Task {
    /// To read the configuration for a reload.
    Resolve { request: RequestId },
    /// To show that this program can take over.
    TakeOver { image: Image },
}

impl Supervisor {
    /// Has a child read the configuration for a reload.
    pub(super) fn begin_resolution(&mut self, request: RequestId) {
        let failed = |cause: String| format!("cannot read the configuration: {cause}");
        let begun = Image::of_this_process()
            .map_err(|error| error.to_string())
            .and_then(|image| self.start_preflight(&image, ToPreflight::Resolve, &[]));
        match begun {
            Ok((process, channel)) => {
                let task = Task::Resolve { request };
                self.watch_preflight(task, process, channel);
                fault::point("supervisor.resolving");
            }
            Err(cause) => self.resolved(request, Err(failed(cause))),
        }
    }

    /// Lets the program on disk show that it can take over.
    pub(super) fn begin_preflight(&mut self) {
        match self.try_preflight() {
            Ok((image, process, channel)) => {
                self.watch_preflight(Task::TakeOver { image }, process, channel);
                fault::point("supervisor.preflight");
            }
            Err(cause) => self.happened(Event::PreflightFailed { cause }),
        }
    }

    fn try_preflight(&self) -> Result<(Image, Process, PreflightChannel), String> {
        let program = self.program.display();
        let image = Image::open(&self.program)
            .map_err(|error| format!("cannot open the program {program}: {error}"))?;
        let state = self.written_state()?;
        let (process, channel) = self
            .start_preflight(&image, ToPreflight::TakeOver, &[state.as_fd()])
            .map_err(|cause| format!("cannot try the program {program}: {cause}"))?;
        Ok((image, process, channel))
    }

    /// Starts a child that runs `image` with the arguments of this server, and finds its task in its
    /// channel.
    fn start_preflight(
        &self,
        image: &Image,
        task: ToPreflight,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Process, PreflightChannel), String> {
        let (mut channel, there) = Channel::pair().map_err(|error| error.to_string())?;
        channel
            .send(&Envelope::without_worker(task), descriptors)
            .map_err(|error| error.to_string())?;
        let fixed = ["uppercased: preflight", "preflight", "--"].map(OsString::from);
        let typed = self.typed.args.iter().skip(1).cloned();
        let arguments = fixed.into_iter().chain(typed);
        let process = image
            .spawn(arguments, &there, |error| {
                let cause = format!("cannot execute it: {error}");
                send_failure(&there, WorkerId::default(), FromPreflight::Failed { cause });
            })
            .map_err(|error| error.to_string())?;
        Ok((process, channel))
    }

    /// Waits for the child's answer, or for its end; one that cannot be waited for fails at once.
    fn watch_preflight(&mut self, task: Task, process: Process, channel: PreflightChannel) {
        let both = Interest::READABLE | Interest::WRITABLE;
        let number = channel.as_fd().as_raw_fd();
        let watched = self
            .watch(number, Source::PreflightChannel, both)
            .and_then(|()| {
                let number = process.as_fd().as_raw_fd();
                self.watch(number, Source::PreflightProcess, Interest::READABLE)
            });
        self.preflight = Preflight::Running {
            task,
            process,
            channel,
        };
        if let Err(error) = watched {
            self.conclude_preflight(Err(format!("it cannot be watched: {error}")));
        }
    }

    /// Takes the answer of a pre-flight, from its message or from its end.
    pub(super) fn look_at_preflight(&mut self) {
        let Preflight::Running {
            channel, process, ..
        } = &mut self.preflight
        else {
            return;
        };
        let outcome = match channel.receive() {
            Ok(None) => match death_of(process) {
                None => return,
                Some(how) => Err(ended_early(how)),
            },
            Ok(Some(received)) => match received.envelope.message {
                FromPreflight::Resolved { config } => Ok(config),
                FromPreflight::Failed { cause } => Err(cause),
            },
            // It is ending; its pidfd tells how.
            Err(channel::Error::Closed) => match death_of(process) {
                None => return,
                Some(how) => Err(ended_early(how)),
            },
            Err(error) => Err(error.to_string()),
        };
        self.conclude_preflight(outcome);
    }

    /// Ends the child and acts on what came of it.
    fn conclude_preflight(&mut self, outcome: Result<serde_json::Value, String>) {
        match self.take_preflight() {
            Some(Task::Resolve { request }) => {
                let config = outcome.and_then(checked);
                self.resolved(request, config);
            }
            Some(Task::TakeOver { image }) => match outcome {
                Ok(config) => match self.no_room_after_upgrade(&config) {
                    Some(cause) => self.happened(Event::PreflightFailed { cause }),
                    None => {
                        self.preflight = Preflight::Passed { image, config };
                        self.happened(Event::PreflightPassed);
                    }
                },
                Err(cause) => {
                    let program = self.program.display();
                    let cause = format!("the program {program}: {cause}");
                    self.happened(Event::PreflightFailed { cause });
                }
            },
            None => {}
        }
    }

    /// Why an upgrade with this configuration would not keep every connection, if so. One that only
    /// the new program understands is that one's to judge, where connections are to move.
    fn no_room_after_upgrade(&self, config: &serde_json::Value) -> Option<String> {
        if self.machine.may_drain() {
            return None;
        }
        let config = checked(config.clone()).ok()?;
        let now = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        let limits = Limits::settle(&config, config.workers.max(now), self.nofile).ok()?;
        self.no_room_with(&config, limits)
    }

    /// Ends a pre-flight, whatever it was about to say.
    pub(super) fn end_preflight(&mut self) {
        self.take_preflight();
    }

    /// The task of a pre-flight, whose process is killed.
    fn take_preflight(&mut self) -> Option<Task> {
        match std::mem::take(&mut self.preflight) {
            Preflight::Idle | Preflight::Passed { .. } => None,
            Preflight::Running {
                task,
                process,
                channel,
            } => {
                self.kill_later_reaped(process, channel.into_packets());
                Some(task)
            }
        }
    }

    /// Becomes the program that passed the pre-flight. If that fails, everything goes on.
    pub(super) fn exec(&mut self) {
        // Signals that had come already: what is taken from the handler's pipe is kept here, and
        // handled below, whichever step fails.
        let mut came = Vec::new();
        fault::point("supervisor.exec");
        let cause = self.replace_program(&mut came);
        self.happened(Event::ExecFailed { cause });
        for number in came {
            self.obey_signal(number);
        }
    }

    /// Returns why this program goes on.
    fn replace_program(&mut self, came: &mut Vec<i32>) -> String {
        let Preflight::Passed { image, config } = std::mem::take(&mut self.preflight) else {
            return "no program has passed the pre-flight".to_owned();
        };
        let busy = |child: &&Child| !child.channel.is_flushed();
        let mut children = self.slots.iter().flat_map(SlotResources::children);
        if let Some(child) = children.find(busy) {
            return format!("{} does not read its channel", child.worker);
        }
        let blocked = match SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK) {
            Ok(blocked) => blocked,
            Err(errno) => return format!("cannot block signals: {errno}"),
        };
        // A child that the new program does not know would be nobody's.
        self.pause_admin();
        let cause = self.try_replace_program(&image, config, came);
        // It was the mask a moment ago.
        let _ = blocked.thread_set_mask();
        cause
    }

    fn try_replace_program(
        &mut self,
        image: &Image,
        config: serde_json::Value,
        came: &mut Vec<i32>,
    ) -> String {
        let earlier = match Image::of_this_process() {
            Ok(earlier) => earlier,
            Err(error) => return format!("cannot keep the running program: {error}"),
        };
        came.extend(self.signals.pending());
        let mut state = self.state();
        state.signals.clone_from(came);
        state.resolved = Some(config);
        if let Err(error) = fault::fail("supervisor.state_at_exec") {
            return error.to_string();
        }
        let written = match write_state(&state) {
            Ok(written) => written,
            Err(cause) => return cause,
        };
        let text = format!("{}:{}", written.as_raw_fd(), earlier.as_fd().as_raw_fd());
        let mut kept = self.descriptors();
        kept.extend([written.as_fd(), earlier.as_fd()]);
        fault::point("supervisor.before_exec");
        let error = image.replace_this_process(&self.typed.args, &text, &kept);
        format!("cannot execute {}: {error}", self.program.display())
    }

    fn written_state(&self) -> Result<OwnedFd, String> {
        write_state(&self.state())
    }

    /// Everything, as it is now.
    fn state(&self) -> State {
        let (version, wire) = State::versions();
        let releases = self.releases.iter().map(|(id, release)| SavedRelease {
            id,
            image: release.image.as_fd().as_raw_fd(),
            config: release.config.clone(),
            max_connections: release.limits.max_connections,
            descriptors: release.limits.descriptors,
        });
        let control = self.control.as_ref().map(|control| {
            let (saved, descriptors) = control.suspend();
            let descriptors = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            SavedControl { saved, descriptors }
        });
        State {
            version,
            wire,
            written_by: fault::program_version().to_owned(),
            program: self.program.clone(),
            snapshot: self.machine.snapshot(),
            addresses: self.addresses.clone(),
            started: self.started,
            in_force: self.releases.in_force_id(),
            latest: self.releases.latest(),
            releases: releases.collect(),
            slots: self.slots.iter().map(saved_slot).collect(),
            dropped: self.former.sum(),
            former: self.former.clone(),
            times: self.times.clone(),
            locks: self
                .locks
                .iter()
                .map(|lock| lock.as_fd().as_raw_fd())
                .collect(),
            control,
            activated: self.activated,
            admin: self.admin.as_ref().and_then(AdminEndpoint::saved_http),
            agent: self.admin.as_ref().and_then(AdminEndpoint::saved_agent),
            admin_deaths: self.admin.as_ref().map_or(0, AdminEndpoint::deaths),
            systemd: self.saved_systemd(),
            rotation: self.rotation,
            asking: self.asking,
            terminal: self.terminal,
            signals: Vec::new(),
            hangup: hangup::seen(),
            rebinds: self.rebinds.clone(),
            killed: self.killed.iter().map(Killed::saved).collect(),
            announcement: self
                .announcement
                .as_ref()
                .map_or_else(Vec::new, |it| it.rest().to_vec()),
            resolved: None,
        }
    }

    /// The descriptors that a state names.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut kept: Vec<BorrowedFd<'_>> = Vec::new();
        kept.extend(
            self.releases
                .iter()
                .map(|(_, release)| release.image.as_fd()),
        );
        for slot in &self.slots {
            kept.extend(slot.borrowed_listeners());
            for child in slot.children() {
                kept.extend([
                    child.process.as_fd(),
                    child.channel.as_fd(),
                    child.memory.fd(),
                ]);
            }
            kept.extend(slot.left_behind().map(SharedMemory::fd));
        }
        kept.extend(self.locks.iter().map(AsFd::as_fd));
        if let Some(control) = &self.control {
            kept.extend(control.suspend().1);
        }
        kept.extend(self.admin.iter().flat_map(AdminEndpoint::listeners));
        kept.extend(self.killed.iter().flat_map(Killed::descriptors));
        kept
    }
}

fn saved_slot(slot: &SlotResources) -> SavedSlot {
    let children = slot.children().iter().map(|child| SavedChild {
        worker: child.worker,
        release: child.release,
        pid: child.pid(),
        process: child.process_number(),
        channel: child.channel_number(),
        memory: child.memory.fd().as_raw_fd(),
        sandbox: child.sandbox.clone(),
    });
    SavedSlot {
        listeners: slot.listeners().iter().map(AsRawFd::as_raw_fd).collect(),
        children: children.collect(),
        left_behind: slot.left_behind().map(|memory| memory.fd().as_raw_fd()),
        carried: slot.carried().clone(),
    }
}

fn write_state(state: &State) -> Result<OwnedFd, String> {
    let failed = |error: io::Error| format!("cannot write the state down: {}", explain(&error));
    let bytes = state.to_json().map_err(|error| error.to_string())?;
    let name = c"uppercased-state";
    let memfd = memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let mut file = std::fs::File::from(memfd);
    file.write_all(&bytes).map_err(failed)?;
    Ok(file.into())
}

/// A configuration that this very program has sent as data.
fn checked(config: serde_json::Value) -> Result<Config, String> {
    let failed = |cause: String| format!("the configuration came back damaged: {cause}");
    let config = serde_json::from_value(config).map_err(|error| failed(error.to_string()))?;
    verify(&config).map_err(|error| failed(error.to_string()))?;
    Ok(config)
}

fn ended_early(how: Death) -> String {
    format!("it ended before it had shown that it can take over: {how}")
}
