//! Carrying out what the machine decides: each action becomes a fork, a message, a kill, an answer
//! or a log line.
//!
//! Invariants: actions are carried out in order; one that fails becomes an event, never silence;
//! both ends of a handover's socket pair leave this process with the messages that carry them, so
//! that either worker sees the other's end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use socket2::SockRef;

use crate::channel::packets::Packets;
use crate::config::{Config, HANDOVER_SOCKET_BYTES};
use crate::fault;
use crate::handover::HandoverEnd;
use crate::memory::{self, Moves};
use crate::sys::limits::{MemoryRoom, explain, memory_room};
use crate::wire::{self, Stop, ToWorker};
use uppercased_ctl::clock;
use uppercased_ctl::identity::{ReleaseId, SlotId, WorkerId};
use uppercased_ctl::metrics::Counter;

use super::fleet::children::{Birth, Child, Talk};
use super::fleet::placement;
use super::fleet::releases::Limits;
use super::fleet::resources::SlotResources;
use super::machine::{Action, Event, ListenerSource, Progress, Verdict};
use super::{Supervisor, report};

impl Supervisor {
    pub(super) fn carry_out(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            self.carry_out_one(action);
        }
    }

    fn carry_out_one(&mut self, action: Action) {
        match action {
            Action::Spawn {
                worker,
                listener,
                release,
                standby,
            } => self.spawn(worker, listener, release, standby),
            Action::Kill { worker } => {
                if let Some(child) = self.child(worker) {
                    child.kill();
                }
            }
            Action::Abandon { worker } => self.abandon(worker),
            Action::EndCustody => {
                for slot in &mut self.slots {
                    slot.release_listeners();
                }
            }
            Action::StopWorker { worker } => {
                let stop = Stop {
                    lame_duck_ms: millis(self.config().lame_duck),
                    drain_timeout_ms: millis(self.config().drain_timeout),
                };
                self.say(worker, ToWorker::Stop(stop), &[]);
            }
            Action::Lend { slot, to } => self.lend(slot, to),
            Action::Recall { slot, from, last } => {
                self.say(from, ToWorker::Recall { slot, last }, &[]);
            }
            Action::Serve { worker } => self.say(worker, ToWorker::Serve, &[]),
            Action::HandOver { from, to, last } => self.hand_over(from, to, last),
            Action::Rebalance { from, to, part } => self.rebalance(from, to, part),
            Action::TakeLoads => self.take_loads(),
            Action::Leave { worker, within } => {
                let drain_timeout_ms = millis(within);
                self.say(worker, ToWorker::Leave { drain_timeout_ms }, &[]);
            }
            Action::TakePulse { worker } => self.take_pulse(worker),
            Action::TakeProgress { from, to } => self.take_progress(from, to),
            Action::Ping { worker } => self.say(worker, ToWorker::Ping, &[]),
            Action::Steer { slots } => {
                self.steer_to_first(slots);
                self.forget_listeners_from(slots);
            }
            Action::Unsteer => {
                self.spread();
                self.store_forgotten_listeners();
            }
            Action::Spread { .. } => self.spread(),
            Action::CloseListeners { slot } => {
                if let Some(slot) = self.slots.get_mut(slot.index()) {
                    slot.release_listeners();
                }
            }
            Action::DropSlot { slot } => self.drop_slot(slot),
            Action::Begin {
                request,
                wanted,
                drain,
            } => self.begin(request, wanted, drain),
            Action::Preflight => self.begin_preflight(),
            Action::AbortPreflight => self.end_preflight(),
            Action::Exec => self.exec(),
            Action::Commit { release } => self.commit(release),
            Action::Answer { request, answer } => self.answer(request, &answer),
            Action::Notice(notice) => {
                report::notice(&notice, &self.slots);
                self.times.note(&notice, clock::now());
                self.tell_progress(&notice);
            }
            Action::Announce => {
                let lines = report::announce(&self.addresses, self.slots.len());
                self.announce(lines);
                self.shed_surplus();
            }
            Action::Exit(verdict) => {
                if verdict == Verdict::Clean {
                    report::ended(&self.totals());
                }
                self.verdict = Some(verdict);
            }
        }
    }

    fn spawn(
        &mut self,
        worker: WorkerId,
        listener: ListenerSource,
        release: ReleaseId,
        standby: bool,
    ) {
        if let Err(cause) = self.try_spawn(worker, listener, release, standby) {
            let cause = format!("cannot start a worker process: {cause}");
            self.happened(Event::SpawnFailed { worker, cause });
        }
    }

    fn try_spawn(
        &mut self,
        worker: WorkerId,
        listener: ListenerSource,
        release: ReleaseId,
        standby: bool,
    ) -> Result<(), String> {
        let index = worker.slot.index();
        if index == self.slots.len() {
            let counted = self.former.come_back(worker.slot);
            self.slots.push(SlotResources::counting_on(counted));
        }
        if listener == ListenerSource::Adopt {
            // Whoever shared them may have set others, or a service manager had them.
            self.set_options_of(worker.slot);
        }
        let room = self.room_of(release);
        let run = self.releases.get(release);
        let run = run.ok_or_else(|| format!("release {release} is not known any more"))?;
        let slot = self.slots.get_mut(index).ok_or("there is no such slot")?;
        let memory = slot
            .memory_for(standby, run.layout(room))
            .map_err(|error| format!("no memory for it: {}", explain(&error)))?;
        let mut start = run.start(&self.addresses, listener == ListenerSource::Adopt, standby);
        start.room = room;
        start.descriptors = run.layout(room).descriptors;
        start.cpu = placement::cpu_of(worker.slot, run.config.pin);
        let birth = Birth {
            worker,
            image: &run.image,
            start,
            memory: &memory,
            listeners: slot.listeners(),
        };
        let (process, channel) = match birth.give() {
            Ok(born) => born,
            Err(error) => {
                slot.leave_behind(memory);
                return Err(error.to_string());
            }
        };
        let serial = self.next_serial;
        self.next_serial += 1;
        slot.move_in(Child {
            worker,
            release,
            serial,
            process,
            channel,
            memory,
            sandbox: None,
            talk: Talk::NEW,
        });
        let watched = self.child(worker).map_or(Ok(()), |it| self.watch_child(it));
        watched.map_err(|error| {
            if let Some((process, channel)) = self.slots[index].discard(worker) {
                self.kill_later_reaped(process, channel);
            }
            format!("it cannot be watched: {error}")
        })?;
        if standby {
            fault::point("supervisor.successor_spawned");
        }
        Ok(())
    }

    fn lend(&mut self, slot: SlotId, to: WorkerId) {
        let duplicates: Result<Vec<OwnedFd>, _> = self.slots[slot.index()]
            .listeners()
            .iter()
            .map(OwnedFd::try_clone)
            .collect();
        match duplicates {
            Ok(listeners) => {
                let borrowed: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
                self.say(to, ToWorker::Lend { slot }, &borrowed);
            }
            Err(error) => {
                tracing::error!(%to, %error, "cannot duplicate a listener to lend it");
            }
        }
    }

    /// Connects the two. The one that goes on is told first, so that it is there when the first
    /// connection comes; and neither end stays here, or no worker would see the other's death.
    fn hand_over(&mut self, from: WorkerId, to: WorkerId, last: bool) {
        let (near, far) = match Packets::pair() {
            Ok(pair) => pair,
            Err(error) => return self.hand_over_failed(from, to, &error.to_string()),
        };
        // Fails for what is no socket.
        let _ = SockRef::from(&near).set_send_buffer_size(HANDOVER_SOCKET_BYTES);
        let take_over = ToWorker::TakeOver(wire::TakeOver {
            from,
            expected: self.open_connections(from),
        });
        self.say(to, take_over, &[far.as_fd()]);
        fault::point("supervisor.handover_half_ordered");
        let hand_over = wire::HandOver {
            to,
            last,
            part: None,
        };
        self.say(from, ToWorker::HandOver(hand_over), &[near.as_fd()]);
        fault::point("supervisor.handover_ordered");
    }

    /// Without a socket pair nothing can move, and nothing is cut for it either.
    fn hand_over_failed(&mut self, from: WorkerId, to: WorkerId, cause: &str) {
        let cause = format!("no socket pair for the handover: {cause}");
        let left = self.open_connections(from);
        self.say(to, ToWorker::Serve, &[]);
        self.happened(Event::HandedOver {
            worker: from,
            moved: 0,
            left,
            end: HandoverEnd::Refused { cause },
        });
    }

    pub(super) fn open_connections(&self, worker: WorkerId) -> u32 {
        let child = self.child(worker);
        let open = child.map_or(0, |child| memory::open_connections(&child.memory));
        u32::try_from(open).unwrap_or(u32::MAX)
    }

    fn take_pulse(&mut self, worker: WorkerId) {
        if let Some(child) = self.child(worker) {
            let turns = memory::counter(&child.memory, Counter::Turns);
            self.happened(Event::Pulse { worker, turns });
        }
    }

    fn take_progress(&mut self, from: WorkerId, to: WorkerId) {
        let of = |worker| {
            let child = self.child(worker);
            child.map_or_else(Moves::default, |child| memory::moves(&child.memory))
        };
        let Moves { sent, settled, .. } = of(from);
        let answered = of(to).answered;
        self.happened(Event::Progress {
            from,
            to,
            progress: Progress {
                sent,
                settled,
                answered,
            },
        });
    }

    /// Connections that a new worker of `release` is to have room for.
    fn room_of(&self, release: ReleaseId) -> u32 {
        let run = self.releases.get(release);
        run.map_or(0, |run| self.room_for(&run.config, run.limits))
    }

    /// Connections that a new worker with `config` is to have room for.
    pub(super) fn room_for(&self, config: &Config, own: Limits) -> u32 {
        // Where memory is limited, the configuration says how much of it there is to be.
        let unlimited = |room: MemoryRoom| room.file_bytes.min(room.address_bytes) == u64::MAX;
        if !memory_room().is_ok_and(unlimited) {
            return own.max_connections;
        }
        let limits = self.releases.iter().map(|(_, one)| one.limits);
        let limits = limits.map(|one| one.max_connections);
        let most = limits.fold(own.max_connections, u32::max);
        let workers = config.workers.max(self.slots.len() as u16);
        let open = self.slots.iter().flat_map(SlotResources::children);
        let open = open.map(|child| u32::try_from(memory::open_connections(&child.memory)));
        let open = open.map(|open| open.unwrap_or(u32::MAX));
        let open = open.fold(0, u32::saturating_add);
        own.room(most, workers, open, self.nofile)
    }

    fn drop_slot(&mut self, slot: SlotId) {
        if slot.index() + 1 != self.slots.len() {
            tracing::error!(slot = slot.0, "a slot in the middle cannot be dropped");
            return;
        }
        if let Some(had) = self.slots.pop() {
            self.former.leave(slot, &had.totals());
        }
    }

    /// Says something to a worker, if it is still there.
    pub(super) fn say(
        &mut self,
        worker: WorkerId,
        message: ToWorker,
        descriptors: &[BorrowedFd<'_>],
    ) {
        let said = self.child_mut(worker);
        if let Some(Err(cause)) = said.map(|child| child.say(message, descriptors)) {
            self.happened(Event::ChannelBroken { worker, cause });
        }
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
