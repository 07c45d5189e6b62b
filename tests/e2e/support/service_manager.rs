//! A stand-in for systemd: it records the notifications of a service, keeps the descriptors stored
//! by the service, and passes them to the next instance.

use std::ffi::OsString;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::stat::fstat;
use rustix::io::ioctl_fionread;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use super::observe::until;
use super::process::{DEADLINE, Deadline, in_background, poll_one};

/// A descriptor and the name under which it is passed.
pub type Named = (String, OwnedFd);

/// Ends the reading thread; no message of a service starts with it.
const OVER: &[u8] = b"over";

/// The name under which a service stores its lease.
const LEASE: &str = "lease";

/// Arrives after everything sent before, because the socket keeps the order.
const MARK: &str = "MARK=1";

/// The stand-in; see the module documentation.
#[derive(Debug)]
pub struct ServiceManager {
    address: SocketAddr,
    name: OsString,
    socket: Option<UnixDatagram>,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    /// The directory of the socket, if it has a path.
    _folder: Option<TempDir>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    messages: Vec<String>,
    store: Vec<Named>,
    held: bool,
}

impl ServiceManager {
    /// Starts one that reads, at a path.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder of its own");
        let path = folder.path().join("notify");
        let address = SocketAddr::from_pathname(&path).expect("a short path");
        let mut manager = Self::bind(address, path.into_os_string(), Some(folder));
        manager.read();
        manager
    }

    /// Starts one that reads, at an abstract name.
    pub fn start_abstract(name: &str) -> Self {
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let mut manager = Self::bind(address, format!("@{name}").into(), None);
        manager.read();
        manager
    }

    /// Starts one that does not read until [`Self::read`].
    pub fn start_silent() -> Self {
        let folder = tempfile::tempdir().expect("a folder of its own");
        let path = folder.path().join("notify");
        let address = SocketAddr::from_pathname(&path).expect("a short path");
        Self::bind(address, path.into_os_string(), Some(folder))
    }

    fn bind(address: SocketAddr, name: OsString, folder: Option<TempDir>) -> Self {
        let socket = UnixDatagram::bind_addr(&address).expect("bind a socket of its own");
        Self {
            address,
            name,
            socket: Some(socket),
            shared: Arc::default(),
            reader: None,
            _folder: folder,
        }
    }

    /// Starts reading.
    pub fn read(&mut self) {
        let socket = self.socket.take().expect("it does not read yet");
        let shared = Arc::clone(&self.shared);
        self.reader = Some(in_background(move || {
            while let Some((text, descriptors)) = receive(&socket) {
                shared.take(text, descriptors);
            }
        }));
    }

    /// Pauses or resumes the reading of messages.
    pub fn hold(&self, held: bool) {
        self.shared.lock().held = held;
        self.shared.changed.notify_all();
    }

    /// Returns the value of `NOTIFY_SOCKET` for a service.
    pub fn notify_socket(&self) -> &OsString {
        &self.name
    }

    /// Returns the number of messages received.
    pub fn len(&self) -> usize {
        self.shared.lock().messages.len()
    }

    /// Waits until everything sent so far has been read; returns the number of the next message.
    #[track_caller]
    pub fn await_all_read(&self) -> usize {
        let start = self.len();
        let sender = UnixDatagram::unbound().expect("a socket");
        let sent = sender.send_to_addr(MARK.as_bytes(), &self.address);
        sent.expect("it reads");
        self.wait_for(start, MARK).1
    }

    /// Returns the messages from number `start` on, without periodic ones.
    pub fn steps_from(&self, start: usize) -> Vec<String> {
        let state = self.shared.lock();
        let own_pace = |it: &&String| {
            let paced = ["STATUS=", "EXTEND_TIMEOUT_USEC=", "WATCHDOG=1", MARK];
            !paced.iter().any(|beginning| it.starts_with(beginning))
        };
        let steps = state.messages[start..].iter().filter(own_pace);
        steps.cloned().collect()
    }

    /// Waits for a message from number `start` on that starts with `beginning`; returns it and the
    /// number of the message after it.
    #[track_caller]
    pub fn wait_for(&self, start: usize, beginning: &str) -> (String, usize) {
        let found = self.find_within(DEADLINE, start, beginning);
        found.unwrap_or_else(|| {
            let state = self.shared.lock();
            panic!("no message {beginning:?} from {start} on: {state:#?}")
        })
    }

    /// Like [`Self::wait_for`]; `None` if there is none in time.
    pub fn find_within(
        &self,
        within: Duration,
        start: usize,
        beginning: &str,
    ) -> Option<(String, usize)> {
        self.wait(within, |state| {
            let mut later = state.messages.iter().enumerate().skip(start);
            let (at, text) = later.find(|(_, text)| text.starts_with(beginning))?;
            Some((text.clone(), at + 1))
        })
    }

    /// Waits until exactly the listeners with these names are stored, in any order.
    #[track_caller]
    pub fn wait_stored(&self, names: &[&str]) {
        let stored = self.wait(DEADLINE, |state| {
            let stored = state.store.iter().map(|(name, _)| &**name);
            let mut stored: Vec<&str> = stored.filter(|name| *name != LEASE).collect();
            stored.sort_unstable();
            (stored == names).then_some(())
        });
        assert!(stored.is_some(), "not {names:?}: {:#?}", self.shared.lock());
    }

    /// Waits until exactly one lease is stored and the service knows it: that of its present workers.
    #[track_caller]
    pub fn wait_leased(&self) {
        until("one lease is stored", || {
            let mut state = self.shared.lock();
            // systemd removes what nobody has the other end of.
            state.store.retain(|(name, end)| {
                name != LEASE || !poll_one(end, PollFlags::POLLERR, Duration::ZERO)
            });
            let leases = state.store.iter().filter(|(name, _)| name == LEASE);
            let marked = leases.map(|(_, end)| ioctl_fionread(end).expect("a pipe"));
            marked.eq([1])
        });
    }

    /// Closes everything that it has stored.
    pub fn empty_store(&self) {
        self.shared.lock().store.clear();
    }

    /// Returns the stored descriptors, to pass to the next instance. They stay stored.
    pub fn stored(&self) -> Vec<Named> {
        let state = self.shared.lock();
        let duplicate = |(name, fd): &Named| (name.clone(), fd.try_clone().expect("duplicate"));
        state.store.iter().map(duplicate).collect()
    }

    fn wait<T>(&self, within: Duration, mut look: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let deadline = Deadline::after(within);
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = look(&state) {
                return Some(found);
            }
            let left = deadline.left();
            if left.is_zero() {
                return None;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.hold(false);
        if let Some(reader) = self.reader.take() {
            let sender = UnixDatagram::unbound().expect("a socket");
            drop(sender.send_to_addr(OVER, &self.address));
            drop(reader.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores descriptors as systemd does: several may share a name, a known one is not stored
    /// twice, and a removal applies to all with the name.
    fn take(&self, text: String, descriptors: Vec<OwnedFd>) {
        let state = self.lock();
        let state = self.changed.wait_while(state, |state| state.held);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let name = name.unwrap_or("stored").to_owned();
        if text.contains("FDSTORE=1") {
            for descriptor in descriptors {
                let is_it = |(_, kept): &Named| inode(kept) == inode(&descriptor);
                if !state.store.iter().any(is_it) {
                    state.store.push((name.clone(), descriptor));
                }
            }
        } else if text == "BARRIER=1" {
            // Closed after everything before it has been applied.
            drop(descriptors);
        } else {
            assert!(descriptors.is_empty(), "descriptors came with {text:?}");
        }
        if text.contains("FDSTOREREMOVE=1") {
            state.store.retain(|(kept, _)| *kept != name);
        }
        state.messages.push(text);
        self.changed.notify_all();
    }
}

/// Returns the identity of a descriptor's file.
fn inode(descriptor: &OwnedFd) -> u64 {
    fstat(descriptor).expect("an open descriptor").st_ino
}

/// Returns the next message; `None` at the end.
fn receive(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("receive");
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let text = &bytes[..received.bytes];
    let text = (text != OVER).then(|| String::from_utf8_lossy(text).into_owned());
    text.map(|text| (text, descriptors))
}
