//! Deaths of workers and keepers, of every cause, and the wait for the recovery from each.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use nix::sys::signal::Signal;

use super::cgroup::MemoryGroup;
use super::observe::{freeze, keepers_of, state, until, until_some, waits_for_events, workers_of};
use super::process::{DEADLINE, Deadline, Watched};
use super::server::Server;
use super::tracer::Traced;

/// Maximum time before a death, so that deaths occur at any instant of a connection's life.
const APART_MAX: Duration = Duration::from_millis(4);

/// Maximum number of instructions before a death of [`Death::Step`].
const STEPS_MAX: u32 = 1500;

/// The memory that a worker may allocate before the kernel kills it: with more the kernel may find
/// something to reclaim for each page, and the worker lives on slowly.
const OOM_BYTES: u64 = 4 << 10;

/// A death in one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Death {
    /// SIGKILL of the worker at a random instant.
    Kill,
    /// SIGKILL, and again as soon as the rescuer has a keeper, which is often during its repair.
    Twice,
    /// SIGKILL after a random number of single instructions.
    Step,
    /// SIGKILL by the kernel, for lack of memory.
    OutOfMemory,
    /// SIGSEGV.
    Fault,
    /// SIGABRT.
    Abort,
    /// SIGSTOP, and SIGKILL after a random time.
    Stall,
    /// SIGSTOP, until the supervisor ends the worker because it hangs.
    Hang,
    /// SIGKILL while the worker waits for events.
    Idle,
    /// SIGKILL of the keeper.
    Keeper,
}

impl Death {
    /// Returns whether the supervisor holds it against the connections being served.
    const fn is_crash(self) -> bool {
        matches!(self, Self::Fault | Self::Abort | Self::Hang)
    }
}

/// The deaths of a server's workers and keepers.
#[derive(Debug)]
pub struct Deaths<'a> {
    server: &'a Server,
    slots: u16,
    /// The slot of the next death.
    next: u16,
    /// Whether the last death of each slot was a crash: a connection served at the next one might
    /// be reset, because two deaths at its expense look like its fault.
    crashed: Vec<bool>,
    /// The length of the log before the last death of each slot's worker, and a process.
    rescues: Vec<Option<(usize, u32)>>,
    random: Rng,
    /// Where a worker runs out of memory.
    group: Option<&'a MemoryGroup>,
    /// The deaths so far.
    done: BTreeMap<Death, u32>,
}

/// The worker and the keeper of a slot.
#[derive(Debug)]
struct Pair {
    worker: Watched,
    keeper: Watched,
}

impl<'a> Deaths<'a> {
    /// Returns the deaths of a server with `slots` slots, none of which has occurred; `group` is for
    /// [`Death::OutOfMemory`].
    pub fn of(server: &'a Server, slots: u16, group: Option<&'a MemoryGroup>, seed: u64) -> Self {
        if let Some(group) = group {
            group.limit(OOM_BYTES);
        }
        Self {
            server,
            slots,
            next: 0,
            crashed: vec![false; slots.into()],
            rescues: vec![None; slots.into()],
            random: Rng::with_seed(seed),
            group,
            done: BTreeMap::new(),
        }
    }

    /// Returns the number of deaths so far, by kind.
    pub fn done(&self) -> &BTreeMap<Death, u32> {
        &self.done
    }

    /// Returns the deaths of `plan`, a number of each kind, in random order.
    pub fn shuffle(&mut self, plan: &[(Death, u32)]) -> Vec<Death> {
        let each = plan
            .iter()
            .flat_map(|(death, count)| vec![*death; *count as usize]);
        let mut deaths: Vec<Death> = each.collect();
        self.random.shuffle(&mut deaths);
        deaths
    }

    /// Causes one death and waits until the server has recovered; [`Death::Idle`] comes first where
    /// the last death was a crash.
    #[track_caller]
    pub fn cause(&mut self, death: Death) {
        self.next = (self.next + 1) % self.slots;
        let slot = self.next;
        let crashed = &mut self.crashed[usize::from(slot)];
        let was_crashed = std::mem::replace(crashed, death.is_crash());
        if was_crashed {
            self.cause_in(slot, Death::Idle);
        }
        self.cause_in(slot, death);
    }

    /// Kills a random worker, also during an operation, when a slot may have two: one whose slot has a
    /// keeper for each.
    #[track_caller]
    pub fn kill_any(&mut self) {
        // Several rescues that the supervisor has not confirmed are the last. There is no report if
        // the worker was about to end by itself.
        const REPORT: Duration = Duration::from_secs(1);
        self.next = (self.next + 1) % self.slots;
        let slot = self.next;
        if let Some((mark, _)) = self.rescues[usize::from(slot)] {
            let slot = format!(" slot={slot} ");
            self.server.logs_within(mark, REPORT, |line| {
                line.contains("event=worker_rescued") && line.contains(&slot)
            });
        }
        self.pass_time();
        let workers = until_some("as many keepers as workers in the slot", || {
            let workers = workers_of(self.server, slot);
            let keepers = keepers_of(self.server, slot).len();
            (keepers == workers.len() && keepers > 0).then_some(workers)
        });
        let worker = workers[self.random.usize(..workers.len())];
        if let Some(worker) = Watched::open(worker) {
            self.rescues[usize::from(slot)] = Some((self.server.log_len(), worker.pid()));
            worker.signal(Signal::SIGKILL);
            assert!(worker.wait_gone(DEADLINE), "it survives SIGKILL");
        }
        *self.done.entry(Death::Kill).or_default() += 1;
    }

