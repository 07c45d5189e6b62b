//! A program that finds itself in a process with a past: the other half of an upgrade in place.
//!
//! It reads the state that the earlier program has left and does everything that can fail through
//! borrowed descriptors: memories are mapped, sockets and processes watched. Only then it owns the
//! first one. If it cannot go on it executes the earlier program, whose file was left open for that,
//! and which then finds itself where it had stopped.
//!
//! Invariants: what owns ([`adopt`]) cannot fail, since a descriptor that was dropped would be a
//! listener or a worker lost; giving back passes on the very numbers that came; signals stay blocked
//! until they are handled.
//!
//! It must not decide what the workers run next: the machine is told, and does.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::process::ExitCode;

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};
use nix::sys::signal::SigSet;

use crate::channel::Channel;
use crate::channel::packets::Packets;
use crate::config::{CommandLine, Config, verify};
use crate::fault;
use crate::log;
use crate::port::Lock;
use crate::sys::fd::{Inherited, duplicate_inherited};
use crate::sys::hangup;
use crate::sys::image::{Image, Process, STATE_VARIABLE};
use crate::sys::limits::raise_descriptor_limit;
use crate::sys::shared::{Mapping, SharedMemory};
use crate::wire;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::stderr;

use super::admin::{AdminEndpoint, SavedListener};
use super::control::ControlServer;
use super::fleet::children::{Child, Talk};
use super::fleet::releases::{Limits, Release, Releases};
use super::fleet::resources::SlotResources;
use super::fleet::totals::Former;
use super::machine::{Event, Machine};
use super::reaper::Killed;
use super::reaper::evidence::Evidence;
use super::state::{SavedSlot, State};
use super::systemd::Systemd;
use super::systemd::notify::Notifier;
use super::tokens::{CONTROL_FIRST, Source};
use super::upgrade::Preflight;
use super::{Signals, Supervisor, signals};

/// The longest state that is read, in bytes: a thousand slots need about a hundredth of it.
const STATE_MAX_BYTES: u64 = 64 << 20;

/// What the earlier program of this process has left.
#[derive(Debug)]
struct Left {
    /// The number of the state's descriptor.
    state: RawFd,
    /// The number of the earlier program's file.
    image: RawFd,
    /// Set when this program *is* the earlier one, called back: why the other could not go on.
    cause: Option<String>,
}

/// Whether an earlier program of this process has left its state.
#[must_use]
pub fn is_resuming() -> bool {
    std::env::var_os(STATE_VARIABLE).is_some()
}

/// Gives the process back to the program that it ran before, because this one cannot go on.
/// Returns only if that is impossible, too.
pub(super) fn give_back(cause: &str) -> ExitCode {
    let error = match Left::find() {
        Ok(Left { cause: Some(_), .. }) => "it is the earlier program itself".to_owned(),
        Ok(left) => match left.give_back(cause) {
            Ok(never) => match never {},
            Err(error) => error.to_string(),
        },
        Err(error) => error,
    };
    stderr::complain(&format!(
        "cannot go on with the running server ({cause}), nor give it back ({error}); its workers \
         finish what they owe"
    ));
    ExitCode::FAILURE
}

impl Left {
    fn find() -> Result<Self, String> {
        let text = std::env::var(STATE_VARIABLE).map_err(|error| error.to_string())?;
        let mut parts = text.splitn(3, ':');
        let mut number = || parts.next()?.parse().ok();
        let numbers = number().zip(number());
        let (state, image) =
            numbers.ok_or_else(|| format!("{STATE_VARIABLE} is {text:?}: not two descriptors"))?;
        Ok(Self {
            state,
            image,
            cause: parts.next().map(str::to_owned),
        })
    }

    fn give_back(&self, cause: &str) -> io::Result<std::convert::Infallible> {
        let image = Image::from(duplicate_inherited(self.image)?);
        // Nothing of what came has been touched: it goes on through this exec as through the last.
        let text = format!("{}:{}:{cause}", self.state, self.image);
        let arguments: Vec<OsString> = std::env::args_os().collect();
        Err(image.replace_this_process(arguments, &text, &[]))
    }

    fn read(&self) -> Result<Vec<u8>, String> {
        let state = duplicate_inherited(self.state);
        let state = state.map_err(|error| format!("the state is not there: {error}"))?;
        read_state(state).map_err(|error| format!("the state cannot be read: {error}"))
    }
}

/// Whether this program could go on with the state in `written`, with `config` as it reads it: the
/// part of a pre-flight that concerns the supervisor. What its workers would be told, if so.
///
/// # Errors
/// Why not, in one line.
pub fn examine(written: OwnedFd, config: Config) -> Result<wire::Start, String> {
    let bytes = read_state(written).map_err(|error| format!("cannot read the state: {error}"))?;
    let (state, machine) = State::read(&bytes).map_err(|error| error.to_string())?;
    state
        .check_config(&config)
        .map_err(|error| error.to_string())?;
    let nofile = raise_descriptor_limit();
    let nofile = nofile.map_err(|error| format!("cannot raise the descriptor limit: {error}"))?;
    let workers = config.workers.max(machine.policy().workers);
    let limits = Limits::settle(&config, workers, nofile).map_err(|error| error.to_string())?;
    let image = Image::of_this_process();
    let image = image.map_err(|error| format!("cannot open /proc/self/exe: {error}"))?;
    let release = Release {
        image,
        config,
        limits,
    };
    Ok(release.start(&state.addresses, true, true))
}

