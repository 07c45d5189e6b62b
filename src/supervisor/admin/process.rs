//! One admin process in the supervisor: the process and its channel.
//!
//! Invariants: it can only request the status and report the load balancer answers; a process that
//! sends an invalid message, or does not read the answers, is killed; an answer is a file of its
//! own that is never read here.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use ipnet::IpNet;
use mio::Registry;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::channel::{self, Channel};
use crate::config::{Account, Config, Sandbox};
use crate::supervisor::machine::ExitStatus;
use crate::supervisor::subprocess::{Ended, Subprocess};
use crate::supervisor::tokens::Source;
use crate::sys::image::Image;
use crate::wire::{Envelope, FromAdmin, StartAdmin, ToAdmin};
use uppercased_ctl::status::AgentAnswers;
use uppercased_ctl::status::Sandboxed;
use uppercased_ctl::status::Status;

/// A process that answers at the admin endpoint, or is starting.
#[derive(Debug)]
pub(crate) struct AdminProcess {
    child: Subprocess<Channel<ToAdmin, FromAdmin>>,
    wanted: Wanted,
    /// Its sandbox, once it is ready.
    sandbox: Option<Sandboxed>,
    agent: AgentAnswers,
    /// Its error message, or the reason why it was killed.
    cause: Option<String>,
}

/// The settings that a process was started with and cannot change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    sandbox: Sandbox,
    user: Option<Account>,
    group: Option<Account>,
    allow: Vec<IpNet>,
}

/// A message of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// It is sandboxed and ready.
    Ready,
    /// It requests the status. The answer repeats the number.
    Question(u64),
}

impl AdminProcess {
    /// Starts a process that accepts from the listeners for HTTP and for load balancers.
    ///
    /// # Errors
    /// There is no process then.
    pub(crate) fn start(
        config: &Config,
        listeners: [Option<BorrowedFd<'_>>; 2],
    ) -> io::Result<Self> {
        let start = ToAdmin::Start(Box::new(StartAdmin {
            config: config.clone(),
            http: listeners[0].is_some(),
            agent: listeners[1].is_some(),
        }));
        let start = Envelope::without_worker(start);
        let along: Vec<_> = listeners.into_iter().flatten().collect();
        let supervisor = std::process::id().to_string();
        let arguments = ["uppercased: admin", "admin", "--supervisor", &supervisor];
        let image = Image::of_this_process()?;
        Ok(Self {
            child: Subprocess::start(&image, arguments, &start, &along, |cause| {
                FromAdmin::Failed { cause }
            })?,
            wanted: Wanted::of(config),
            sandbox: None,
            agent: AgentAnswers::default(),
            cause: None,
        })
    }

    /// Watches the process. Stale reports are harmless: any report checks both its channel and its
    /// exit.
    pub(crate) fn watch(&self, registry: &Registry) -> io::Result<()> {
        let (channel, process) = (Source::AdminChannel, Source::AdminProcess);
        self.child.watch(registry, channel, process)
    }

    /// Rearms the report of readiness that was not used up.
    pub(crate) fn watch_again(&mut self, registry: &Registry) {
        let watched = self
            .child
            .watch_channel_again(registry, Source::AdminChannel);
        if let Err(error) = watched {
            self.end(format!("cannot watch it: {error}"));
        }
    }

    pub(crate) const fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Returns its sandbox, once it is ready.
    pub(crate) const fn sandbox(&self) -> Option<&Sandboxed> {
        self.sandbox.as_ref()
    }

    /// Returns the answers given to load balancers, as of its last request.
    pub(crate) const fn agent(&self) -> AgentAnswers {
        self.agent
    }

    /// Returns whether it was started with what `config` requires.
    pub(crate) fn is_as(&self, config: &Config) -> bool {
        self.wanted.is_of(config)
    }

    /// Returns the next message; `None` if there is none now.
    pub(crate) fn receive(&mut self) -> Option<Received> {
        // A process that was killed for a reason may not send again.
        if self.cause.is_some() {
            return None;
        }
        let received = match self.child.channel.receive() {
            Ok(received) => received?,
            // Its pidfd is about to report how it exited.
            Err(channel::Error::Closed) => return None,
            Err(error) => {
                self.end(error.to_string());
                return None;
            }
        };
        match received.envelope.message {
            FromAdmin::Ready { .. } if self.sandbox.is_some() => {
                self.end("it sent Ready twice".to_owned());
                None
            }
            FromAdmin::Ready { sandbox } => {
                self.sandbox = Some(sandbox);
                Some(Received::Ready)
            }
            FromAdmin::Ask { number, agent } => {
                self.agent = agent;
                Some(Received::Question(number))
            }
            FromAdmin::Failed { cause } => {
                self.cause = Some(cause);
                None
            }
        }
    }

    /// Sends the answer to a status request.
    pub(crate) fn answer(&mut self, number: u64, status: &Status) {
        let answer = Envelope::without_worker(ToAdmin::Status { number });
        let said = written(status)
            .map_err(|error| format!("cannot send to it: {error}"))
            .and_then(|file| {
                let said = self.child.channel.send(&answer, &[file.as_fd()]);
                said.map_err(|error| error.to_string())
            });
        if let Err(cause) = said {
            self.end(cause);
        }
    }

    /// Kills it for `cause`; its pidfd reports the exit.
    fn end(&mut self, cause: String) {
        self.cause = Some(cause);
        self.kill();
    }

    pub(crate) fn kill(&self) {
        // A process that cannot be killed now exits with its supervisor.
        let _ = self.child.kill();
    }

    pub(crate) fn into_ended(self) -> Ended {
        self.child.into_ended()
    }

    /// Reaps it, if it has exited.
    pub(crate) fn reap(&self) -> Option<ExitStatus> {
        let exit = self.child.reap()?;
        self.child.channel.purge();
        Some(exit)
    }

    /// Returns the cause of its exit, if either side has reported one.
    pub(crate) fn cause(self) -> Option<String> {
        self.cause
    }
}

impl Wanted {
    fn of(config: &Config) -> Self {
        Self {
            sandbox: config.sandbox,
            user: config.user.clone(),
            group: config.group.clone(),
            allow: config.admin_allow.clone(),
        }
    }

