//! Status requests of the admin process to its supervisor: one channel shared by many threads.
//!
//! Invariants: a reply goes to the thread that sent the request, and a late reply is dropped; no
//! thread waits while it holds the lock. The channel is read only in [`StatusRequests::dispatch`],
//! which one thread calls.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, PipeWriter, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::channel::{self, Channel};
use crate::wire::{Envelope, FromAdmin, ToAdmin};
use uppercased_ctl::limits::CONTROL_REPLY_MAX_BYTES;
use uppercased_ctl::status::AgentAnswers;
use uppercased_ctl::status::Status;

/// The outstanding requests, and the channel they share.
#[derive(Debug)]
pub(super) struct StatusRequests(Mutex<Open>);

#[derive(Debug)]
struct Open {
    channel: Channel<FromAdmin, ToAdmin>,
    last: u64,
    waiting: BTreeMap<u64, Sender<OwnedFd>>,
    /// The reason why a thread failed.
    failure: Option<String>,
    /// Closed when a thread fails, to wake the reading thread.
    alarm: Option<PipeWriter>,
}

impl StatusRequests {
    /// Creates it with no outstanding requests.
    pub(super) fn over(channel: Channel<FromAdmin, ToAdmin>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Open {
            channel,
            last: 0,
            waiting: BTreeMap::new(),
            failure: None,
            alarm: None,
        })))
    }

    /// Returns the server's current status from the supervisor, and reports `agent` to it.
    ///
    /// # Errors
    /// The reason why there is no status, as a clause.
    pub(super) fn status(
        &self,
        within: Duration,
        agent: AgentAnswers,
    ) -> Result<Box<Status>, String> {
        let (reply_to, reply) = channel();
        let number = self.ask(reply_to, agent)?;
        let answer = reply.recv_timeout(within);
        self.lock().waiting.remove(&number);
        let file = answer.map_err(|_| "no answer in time".to_owned())?;
        read(file.into()).map_err(|error| format!("cannot read the answer: {error}"))
    }

    fn ask(&self, reply_to: Sender<OwnedFd>, agent: AgentAnswers) -> Result<u64, String> {
        let mut open = self.lock();
        open.last += 1;
        let number = open.last;
        open.send(FromAdmin::Ask { number, agent })?;
        open.waiting.insert(number, reply_to);
        Ok(number)
    }

    /// Sends a message that needs no reply.
    ///
    /// # Errors
    /// The reason why it cannot be sent.
    pub(super) fn send(&self, message: FromAdmin) -> Result<(), String> {
        self.lock().send(message)
    }

    /// Distributes the available replies.
    ///
    /// # Errors
    /// The channel has failed; [`channel::Error::Closed`] is its end, on either side.
    pub(super) fn dispatch(&self) -> Result<(), channel::Error> {
        let mut open = self.lock();
        if open.failure.is_some() {
            return Err(channel::Error::Closed);
        }
        while let Some(received) = open.channel.receive()? {
            let ToAdmin::Status { number } = received.envelope.message else {
                continue;
            };
            let waiting = open.waiting.remove(&number);
            if let (Some(waiting), Some(answer)) =
                (waiting, received.descriptors.into_iter().next())
            {
                // The requester may just have given up.
                let _ = waiting.send(answer);
            }
        }
        Ok(())
    }

    /// Returns descriptors, one of which becomes readable when [`StatusRequests::dispatch`] has
    /// work.
    ///
    /// # Errors
    /// The process has no free descriptor.
    pub(super) fn wake_ups(&self) -> io::Result<[OwnedFd; 2]> {
        let mut open = self.lock();
        let (alarmed, alarm) = io::pipe()?;
        open.alarm = Some(alarm);
        Ok([open.channel.as_fd().try_clone_to_owned()?, alarmed.into()])
    }

    /// Ends all threads after the failure of one: the reading thread finds the channel closed.
    pub(super) fn fail(&self, why: &io::Error) {
        let mut open = self.lock();
        open.failure = Some(why.to_string());
        open.alarm = None;
    }

    /// Returns why a thread failed, if one has.
    pub(super) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // The data stays consistent wherever a thread panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn send(&mut self, message: FromAdmin) -> Result<(), String> {
        let sent = self.channel.send(&Envelope::without_worker(message), &[]);
        sent.map_err(|error| error.to_string())
    }
}

