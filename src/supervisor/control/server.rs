//! The server's side of the control socket: its clients, their requests, and the answers.
//!
//! Invariants: the socket has mode 0600 from its creation, and only clients of root or of this
//! process's own user are served; no client can block the supervisor or make it grow (clients,
//! request, output, and the times to send and to read are bounded); a request has one id and gets
//! one final answer, also across an upgrade.
//!
//! It must not execute a request.

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
use crate::log::event;
use crate::sys::fd::{Descriptor, Inherited, Kept};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::control::place::Environment;
use uppercased_ctl::control::{Reply, Request};
use uppercased_ctl::identity::RequestId;

use super::client::{self, Client, Flushed, Input, Peer, State};
use crate::supervisor::socket_file::{self, Error, FileId, SocketFile, refused};

/// Receives requests and sends answers.
#[derive(Debug)]
pub(crate) struct ControlServer {
    socket: SocketFile,
    listener: UnixListener,
    /// Client `i` has the token after the listener's plus `i`.
    clients: [Option<Client>; CONTROL_CLIENTS_MAX],
    first: Token,
    next: RequestId,
    /// End of the pause in accepting after a lack of descriptors or memory.
    paused_until: Option<Tick>,
    /// Time of the next check of the socket's file.
    file_due: Tick,
    /// Whether the loss of the file has been logged.
    file_lost: bool,
    /// Slow clients closed in favour of others, since that was last logged.
    displaced: u64,
    displaced_logged: Option<Tick>,
}

/// The control server in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    file: FileId,
    listener: Descriptor,
    next: RequestId,
    clients: Vec<client::Saved>,
}

/// A client's action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It sent a request.
    Requested(RequestId, Request),
    /// It disconnected before this request was answered.
    Withdrawn(RequestId),
}

/// Interval of the log lines about slow clients closed for others.
const DISPLACED_LOG_EVERY: Duration = Duration::from_secs(1);

