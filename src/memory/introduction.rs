//! The part of the store rules that is about PROXY headers: a connection that awaits one, and the
//! client that it names (rule 9 of [`Memory`]'s module).

use std::net::SocketAddr;

use super::layout::{Head, Layout, State};
use super::{LAST_PROGRESS, Memory, Probe};
use uppercased_ctl::clock::Tick;

impl<P: Probe> Memory<P> {
    /// Rule 9, before the header is received: who the client is.
    pub fn named(&mut self, fd: u32, client: SocketAddr) {
        self.store_address(fd, client.ip());
        let port = client.port();
        let head = self.head(fd);
        self.set_head(fd, Head { port, ..head });
    }

    /// Rule 9, after it was received: `fd` is served from now on.
    pub fn introduced(&mut self, fd: u32, now: Tick) {
        debug_assert_eq!(self.head(fd).state, State::AwaitingHeader);
        self.store(Layout::record(fd), LAST_PROGRESS, now.as_nanos());
        let head = self.head(fd);
        let state = State::Open;
        self.set_head(fd, Head { state, ..head });
    }
}