    #[track_caller]
    fn cause_in(&mut self, slot: u16, death: Death) {
        let pair = self.pair(slot);
        self.wait_reported(slot);
        let mark = self.server.log_len();
        self.pass_time();
        match death {
            Death::Kill => pair.worker.signal(Signal::SIGKILL),
            Death::Twice => {
                pair.worker.signal(Signal::SIGKILL);
                let second = self.successor(slot, &pair.worker);
                second.signal(Signal::SIGKILL);
                assert!(second.wait_gone(DEADLINE), "no second death");
            }
            Death::Step => {
                if let Some(traced) = traced(&pair.worker) {
                    traced.step(self.random.u32(..STEPS_MAX));
                    traced.kill();
                }
            }
            Death::OutOfMemory => {
                let group = self.group.expect("a group with a limit");
                group.take_process(pair.worker.pid());
            }
            Death::Fault => signal_unblocked(&pair.worker, Signal::SIGSEGV),
            Death::Abort => signal_unblocked(&pair.worker, Signal::SIGABRT),
            Death::Stall => {
                freeze(&pair.worker);
                self.pass_time();
                pair.worker.signal(Signal::SIGKILL);
            }
            Death::Hang => pair.worker.signal(Signal::SIGSTOP),
            Death::Idle => {
                freeze_waiting(&pair.worker);
                pair.worker.signal(Signal::SIGKILL);
            }
            Death::Keeper => pair.keeper.signal(Signal::SIGKILL),
        }
        let now = self.wait_recovered(death, slot, &pair);
        if death != Death::Keeper {
            self.rescues[usize::from(slot)] = Some((mark, now));
        }
        *self.done.entry(death).or_default() += 1;
    }

    /// Waits until each slot has a worker and a keeper.
    #[track_caller]
    pub fn wait_whole(&self) {
        for slot in 0..self.slots {
            self.pair(slot);
        }
    }

    /// Waits until the supervisor, unless it is stopped, has logged the rescue from the last death in
    /// the slot: several that it has not confirmed are the last.
    #[track_caller]
    fn wait_reported(&mut self, slot: u16) {
        let last = self.rescues[usize::from(slot)].take();
        if let Some((mark, pid)) = last.filter(|_| state(self.server.pid()) != Some('T')) {
            let pid = format!(" worker_pid={pid} ");
            self.server.wait_log_from(mark, |line| {
                line.contains("event=worker_rescued") && line.contains(&pid)
            });
        }
    }

    /// Waits until the keeper has continued the worker and has a keeper of its own, or until the
    /// worker has another keeper. Returns the worker's process.
    #[track_caller]
    fn wait_recovered(&self, death: Death, slot: u16, before: &Pair) -> u32 {
        let dead = match death {
            Death::Keeper => &before.keeper,
            _ => &before.worker,
        };
        assert!(dead.wait_gone(DEADLINE), "no death by {death:?}");
        let now = self.pair(slot).worker.pid();
        let is_continued = match death {
            Death::Keeper => now == before.worker.pid(),
            // By the keeper of the second process.
            Death::Twice => now != before.worker.pid(),
            _ => now == before.keeper.pid(),
        };
        assert!(is_continued, "{death:?}: {now} follows {before:?}");
        now
    }

    /// Waits until the slot has one worker and its keeper, and returns them.
    #[track_caller]
    fn pair(&self, slot: u16) -> Pair {
        until_some("a worker with a keeper in the slot", || self.pair_now(slot))
    }

    fn pair_now(&self, slot: u16) -> Option<Pair> {
        let workers = workers_of(self.server, slot);
        let keepers = keepers_of(self.server, slot);
        let ([worker], [keeper]) = (&workers[..], &keepers[..]) else {
            return None;
        };
        Some(Pair {
            worker: Watched::open(*worker)?,
            keeper: Watched::open(*keeper)?,
        })
    }

    /// Returns the next worker of the slot, as soon as it has a keeper.
    #[track_caller]
    fn successor(&self, slot: u16, dead: &Watched) -> Watched {
        let deadline = Deadline::after(DEADLINE);
        while !deadline.left().is_zero() {
            if let Some(pair) = self.pair_now(slot)
                && pair.worker.pid() != dead.pid()
            {
                return pair.worker;
            }
        }
        panic!("no successor of worker {} in slot {slot}", dead.pid());
    }

    /// Lets a random time pass.
    fn pass_time(&mut self) {
        // It may return early, which is as random.
        std::thread::park_timeout(APART_MAX.mul_f64(self.random.f64()));
    }
}

/// Sends a signal that a worker blocks until the worker ends: the runtime handles the first SIGSEGV
/// and restores its default action.
#[track_caller]
fn signal_unblocked(worker: &Watched, signal: Signal) {
    traced(worker).expect("a living worker").unblock_signals();
    until("the signal ends the worker", || {
        worker.signal(signal);
        worker.is_gone()
    });
}

/// Stops a worker while it waits for events: then it serves no connection.
#[track_caller]
fn freeze_waiting(worker: &Watched) {
    until("the worker waits for events", || {
        freeze(worker);
        let waits = waits_for_events(worker.pid());
        if !waits {
            worker.signal(Signal::SIGCONT);
        }
        waits
    });
}

/// Stops a worker between two instructions; `None` if it has exited.
#[track_caller]
fn traced(worker: &Watched) -> Option<Traced<'_>> {
    let traced = Traced::stop(worker);
    traced.unwrap_or_else(|errno| panic!("trace a worker: {errno}"))
}

/// Returns whether this process may trace workers, which are not dumpable.
pub fn can_trace(server: &Server) -> bool {
    let worker = server
        .worker_pids()
        .first()
        .copied()
        .and_then(Watched::open);
    worker.is_some_and(|worker| Traced::stop(&worker).is_ok())
}
