//! The kinds of clients of a load: the behaviour of each from its start to the end of the load.

use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use uppercased_ctl::clock::now;

use super::conversation::{Conversation, Failure, PEER_ENDED, Plan};
use super::{LoadSize, Shared, Tally};

/// Pause after a failure: clients must not spin on a server that refuses them.
const FAILURE_PAUSE: Duration = Duration::from_millis(20);

/// Maximum size of a ping, in bytes.
const PING_BYTES: usize = 200;

/// Bytes sent by a mid-message client, and bytes of the reply that it reads before it stays silent.
const MID_MESSAGE_BYTES: usize = 4000;
const MID_MESSAGE_READ_BYTES: u64 = 1000;

/// Bytes per read of a half-closed client, and the pause between reads.
const SPOON_BYTES: usize = 8 * 1024;
const SPOON_PAUSE: Duration = Duration::from_millis(2);

/// The kind of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Connects, exchanges, closes, repeats.
    Churn,
    /// Sends and receives continuously.
    Stream,
    /// One small message at a time.
    Ping,
    /// Sends as fast as possible, reads slowly.
    Slow,
    /// Has half-closed, and reads.
    HalfClosed,
    /// Silent clients, which share a thread.
    Silent,
}

/// Returns the kind and number of each thread.
pub(super) fn parties(size: &LoadSize) -> Vec<(Kind, usize)> {
    let silent = usize::from(size.idle + size.mid_message > 0);
    let counts = [
        (Kind::Churn, size.churn),
        (Kind::Stream, size.streams),
        (Kind::Ping, size.pings),
        (Kind::Slow, size.slow),
        (Kind::HalfClosed, size.half_closed),
        (Kind::Silent, silent),
    ];
    counts
        .into_iter()
        .flat_map(|(kind, count)| (0..count).map(move |index| (kind, index)))
        .collect()
}

/// A thread of the load.
#[derive(Debug)]
pub(super) struct Party {
    shared: Arc<Shared>,
    kind: Kind,
    index: usize,
    random: fastrand::Rng,
    /// Connections attempted so far.
    tried: usize,
    in_place: bool,
    tally: Tally,
}

type Outcome = Result<(), Box<Failure>>;

impl Party {
    pub(super) fn new(shared: Arc<Shared>, kind: Kind, index: usize) -> Self {
        // Different for each client, but the same in every run.
        let seed = (kind as u64) << 32 | index as u64;
        Self {
            shared,
            kind,
            index,
            random: fastrand::Rng::with_seed(seed),
            tried: 0,
            in_place: false,
            tally: Tally::new(kind),
        }
    }

    /// Runs its kind of client until the load is over; returns its results.
    pub(super) fn run(mut self) -> Tally {
        if let Some(namespace) = &self.shared.origin.namespace {
            namespace.enter();
        }
        match self.kind {
            Kind::Churn => self.again_and_again(self.shared.size.churn_pause, Self::churn),
            Kind::HalfClosed => self.again_and_again(SPOON_PAUSE, Self::half_closed),
            Kind::Stream => self.once(Self::stream),
            Kind::Ping => self.once(Self::ping),
            Kind::Slow => self.once(Self::slow),
            Kind::Silent => self.silent(),
        }
        self.tally
    }

    /// Runs one conversation after another, even after failures.
    fn again_and_again(&mut self, pause: Duration, conversation: fn(&mut Self) -> Outcome) {
        let mut pause_now = Duration::ZERO;
        while !self.shared.over_within(pause_now) {
            pause_now = match conversation(self) {
                Ok(()) => {
                    self.note_exchange();
                    pause
                }
                Err(failure) => {
                    self.note_failure(*failure);
                    pause.max(FAILURE_PAUSE)
                }
            };
        }
    }

    /// Runs one conversation until the end of the load.
    fn once(&mut self, conversation: fn(&mut Self) -> Outcome) {
        if let Err(failure) = conversation(self) {
            self.note_failure(*failure);
        }
    }

    fn churn(&mut self) -> Outcome {
        let mut client = self.connect(None)?;
        let len = self.random.usize(1..=self.shared.size.churn_bytes);
        let outcome = client.exchange(len).and_then(|()| client.finish());
        self.tally.bytes += client.received();
        outcome
    }

