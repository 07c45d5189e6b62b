//! The control socket: receives requests and sends their answers. Without a socket, this does
//! nothing. The end of a connection reports the end of the server, so it must come last.
//!
//! It must not carry out a request.

mod client;
mod server;

use std::io;

use mio::net::UnixStream;
use mio::{Registry, Token};
use serde::{Deserialize, Serialize};

use crate::config;
use crate::sys::fd::{Inherited, Kept};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::control::Reply;
use uppercased_ctl::identity::RequestId;

use super::socket_file::Error;
use super::tokens::CONTROL_FIRST;
use server::ControlServer;

pub(crate) use server::Event;

#[derive(Debug)]
pub(crate) struct Control {
    server: Option<ControlServer>,
    /// The request that waits for the operation in progress.
    asking: RequestId,
    /// The clients of the closed socket.
    connected: Vec<UnixStream>,
}

/// The control socket in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    server: Option<server::Saved>,
    asking: RequestId,
}

impl Control {
    /// Opens the socket at the configured path.
    ///
    /// # Errors
    /// A named path is not available.
    pub(crate) fn open(setting: &config::Control, registry: &Registry) -> Result<Self, Error> {
        let first_request = RequestId(RequestId::NOBODY.0 + 1);
        let server = ControlServer::open(setting, registry, Token(CONTROL_FIRST), first_request)?;
        Ok(Self {
            server,
            asking: RequestId::NOBODY,
            connected: Vec::new(),
        })
    }

    /// Accepts, reads and writes as far as `token` is ready.
    pub(crate) fn on_ready(&mut self, token: Token, registry: &Registry, now: Tick) -> Vec<Event> {
        let server = self.server.as_mut();
        server.map_or_else(Vec::new, |server| server.on_ready(token, registry, now))
    }

    pub(crate) fn deadline(&self) -> Option<Tick> {
        let server = self.server.as_ref()?;
        let due = server.deadline().into_iter();
        due.chain([server.file_due()]).min()
    }

    pub(crate) fn handle_timeout(&mut self, registry: &Registry, now: Tick) -> Vec<Event> {
        let Some(server) = &mut self.server else {
            return Vec::new();
        };
        let events = server.handle_timeout(registry, now);
        if server.file_due() <= now {
            server.keep_file(registry, now);
        }
        events
    }

    /// Binds the socket again if its file was removed.
    pub(crate) fn keep_file(&mut self, registry: &Registry, now: Tick) {
        if let Some(server) = &mut self.server {
            server.keep_file(registry, now);
        }
    }

    /// Returns the process and the user that wait for the answer to `request`.
    pub(crate) fn caller(&self, request: RequestId) -> Option<(i32, u32)> {
        self.server.as_ref()?.caller(request)
    }

    /// Sets the request that waits for the operation in progress.
    pub(crate) const fn set_asking(&mut self, request: RequestId) {
        self.asking = request;
    }

    /// Reports progress to the client of a request.
    pub(crate) fn progress(&mut self, request: RequestId, text: &str, registry: &Registry) {
        if request != RequestId::NOBODY
            && let Some(server) = &mut self.server
        {
            server.progress(request, text, registry);
        }
    }

    /// Reports progress to the client that waits for the operation in progress.
    pub(crate) fn progress_of_operation(&mut self, text: &str, registry: &Registry) {
        self.progress(self.asking, text, registry);
    }

    /// Sends the final answer to a request, whose connection is closed once the client has read it.
    pub(crate) fn answer(
        &mut self,
        request: RequestId,
        reply: Reply,
        registry: &Registry,
        now: Tick,
    ) {
        if request != RequestId::NOBODY
            && let Some(server) = &mut self.server
        {
            server.answer(request, reply, registry, now);
        }
    }

    /// Returns the path of the socket, if there is one.
    pub(crate) fn status(&self) -> Option<String> {
        let server = self.server.as_ref()?;
        Some(server.path().display().to_string())
    }

    /// Removes the socket's file and receives nothing any more. The clients stay connected.
    pub(crate) fn close(&mut self) {
        if let Some(server) = self.server.take() {
            self.connected = server.into_connections();
        }
    }

    /// Returns the connections of the clients that were connected at [`Self::close`]: they end with
    /// the returned value.
    pub(crate) fn take_connections(&mut self) -> Vec<UnixStream> {
        std::mem::take(&mut self.connected)
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        Saved {
            server: self.server.as_ref().map(|server| server.save(kept)),
            asking: self.asking,
        }
    }

    /// Restores the state saved by the earlier binary of this process. That program keeps the
    /// socket's file until [`Self::own_file`].
    ///
    /// # Errors
    /// A descriptor is missing, or cannot be watched.
    pub(crate) fn restore(
        saved: Saved,
        inherited: &mut Inherited,
        registry: &Registry,
    ) -> io::Result<Self> {
        let tokens = Token(CONTROL_FIRST);
        let server = saved.server;
        let server = server.map(|it| ControlServer::restore(it, inherited, registry, tokens));
        Ok(Self {
            server: server.transpose()?,
            asking: saved.asking,
            connected: Vec::new(),
        })
    }

    /// Takes ownership of the socket's file.
    pub(crate) fn own_file(&mut self) {
        if let Some(server) = &mut self.server {
            server.own_file();
        }
    }
}