/// Pause in accepting after the system ran out of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

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
    /// Opens the socket at the path that `control` sets. `tokens` is the first of `TOKENS` that it
    /// uses; requests are numbered from `first_request` on.
    ///
    /// Returns `None` if no socket is configured; also, with a warning, if the default path, which
    /// was not configured, cannot be bound.
    ///
    /// # Errors
    /// A named path is not available.
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
                match Self::open_in(
                    &Environment::of_this_process(),
                    registry,
                    tokens,
                    first_request,
                ) {
                    Ok(server) => Ok(Some(server)),
                    Err(error @ Error::NoPlace) => {
                        event!(control_socket_unavailable, %error);
                        Ok(None)
                    }
                    Err(error) => {
                        event!(control_socket_failed, %error);
                        Ok(None)
                    }
                }
            }
        };
        if let Ok(Some(server)) = &opened {
            let path = server.path().display();
            event!(control_socket_opened, %path);
        }
        opened
    }

    fn open_in(
        here: &Environment,
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
        // Number 0 means that no client waits.
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
            paused_until: None,
            file_due: Tick::ZERO,
            file_lost: false,
            displaced: 0,
            displaced_logged: None,
        }
    }

    /// Restores the state saved by the earlier binary of this process. That program keeps the
    /// socket's file until [`Self::own_file`].
    ///
    /// # Errors
    /// The listener is missing, or cannot be watched.
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
            // The loss of one client must not fail an upgrade.
            if let Err(error) = server.insert(client, registry) {
                event!(control_client_lost, %error);
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

    /// Takes ownership of the socket's file.
    pub(crate) fn own_file(&mut self) {
        self.socket.own();
    }

    /// Removes the socket's file; returns the connections of the clients.
    pub(crate) fn into_connections(self) -> Vec<UnixStream> {
        let clients = self.clients.into_iter().flatten();
        clients.map(|client| client.stream).collect()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.socket.id.path
    }

    /// Accepts, reads and writes as far as `token` is ready. Returns complete requests, each with
    /// the id that its answer must name, and the ids of requests whose clients have disconnected.
    pub(crate) fn on_ready(&mut self, token: Token, registry: &Registry, now: Tick) -> Vec<Event> {
        if token == self.first {
            return self.accept(registry, now);
        }
        let index = token.0.wrapping_sub(self.first.0 + 1);
        self.read_from(index, registry, now).into_iter().collect()
    }

    fn read_from(&mut self, index: usize, registry: &Registry, now: Tick) -> Option<Event> {
        // Stale event for a closed client; ignored.
        let Some(Some(client)) = self.clients.get_mut(index) else {
            return None;
        };
        match client.on_ready() {
            Input::Nothing => None,
            Input::Request(request) => {
                let id = self.next;
                self.next = RequestId(id.0.wrapping_add(1));
                client.state = State::Waiting { request: id };
                let (pid, uid) = (client.peer.pid, client.peer.uid);
                event!(
                    control_request_received,
                    request = id.0,
                    command = request.name(),
                    client_pid = pid,
                    client_uid = uid
                );
                Some(Event::Requested(id, request))
            }
            Input::Invalid(cause) => {
                let (pid, uid) = (client.peer.pid, client.peer.uid);
                event!(
                    control_request_refused,
                    error = cause,
                    client_pid = pid,
                    client_uid = uid
                );
                self.finish(index, Reply::Refused(cause), registry, now);
                None
            }
            Input::Closed => {
                let left = match client.state {
                    State::Waiting { request } => Some(Event::Withdrawn(request)),
                    State::Asking { .. } | State::Leaving { .. } => None,
                };
                self.close(index, registry);
                left
            }
        }
    }

    /// Sends progress to the client of a request, if it is still connected.
    pub(crate) fn progress(&mut self, request: RequestId, text: &str, registry: &Registry) {
        if let Some(index) = self.find(request) {
            self.send(index, &Reply::Progress(text.to_owned()), registry);
        }
    }

    /// Sends the final answer to the client of a request; closes the connection once the client has
    /// read it.
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
            None => event!(control_client_left, request = request.0),
        }
    }

    /// Returns the process and the user that wait for the answer to `request`.
    pub(crate) fn caller(&self, request: RequestId) -> Option<(i32, u32)> {
        let client = self.clients[self.find(request)?].as_ref()?;
        Some((client.peer.pid, client.peer.uid))
    }

    /// Returns when [`Self::handle_timeout`] is due.
    pub(crate) fn deadline(&self) -> Option<Tick> {
        let clients = self.clients.iter().flatten();
        let dues = clients.filter_map(|client| client.state.due());
        dues.chain(self.paused_until).min()
    }

    /// Closes clients that have timed out, and accepts again after a pause.
    pub(crate) fn handle_timeout(&mut self, registry: &Registry, now: Tick) -> Vec<Event> {
        for index in 0..self.clients.len() {
            let client = self.clients[index].as_ref();
            if let Some(client) = client
                && client.state.due().is_some_and(|due| due <= now)
            {
                let (pid, uid) = (client.peer.pid, client.peer.uid);
                event!(control_client_timed_out, client_pid = pid, client_uid = uid);
                self.close(index, registry);
            }
        }
        if self.paused_until.is_some_and(|until| until <= now) {
            return self.accept(registry, now);
        }
        Vec::new()
    }

    /// Returns when [`Self::keep_file`] is due.
    pub(crate) const fn file_due(&self) -> Tick {
        self.file_due
    }

    /// Binds the socket again if its file was removed: cleaners of temporary directories remove
    /// even the files of running servers, and without the file no command finds the server. The
    /// socket of another running server at that path is kept.
    pub(crate) fn keep_file(&mut self, registry: &Registry, now: Tick) {
        self.file_due = now + CONTROL_FILE_CHECK;
        if self.socket.is_there() {
            self.file_lost = false;
            return;
        }
        match self.open_again(registry) {
            Ok(()) => {
                let path = self.path().display();
                event!(control_socket_restored, %path);
                self.file_lost = false;
            }
            Err(error) if !self.file_lost => {
                event!(control_socket_lost, %error);
                self.file_lost = true;
            }
            Err(_) => {}
        }
    }

    /// Binds the socket again; connected clients are kept.
    fn open_again(&mut self, registry: &Registry) -> Result<(), Error> {
        let (listener, socket) = socket_file::bind_again(self.path())?;
        let listener = watch(listener, registry, self.first)
            .map_err(refused(self.path(), "watch the socket"))?;
        // Replaced before the listener: while the listener is open, no other file has its inode.
        self.socket = socket;
        self.listener = listener;
        self.paused_until = None;
        Ok(())
    }

    /// Accepts while a place is free, or can be freed; the rest of the queue is accepted later.
    /// Returns requests of clients that were about to be closed.
    fn accept(&mut self, registry: &Registry, now: Tick) -> Vec<Event> {
        let mut events = Vec::new();
        self.paused_until = None;
        for _ in 0..CONTROL_ACCEPTS_PER_TURN {
            if !self.has_pending() {
                return events;
            }
            if let Err(until) = self.make_room(registry, now, &mut events) {
                self.paused_until = Some(until);
                return events;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, registry, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return events,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    event!(control_accept_paused, %error);
                    self.paused_until = Some(now + ACCEPT_PAUSE);
                    return events;
                }
            }
        }
        // The next turn accepts the rest.
        self.paused_until = Some(now);
        events
    }

    /// Returns whether a client is queued: only then is a slow one closed.
    fn has_pending(&self) -> bool {
        let mut ask = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut ask, PollTimeout::ZERO), Ok(1..))
    }

    /// Frees a place for the next client if a slow one can be closed: a client that has not sent
    /// its request within [`CONTROL_PATIENCE`], else one that does not read its answer. Input
    /// received meanwhile counts.
    ///
    /// # Errors
    /// The time at which the next client may be closed.
    fn make_room(
        &mut self,
        registry: &Registry,
        now: Tick,
        events: &mut Vec<Event>,
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
                events.extend(self.read_from(index, registry, now));
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
                self.count_displaced(index, now);
                self.close(index, registry);
                return Ok(());
            }
        }
        // All of them are being answered: the next client is refused.
        Ok(())
    }

    /// Counts a slow client that was closed for another, and logs it once per second.
    fn count_displaced(&mut self, index: usize, now: Tick) {
        self.displaced += 1;
        if self
            .displaced_logged
            .is_some_and(|at| now.since(at) < DISPLACED_LOG_EVERY)
        {
            return;
        }
        self.displaced_logged = Some(now);
        if let Some(client) = &self.clients[index] {
            let (pid, uid) = (client.peer.pid, client.peer.uid);
            let total = self.displaced;
            event!(
                control_client_displaced,
                client_pid = pid,
                client_uid = uid,
                total
            );
        }
    }

    fn admit(&mut self, mut stream: UnixStream, registry: &Registry, now: Tick) {
        let peer = match getsockopt(&stream, sockopt::PeerCredentials) {
            Ok(peer) => Peer {
                pid: peer.pid(),
                uid: peer.uid(),
            },
            Err(error) => {
                event!(control_client_unidentified, %error);
                return;
            }
        };
        let full = || {
            let full = self.clients.iter().all(Option::is_some);
            full.then(|| {
                format!("{CONTROL_CLIENTS_MAX} clients are already connected; try again later")
            })
        };
        let (pid, uid) = (peer.pid, peer.uid);
        let own = nix::unistd::geteuid().as_raw();
        if let Some(cause) = refusal_of(uid, own).or_else(full) {
            event!(
                control_client_refused,
                error = cause,
                client_pid = pid,
                client_uid = uid
            );
            if let Ok(line) = Reply::Refused(cause).encode() {
                // A new socket has room for it; otherwise the connection closes without it.
                let _ = stream.write(&line);
            }
            return;
        }
        let client = Client::new(stream, peer, now);
        if let Err(error) = self.insert(client, registry) {
            event!(control_client_lost, %error, client_pid = pid, client_uid = uid);
        }
    }

    /// Assigns a place to a client and watches it. Readiness is reported next.
    fn insert(&mut self, mut client: Client, registry: &Registry) -> io::Result<()> {
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

    /// Sends the final answer to a client.
    fn finish(&mut self, index: usize, reply: Reply, registry: &Registry, now: Tick) {
        if let Some(client) = &mut self.clients[index] {
            client.leave(now);
        }
        self.send(index, &reply, registry);
    }

    fn send(&mut self, index: usize, reply: &Reply, registry: &Registry) {
        let Some(client) = &mut self.clients[index] else {
            return;
        };
        let line = reply.encode().or_else(|error| {
            event!(control_reply_not_sent, %error);
            Reply::Failed(format!("cannot encode the reply: {error}")).encode()
        });
        // Without a line, closing the connection is the answer.
        let said = line.is_ok_and(|line| client.queue(&line));
        if !said || client.flush() == Flushed::Closed {
            self.close(index, registry);
        }
    }

    fn close(&mut self, index: usize, registry: &Registry) {
        if let Some(mut client) = self.clients[index].take() {
            // A forked child may hold a copy of the descriptor until it execs, so closing ours
            // alone would not end the reports.
            let _ = registry.deregister(&mut client.stream);
        }
    }
}

/// Returns why a user is refused. The mode of the socket already excludes other users; this holds
/// even if the mode is changed.
fn refusal_of(uid: u32, own: u32) -> Option<String> {
    (uid != 0 && uid != own)
        .then(|| format!("user {uid} may not send requests; use user 0 or {own}"))
}

#[cfg(test)]
mod tests;
