//! Resumes a server after an exec: the other half of an upgrade in place.
//!
//! Reads the state that the earlier binary has left; each part finds its descriptors by the numbers
//! in the state. If this program cannot take over, the earlier one, whose file was kept open for
//! that, is executed again and resumes.
//!
//! Invariants: everything that can fail works on duplicates, so a return to the earlier binary
//! passes on the original descriptors with their original numbers; signals stay blocked until they
//! are handled.
//!
//! It must not decide which release the workers run next (the machine does).

use std::ffi::OsString;
use std::io;

use mio::Poll;
use nix::sys::signal::SigSet;

use crate::config::{Config, verify};
use crate::fault;
use crate::log::{self, event};
use crate::sys::fd::Inherited;
use crate::sys::image::Image;
use uppercased_ctl::clock;
use uppercased_ctl::process::raise_descriptor_limit;

use super::Supervisor;
use super::admin::Admin;
use super::boot::watch_lease;
use super::control::Control;
use super::fleet::Fleet;
use super::locks::PortLocks;
use super::machine::{Event, Machine};
use super::reaper::Reaper;
use super::resize::Resize;
use super::signals::Signals;
use super::state::State;
use super::systemd::Systemd;
use super::systemd::inquiry::Inquiry;
use super::telemetry::Telemetry;
use super::upgrade::{EarlierBinary, Upgrade};

impl Supervisor {
    /// Takes over from the earlier binary of this process.
    ///
    /// # Errors
    /// The reason why this program cannot take over; the earlier one can then resume.
    pub(super) fn resume(args: Vec<OsString>) -> Result<Self, String> {
        fault::point("supervisor.resuming");
        let earlier = EarlierBinary::find()?;
        let mut inherited = Inherited::default();
        let state = earlier.take_state(&mut inherited);
        let state = state.map_err(|error| format!("cannot find the state: {error}"))?;
        let (state, machine) = State::read(state).map_err(|error| error.to_string())?;
        fault::fail("supervisor.resume").map_err(|error| error.to_string())?;
        // The earlier binary, executed again, keeps its configuration.
        let outcome = match earlier.cause {
            Some(cause) => Err(cause),
            None => Ok(config_of(&state)?),
        };
        let (level, format) = state.log_settings();
        log::init(level, format).map_err(|error| error.to_string())?;
        let nofile = raise_descriptor_limit();
        let nofile =
            nofile.map_err(|error| format!("cannot raise the descriptor limit: {error}"))?;
        let restored = Self::restore(state, machine, &mut inherited, (args, nofile));
        let mut supervisor = restored
            .map_err(|error| format!("cannot adopt the state of the earlier binary: {error}"))?;

        // The point of no return: nothing below can fail.
        inherited.close();
        supervisor.control.own_file();
        supervisor.admin.own_files();
        // Blocked by the earlier binary; signals since then are delivered now.
        let _ = SigSet::empty().thread_set_mask();
        let _ = nix::sys::prctl::set_name(c"uppercased");
        supervisor.report_outcome(outcome);
        supervisor.handle_signals();
        Ok(supervisor)
    }

    fn restore(
        state: State,
        machine: Machine,
        inherited: &mut Inherited,
        (args, nofile): (Vec<OsString>, u64),
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        fault::fail("resume.watch_basics")?;
        let signals = Signals::restore(state.signals, registry)?;
        let locks = PortLocks::restore(state.locks, inherited, registry)?;
        let fleet = Fleet::restore(state.fleet, inherited, registry, (nofile, clock::now()))?;
        let reaper = Reaper::restore(state.reaper, inherited, registry)?;
        let admin = Admin::restore(state.admin, inherited)?;
        fault::fail("resume.control")?;
        let control = Control::restore(state.control, inherited, registry)?;
        let stored = fleet.listening();
        let systemd = Systemd::restore(state.systemd, stored, inherited, registry)?;
        let lease = inherited.take(state.lease)?;
        watch_lease(&lease, registry)?;
        let telemetry = Telemetry::restore(state.telemetry, registry, clock::now());
        let resize = Resize::new(fleet.config().workers, clock::now());
        Ok(Self {
            poll,
            machine,
            fleet,
            control,
            admin,
            systemd,
            lease,
            upgrade: Upgrade::restore(state.upgrade, args),
            telemetry,
            signals,
            locks,
            reaper,
            inquiry: Inquiry::default(),
            resize,
            outcome: None,
            closing: None,
        })
    }

    /// Reports to the machine whether the program has changed.
    fn report_outcome(&mut self, outcome: Result<Config, String>) {
        let resumed = outcome.and_then(|config| {
            let image = Image::of_this_process()
                .map_err(|error| format!("cannot open /proc/self/exe: {error}"))?;
            // Connections that do not fit are detected at their migration, and stay.
            self.add_release(image, config, true)
        });
        event!(
            server_resumed,
            pid = std::process::id(),
            version = fault::program_version(),
            upgraded = resumed.is_ok()
        );
        match resumed {
            Ok((release, policy)) => self.apply(Event::Resumed { release, policy }),
            Err(cause) => self.apply(Event::ExecFailed { cause }),
        }
    }
}

/// Returns the configuration as the preflight of this program has read it, so that nothing that
/// may block is read again.
fn config_of(state: &State) -> Result<Config, String> {
    let config = state.resolved.clone();
    let config = config.ok_or("the state has no configuration for this binary")?;
    let config: Config = serde_json::from_value(config)
        .map_err(|error| format!("cannot read the configuration: {error}"))?;
    verify(&config).map_err(|error| error.to_string())?;
    let fits = state.check_config(&config);
    fits.map_err(|error| error.to_string())?;
    Ok(config)
}
