//! One admin process as the supervisor has it: the process, and the channel over which it asks.
//!
//! Invariants: it can ask how the server is, saying how often load balancers were told what, and nothing
//! else; one that says anything out of place, or does not read the answers, is ended; what it is told
//! is a file of its own that nothing reads here.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::channel::packets::Packets;
use crate::channel::{self, Channel};
use crate::config::{Account, Config, Sandbox};
use crate::supervisor::fleet::children::{death_of, send_failure};
use crate::supervisor::machine::Death;
use crate::supervisor::tokens::Source;
use crate::sys::image::{Image, Process};
use crate::wire::{Envelope, FromAdmin, StartAdmin, ToAdmin};
use uppercased_ctl::identity::WorkerId;
use uppercased_ctl::status::Status;
use uppercased_ctl::status::{AgentAnswers, Sandboxed};

/// A process that answers at the admin endpoint, or is about to.
#[derive(Debug)]
pub(super) struct AdminProcess {
    process: Process,
    channel: Channel<ToAdmin, FromAdmin>,
    wanted: Confinement,
    /// Once it is ready.
    sandbox: Option<Sandboxed>,
    agent: AgentAnswers,
    /// Its last words, or why it was ended.
    cause: Option<String>,
}

/// How a process is to be locked in, and as whom it is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Confinement {
    sandbox: Sandbox,
    user: Option<Account>,
    group: Option<Account>,
}

/// What the process said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is locked in and answers.
    Ready,
    /// How is the server? The number comes back with the answer.
    Asked(u64),
}

impl AdminProcess {
    /// Starts one that accepts from the listeners for HTTP and for load balancers.
    ///
    /// # Errors
    /// There is no process then.
    pub(super) fn start(
        config: &Config,
        listeners: [Option<BorrowedFd<'_>>; 2],
    ) -> io::Result<Self> {
        let (mut channel, there) = Channel::pair()?;
        // Said before it is born: it waits in the channel.
        let start = ToAdmin::Start(Box::new(StartAdmin {
            config: config.clone(),
            http: listeners[0].is_some(),
            agent: listeners[1].is_some(),
        }));
        let along: Vec<_> = listeners.into_iter().flatten().collect();
        let said = channel.send(&Envelope::without_worker(start), &along);
        said.map_err(io::Error::other)?;
        let supervisor = std::process::id().to_string();
        let arguments = ["uppercased: admin", "admin", "--supervisor", &supervisor];
        let image = Image::of_this_process()?;
        let process = image.spawn(arguments, &there, |error| {
            let cause = format!("cannot execute the admin process's program: {error}");
            send_failure(&there, WorkerId::default(), FromAdmin::Failed { cause });
        })?;
        Ok(Self {
            process,
            channel,
            wanted: Confinement::of(config),
            sandbox: None,
            agent: AgentAnswers::default(),
            cause: None,
        })
    }

    /// A report that comes late does no harm: both are looked at, whatever is reported.
    pub(super) fn watch(&self, registry: &Registry) -> io::Result<()> {
        let process = self.process.as_fd().as_raw_fd();
        let token = Source::AdminProcess.token();
        registry.register(&mut SourceFd(&process), token, Interest::READABLE)?;
        let channel = self.channel.as_fd().as_raw_fd();
        let token = Source::AdminChannel.token();
        let both = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut SourceFd(&channel), token, both)
    }

    /// Has what is there to be heard reported once more.
    pub(super) fn watch_again(&mut self, registry: &Registry) {
        let channel = self.channel.as_fd().as_raw_fd();
        let token = Source::AdminChannel.token();
        let both = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = registry.reregister(&mut SourceFd(&channel), token, both) {
            self.end(format!("it cannot be watched: {error}"));
        }
    }

    /// Its number, for people.
    pub(super) const fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// How it has locked itself in, once it has.
    pub(super) const fn sandbox(&self) -> Option<&Sandboxed> {
        self.sandbox.as_ref()
    }

    /// What it has told load balancers, as of its last question.
    pub(super) const fn agent(&self) -> AgentAnswers {
        self.agent
    }

    /// Whether it was started to be locked in as `config` says.
    pub(super) fn is_as(&self, config: &Config) -> bool {
        self.wanted.is_of(config)
    }

