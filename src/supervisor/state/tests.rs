//! The parts of a supervisor restore what they saved, whatever the order of the fields and the
//! numbers of the descriptors; a wrong number is one error.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{self, Command, Stdio};

use fastrand::Rng;
use mio::{Poll, Token};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity::{Generation, ReleaseId, SlotId, WorkerId};

use super::*;
use crate::channel::Channel;
use crate::channel::packets::Packets;
use crate::config;
use crate::memory;
use crate::port::lock_bound;
use crate::supervisor::admin::Admin;
use crate::supervisor::control::Control;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::fleet::children::{Child, Life, Quota};
use crate::supervisor::locks::PortLocks;
use crate::supervisor::machine::Policy;
use crate::supervisor::policy::policy;
use crate::supervisor::reaper::Reaper;
use crate::supervisor::subprocess::Subprocess;
use crate::supervisor::systemd::Systemd;
use crate::supervisor::telemetry::Telemetry;
use crate::supervisor::tokens::CONTROL_FIRST;
use crate::supervisor::upgrade::Upgrade;
use crate::sys::fd::{Inherited, Kept, pass_on};
use crate::sys::image::Process;
use crate::sys::lease;
use crate::sys::shared::SharedMemory;
use crate::wire::Listen;

/// The parts that have descriptors.
struct Parts {
    fleet: Fleet,
    control: Control,
    admin: Admin,
    locks: PortLocks,
    reaper: Reaper,
    telemetry: telemetry::Saved,
    systemd: Systemd,
    lease: OwnedFd,
    /// Not dropped while the parts are registered there.
    _poll: Poll,
}

/// Returns a process that does nothing, and its pidfd.
fn process() -> (process::Child, Process) {
    let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let number = child.id().cast_signed();
    let pidfd = pidfd_open(Pid::from_raw(number).unwrap(), PidfdFlags::empty()).unwrap();
    (child, Process::inherited(number, pidfd))
}

impl Parts {
    /// Returns two slots, a worker and an exited worker's memory; a control socket with a client;
    /// both listeners of the admin endpoint; a lock; a killed child.
    fn sample(folder: &Path, worker: Process, killed: Process) -> (Self, UnixStream) {
        let poll = Poll::new().unwrap();
        let registry = poll.registry();
        let config = Config {
            control: config::Control::Path(folder.join("control")),
            admin: Some(config::AdminAddr::Unix(folder.join("admin"))),
            agent: Some(([127, 0, 0, 1], 0).into()),
            ..Config::default()
        };
        let limits = Limits::of_worker(&config, 2, 1024).unwrap();
        let release = Release {
            image: Image::of_this_process().unwrap(),
            config,
            limits,
        };
        let memory = || SharedMemory::map(memory::create(release.layout(4)).unwrap()).unwrap();
        let child = Child {
            worker: WorkerId {
                slot: SlotId(1),
                generation: Generation(3),
            },
            release: ReleaseId::FIRST,
            serial: 0,
            process: Subprocess::new(worker, Channel::pair().unwrap().0),
            memory: memory(),
            sandbox: None,
            quota: Quota::NEW,
            life: Life::default(),
            rendezvous: None,
            group: None,
        };
        let left_behind = memory();
        let listener = || TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let listeners = [listener(), listener()];
        let listen = Listen {
            addr: listeners[0].local_addr().unwrap(),
            dual_stack: false,
        };
        let mut control = Control::open(&release.config.control, registry).unwrap();
        let client = UnixStream::connect(folder.join("control")).unwrap();
        control.on_ready(Token(CONTROL_FIRST), registry, clock::now());
        let admin = Admin::open(&release.config).unwrap();
        let locks = PortLocks::new(lock_bound(&[listen]).unwrap(), registry).unwrap();
        let listeners = listeners.map(|listener| vec![listener.into()]).into();
        let mut fleet = Fleet::new(release, vec![listen], listeners, None, (0, 1024));
        fleet.insert(child, Some(left_behind));
        let killed = Subprocess::new(killed, Packets::pair().unwrap().0);
        let parts = Self {
            fleet,
            control,
            admin,
            locks,
            reaper: Reaper::holding(killed),
            telemetry: Telemetry::new(Tick::ZERO).save(),
            systemd: Systemd::default(),
            lease: lease::create().unwrap().0,
            _poll: poll,
        };
        (parts, client)
    }

    fn save<'a>(&'a self, kept: &mut Kept<'a>) -> State {
        let (version, wire) = State::versions();
        let policy = Policy {
            workers: 2,
            ..policy(self.fleet.config())
        };
        let machine = Machine::new(policy, 1).with_listeners(2, Tick::ZERO);
        State {
            version,
            wire,
            written_by: String::new(),
            machine: machine.snapshot(),
            fleet: self.fleet.save(kept),
            control: self.control.save(kept),
            admin: self.admin.save(kept),
            systemd: self.systemd.save(kept),
            lease: kept.keep(&self.lease),
            upgrade: Upgrade::new(Vec::new()).unwrap().save(),
            telemetry: self.telemetry.clone(),
            locks: self.locks.save(kept),
            signals: signals::Saved::default(),
            reaper: self.reaper.save(kept),
            resolved: None,
        }
    }

    fn restore(state: State) -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        let mut inherited = Inherited::default();
        let fleet = Fleet::restore(state.fleet, &mut inherited, registry, (1024, Tick::ZERO))?;
        let stored = fleet.listening();
        let systemd = Systemd::restore(state.systemd, stored, &mut inherited, registry)?;
        Ok(Self {
            locks: PortLocks::restore(state.locks, &mut inherited, registry)?,
            fleet,
            systemd,
            lease: inherited.take(state.lease)?,
            reaper: Reaper::restore(state.reaper, &mut inherited, registry)?,
            admin: Admin::restore(state.admin, &mut inherited)?,
            control: Control::restore(state.control, &mut inherited, registry)?,
            telemetry: state.telemetry,
            _poll: poll,
        })
    }
}