    fn stream(&mut self) -> Outcome {
        let mut client = self.connect(None)?;
        client.exchange(1)?;
        self.note_in_place();
        let size = self.shared.size.clone();
        let outcome = self.flow(&mut client, size.stream_pause, |random, client| {
            if client.in_flight() < size.stream_window_bytes {
                client.send_some(random.usize(1..=size.stream_step_bytes))?;
            }
            let step = random.usize(1..=2 * size.stream_step_bytes);
            Ok(client.recv_some(step)? > 0)
        });
        self.tally.bytes += client.received();
        outcome
    }

    fn slow(&mut self) -> Outcome {
        let size = self.shared.size.clone();
        let mut client = self.connect(Some(size.slow_receive_buffer_bytes))?;
        let fill = |client: &mut Conversation| -> Outcome {
            while client.in_flight() < size.slow_window_bytes
                && client.send_some(size.stream_step_bytes)? > 0
            {}
            Ok(())
        };
        client.exchange(1)?;
        fill(&mut client)?;
        self.note_in_place();
        let outcome = self.flow(&mut client, size.slow_pause, |_, client| {
            fill(client)?;
            Ok(client.recv_some(size.slow_step_bytes)? > 0)
        });
        self.tally.bytes += client.received();
        outcome
    }

    /// Repeats `step` with pauses until the load is over, then ends gracefully. A step returns
    /// whether it received something, which must happen in time while a reply is due.
    fn flow(
        &mut self,
        client: &mut Conversation,
        pause: Duration,
        mut step: impl FnMut(&mut fastrand::Rng, &mut Conversation) -> Result<bool, Box<Failure>>,
    ) -> Outcome {
        let mut progress = now();
        while !self.shared.over_within(pause) {
            let received = step(&mut self.random, client)?;
            if received || client.in_flight() == 0 {
                progress = now();
            } else if now().since(progress) > self.shared.size.deadline {
                return Err(client.late("receiving"));
            }
        }
        if self.shared.is_broken_off() {
            return Ok(());
        }
        client.take_leave()
    }

    fn ping(&mut self) -> Outcome {
        let mut client = self.connect(None)?;
        let outcome = self.ping_on(&mut client);
        self.tally.bytes += client.received();
        outcome
    }

    fn ping_on(&mut self, client: &mut Conversation) -> Outcome {
        loop {
            let sent = now();
            client.exchange(self.random.usize(1..=PING_BYTES))?;
            let stall = now().since(sent);
            self.tally.longest_stall = self.tally.longest_stall.max(stall);
            self.note_exchange();
            if self.shared.over_within(self.shared.size.ping_pause) {
                return client.take_leave();
            }
        }
    }

    fn half_closed(&mut self) -> Outcome {
        let most = self.shared.size.half_closed_bytes.max(2);
        let total = self.random.u64(most / 2..=most);
        let mut client = self.connect(None)?;
        client.send_up_to(total, SPOON_BYTES)?;
        client.half_close()?;
        let outcome = self.spoon(&mut client);
        self.tally.bytes += client.received();
        outcome
    }

    /// Reads slowly to the end; faster once the load is over.
    fn spoon(&mut self, client: &mut Conversation) -> Outcome {
        let mut progress = now();
        while !client.has_ended() {
            if client.recv_some(SPOON_BYTES)? > 0 {
                progress = now();
                // Connected, served and half-closed: ready before it reaches the end.
                self.note_in_place();
            } else if now().since(progress) > self.shared.size.deadline {
                return Err(client.late("reading slowly"));
            }
            if self.shared.over_within(SPOON_PAUSE) {
                return if self.shared.is_broken_off() {
                    Ok(())
                } else {
                    client.finish()
                };
            }
        }
        Ok(())
    }