    /// Equals `Self::of(config) == *self`, without the copies: this runs in every turn.
    fn is_of(&self, config: &Config) -> bool {
        let Self {
            sandbox,
            user,
            group,
            allow,
        } = self;
        (sandbox, user, group, allow)
            == (
                &config.sandbox,
                &config.user,
                &config.group,
                &config.admin_allow,
            )
    }
}

/// Returns a file with the status, positioned at its beginning.
fn written(status: &Status) -> io::Result<File> {
    let bytes = serde_json::to_vec(status)?;
    let mut file = File::from(memfd_create(c"uppercased-status", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&bytes)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use rustix::net::SendFlags;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;
    use crate::sys::image::Process;
    use crate::wire::FromWorker;

    /// Returns a process that does nothing, and the end of its channel.
    fn process() -> (Child, AdminProcess, Channel<FromAdmin, ToAdmin>) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let number = child.id().cast_signed();
        let pidfd = pidfd_open(Pid::from_raw(number).unwrap(), PidfdFlags::empty()).unwrap();
        let (channel, there) = Channel::pair().unwrap();
        let process = AdminProcess {
            child: Subprocess::new(Process::inherited(number, pidfd), channel),
            wanted: Wanted::of(&Config::default()),
            sandbox: None,
            agent: AgentAnswers::default(),
            cause: None,
        };
        (child, process, there)
    }

    fn ask(number: u64) -> FromAdmin {
        let agent = AgentAnswers {
            ready: number,
            ..AgentAnswers::default()
        };
        FromAdmin::Ask { number, agent }
    }

    fn ready() -> FromAdmin {
        FromAdmin::Ready {
            sandbox: Sandboxed::default(),
        }
    }

    #[test]
    fn misplaced_message_ends_process() {
        let twice = Envelope::without_worker(ready()).encode(0).unwrap();
        let foreign = Envelope::without_worker(FromWorker::Draining { connections: 0 });
        let foreign = foreign.encode(0).unwrap();
        for (wrong, cause) in [
            (twice, "Ready twice"),
            (foreign, "on a channel of FromAdmin"),
        ] {
            let (_child, mut process, mut there) = process();
            there.send(&Envelope::without_worker(ready()), &[]).unwrap();
            rustix::net::send(there.as_fd(), &wrong, SendFlags::empty()).unwrap();
            there.send(&Envelope::without_worker(ask(1)), &[]).unwrap();
            assert_eq!(process.receive(), Some(Received::Ready));
            assert_eq!(process.receive(), None);
            assert_eq!(process.receive(), None, "nothing more is received");
            let mut ended = [PollFd::new(process.child.end(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut ended, PollTimeout::from(10_000_u16)), Ok(1));
            let exit = process.reap().unwrap();
            assert_eq!(exit, ExitStatus::Signalled(9));
            let logged = process.cause().unwrap();
            assert!(logged.contains(cause), "{logged}");
        }
    }

    #[test]
    fn question_carries_agent_answer_counts() {
        let (_child, mut process, mut there) = process();
        there.send(&Envelope::without_worker(ask(7)), &[]).unwrap();
        assert_eq!(process.receive(), Some(Received::Question(7)));
        assert_eq!(process.agent().ready, 7);
        process.kill();
    }

    #[test]
    fn unread_answers_end_process() {
        let (_child, mut process, _there) = process();
        let mut told = 0;
        while process.cause.is_none() {
            process.answer(told, &Status::default());
            told += 1;
            assert!(told < 10_000, "there is a bound");
        }
        process.kill();
    }
}