/// Runs `check` with the parts and their state.
fn with_sample(check: impl FnOnce(&Parts, &Value, &Kept<'_>)) {
    let folder = tempfile::tempdir().unwrap();
    let ((mut cat, worker), (mut other, killed)) = (process(), process());
    let (parts, _client) = Parts::sample(folder.path(), worker, killed);
    let mut kept = Kept::default();
    let state = serde_json::to_value(parts.save(&mut kept)).unwrap();
    pass_on(kept.as_slice(), true).unwrap();
    check(&parts, &state, &kept);
    for child in [&mut cat, &mut other] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Returns every descriptor in a state.
fn descriptors(state: &mut Value) -> Vec<&mut Value> {
    match state {
        Value::Object(object) => {
            let is_one = object.len() == 1 && object.contains_key("fd");
            let fields = object.values_mut();
            fields
                .flat_map(|field| {
                    if is_one {
                        vec![field]
                    } else {
                        descriptors(field)
                    }
                })
                .collect()
        }
        Value::Array(array) => array.iter_mut().flat_map(descriptors).collect(),
        _ => Vec::new(),
    }
}

/// Returns the state with each descriptor's number replaced by the identity of its file.
fn identified(state: &Value) -> Value {
    let mut state = state.clone();
    for number in descriptors(&mut state) {
        let path = format!("/proc/self/fd/{number}");
        let link = fs::read_link(&path).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        let details = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let pid = details.lines().find(|line| line.starts_with("Pid:"));
        *number = json!([link, inode, pid]);
    }
    state
}

/// Returns the state as text, with the fields of every object in another order.
fn shuffled(state: &Value, random: &mut Rng) -> String {
    match state {
        Value::Object(object) => {
            let field = |(name, value)| format!("{name:?}:{}", shuffled(value, random));
            let mut fields: Vec<String> = object.iter().map(field).collect();
            random.shuffle(&mut fields);
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(array) => {
            let items = array.iter().map(|item| shuffled(item, random));
            format!("[{}]", items.collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

#[test]
fn restore_ignores_field_order_and_descriptor_numbers() {
    let mut random = Rng::with_seed(12);
    with_sample(|_, state, kept| {
        for _ in 0..20 {
            let mut order: Vec<_> = kept.as_slice().to_vec();
            random.shuffle(&mut order);
            let copies = order.iter().map(|fd| fd.try_clone_to_owned().unwrap());
            let copies: Vec<_> = copies.collect();
            let mut moved = state.clone();
            for number in descriptors(&mut moved) {
                let named = |fd: &_| json!(fd) == *number;
                let at = order.iter().position(|fd| named(&fd.as_raw_fd())).unwrap();
                *number = json!(copies[at].as_raw_fd());
            }
            let copies: Vec<_> = copies.iter().map(|copy| copy.as_fd()).collect();
            pass_on(&copies, true).unwrap();

            let text = shuffled(&moved, &mut random);
            let (decoded, _) = State::decode(text.as_bytes()).unwrap();
            let restored = Parts::restore(decoded).unwrap();
            let again = serde_json::to_value(restored.save(&mut Kept::default())).unwrap();
            assert_eq!(identified(&again), identified(state));
        }
    });
}

#[test]
fn wrong_descriptor_number_is_refused() {
    let own = File::open("/dev/null").unwrap();
    with_sample(|parts, state, kept| {
        let mut numbers = state.clone();
        let numbers: Vec<Value> = descriptors(&mut numbers)
            .iter()
            .map(|it| (**it).clone())
            .collect();
        let count = numbers.len();
        assert_eq!(
            count,
            kept.as_slice().len(),
            "each is named, and none other"
        );
        assert!(count >= 13, "{count}");
        for at in 0..count {
            for (wrong, cause) in [
                (json!(1_000_000), "is not open"),
                (json!(1), "is a standard stream"),
                (json!(own.as_raw_fd()), "was not inherited"),
                (numbers[(at + 1) % count].clone(), "is listed twice"),
            ] {
                let mut state = state.clone();
                *descriptors(&mut state)[at] = wrong;
                let decoded = State::decode(state.to_string().as_bytes());
                let refused = match decoded {
                    Ok((state, _)) => match Parts::restore(state) {
                        Ok(_) => panic!("{at}: not refused because it {cause}"),
                        Err(error) => error.to_string(),
                    },
                    Err(error) => error.to_string(),
                };
                assert!(refused.contains(cause), "{at}: {refused}");
            }
        }
        // The control socket and the admin socket still exist and answer.
        assert!(Path::new(&parts.control.status().unwrap()).exists());
        assert!(Path::new(&parts.admin.status().unwrap().address).exists());
    });
}
