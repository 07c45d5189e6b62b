//! Simulates a compromised worker, to test the damage that it can do: debug builds only.
//!
//! `worker.misbehave=` in the fault plan (see [`crate::fault`]) selects one kind; it is carried out
//! as soon as the worker has a client. Each uses only system calls that the sandbox allows.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{MsgFlags, send};
use socket2::SockRef;

use crate::channel::Channel;
use crate::fault;
use crate::handover::{HandedOver, HandoverEnd};
use crate::memory::layout::Layout;
use crate::reactor::Reactor;
use crate::sys::shared::LINE_BYTES;
use crate::sys::socket::{self, Socket};
use crate::wire::{Envelope, FromWorker, Listen, Ready, ToWorker};
use uppercased_ctl::identity::{Generation, WorkerId};
use uppercased_ctl::status::Sandboxed;

/// Messages of a flood: more than a supervisor could store.
const FLOOD: u32 = 20_000_000;

/// The state of a worker that misbehaves.
#[derive(Debug, Default)]
pub(super) struct Misbehaviour {
    done: bool,
    /// Listeners kept after their release.
    listeners: Vec<OwnedFd>,
}

/// What a worker can misuse.
struct Means<'a> {
    id: WorkerId,
    channel: &'a mut Channel<FromWorker, ToWorker>,
    reactor: &'a Reactor,
}

impl Misbehaviour {
    /// Carries out the planned misbehaviour once, if the worker `id` has a client.
    pub(super) fn act(
        &mut self,
        id: WorkerId,
        channel: &mut Channel<FromWorker, ToWorker>,
        reactor: &Reactor,
    ) {
        let Some(client) = reactor.memory().occupied().next() else {
            return;
        };
        let Some(what) = fault::value("worker.misbehave") else {
            return;
        };
        for listener in &self.listeners {
            let seconds = if what == "listeners reset" { 0 } else { 600 };
            let _ = SockRef::from(listener).set_linger(Some(Duration::from_secs(seconds)));
        }
        if self.done {
            return;
        }
        self.done = true;
        let mut means = Means {
            id,
            channel,
            reactor,
        };
        match what {
            "ready" => means.send_unrequested(FromWorker::Ready(Ready {
                listen: vec![Listen {
                    addr: SocketAddr::from(([203, 0, 113, 1], 1)),
                    dual_stack: false,
                }],
                sandbox: Sandboxed::default(),
            })),
            "handover" => means.send_unrequested(FromWorker::HandedOver(HandedOver {
                moved: u32::MAX,
                left: 0,
                end: HandoverEnd::Refused {
                    cause: "\u{1b}[2J".repeat(2000),
                },
                part: false,
            })),
            "another" => {
                let slot = id.slot;
                let generation = Generation(id.generation.0 + 1);
                means.id = WorkerId { slot, generation };
                means.send_unrequested(draining());
            }
            "noise" => {
                let channel = means.channel.as_fd().as_raw_fd();
                let _ = send(channel, &[0xff; 4096], MsgFlags::MSG_DONTWAIT);
            }
            "flood" => {
                for _ in 0..FLOOD {
                    means.send_unrequested(draining());
                }
            }
            "listeners reset" | "listeners wait" => self.listeners = means.listeners(),
            "linger" => means.pass_on_lingering_client(client),
            "scribble" => {
                means.scribble();
                let _ = raise(Signal::SIGKILL);
            }
            _ => {}
        }
    }
}

impl Means<'_> {
    /// Sends a message that the supervisor did not request.
    fn send_unrequested(&mut self, message: FromWorker) {
        let worker = self.id;
        let _ = self.channel.send(&Envelope { worker, message }, &[]);
    }

    /// Returns duplicates of the listeners, to change their options in each turn after their release.
    fn listeners(&self) -> Vec<OwnedFd> {
        let numbers = self.reactor.listener_numbers();
        socket::lend(&numbers, |listeners| {
            let copies = listeners.iter().map(|it| it.try_clone_to_owned());
            copies.flatten().collect()
        })
    }

    /// Makes the supervisor hold the last descriptor of a connection that never drains.
    fn pass_on_lingering_client(&mut self, client: u32) {
        let worker = self.id;
        let socket = Socket::numbered(client);
        let many = vec![0; 64 * 1024];
        while socket.send(&many).is_ok() {}
        let message = draining();
        socket::lend(&[client], |sockets| {
            let _ = SockRef::from(&sockets[0]).set_linger(Some(Duration::from_secs(600)));
            let _ = self.channel.send(&Envelope { worker, message }, sockets);
        });
        socket.close();
    }

    /// Overwrites the words that the supervisor and the successor read.
    fn scribble(&self) {
        let shared = self.reactor.memory().shared();
        for line in (0..Layout::record(0)).step_by(LINE_BYTES) {
            for word in &shared.line(line).0 {
                word.store((line as u64 + 1) << 48, Ordering::Relaxed);
            }
        }
    }
}

const fn draining() -> FromWorker {
    FromWorker::Draining { connections: 0 }
}
