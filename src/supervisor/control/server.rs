//! The server's side of the control socket: its clients, their requests, and the answers.
//!
//! Invariants: the socket has mode 0600 from birth, and a peer is heard only if it is root or has
//! this process's own user; no client makes the supervisor wait or grow (bounded clients, request,
//! output, and time to send the one and to read the other); a request has one id and gets one final
//! answer, also if a program upgrade lies between the two; only a socket file that is ours, or that
//! nobody answers at, is ever removed.
//!
//! It must not carry out anything: complete requests are handed out, answers handed in.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net as unix;
use std::path::Path;
use std::time::Duration;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use crate::config::{
    CONTROL_ACCEPTS_PER_TURN, CONTROL_CLIENTS_MAX, CONTROL_FILE_CHECK, CONTROL_PATIENCE,
    CONTROL_REQUEST_TIMEOUT, Control,
};
use crate::sys::fd::{Descriptor, Inherited, Kept};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::control::place::Surroundings;
use uppercased_ctl::control::{Reply, Request};
use uppercased_ctl::identity::RequestId;

use super::client::{self, Client, Flushed, Peer, Seen, State};
use crate::supervisor::socket_file::{self, Error, FileId, SocketFile, refused};

/// Takes requests and brings answers back.
#[derive(Debug)]
pub(crate) struct ControlServer {
    socket: SocketFile,
    listener: UnixListener,
    /// Client `i` has the token after the listener's plus `i`.
    clients: [Option<Client>; CONTROL_CLIENTS_MAX],
    first: Token,
    next: RequestId,
    /// Accepting failed for want of descriptors or memory; try again then.
    rest_until: Option<Tick>,
    /// When to look for the socket's file next.
    file_due: Tick,
    /// That it cannot be made again has been logged.
    file_lost: bool,
    /// Slow clients that have lost their place to others, and when that was logged last.
    gave_way: u64,
    gave_way_logged: Option<Tick>,
}

/// The control server in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    file: FileId,
    listener: Descriptor,
    next: RequestId,
    clients: Vec<client::Saved>,
}

/// What a client did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It sent a request.
    Requested(RequestId, Request),
    /// It left before the answer to this one.
    Withdrawn(RequestId),
}

/// How often clients that gave way are logged.
const GAVE_WAY_LOGGED_EVERY: Duration = Duration::from_secs(1);

/// How long accepting rests after the system ran out of something.
const ACCEPT_REST: Duration = Duration::from_secs(1);

fn watch(
    listener: unix::UnixListener,
    registry: &Registry,
    token: Token,
) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    let mut listener = UnixListener::from_std(listener);
    registry.register(&mut listener, token, Interest::READABLE)?;
    Ok(listener)
}

impl ControlServer {
    /// Opens the socket where `control` says. `tokens` is the first of [`TOKENS`] that it uses;
    /// requests are numbered from `first_request` on.
    ///
    /// `None` if there is to be none; also, with a warning, if the default place cannot be had:
    /// who named no path can do without.
    ///
    /// # Errors
    /// A named path cannot be had.
    pub(crate) fn open(
        control: &Control,
        registry: &Registry,
        tokens: Token,
        first_request: RequestId,
    ) -> Result<Option<Self>, Error> {
        let opened = match control {
            Control::Off => return Ok(None),
            Control::Path(path) => Self::open_at(path, registry, tokens, first_request).map(Some),
            Control::Auto => {
                match Self::open_in(&Surroundings::here(), registry, tokens, first_request) {
                    Ok(server) => Ok(Some(server)),
                    Err(error @ Error::NoPlace) => {
                        tracing::info!(%error, "no control socket: signals only");
                        Ok(None)
                    }
                    Err(error) => {
                        tracing::warn!(%error, "no control socket: signals only");
                        Ok(None)
                    }
                }
            }
        };
        if let Ok(Some(server)) = &opened {
            let path = server.path().display();
            tracing::debug!(%path, "control socket open");
        }
        opened
    }

    fn open_in(
        here: &Surroundings,
        registry: &Registry,
        tokens: Token,
        first_request: RequestId,
    ) -> Result<Self, Error> {
        let path = socket_file::default_path(here)?;
        Self::open_at(&path, registry, tokens, first_request)
    }