    /// The next thing that it said; `None` if there is nothing now.
    pub(super) fn hear(&mut self) -> Option<Heard> {
        // Who was ended for a reason has nothing to say any more.
        if self.cause.is_some() {
            return None;
        }
        let received = match self.channel.receive() {
            Ok(received) => received?,
            // Its pidfd is about to tell how it ended.
            Err(channel::Error::Closed) => return None,
            Err(error) => {
                self.end(error.to_string());
                return None;
            }
        };
        match received.envelope.message {
            FromAdmin::Ready { .. } if self.sandbox.is_some() => {
                self.end("it is ready a second time".to_owned());
                None
            }
            FromAdmin::Ready { sandbox } => {
                self.sandbox = Some(sandbox);
                Some(Heard::Ready)
            }
            FromAdmin::Ask { number, agent } => {
                self.agent = agent;
                Some(Heard::Asked(number))
            }
            FromAdmin::Failed { cause } => {
                self.cause = Some(cause);
                None
            }
        }
    }

    /// Answers a question.
    pub(super) fn tell(&mut self, number: u64, status: &Status) {
        let answer = Envelope::without_worker(ToAdmin::Status { number });
        let said = written(status)
            .map_err(|error| format!("it cannot be told: {error}"))
            .and_then(|file| {
                let said = self.channel.send(&answer, &[file.as_fd()]);
                said.map_err(|error| error.to_string())
            });
        if let Err(cause) = said {
            self.end(cause);
        }
    }

    /// Ends it; how it ended is reported as ever.
    fn end(&mut self, cause: String) {
        self.cause = Some(cause);
        self.kill();
    }

    /// Kills it, at the end of everything.
    pub(super) fn kill(&self) {
        // Fails only if it has ended already.
        let _ = self.process.kill();
    }

    /// What is left of it when it is not wanted any more.
    pub(super) fn into_parts(self) -> (Process, Packets) {
        (self.process, self.channel.into_packets())
    }

    /// How it ended, if it did.
    pub(super) fn reap(&self) -> Option<Death> {
        let how = death_of(&self.process)?;
        self.channel.purge();
        Some(how)
    }

    /// Why it ended, if it or this side has said.
    pub(super) fn cause(self) -> Option<String> {
        self.cause
    }
}

impl Confinement {
    fn of(config: &Config) -> Self {
        Self {
            sandbox: config.sandbox,
            user: config.user.clone(),
            group: config.group.clone(),
        }
    }

    /// The same as `Self::of(config) == *self`, without the copies: it is asked in every turn.
    fn is_of(&self, config: &Config) -> bool {
        let Self {
            sandbox,
            user,
            group,
        } = self;
        (sandbox, user, group) == (&config.sandbox, &config.user, &config.group)
    }
}

/// A file with the status, at its beginning.
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
    use crate::wire::FromWorker;

    /// A process that does nothing, and the end of its channel.
    fn process() -> (Child, AdminProcess, Channel<FromAdmin, ToAdmin>) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let number = child.id().cast_signed();
        let pidfd = pidfd_open(Pid::from_raw(number).unwrap(), PidfdFlags::empty()).unwrap();
        let (channel, there) = Channel::pair().unwrap();
        let process = AdminProcess {
            process: Process::inherited(number, pidfd),
            channel,
            wanted: Confinement::of(&Config::default()),
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
            (twice, "a second time"),
            (foreign, "on a channel of FromAdmin"),
        ] {
            let (_child, mut process, mut there) = process();
            there.send(&Envelope::without_worker(ready()), &[]).unwrap();
            rustix::net::send(there.as_fd(), &wrong, SendFlags::empty()).unwrap();
            there.send(&Envelope::without_worker(ask(1)), &[]).unwrap();
            assert_eq!(process.hear(), Some(Heard::Ready));
            assert_eq!(process.hear(), None);
            assert_eq!(process.hear(), None, "nothing more is received");
            let mut ended = [PollFd::new(process.process.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut ended, PollTimeout::from(10_000_u16)), Ok(1));
            let how = process.reap().unwrap();
            assert_eq!(how, Death::Signalled(9));
            let logged = process.cause().unwrap();
            assert!(logged.contains(cause), "{logged}");
        }
    }

    #[test]
    fn a_question_brings_along_what_load_balancers_were_told() {
        let (_child, mut process, mut there) = process();
        there.send(&Envelope::without_worker(ask(7)), &[]).unwrap();
        assert_eq!(process.hear(), Some(Heard::Asked(7)));
        assert_eq!(process.agent().ready, 7);
        process.kill();
    }

    #[test]
    fn who_leaves_answers_unread_is_ended() {
        let (_child, mut process, _there) = process();
        let mut told = 0;
        while process.cause.is_none() {
            process.tell(told, &Status::default());
            told += 1;
            assert!(told < 10_000, "there is a bound");
        }
        process.kill();
    }
}