    fn silent(&mut self) {
        let LoadSize {
            idle, mid_message, ..
        } = self.shared.size;
        let mut clients = Vec::new();
        for number in 0..idle + mid_message {
            let begun = if number < idle {
                self.begin_idle()
            } else {
                self.begin_mid_message()
            };
            match begun {
                Ok(client) => clients.push(client),
                Err(failure) => self.note_failure(*failure),
            }
        }
        self.note_in_place();
        self.watch(&mut clients);
        if self.shared.is_broken_off() {
            return;
        }
        for client in &mut clients {
            let len = self.random.usize(1..=PING_BYTES);
            match client.exchange(len).and_then(|()| client.take_leave()) {
                Ok(()) => self.note_exchange(),
                Err(failure) => self.note_failure(*failure),
            }
            self.tally.bytes += client.received();
        }
    }

    fn begin_idle(&mut self) -> Result<Conversation, Box<Failure>> {
        let mut client = self.connect(None)?;
        client.exchange(self.random.usize(1..=PING_BYTES))?;
        Ok(client)
    }

    fn begin_mid_message(&mut self) -> Result<Conversation, Box<Failure>> {
        let mut client = self.connect(None)?;
        client.send_up_to(MID_MESSAGE_BYTES as u64, 0)?;
        client.recv_up_to(MID_MESSAGE_READ_BYTES)?;
        Ok(client)
    }

    /// Waits for the end, and detects at once a connection that does not stay silent.
    fn watch(&mut self, clients: &mut Vec<Conversation>) {
        loop {
            let mut watched = vec![PollFd::new(
                std::os::fd::AsFd::as_fd(&self.shared.over),
                PollFlags::POLLIN,
            )];
            watched.extend(clients.iter().map(|client| {
                // A client with an unread reply is always readable.
                let mut events = PEER_ENDED;
                events.set(PollFlags::POLLIN, client.in_flight() == 0);
                PollFd::new(std::os::fd::AsFd::as_fd(client.socket()), events)
            }));
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => panic!("poll: {errno}"),
            }
            let ready: Vec<bool> = watched
                .iter()
                // The library has no name for POLLRDHUP, the only event requested.
                .map(|one| one.any().unwrap_or(true))
                .collect();
            drop(watched);
            if ready[0] {
                return;
            }
            let mut ready = ready[1..].iter();
            clients.retain_mut(|client| {
                let is_ready = *ready.next().expect("one for each");
                if !is_ready {
                    return true;
                }
                // The event is an end, a reset or a surplus.
                let silent = client.must_go_on("being silent");
                match silent.and_then(|()| client.recv_some(PING_BYTES)) {
                    Ok(_) => true,
                    Err(failure) => {
                        self.note_failure(*failure);
                        false
                    }
                }
            });
        }
    }

    fn connect(&mut self, receive_buffer: Option<usize>) -> Result<Conversation, Box<Failure>> {
        let number = self.tried;
        self.tried += 1;
        let sources = &self.shared.origin.sources;
        let source = sources.get((self.index + number) % sources.len().max(1));
        let plan = Plan {
            who: format!("{:?} {}, connection {number}", self.kind, self.index),
            target: self.shared.target,
            source: source.map(|source| (*source).into()),
            receive_buffer,
            is_proxied: self.shared.size.is_proxied,
            deadline: self.shared.size.deadline,
            begun: self.shared.begun,
            start: self.random.u64(0..1 << 32),
        };
        let begun = now();
        let client = Conversation::connect(plan)?;
        self.tally.connections += 1;
        self.tally.longest_connect = self.tally.longest_connect.max(now().since(begun));
        Ok(client)
    }

    fn note_exchange(&mut self) {
        self.tally.exchanges += 1;
        let arrived = self.arrive();
        self.shared.change(|progress| {
            progress.exchanges += 1;
            progress.in_place += arrived;
        });
    }

    fn note_in_place(&mut self) {
        let arrived = self.arrive();
        if arrived > 0 {
            self.shared.change(|progress| progress.in_place += arrived);
        }
    }

    fn note_failure(&mut self, failure: Failure) {
        // Silent clients share a thread, which is ready after all attempts.
        let arrived = match self.kind {
            Kind::Silent => 0,
            _ => self.arrive(),
        };
        self.shared.change(|progress| {
            progress.in_place += arrived;
            progress.failure.get_or_insert_with(|| failure.to_string());
        });
        self.tally.fail(failure);
    }

    /// Returns 1 the first time, then 0.
    fn arrive(&mut self) -> usize {
        usize::from(!std::mem::replace(&mut self.in_place, true))
    }
}