    fn open_at(
        path: &Path,
        registry: &Registry,
        tokens: Token,
        first_request: RequestId,
    ) -> Result<Self, Error> {
        let (listener, socket) = socket_file::bind(path)?;
        let listener =
            watch(listener, registry, tokens).map_err(refused(path, "watch the socket"))?;
        // Number 0 means that nobody waits.
        let first_request = first_request.max(RequestId(RequestId::NOBODY.0 + 1));
        Ok(Self::over(socket, listener, tokens, first_request))
    }

    const fn over(
        socket: SocketFile,
        listener: UnixListener,
        first: Token,
        next: RequestId,
    ) -> Self {
        Self {
            socket,
            listener,
            clients: [const { None }; CONTROL_CLIENTS_MAX],
            first,
            next,
            rest_until: None,
            file_due: Tick::ZERO,
            file_lost: false,
            gave_way: 0,
            gave_way_logged: None,
        }
    }

    /// Goes on with what the earlier program of this process saved. The socket's file stays that
    /// program's until [`Self::own_file`].
    ///
    /// # Errors
    /// The listener is not there, or cannot be watched.
    pub(crate) fn restore(
        saved: Saved,
        inherited: &mut Inherited,
        registry: &Registry,
        tokens: Token,
    ) -> io::Result<Self> {
        let mut listener = UnixListener::from_std(inherited.take(saved.listener)?.into());
        registry.register(&mut listener, tokens, Interest::READABLE)?;
        let socket = SocketFile::inherited(saved.file);
        let mut server = Self::over(socket, listener, tokens, saved.next);
        for client in saved.clients {
            let client = Client::restore(client, inherited)?;
            // One client less must not fail an upgrade.
            if let Err(error) = server.seat(client, registry) {
                tracing::warn!(%error, "a client of the control socket is lost");
            }
        }
        Ok(server)
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        let clients = self.clients.iter().flatten();
        Saved {
            file: self.socket.id.clone(),
            listener: kept.keep(&self.listener),
            next: self.next,
            clients: clients.map(|client| client.save(kept)).collect(),
        }
    }

    /// Makes the socket's file this program's to remove.
    pub(crate) fn own_file(&mut self) {
        self.socket.own();
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.socket.id.path
    }

    /// Accepts, reads and writes as far as `token` is ready. A complete request comes out, with the
    /// id that its answer must name, and so does the id of one whose client has left.
    pub(crate) fn ready(&mut self, token: Token, registry: &Registry, now: Tick) -> Vec<Event> {
        if token == self.first {
            return self.accept(registry, now);
        }
        let index = token.0.wrapping_sub(self.first.0 + 1);
        self.look(index, registry, now).into_iter().collect()
    }

    fn look(&mut self, index: usize, registry: &Registry, now: Tick) -> Option<Event> {
        // A late report of a client that has left is nobody's.
        let Some(Some(client)) = self.clients.get_mut(index) else {
            return None;
        };
        match client.look() {
            Seen::Nothing => None,
            Seen::Asked(request) => {
                let id = self.next;
                self.next = RequestId(id.0.wrapping_add(1));
                client.state = State::Waiting { request: id };
                let (pid, uid) = (client.peer.pid, client.peer.uid);
                tracing::debug!(
                    id = id.0,
                    command = request.name(),
                    pid,
                    uid,
                    "control request"
                );
                Some(Event::Requested(id, request))
            }
            Seen::Refused(cause) => {
                let (pid, uid) = (client.peer.pid, client.peer.uid);
                tracing::warn!(cause, pid, uid, "control request refused");
                self.finish(index, Reply::Refused(cause), registry, now);
                None
            }
            Seen::Gone => {
                let left = match client.state {
                    State::Waiting { request } => Some(Event::Withdrawn(request)),
                    State::Asking { .. } | State::Leaving { .. } => None,
                };
                self.dismiss(index, registry);
                left
            }
        }
    }

    /// Tells whoever asked what happens meanwhile. Nobody is told if they have left.
    pub(crate) fn progress(&mut self, request: RequestId, text: &str, registry: &Registry) {
        if let Some(index) = self.find(request) {
            self.say(index, &Reply::Progress(text.to_owned()), registry);
        }
    }