/// The bytes of a state.
///
/// # Errors
/// What reading it returned; `FileTooLarge` if it cannot be one.
fn read_state(state: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::from(state);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(STATE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > STATE_MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Goes on where the earlier program of this process has stopped.
///
/// # Errors
/// Why this program cannot. No descriptor is owned then, and the earlier program can have everything
/// back.
pub(super) fn resume(typed: CommandLine) -> Result<Supervisor, String> {
    fault::point("supervisor.resuming");
    let left = Left::find()?;
    let text = |error: super::state::Error| error.to_string();
    let (state, machine) = State::read(&left.read()?).map_err(text)?;
    if fault::value("supervisor.resume") == Some("refuse") && left.cause.is_none() {
        return Err("it was asked to refuse".to_owned());
    }
    // The earlier program, called back, goes on with what it had.
    let outcome = match left.cause.clone() {
        Some(cause) => Err(cause),
        None => {
            // Its pre-flight has read it; nothing that may wait is asked again.
            let config = state.resolved.clone();
            let config = config.ok_or("the state has no configuration for this program")?;
            let config: Config = serde_json::from_value(config)
                .map_err(|error| format!("the configuration cannot be read: {error}"))?;
            verify(&config).map_err(|error| error.to_string())?;
            state.check_config(&config).map_err(text)?;
            Ok(config)
        }
    };
    let (level, format) = state.log_settings();
    log::init(level, format).map_err(|error| error.to_string())?;
    let failed = |what: &str, error: io::Error| format!("cannot {what}: {error}");
    let nofile =
        raise_descriptor_limit().map_err(|error| failed("raise the descriptor limit", error))?;
    let poll = Poll::new().map_err(|error| failed("create an epoll instance", error))?;
    let signals = signals().map_err(|error| failed("handle signals", error))?;
    let mut numbers = state.descriptors();
    numbers.extend([left.state, left.image]);
    let inherited = Inherited::check(&numbers).map_err(|error| error.to_string())?;
    let prepared = Prepared::of(&state, (poll, signals), &inherited)
        .map_err(|error| failed("take over what the earlier program had", error))?;

    // The point of no return: nothing below can fail.
    let came = state.signals.clone();
    hangup::note(state.hangup);
    let mut supervisor = adopt(state, machine, (typed, nofile), prepared, inherited);
    // Blocked by the earlier program; what came since then is delivered now.
    let _ = SigSet::empty().thread_set_mask();
    let _ = nix::sys::prctl::set_name(c"uppercased");
    supervisor.first_words(outcome);
    for number in came {
        supervisor.obey_signal(number);
    }
    Ok(supervisor)
}

/// All of the new program's own that may be refused: made over descriptors that it does not own yet.
struct Prepared {
    poll: Poll,
    signals: Signals,
    /// In the order of the state's slots: of each child, then the one left behind.
    memories: VecDeque<Mapping>,
    control: Option<ControlServer>,
}

impl Prepared {
    fn of(
        state: &State,
        (poll, signals): (Poll, Signals),
        inherited: &Inherited,
    ) -> io::Result<Self> {
        let watch = |number: RawFd, source: Source, interest: Interest| {
            let token = source.token();
            poll.registry()
                .register(&mut SourceFd(&number), token, interest)
        };
        fault::fail("resume.watch_basics")?;
        let read = signals.get_read().as_raw_fd();
        watch(read, Source::Signals, Interest::READABLE)?;
        for (index, &lock) in state.locks.iter().enumerate() {
            watch(lock, Source::Lock(index), Interest::READABLE)?;
        }
        let mut memories = VecDeque::new();
        let mut serial = 0;
        for slot in &state.slots {
            for child in &slot.children {
                fault::fail("resume.watch_child")?;
                let both = Interest::READABLE | Interest::WRITABLE;
                watch(child.channel, Source::Channel(serial), both)?;
                watch(child.process, Source::Process(serial), Interest::READABLE)?;
                serial += 1;
            }
            let children = slot.children.iter().map(|child| child.memory);
            for number in children.chain(slot.left_behind) {
                fault::fail("resume.map_memory")?;
                memories.push_back(Mapping::of(inherited.borrow(number))?);
            }
        }
        // Last: dropped, it would remove its file.
        let control = match &state.control {
            None => None,
            Some(control) => {
                fault::fail("resume.control")?;
                let numbers = control.descriptors.iter();
                let duplicates = numbers.map(|&number| duplicate_inherited(number));
                Some(ControlServer::resume(
                    control.saved.clone(),
                    duplicates.collect::<io::Result<_>>()?,
                    poll.registry(),
                    Token(CONTROL_FIRST),
                )?)
            }
        };
        Ok(Self {
            poll,
            signals,
            memories,
            control,
        })
    }
}

/// Owns everything that `state` names, and what goes with it. Cannot fail.
fn adopt(
    state: State,
    machine: Machine,
    (typed, nofile): (CommandLine, u64),
    prepared: Prepared,
    mut inherited: Inherited,
) -> Supervisor {
    let Prepared {
        poll,
        signals,
        mut memories,
        control,
    } = prepared;
    let mut known = BTreeMap::new();
    for saved in state.releases {
        let release = Release {
            image: Image::from(inherited.own(saved.image)),
            config: saved.config,
            limits: Limits {
                max_connections: saved.max_connections,
                descriptors: saved.descriptors,
            },
        };
        known.insert(saved.id, release);
    }
    let mut next_serial = 0;
    let slots = state.slots.into_iter();
    let slots: Vec<SlotResources> = slots
        .map(|saved| adopt_slot(saved, &mut inherited, &mut memories, &mut next_serial))
        .collect();
    let free = SlotId(u16::try_from(slots.len()).unwrap_or(u16::MAX));
    let former = if state.former.is_empty() {
        Former::of_all(state.dropped, free)
    } else {
        state.former
    };
    let locks = state.locks.iter().map(|&lock| inherited.own(lock));
    let locks = locks.map(Lock::from).collect();
    let mut listener = |saved: SavedListener| {
        let number = saved.listener;
        saved.resume(inherited.own(number))
    };
    let http = state.admin.map(&mut listener);
    let agent = state.agent.map(&mut listener);
    let killed = state.killed.iter().map(|child| {
        let process = Process::inherited(child.pid, inherited.own(child.process));
        Killed::new(process, Packets::over(inherited.own(child.channel)))
    });
    let killed = killed.collect();
    // What is left was duplicated, or was for the earlier program to be called back.
    inherited.close();
    let mut supervisor = Supervisor {
        typed,
        program: state.program,
        started: state.started,
        releases: Releases::restored(known, state.in_force, state.latest),
        addresses: state.addresses,
        nofile,
        poll,
        signals,
        locks,
        control,
        admin: AdminEndpoint::over(http, agent, state.admin_deaths),
        systemd: Systemd::from_environment(Notifier::resumed),
        activated: state.activated,
        evidence: Evidence::gathered(),
        machine,
        slots,
        former,
        rotation: state.rotation,
        times: state.times,
        next_serial,
        asking: state.asking,
        preflight: Preflight::Idle,
        terminal: state.terminal,
        killed,
        rebind_at: state.rebinds.first().map(|_| uppercased_ctl::clock::now()),
        rebinds: state.rebinds,
        queues_due: uppercased_ctl::clock::Tick::ZERO,
        closing: None,
        announcement: None,
        locks_rest_until: None,
        verdict: None,
    };
    supervisor.watch_killed();
    supervisor.announce(state.announcement);
    supervisor.resume_systemd(state.systemd);
    supervisor
}

/// Numbers the children in the order in which [`Prepared::of`] has watched them.
fn adopt_slot(
    saved: SavedSlot,
    inherited: &mut Inherited,
    memories: &mut VecDeque<Mapping>,
    next_serial: &mut u64,
) -> SlotResources {
    let listeners = saved.listeners.iter();
    let listeners = listeners.map(|&listener| inherited.own(listener)).collect();
    let mut memory = |inherited: &mut Inherited, number: RawFd| {
        let mapping = memories.pop_front().expect("one was made for each memory");
        SharedMemory::over(mapping, inherited.own(number))
    };
    let mut children = Vec::new();
    for child in saved.children {
        children.push(Child {
            worker: child.worker,
            release: child.release,
            serial: *next_serial,
            process: Process::inherited(child.pid, inherited.own(child.process)),
            channel: Channel::over(inherited.own(child.channel)),
            memory: memory(inherited, child.memory),
            talk: Talk::resumed(child.sandbox.is_some()),
            sandbox: child.sandbox,
        });
        *next_serial += 1;
    }
    let left_behind = saved.left_behind.map(|number| memory(inherited, number));
    SlotResources::restored(listeners, children, left_behind, saved.carried)
}

impl Supervisor {
    /// What the machine learns first: that the program has changed, or that it has not.
    fn first_words(&mut self, outcome: Result<Config, String>) {
        let resumed = outcome.and_then(|config| {
            let image = Image::of_this_process()
                .map_err(|error| format!("cannot open /proc/self/exe: {error}"))?;
            // What does not fit is found where it is to move, and stays then.
            self.add_release(image, config, true)
        });
        tracing::info!(
            pid = std::process::id(),
            version = fault::program_version(),
            upgraded = resumed.is_ok(),
            "resumed"
        );
        match resumed {
            Ok((release, policy)) => self.happened(Event::Resumed { release, policy }),
            Err(cause) => self.happened(Event::ExecFailed { cause }),
        }
    }
}
