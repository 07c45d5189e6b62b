//! The question to the service manager whether it stops the service or restarts it.
//!
//! A child asks, because D-Bus may block. At a stop, workers drain; at a restart they serve on until
//! the next supervisor adopts them.
//!
//! Invariants: there is at most one question; it ends at its deadline, and no answer means a stop.

use std::ffi::OsStr;
use std::io;
use std::mem;

use mio::Registry;

use crate::channel::Channel;
use crate::config::INQUIRY_TIMEOUT;
use crate::log::event;
use crate::supervisor::subprocess::{Ended, Subprocess};
use crate::supervisor::tokens::Source;
use crate::sys::image::Image;
use crate::wire::{Envelope, FromPreflight, Job, ToPreflight};
use uppercased_ctl::clock::Tick;

/// Why the service manager ends the service, as far as it was asked.
#[derive(Debug, Default)]
pub(crate) enum Inquiry {
    /// It was not asked, or the service stops.
    #[default]
    None,
    Open(Open),
    /// The service starts again: the supervisor leaves its workers as soon as it can.
    Restart,
}

/// An open question.
#[derive(Debug)]
pub(crate) struct Open {
    child: Subprocess<Channel<ToPreflight, FromPreflight>>,
    until: Tick,
}

impl Inquiry {
    /// Asks. [`Self::end`] is needed if this fails.
    ///
    /// # Errors
    /// The cause.
    pub(crate) fn begin(&mut self, registry: &Registry, now: Tick) -> io::Result<()> {
        let image = Image::of_this_process()?;
        let arguments = ["uppercased: inquiry", "preflight", "--"].map(OsStr::new);
        let task = Envelope::without_worker(ToPreflight::Ask);
        let child = Subprocess::start(&image, arguments, &task, &[], |cause| {
            FromPreflight::Failed { cause }
        })?;
        let watched = child.watch(registry, Source::InquiryChannel, Source::InquiryProcess);
        *self = Self::Open(Open {
            child,
            until: now + INQUIRY_TIMEOUT,
        });
        watched
    }

    pub(crate) const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Returns whether the service starts again.
    pub(crate) const fn is_restart(&self) -> bool {
        matches!(self, Self::Restart)
    }

    pub(crate) const fn pid(&self) -> Option<i32> {
        match self {
            Self::Open(open) => Some(open.child.pid()),
            Self::None | Self::Restart => None,
        }
    }

    pub(crate) const fn deadline(&self) -> Option<Tick> {
        match self {
            Self::Open(open) => Some(open.until),
            Self::None | Self::Restart => None,
        }
    }

    /// Receives the answer. Returns the child, which must be killed; `None` while there is no answer
    /// and the deadline has not passed.
    pub(crate) fn poll(&mut self, now: Tick) -> Option<Ended> {
        let Self::Open(open) = self else {
            return None;
        };
        // Before its channel is read: what a process has sent is there once it has exited.
        let has_ended = open.child.has_ended();
        let answered = match open.child.channel.receive() {
            Ok(Some(received)) => match received.envelope.message {
                FromPreflight::Answered { job } => Ok(job),
                FromPreflight::Failed { cause } => Err(cause),
                FromPreflight::Resolved { .. } => Err("an answer to another question".to_owned()),
            },
            Ok(None) if has_ended => Err("the child has exited".to_owned()),
            Ok(None) if open.until <= now => Err("no answer in time".to_owned()),
            Ok(None) => return None,
            Err(error) => Err(error.to_string()),
        };
        let job = answered.unwrap_or_else(|error| {
            event!(service_job_unknown, error);
            Job::Stop
        });
        let child = self.end();
        if job == Job::Start {
            *self = Self::Restart;
        }
        child
    }

    /// Forgets the question and its answer. The child must be killed.
    pub(crate) fn end(&mut self) -> Option<Ended> {
        match mem::take(self) {
            Self::Open(open) => Some(open.child.into_ended()),
            Self::None | Self::Restart => None,
        }
    }
}