    /// Tells whoever asked how it ended, and lets them go once they have read it.
    pub(crate) fn answer(
        &mut self,
        request: RequestId,
        reply: Reply,
        registry: &Registry,
        now: Tick,
    ) {
        debug_assert!(reply.is_final(), "{reply:?} is no answer");
        match self.find(request) {
            Some(index) => self.finish(index, reply, registry, now),
            None if request == RequestId::NOBODY => {}
            None => tracing::debug!(id = request.0, "whoever asked has left"),
        }
    }

    /// The process and the user that wait for the answer to `request`.
    pub(crate) fn caller(&self, request: RequestId) -> Option<(i32, u32)> {
        let client = self.clients[self.find(request)?].as_ref()?;
        Some((client.peer.pid, client.peer.uid))
    }

    /// When [`Self::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Tick> {
        let clients = self.clients.iter().flatten();
        let dues = clients.filter_map(|client| client.state.due());
        dues.chain(self.rest_until).min()
    }

    /// Cuts clients whose time is over, and tries again what had to rest.
    pub(crate) fn handle_timeout(&mut self, registry: &Registry, now: Tick) -> Vec<Event> {
        for index in 0..self.clients.len() {
            let client = self.clients[index].as_ref();
            if let Some(client) = client
                && client.state.due().is_some_and(|due| due <= now)
            {
                let (pid, uid) = (client.peer.pid, client.peer.uid);
                tracing::warn!(pid, uid, "a silent client of the control socket is cut");
                self.dismiss(index, registry);
            }
        }
        if self.rest_until.is_some_and(|until| until <= now) {
            return self.accept(registry, now);
        }
        Vec::new()
    }

    /// When [`Self::keep_file`] is due.
    pub(crate) const fn file_due(&self) -> Tick {
        self.file_due
    }

    /// Makes the socket again if its file is gone: those who tidy temporary directories remove the
    /// files of living servers, too, and without it no command finds the server. Another living
    /// server's socket at that path stays.
    pub(crate) fn keep_file(&mut self, registry: &Registry, now: Tick) {
        self.file_due = now + CONTROL_FILE_CHECK;
        if self.socket.is_there() {
            self.file_lost = false;
            return;
        }
        match self.open_again(registry) {
            Ok(()) => {
                let path = self.path().display();
                tracing::warn!(%path, "control socket file was gone: restored");
                self.file_lost = false;
            }
            Err(error) if !self.file_lost => {
                tracing::error!(%error, "control socket file is gone");
                self.file_lost = true;
            }
            Err(_) => {}
        }
    }

    /// Clients that are connected stay.
    fn open_again(&mut self, registry: &Registry) -> Result<(), Error> {
        let (listener, socket) = socket_file::bind_again(self.path())?;
        let listener = watch(listener, registry, self.first)
            .map_err(refused(self.path(), "watch the socket"))?;
        // The file before the listener: as long as that lives, no other file has its inode.
        self.socket = socket;
        self.listener = listener;
        self.rest_until = None;
        Ok(())
    }

    /// Accepts as long as there is, or can be made, a place; what is still in the queue then is
    /// accepted later. Requests of clients that were about to lose their place come out.
    fn accept(&mut self, registry: &Registry, now: Tick) -> Vec<Event> {
        let mut heard = Vec::new();
        self.rest_until = None;
        for _ in 0..CONTROL_ACCEPTS_PER_TURN {
            if !self.somebody_waits() {
                return heard;
            }
            if let Err(until) = self.make_room(registry, now, &mut heard) {
                self.rest_until = Some(until);
                return heard;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, registry, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return heard,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    tracing::warn!(%error, "the control socket rests");
                    self.rest_until = Some(now + ACCEPT_REST);
                    return heard;
                }
            }
        }
        // The next turn goes on.
        self.rest_until = Some(now);
        heard
    }

    /// Whether a client is in the queue: nobody gives way to none.
    fn somebody_waits(&self) -> bool {
        let mut ask = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut ask, PollTimeout::ZERO), Ok(1..))
    }

    /// Makes sure that the next client finds a place, if one of those that are there can give way: a
    /// client that has had [`CONTROL_PATIENCE`] and has not sent its request, else one that does not
    /// read its answer. What it has sent meanwhile counts.
    ///
    /// # Errors
    /// When the next one gives way.
    fn make_room(
        &mut self,
        registry: &Registry,
        now: Tick,
        heard: &mut Vec<Event>,
    ) -> Result<(), Tick> {
        if self.clients.iter().any(Option::is_none) {
            return Ok(());
        }
        for asking in [true, false] {
            let mut slow: Vec<(Tick, usize)> = Vec::new();
            for (index, client) in self.clients.iter().enumerate() {
                if let Some(client) = client
                    && matches!(client.state, State::Asking { .. }) == asking
                    && let Some(due) = client.state.due()
                {
                    slow.push((due, index));
                }
            }
            slow.sort_unstable();
            for (due, index) in slow {
                heard.extend(self.look(index, registry, now));
                match &self.clients[index] {
                    None => return Ok(()),
                    Some(client) if client.state.due() != Some(due) => continue,
                    Some(_) => {}
                }
                let left =
                    (due.since(now) + CONTROL_PATIENCE).saturating_sub(CONTROL_REQUEST_TIMEOUT);
                if !left.is_zero() {
                    return Err(now + left);
                }
                self.yielded(index, now);
                self.dismiss(index, registry);
                return Ok(());
            }
        }
        // All of them are being answered: the next one is told so.
        Ok(())
    }

    /// Counts a client that gave way, and says so once a second.
    fn yielded(&mut self, index: usize, now: Tick) {
        self.gave_way += 1;
        if self
            .gave_way_logged
            .is_some_and(|at| now.since(at) < GAVE_WAY_LOGGED_EVERY)
        {
            return;
        }
        self.gave_way_logged = Some(now);
        if let Some(client) = &self.clients[index] {
            let (pid, uid) = (client.peer.pid, client.peer.uid);
            let total = self.gave_way;
            tracing::warn!(pid, uid, total, "slow control client gave way");
        }
    }

    fn admit(&mut self, mut stream: UnixStream, registry: &Registry, now: Tick) {
        let peer = match getsockopt(&stream, sockopt::PeerCredentials) {
            Ok(peer) => Peer {
                pid: peer.pid(),
                uid: peer.uid(),
            },
            Err(error) => {
                tracing::warn!(%error, "a client of the control socket without credentials");
                return;
            }
        };
        let full = || {
            let full = self.clients.iter().all(Option::is_some);
            full.then(|| {
                format!("{CONTROL_CLIENTS_MAX} others are being answered; try again later")
            })
        };
        let (pid, uid) = (peer.pid, peer.uid);
        let own = rustix::process::geteuid().as_raw();
        if let Some(cause) = unheard(uid, own).or_else(full) {
            tracing::warn!(cause, pid, uid, "client of the control socket refused");
            if let Ok(line) = Reply::Refused(cause).encode() {
                // A fresh socket has room for it; if not, the end of the connection has to do.
                let _ = stream.write(&line);
            }
            return;
        }
        let client = Client::new(stream, peer, now);
        if let Err(error) = self.seat(client, registry) {
            tracing::warn!(%error, pid, uid, "a client of the control socket is lost");
        }
    }

    /// Gives a client a place and watches it. What is ready by then is reported next.
    fn seat(&mut self, mut client: Client, registry: &Registry) -> io::Result<()> {
        let free = self.clients.iter().position(Option::is_none);
        let index = free.ok_or(io::ErrorKind::QuotaExceeded)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut client.stream, self.token(index), both)?;
        self.clients[index] = Some(client);
        Ok(())
    }

    fn token(&self, index: usize) -> Token {
        Token(self.first.0 + 1 + index)
    }

    fn find(&self, wanted: RequestId) -> Option<usize> {
        let waits = |client: &Client| client.state == State::Waiting { request: wanted };
        self.clients
            .iter()
            .position(|client| client.as_ref().is_some_and(waits))
    }

    /// Says the last word to a client.
    fn finish(&mut self, index: usize, reply: Reply, registry: &Registry, now: Tick) {
        if let Some(client) = &mut self.clients[index] {
            client.leave(now);
        }
        self.say(index, &reply, registry);
    }

    fn say(&mut self, index: usize, reply: &Reply, registry: &Registry) {
        let Some(client) = &mut self.clients[index] else {
            return;
        };
        let line = reply.encode().or_else(|error| {
            tracing::error!(%error, "an answer cannot be sent");
            Reply::Failed(format!("the answer is {error}")).encode()
        });
        // Without a line there is nothing but the end of the connection to tell.
        let said = line.is_ok_and(|line| client.queue(&line));
        if !said || client.flush() == Flushed::Gone {
            self.dismiss(index, registry);
        }
    }

    fn dismiss(&mut self, index: usize, registry: &Registry) {
        if let Some(mut client) = self.clients[index].take() {
            // A forked child may hold a copy of the descriptor until it execs, so closing ours
            // alone would not end the reports.
            let _ = registry.deregister(&mut client.stream);
        }
    }
}

