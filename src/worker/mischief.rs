//! Simulates a compromised worker, to test the damage that it can do: debug builds only.
//!
//! `worker.mischief=` in the fault plan (see [`crate::fault`]) selects one kind; it is carried out
//! as soon as the worker has a client. Each uses only system calls that the sandbox allows.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{MsgFlags, send};
use socket2::SockRef;

use super::Worker;
use crate::fault;
use crate::handover::{HandedOver, HandoverEnd};
use crate::memory::layout::Layout;
use crate::sys::shared::LINE_BYTES;
use crate::sys::socket::{self, Socket};
use crate::wire::{Envelope, FromWorker, Listen, Ready};
use uppercased_ctl::identity::{Generation, WorkerId};
use uppercased_ctl::status::Sandboxed;

/// Messages of a flood: more than a supervisor could store.
const FLOOD: u32 = 20_000_000;

impl Worker {
    /// Carries out the planned misbehaviour once, if there is a client.
    pub(super) fn do_mischief(&mut self) {
        let Some(client) = self.reactor.memory().occupied().next() else {
            return;
        };
        let Some(what) = fault::value("worker.mischief") else {
            return;
        };
        for listener in &self.mischief_listeners {
            let seconds = if what == "listeners reset" { 0 } else { 600 };
            let _ = SockRef::from(listener).set_linger(Some(Duration::from_secs(seconds)));
        }
        if self.mischief_done {
            return;
        }
        self.mischief_done = true;
        match what {
            "ready" => self.send_unasked(FromWorker::Ready(Ready {
                listen: vec![Listen {
                    addr: SocketAddr::from(([203, 0, 113, 1], 1)),
                    dual_stack: false,
                }],
                sandbox: Sandboxed::default(),
            })),
            "handover" => self.send_unasked(FromWorker::HandedOver(HandedOver {
                moved: u32::MAX,
                left: 0,
                end: HandoverEnd::Refused {
                    cause: "\u{1b}[2J".repeat(2000),
                },
                part: false,
            })),
            "another" => {
                let slot = self.id.slot;
                let generation = Generation(self.id.generation.0 + 1);
                self.id = WorkerId { slot, generation };
                self.send_unasked(draining());
            }
            "noise" => {
                let channel = self.channel.as_fd().as_raw_fd();
                let _ = send(channel, &[0xff; 4096], MsgFlags::MSG_DONTWAIT);
            }
            "flood" => {
                for _ in 0..FLOOD {
                    self.send_unasked(draining());
                }
            }
            "listeners reset" | "listeners wait" => self.keep_listeners(),
            "linger" => self.pass_on_what_lingers(client),
            "scribble" => {
                self.scribble();
                let _ = raise(Signal::SIGKILL);
            }
            _ => {}
        }
    }

    /// Sends a message that the supervisor did not request.
    fn send_unasked(&mut self, message: FromWorker) {
        let worker = self.id;
        let _ = self.channel.send(&Envelope { worker, message }, &[]);
    }

    /// Keeps the listeners after they are released, to change their options in each turn.
    fn keep_listeners(&mut self) {
        let numbers = self.reactor.listener_numbers();
        self.mischief_listeners = socket::lend(&numbers, |listeners| {
            let copies = listeners.iter().map(|it| it.try_clone_to_owned());
            copies.flatten().collect()
        });
    }

    /// Makes the supervisor hold the last descriptor of a connection that never drains.
    fn pass_on_what_lingers(&mut self, client: u32) {
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
