//! Status requests of the admin process to its supervisor: one channel, many requesting threads.
//!
//! Invariants: a reply goes to the thread that sent that request, and a late one is dropped; no
//! lock is held while a thread waits. It must not read the channel except in [`Questions::hear`],
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
pub(super) struct Questions(Mutex<Open>);

#[derive(Debug)]
struct Open {
    channel: Channel<FromAdmin, ToAdmin>,
    last: u64,
    waiting: BTreeMap<u64, Sender<OwnedFd>>,
    /// Why a thread failed.
    failure: Option<String>,
    /// Closed when a thread fails, which wakes the reading thread.
    alarm: Option<PipeWriter>,
}

impl Questions {
    /// Creates it without requests.
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
    /// Why there is none, as a clause.
    pub(super) fn status(
        &self,
        within: Duration,
        agent: AgentAnswers,
    ) -> Result<Box<Status>, String> {
        let (tell, told) = channel();
        let number = self.ask(tell, agent)?;
        let answer = told.recv_timeout(within);
        self.lock().waiting.remove(&number);
        let file = answer.map_err(|_| "no answer in time".to_owned())?;
        read(file.into()).map_err(|error| format!("cannot read the answer: {error}"))
    }

    fn ask(&self, tell: Sender<OwnedFd>, agent: AgentAnswers) -> Result<u64, String> {
        let mut open = self.lock();
        open.last += 1;
        let number = open.last;
        open.say(FromAdmin::Ask { number, agent })?;
        open.waiting.insert(number, tell);
        Ok(number)
    }

    /// Sends a message that needs no reply.
    ///
    /// # Errors
    /// Why it cannot be sent.
    pub(super) fn say(&self, message: FromAdmin) -> Result<(), String> {
        self.lock().say(message)
    }

    /// Distributes the available replies.
    ///
    /// # Errors
    /// The channel cannot go on; [`channel::Error::Closed`] is its end, on either side.
    pub(super) fn hear(&self) -> Result<(), channel::Error> {
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

    /// Returns descriptors of which one becomes readable when [`Questions::hear`] has work.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn ends(&self) -> io::Result<[OwnedFd; 2]> {
        let mut open = self.lock();
        let (alarmed, alarm) = io::pipe()?;
        open.alarm = Some(alarm);
        Ok([open.channel.as_fd().try_clone_to_owned()?, alarmed.into()])
    }

    /// Ends all threads because one failed: the reading thread finds the channel closed.
    pub(super) fn give_up(&self, why: &io::Error) {
        let mut open = self.lock();
        open.failure = Some(why.to_string());
        open.alarm = None;
    }

    /// Returns why a thread failed, if one has.
    pub(super) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Wherever a thread panicked, the data here is consistent at every moment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn say(&mut self, message: FromAdmin) -> Result<(), String> {
        let said = self.channel.send(&Envelope::without_worker(message), &[]);
        said.map_err(|error| error.to_string())
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

    /// The supervisor's end: returns the next request.
    fn asked(channel: &mut Channel<ToAdmin, FromAdmin>) -> u64 {
        let received = channel.receive().unwrap().expect("it was asked before");
        match received.envelope.message {
            FromAdmin::Ask { number, .. } => number,
            other => panic!("{other:?}"),
        }
    }

    fn tell(channel: &mut Channel<ToAdmin, FromAdmin>, number: u64, version: &str) {
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
        let questions = Questions::over(here);
        let ask = || {
            let (tell, told) = channel();
            (questions.ask(tell, NOTHING).unwrap(), told)
        };
        let (first, second) = (ask(), ask());
        assert_eq!(
            [asked(&mut supervisor), asked(&mut supervisor)],
            [first.0, second.0]
        );
        tell(&mut supervisor, second.0, "second");
        tell(&mut supervisor, first.0, "first");
        questions.hear().unwrap();
        for ((_, told), version) in [(first, "first"), (second, "second")] {
            let answer = told.try_recv().unwrap();
            assert_eq!(read(answer.into()).unwrap().version, version);
        }
    }

    #[test]
    fn late_answer_is_dropped() {
        let (mut supervisor, here) = Channel::pair().unwrap();
        let questions = Questions::over(here);
        let why = questions
            .status(Duration::from_millis(1), NOTHING)
            .unwrap_err();
        assert_eq!(why, "no answer in time");
        let number = asked(&mut supervisor);
        tell(&mut supervisor, number, "late");
        questions.hear().unwrap();
        assert!(questions.lock().waiting.is_empty());
    }

    #[test]
    fn both_sides_notice_end() {
        let (supervisor, here) = Channel::pair().unwrap();
        let questions = Questions::over(here);
        let [_, alarmed] = questions.ends().unwrap();
        questions.give_up(&io::Error::other("no descriptors"));
        assert_eq!(File::from(alarmed).read(&mut [0]).unwrap(), 0);
        assert!(matches!(questions.hear(), Err(channel::Error::Closed)));
        assert_eq!(questions.failure().as_deref(), Some("no descriptors"));
        // It can still be sent.
        let ask = FromAdmin::Ask {
            number: 1,
            agent: NOTHING,
        };
        questions.say(ask).unwrap();
        drop(supervisor);
        let questions = Questions::over(Channel::pair().unwrap().0);
        assert!(matches!(questions.hear(), Err(channel::Error::Closed)));
        questions
            .status(Duration::from_secs(10), NOTHING)
            .unwrap_err();
    }
}