/// Parses the status in a file.
fn read(file: File) -> io::Result<Box<Status>> {
    let mut bytes = Vec::new();
    file.take(CONTROL_REPLY_MAX_BYTES as u64)
        .read_to_end(&mut bytes)?;
    Ok(Box::new(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    const NOTHING: AgentAnswers = AgentAnswers {
        ready: 0,
        drain: 0,
        maint: 0,
        down: 0,
    };

    /// Returns the next request, on the supervisor's end.
    fn next_request(channel: &mut Channel<ToAdmin, FromAdmin>) -> u64 {
        let received = channel.receive().unwrap().expect("a request was sent");
        match received.envelope.message {
            FromAdmin::Ask { number, .. } => number,
            other => panic!("{other:?}"),
        }
    }

    fn reply(channel: &mut Channel<ToAdmin, FromAdmin>, number: u64, version: &str) {
        let status = Status {
            version: version.to_owned(),
            ..Status::default()
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&serde_json::to_vec(&status).unwrap())
            .unwrap();
        file.rewind().unwrap();
        let answer = Envelope::without_worker(ToAdmin::Status { number });
        channel.send(&answer, &[file.as_fd()]).unwrap();
    }

    #[test]
    fn each_question_gets_its_answer_in_any_order() {
        let (mut supervisor, here) = Channel::pair().unwrap();
        let status_requests = StatusRequests::over(here);
        let ask = || {
            let (reply_to, reply) = channel();
            (status_requests.ask(reply_to, NOTHING).unwrap(), reply)
        };
        let (first, second) = (ask(), ask());
        assert_eq!(
            [next_request(&mut supervisor), next_request(&mut supervisor)],
            [first.0, second.0]
        );
        reply(&mut supervisor, second.0, "second");
        reply(&mut supervisor, first.0, "first");
        status_requests.dispatch().unwrap();
        for ((_, reply), version) in [(first, "first"), (second, "second")] {
            let answer = reply.try_recv().unwrap();
            assert_eq!(read(answer.into()).unwrap().version, version);
        }
    }

    #[test]
    fn late_answer_is_dropped() {
        let (mut supervisor, here) = Channel::pair().unwrap();
        let status_requests = StatusRequests::over(here);
        let why = status_requests
            .status(Duration::from_millis(1), NOTHING)
            .unwrap_err();
        assert_eq!(why, "no answer in time");
        let number = next_request(&mut supervisor);
        reply(&mut supervisor, number, "late");
        status_requests.dispatch().unwrap();
        assert!(status_requests.lock().waiting.is_empty());
    }

    #[test]
    fn both_sides_notice_end() {
        let (supervisor, here) = Channel::pair().unwrap();
        let status_requests = StatusRequests::over(here);
        let [_, alarmed] = status_requests.wake_ups().unwrap();
        status_requests.fail(&io::Error::other("no descriptors"));
        assert_eq!(File::from(alarmed).read(&mut [0]).unwrap(), 0);
        assert!(matches!(
            status_requests.dispatch(),
            Err(channel::Error::Closed)
        ));
        assert_eq!(status_requests.failure().as_deref(), Some("no descriptors"));
        // It can still be sent.
        let ask = FromAdmin::Ask {
            number: 1,
            agent: NOTHING,
        };
        status_requests.send(ask).unwrap();
        drop(supervisor);
        let status_requests = StatusRequests::over(Channel::pair().unwrap().0);
        assert!(matches!(
            status_requests.dispatch(),
            Err(channel::Error::Closed)
        ));
        status_requests
            .status(Duration::from_secs(10), NOTHING)
            .unwrap_err();
    }
}