/// Why a user is not heard. The mode of the socket keeps others off already; were somebody to
/// loosen it, this still holds.
fn unheard(uid: u32, own: u32) -> Option<String> {
    (uid != 0 && uid != own)
        .then(|| format!("only the users 0 and {own} are heard here, and not user {uid}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use mio::{Events, Poll};
    use tempfile::TempDir;

    use super::*;
    use crate::config::{CONTROL_REQUEST_MAX_BYTES, CONTROL_REQUEST_TIMEOUT};
    use crate::sys::fd::pass_on;
    use uppercased_ctl::clock;
    use uppercased_ctl::control::{Done, Options, place};
    use uppercased_ctl::limits::CONTROL_REPLY_MAX_BYTES;

    const FIRST: Token = Token(40);

    struct Bench {
        directory: TempDir,
        poll: Poll,
        server: ControlServer,
        left: Vec<RequestId>,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let poll = Poll::new().unwrap();
            let control = Control::Path(directory.path().join("control"));
            let server = ControlServer::open(&control, poll.registry(), FIRST, RequestId(7));
            Self {
                server: server.unwrap().unwrap(),
                directory,
                poll,
                left: Vec::new(),
            }
        }

        fn client(&self) -> unix::UnixStream {
            unix::UnixStream::connect(self.server.path()).unwrap()
        }

        /// Lets the server do what it can do now.
        fn turn(&mut self) -> Vec<(RequestId, Request)> {
            let mut asked = Vec::new();
            let mut events = Events::with_capacity(64);
            loop {
                self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
                if events.is_empty() {
                    return asked;
                }
                for event in &events {
                    let own = self.server.first.0..self.server.first.0 + CONTROL_CLIENTS_MAX + 1;
                    assert!(own.contains(&event.token().0));
                    let registry = self.poll.registry();
                    for heard in self.server.ready(event.token(), registry, clock::now()) {
                        match heard {
                            Event::Requested(id, request) => asked.push((id, request)),
                            Event::Withdrawn(id) => self.left.push(id),
                        }
                    }
                }
            }
        }

        /// A client that has sent these bytes, and what came of it.
        fn sends(&mut self, bytes: &[u8]) -> (unix::UnixStream, Vec<(RequestId, Request)>) {
            let mut client = self.client();
            client.write_all(bytes).unwrap();
            let asked = self.turn();
            (client, asked)
        }

        fn progress(&mut self, id: RequestId, text: &str) {
            self.server.progress(id, text, self.poll.registry());
        }

        fn answer(&mut self, id: RequestId, reply: Reply) {
            let registry = self.poll.registry();
            self.server.answer(id, reply, registry, clock::now());
        }

        fn clients(&self) -> usize {
            self.server.clients.iter().flatten().count()
        }
    }

    fn everything(mut client: unix::UnixStream) -> String {
        let mut text = String::new();
        let patience = Some(Duration::from_secs(10));
        client.set_read_timeout(patience).unwrap();
        // Closed with something unread, the other end resets; what it had said comes first.
        let _ = client.read_to_string(&mut text);
        text
    }

    const RELOAD: &[u8] = br#"{"version":1,"command":"reload"}
"#;

    #[test]
    fn a_request_gets_its_progress_and_its_answer_and_the_end() {
        let mut bench = Bench::new();
        let mode = fs::metadata(bench.server.path()).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);

        let (mut client, asked) = bench.sends(&RELOAD[..10]);
        assert_eq!(asked, []);
        client.write_all(&RELOAD[10..]).unwrap();
        assert_eq!(
            bench.turn(),
            [(RequestId(7), Request::Reload(Options::default()))]
        );
        bench.progress(RequestId(7), "slot 0");
        bench.progress(RequestId(8), "of somebody else");
        let done = Done {
            renewed: 2,
            workers: 2,
            took_ms: 1,
            ..Done::default()
        };
        bench.answer(RequestId(7), Reply::Done(done));
        assert_eq!(
            everything(client),
            "{\"progress\":\"slot 0\"}\n{\"done\":{\"renewed\":2,\"workers\":2,\"moved\":0,\
             \"drained\":0,\"closed_after_ms\":0,\"took_ms\":1}}\n"
        );
        assert_eq!(bench.clients(), 0);

        let (_client, asked) = bench.sends(RELOAD);
        assert_eq!(asked, [(RequestId(8), Request::Reload(Options::default()))]);
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_reason() {
        let mut bench = Bench::new();
        let long = vec![b'x'; CONTROL_REQUEST_MAX_BYTES + 1];
        for (bytes, why) in [
            (b"GET / HTTP/1.1\r\n".as_slice(), "the line is not valid"),
            (b"{\"version\":9}\n", "version 9"),
            (long.as_slice(), "exceeds 4096 bytes"),
        ] {
            let (client, asked) = bench.sends(bytes);
            assert_eq!(asked, []);
            let text = everything(client);
            assert!(text.starts_with("{\"refused\":"), "{text}");
            assert!(text.contains(why), "{text}");
        }
        assert_eq!(bench.clients(), 0);
    }

    #[test]
    fn half_a_connection_is_enough_to_be_answered_and_none_is_forgotten() {
        let mut bench = Bench::new();
        let (client, asked) = bench.sends(RELOAD.trim_ascii_end());
        assert_eq!(asked, []);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let asked = bench.turn();
        assert_eq!(asked.len(), 1, "the end of the line may be missing");
        bench.turn();
        bench.answer(asked[0].0, Reply::Refused("busy".to_owned()));
        assert_eq!(everything(client), "{\"refused\":\"busy\"}\n");

        let (client, asked) = bench.sends(RELOAD);
        drop(client);
        bench.turn();
        assert_eq!(bench.clients(), 0);
        assert_eq!(bench.left, [asked[0].0]);
        bench.answer(asked[0].0, Reply::Failed("nobody reads this".to_owned()));

        // One that only looks whether somebody is here.
        drop(bench.client());
        assert_eq!(bench.turn(), []);
        assert_eq!(bench.clients(), 0);
    }

    #[test]
    fn one_client_too_many_is_told_so() {
        let mut bench = Bench::new();
        let mut clients = Vec::new();
        for _ in 0..CONTROL_CLIENTS_MAX {
            let (client, asked) = bench.sends(RELOAD);
            clients.push((client, asked[0].0));
        }
        let late = bench.client();
        bench.turn();
        let text = everything(late);
        assert!(
            text.contains("refused") && text.contains("32 others"),
            "{text}"
        );
        let (client, id) = clients.remove(3);
        bench.answer(id, Reply::Refused(String::new()));
        drop(client);
        assert_eq!(bench.sends(RELOAD).1.len(), 1);
    }

    #[test]
    fn silent_clients_give_way_to_waiting_ones() {
        let mut bench = Bench::new();
        let silent: Vec<_> = (0..CONTROL_CLIENTS_MAX).map(|_| bench.client()).collect();
        bench.turn();
        assert_eq!(bench.clients(), CONTROL_CLIENTS_MAX);
        // One of them speaks while it waits to be told so: it keeps its place.
        (&silent[0]).write_all(RELOAD).unwrap();
        let mut late = bench.client();
        late.write_all(RELOAD).unwrap();
        let mut asked = bench.turn().len();
        while asked < 2 {
            let due = bench.server.poll_timeout().unwrap();
            assert!(due <= clock::now() + CONTROL_PATIENCE);
            let registry = bench.poll.registry();
            asked += bench.server.handle_timeout(registry, due).len();
            asked += bench.turn().len();
        }
        assert_eq!(asked, 2, "the late one and the one that spoke");
        assert_eq!(bench.clients(), CONTROL_CLIENTS_MAX);
        assert_eq!(bench.server.gave_way, 1);
    }

    #[test]
    fn who_says_nothing_or_reads_nothing_is_cut() {
        let mut bench = Bench::new();
        let silent = bench.client();
        bench.turn();
        let due = bench.server.poll_timeout().unwrap();
        assert!(due <= clock::now() + CONTROL_REQUEST_TIMEOUT);
        bench.server.handle_timeout(bench.poll.registry(), due);
        assert_eq!((everything(silent), bench.clients()), (String::new(), 0));
        assert_eq!(bench.server.poll_timeout(), None);

        let (_deaf, asked) = bench.sends(RELOAD);
        let text = "x".repeat(1000);
        for _ in 0..=CONTROL_REPLY_MAX_BYTES / text.len() + 1000 {
            bench.progress(asked[0].0, &text);
        }
        assert_eq!(bench.clients(), 0);

        // It has its answer, and leaves it there.
        let (_deaf, asked) = bench.sends(RELOAD);
        for _ in 0..1000 {
            bench.progress(asked[0].0, &text);
        }
        bench.answer(asked[0].0, Reply::Refused(text));
        assert_eq!(bench.clients(), 1);
        let due = bench.server.poll_timeout().unwrap();
        bench.server.handle_timeout(bench.poll.registry(), due);
        assert_eq!(bench.clients(), 0);
    }

    #[test]
    fn an_answer_too_long_for_the_kernel_arrives_in_pieces() {
        let mut bench = Bench::new();
        let (mut client, asked) = bench.sends(RELOAD);
        let text = "x".repeat(1000);
        for _ in 0..1000 {
            bench.progress(asked[0].0, &text);
        }
        bench.answer(asked[0].0, Reply::Refused(text));
        client.set_nonblocking(true).unwrap();
        let (mut got, mut bytes) = (0, [0; 4096]);
        loop {
            match client.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(_) => assert_eq!(bench.turn(), []),
            }
        }
        assert_eq!(got, 1000 * (1000 + 16) + 1000 + 15);
    }

    #[test]
    fn only_a_socket_without_a_server_is_replaced() {
        let mut bench = Bench::new();
        let poll = Poll::new().unwrap();
        let open = |path: &Path| {
            let control = Control::Path(PathBuf::from(path));
            ControlServer::open(&control, poll.registry(), FIRST, RequestId(1))
        };
        let path = PathBuf::from(bench.server.path());
        let why = open(&path).unwrap_err().to_string();
        let own = format!("pid {}", std::process::id());
        assert!(why.contains(&own) && why.contains("--control"), "{why}");
        // The one that lives takes orders as before.
        bench.turn();
        assert_eq!(bench.sends(RELOAD).1.len(), 1);

        let file = bench.directory.path().join("file");
        fs::write(&file, "mine").unwrap();
        let why = open(&file).unwrap_err().to_string();
        assert!(why.contains("no socket"), "{why}");
        assert_eq!(fs::read(&file).unwrap(), b"mine");

        let dead = bench.directory.path().join("dead");
        drop(unix::UnixListener::bind(&dead).unwrap());
        drop(open(&dead).unwrap().unwrap());
        assert!(!dead.exists());
        assert!(open(&bench.directory.path().join("a/b")).is_err());
    }

    #[test]
    fn socket_file_comes_back_and_spares_living_servers() {
        let mut bench = Bench::new();
        let path = PathBuf::from(bench.server.path());
        let keep = |bench: &mut Bench| {
            let now = clock::now();
            bench.server.keep_file(bench.poll.registry(), now);
            assert_eq!(bench.server.file_due(), now + CONTROL_FILE_CHECK);
        };
        let (client, asked) = bench.sends(RELOAD);
        fs::remove_dir_all(bench.directory.path()).unwrap();
        keep(&mut bench);
        assert_eq!(bench.sends(RELOAD).1.len(), 1);
        bench.answer(asked[0].0, Reply::Refused("kept".to_owned()));
        assert!(everything(client).contains("kept"));

        fs::remove_file(&path).unwrap();
        let other = unix::UnixListener::bind(&path).unwrap();
        keep(&mut bench);
        assert!(!bench.server.socket.is_there(), "another one lives there");
        drop(other);
        keep(&mut bench);
        assert_eq!(bench.sends(RELOAD).1.len(), 1);
    }

    #[test]
    fn the_socket_is_removed_at_the_end_unless_it_is_another_ones() {
        let bench = Bench::new();
        let path = PathBuf::from(bench.server.path());
        fs::remove_file(&path).unwrap();
        let _other = unix::UnixListener::bind(&path).unwrap();
        drop(bench.server);
        assert!(path.exists());
    }

    #[test]
    fn in_its_directory_the_dead_are_tidied_away_and_the_living_are_not() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("made/for/it");
        fs::create_dir_all(&directory).unwrap();
        // No process has this number: it is above the highest one there can be.
        let dead = place::socket_of(&directory, 1 << 23);
        drop(unix::UnixListener::bind(&dead).unwrap());
        let starting = place::socket_of(&directory, 1);
        drop(unix::UnixListener::bind(&starting).unwrap());
        let foreign = place::socket_of(&directory, (1 << 23) + 1);
        let _listener = unix::UnixListener::bind(&foreign).unwrap();

        let poll = Poll::new().unwrap();
        let here = Surroundings {
            runtime_directory: Some(directory.clone().into()),
            ..Surroundings::default()
        };
        let server = ControlServer::open_in(&here, poll.registry(), FIRST, RequestId(1)).unwrap();
        let own = place::socket_of(&directory, std::process::id());
        assert_eq!(server.path(), own);
        assert!(!dead.exists() && starting.exists() && foreign.exists());
        let nowhere = ControlServer::open_in(
            &Surroundings::default(),
            poll.registry(),
            FIRST,
            RequestId(1),
        );
        assert!(matches!(nowhere, Err(Error::NoPlace)));
    }

    #[test]
    fn a_new_program_goes_on_with_the_same_clients() {
        let mut bench = Bench::new();
        let (client, asked) = bench.sends(RELOAD);
        let (mut slow, _) = bench.sends(&RELOAD[..5]);

        let path = PathBuf::from(bench.server.path());
        let mut kept = Kept::default();
        let saved = bench.server.save(&mut kept);
        pass_on(kept.as_slice(), true).unwrap();
        let foreign = Saved {
            listener: 1_000_000.into(),
            ..saved.clone()
        };
        let registry = bench.poll.registry();
        let refused = ControlServer::restore(foreign, &mut Inherited::default(), registry, FIRST);
        assert!(refused.is_err());
        assert!(path.exists(), "a program that cannot go on leaves it");

        let poll = Poll::new().unwrap();
        let json = serde_json::to_string(&saved).unwrap();
        let saved = serde_json::from_str(&json).unwrap();
        let mut inherited = Inherited::default();
        let mut restored =
            ControlServer::restore(saved, &mut inherited, poll.registry(), FIRST).unwrap();
        restored.own_file();
        let before = std::mem::replace(&mut bench.poll, poll);
        // An exec closes the old descriptors, and drops nothing.
        let mut old = std::mem::replace(&mut bench.server, restored);
        old.socket.disown();
        drop((old, before));

        slow.write_all(&RELOAD[5..]).unwrap();
        assert_eq!(
            bench.turn(),
            [(RequestId(8), Request::Reload(Options::default()))]
        );
        bench.answer(asked[0].0, Reply::Refused("later".to_owned()));
        assert_eq!(everything(client), "{\"refused\":\"later\"}\n");
        assert_eq!(bench.sends(RELOAD).1.len(), 1);
        drop(bench.server);
        assert!(!path.exists());
    }

    #[test]
    fn another_user_is_refused_even_where_the_mode_lets_it_in() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can become another user");
            return;
        }
        let mut bench = Bench::new();
        for (path, mode) in [
            (bench.directory.path(), 0o755),
            (bench.server.path(), 0o666),
        ] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut command = Command::new("nc");
        command.arg("-U").arg(bench.server.path()).uid(65_534);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let Ok(child) = command.spawn() else {
            println!("skipped: nc (netcat-openbsd) is not installed");
            return;
        };
        let mut events = Events::with_capacity(4);
        let patience = Some(Duration::from_secs(10));
        bench.poll.poll(&mut events, patience).unwrap();
        let registry = bench.poll.registry();
        for event in &events {
            bench.server.ready(event.token(), registry, clock::now());
        }
        assert_eq!(bench.clients(), 0);
        // The end of the server is the end of the child, whatever it got.
        drop(bench);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said.contains("refused") && said.contains("user 65534"),
            "{said}"
        );
    }

    #[test]
    fn only_root_and_the_own_user_are_heard() {
        assert_eq!(unheard(0, 7), None);
        assert_eq!(unheard(7, 7), None);
        let why = unheard(8, 7).unwrap();
        assert!(why.contains("user 8"), "{why}");
        assert!(unheard(7, 0).is_some());
    }
}
