//! The parts of reloads and upgrades that concern the whole supervisor: the preflight's result,
//! and the exec.
//!
//! Signals are blocked from before the state is written until the new binary handles them
//! ([`mod@super::resume`]); signals that arrive meanwhile stay pending in the kernel, and earlier
//! ones are saved in the state.
//!
//! Invariant: a failure before the exec leaves everything as it was.

use std::os::fd::{AsFd as _, AsRawFd as _};

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::fault;
use crate::sys::fd::Kept;
use crate::sys::image::Image;
use uppercased_ctl::clock;
use uppercased_ctl::identity::RequestId;

use super::Supervisor;
use super::machine::Event;
use super::state::State;
use super::upgrade::{self, EarlierBinary, Passed};

impl Supervisor {
    /// Starts a child that reads the configuration for a reload.
    pub(super) fn begin_resolution(&mut self, request: RequestId) {
        let registry = self.poll.registry();
        if let Err(cause) = self.upgrade.begin_resolution(request, registry) {
            self.end_preflight();
            let cause = format!("cannot read the configuration: {cause}");
            self.resolved(request, Err(cause));
        }
    }

    /// Starts the preflight of the new binary.
    pub(super) fn begin_preflight(&mut self) {
        let state = self.save(&mut Kept::default()).write();
        let registry = self.poll.registry();
        let begun = state.and_then(|state| self.upgrade.begin_preflight(&state, registry));
        if let Err(cause) = begun {
            self.end_preflight();
            self.apply(Event::PreflightFailed { cause });
        }
    }

    /// Handles the result of the child.
    pub(super) fn preflight_ended(&mut self) {
        let Some((event, child)) = self.upgrade.on_ready() else {
            return;
        };
        self.end(Some(child));
        match event {
            upgrade::Event::Resolved { request, config } => self.resolved(request, config),
            upgrade::Event::Passed => {
                if let Some(cause) = self.no_room_after_upgrade() {
                    self.upgrade.take_passed();
                    self.apply(Event::PreflightFailed { cause });
                } else {
                    self.apply(Event::PreflightPassed);
                }
            }
            upgrade::Event::Failed(cause) => self.apply(Event::PreflightFailed { cause }),
        }
    }

    /// Ends the child and ignores its result.
    pub(super) fn end_preflight(&mut self) {
        let child = self.upgrade.end();
        self.end(child);
    }

    /// Returns why an upgrade to the checked program would not keep every connection, if so. A
    /// configuration that only the new binary can read is checked by that one, when connections
    /// are to migrate.
    fn no_room_after_upgrade(&self) -> Option<String> {
        if self.machine.may_drain() {
            return None;
        }
        let config = self.upgrade.passed_config()?;
        let workers = config.workers.max(self.fleet.slot_count());
        let limits = self.fleet.limits(&config, workers).ok()?;
        let active = self.active_workers();
        self.fleet.no_room_with(&config, limits, active)
    }

    /// Execs the program that passed the preflight. If that fails, this one continues.
    pub(super) fn exec(&mut self) {
        fault::point("supervisor.exec");
        if !self.inquiry.is_none() {
            // The next program asks again.
            let child = self.inquiry.end();
            self.end(child);
            self.signals.repeat_stop();
        }
        let cause = self.replace_program();
        self.apply(Event::ExecFailed { cause });
        self.handle_signals();
    }

    /// Returns why this program continues.
    fn replace_program(&mut self) -> String {
        let Some(passed) = self.upgrade.take_passed() else {
            return "no binary has passed the preflight".to_owned();
        };
        if let Some(worker) = self.fleet.first_behind() {
            return format!("{worker} does not read its messages");
        }
        let blocked = match SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK) {
            Ok(blocked) => blocked,
            Err(errno) => return format!("cannot block signals: {errno}"),
        };
        // The new binary has no record of this child and would never reap it.
        let admin = self.admin.pause(clock::now());
        self.end(admin);
        let cause = self.try_replace_program(passed);
        // This mask was in force before.
        let _ = blocked.thread_set_mask();
        cause
    }

    fn try_replace_program(&mut self, Passed { image, config }: Passed) -> String {
        let earlier = match Image::of_this_process() {
            Ok(earlier) => earlier,
            Err(error) => return format!("cannot keep the running binary open: {error}"),
        };
        self.signals.hold();
        let mut kept = Kept::default();
        let state = State {
            resolved: Some(config),
            ..self.save(&mut kept)
        };
        if let Err(error) = fault::fail("supervisor.state_at_exec") {
            return error.to_string();
        }
        let written = match state.write() {
            Ok(written) => written,
            Err(cause) => return cause,
        };
        kept.keep(&written);
        kept.keep(&earlier);
        let name = EarlierBinary::name(&written, earlier.as_fd().as_raw_fd());
        fault::point("supervisor.before_exec");
        self.upgrade.exec(&image, &name, kept.as_slice())
    }

    /// Returns the whole state of this supervisor, with its descriptors.
    fn save<'a>(&'a self, kept: &mut Kept<'a>) -> State {
        let (version, wire) = State::versions();
        State {
            version,
            wire,
            written_by: fault::program_version().to_owned(),
            machine: self.machine.snapshot(),
            fleet: self.fleet.save(kept),
            control: self.control.save(kept),
            admin: self.admin.save(kept),
            systemd: self.systemd.save(kept),
            lease: kept.keep(&self.lease),
            upgrade: self.upgrade.save(),
            telemetry: self.telemetry.save(),
            locks: self.locks.save(kept),
            signals: self.signals.save(),
            reaper: self.reaper.save(kept),
            resolved: None,
        }
    }
}
