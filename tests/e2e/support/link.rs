//! A link with a delay: two network namespaces, joined by two TUN devices and a thread that relays
//! packets between them and delays each.
//!
//! Loopback hides a race of real networks: it processes the last packet of a handshake before
//! `connect` returns, so a connection is hardly ever half-open. A server that closes a listener
//! after emptying its queue loses the connections half-open at that moment; only a delayed link
//! shows it.
//!
//! The server runs in the test's own namespace, where its counters are read as in every other test;
//! the clients run in the other. The relay keeps the order, drops nothing, and wakes up only when a
//! packet arrives or is due. Packets dropped by the kernel at the two devices are counted
//! ([`Link::dropped`]): a test that needs a lossless link asserts that there are none.
//!
//! Neither kernel may consider a packet lost because the machine was busy and the relay late: a
//! retransmitted FIN is acknowledged again after the acknowledging socket is gone, and the kernel
//! then sends a reset, one `OutRsts` without a loss. So retransmission timeouts on this link are
//! long.

#![expect(unsafe_code, reason = "a TUN device is made by an ioctl")]

use std::collections::VecDeque;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write, pipe};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use rustix::ioctl::{Opcode, Setter, ioctl};
use uppercased_ctl::clock::{Tick, now};

use super::load::Origin;
use super::netns::{KernelCounters, Namespace};
use super::process::in_background;

/// The default delay of a packet, each way: that of a few hundred kilometres.
pub const DELAY: Duration = Duration::from_millis(3);

/// Address of the server's end.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Addresses of the clients' end: enough that churn never runs out of ports.
const CLIENTS: u8 = 64;

/// The largest packet, in bytes: an Ethernet frame's.
const MTU: usize = 1500;

/// Packets that a device queues for the relay: more than all windows of a test.
const QUEUE_PACKETS: u32 = 20_000;

/// Retransmission timeout: longer than the relay can be late, shorter than the deadline of a
/// client, so that a real loss shows as a stall.
const PATIENCE: Duration = Duration::from_secs(5);

/// Name of the device, in both namespaces.
const DEVICE: &str = "delayed0";

/// The link. Dropping it cuts the connection.
#[derive(Debug)]
pub struct Link {
    delay: Duration,
    clients: Namespace,
    carried: Arc<AtomicU64>,
    /// Closed to end the relay.
    up: Option<PipeWriter>,
    relay: Option<JoinHandle<io::Result<()>>>,
}

impl Link {
    /// Creates a link from a new namespace to that of the caller, which must belong to the test
    /// (see [`super::netns::isolated`]). Each packet is delayed by `delay`, each way.
    ///
    /// # Errors
    ///
    /// The reason why none can be created, for [`super::adversity::skipped`]: no TUN devices, no
    /// permission, or no `ip` command.
    pub fn new(delay: Duration) -> Result<Self, String> {
        let server = Namespace::current();
        let clients = Namespace::fresh().map_err(|error| format!("a second namespace: {error}"))?;
        let servers_end = server.run(|| end(&[SERVER], "10.77.1.0/24"))?;
        let clients_end = clients.run(|| end(&client_addresses(), "10.77.0.0/24"))?;

        let (down, up) = pipe().map_err(|error| format!("a pipe: {error}"))?;
        let carried = Arc::<AtomicU64>::default();
        let mut relay = Relay {
            ways: [
                Way::new(&servers_end, &clients_end)?,
                Way::new(&clients_end, &servers_end)?,
            ],
            delay,
            carried: Arc::clone(&carried),
            down,
        };
        Ok(Self {
            delay,
            clients,
            carried,
            up: Some(up),
            relay: Some(in_background(move || relay.run())),
        })
    }

    /// Returns the delay of a packet, each way.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// Returns the namespace of the clients, for [`Namespace::run`].
    pub fn clients(&self) -> &Namespace {
        &self.clients
    }

    /// Returns the origin of a load's clients.
    pub fn origin(&self) -> Origin {
        Origin {
            namespace: Some(self.clients.clone()),
            sources: client_addresses(),
        }
    }

    /// Reads the counters of both namespaces.
    #[track_caller]
    pub fn counters(&self) -> BothCounters {
        BothCounters {
            server: KernelCounters::read(),
            clients: self.clients.run(KernelCounters::read),
        }
    }

    /// Returns the number of packets relayed so far, both ways.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// Returns the number of packets dropped by the kernel at either end because a queue was full.
    #[track_caller]
    pub fn dropped(&self) -> u64 {
        dropped_here() + self.clients.run(dropped_here)
    }
}

/// The kernel's counters at both ends.
#[derive(Clone, Debug)]
pub struct BothCounters {
    /// In the namespace of the caller.
    pub server: KernelCounters,
    /// In the clients' namespace.
    pub clients: KernelCounters,
}

impl BothCounters {
    /// Asserts that neither end has counted a loss since `before`.
    #[track_caller]
    pub fn assert_no_loss_since(&self, before: &Self) {
        let ends = [
            ("server", self.server.delta(&before.server)),
            ("clients", self.clients.delta(&before.clients)),
        ];
        for (end, mut moved) in ends {
            moved.retain(|_, by| *by != 0);
            assert!(
                moved.is_empty(),
                "losses at the end of the {end}: {moved:?}"
            );
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.up = None;
        let relay = self.relay.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            let carried = relay.expect("there is one until now");
            carried
                .expect("the relay panics over nothing")
                .expect("carry packets");
        }
    }
}

fn client_addresses() -> Vec<Ipv4Addr> {
    let host = |host| Ipv4Addr::new(10, 77, 1, host);
    (1..=CLIENTS).map(host).collect()
}

/// Creates one end in the namespace of the calling thread: the device, its addresses, and the route
/// to the other end.
fn end(addresses: &[Ipv4Addr], others: &str) -> Result<Arc<File>, String> {
    let device = tun().map_err(|error| format!("a TUN device: {error}"))?;
    let mut script = String::new();
    for address in addresses {
        script += &format!("address add {address}/32 dev {DEVICE}\n");
    }
    script += &format!("link set dev {DEVICE} mtu {MTU} txqueuelen {QUEUE_PACKETS} up\n");
    let (source, rto_min) = (addresses[0], PATIENCE.as_millis());
    script += &format!("route add {others} dev {DEVICE} src {source} rto_min {rto_min}ms\n");
    ip(&script)?;
    // Tail loss probes are sent far sooner than that. The setting is that of the calling thread's
    // namespace.
    let probes = fs::write("/proc/sys/net/ipv4/tcp_early_retrans", "0");
    probes.map_err(|error| format!("no probes for lost packets: {error}"))?;
    Ok(Arc::new(device))
}

/// Creates a TUN device, which exists until the returned file is closed. Each read and write is one
/// packet and never blocks.
fn tun() -> io::Result<File> {
    /// struct ifreq of linux/if.h, as far as this request uses it; padding stands for the rest of
    /// its union, so that it has the kernel's size.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    /// linux/if_tun.h.
    const TUNSETIFF: Opcode = 0x4004_54ca;
    const IFF_TUN: u16 = 0x0001;
    const IFF_NO_PI: u16 = 0x1000;
    const PATH: &CStr = c"/dev/net/tun";

    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file: OwnedFd = open(PATH, flags, Mode::empty())?;
    let mut request = Request {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI,
        rest: [0; 22],
    };
    request.name[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
    // SAFETY: `TUNSETIFF` takes a pointer to a struct ifreq, of which `Request` has the size (40
    // bytes where pointers have 8) and the layout; the kernel copies it in and out again during the
    // call, and keeps no pointer.
    let request = unsafe { Setter::<TUNSETIFF, Request>::new(request) };
    // SAFETY: the request has the type for this opcode, see above; the descriptor is open.
    unsafe { ioctl(&file, request) }?;
    Ok(file.into())
}

/// Runs the commands of `script` in the namespace of the calling thread, where its child starts.
///
/// # Errors
///
/// There is no `ip` command, or it fails.
pub fn ip(script: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let child = command.stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("the command ip: {error}"))?;
    let mut input = child.stdin.take().expect("a pipe was asked for");
    // A failed command is reported on standard error.
    let written = input.write_all(script.as_bytes());
    drop(input);
    let output = child.wait_with_output().expect("a child of this process");
    if output.status.success() && written.is_ok() {
        return Ok(());
    }
    let reported = String::from_utf8_lossy(&output.stderr);
    Err(format!("the command ip: {}", reported.trim()))
}

/// Returns the packets dropped at the device of the calling thread's namespace, in either
/// direction.
#[track_caller]
fn dropped_here() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/dev").expect("the devices' counters");
    let line = text.lines().find_map(|line| {
        let (name, counts) = line.split_once(':')?;
        (name.trim() == DEVICE).then_some(counts)
    });
    let counts: Vec<u64> = line
        .expect("the device is there as long as the link")
        .split_ascii_whitespace()
        .map(|count| count.parse().expect("counters are numbers"))
        .collect();
    // Eight numbers each for received and sent: bytes, packets, errors, dropped, ...
    counts[2] + counts[3] + counts[10] + counts[11]
}

/// The thread that relays packets.
struct Relay {
    ways: [Way; 2],
    delay: Duration,
    carried: Arc<AtomicU64>,
    down: PipeReader,
}

/// Packets in flight in one direction.
struct Way {
    from: File,
    to: File,
    /// In order of arrival, which is also that of delivery: all have the same delay.
    packets: VecDeque<(Tick, Vec<u8>)>,
    /// Buffers for reuse.
    spare: Vec<Vec<u8>>,
}

impl Relay {
    fn run(&mut self) -> io::Result<()> {
        loop {
            for way in &mut self.ways {
                way.take(self.delay)?;
                let given = way.give(now())?;
                self.carried.fetch_add(given, Ordering::Relaxed);
            }
            if self.wait()? {
                return Ok(());
            }
        }
    }

    /// Waits for a packet or until one is due; returns whether the link was cut instead.
    fn wait(&self) -> io::Result<bool> {
        let due = self.ways.iter().filter_map(Way::due).min();
        // `poll` counts whole milliseconds, so rounding would be a third of the delay.
        let timeout = due.map(|due| TimeSpec::from(due.since(now())));
        let [there, back] = &self.ways;
        let mut watched = [&there.from, &back.from]
            .map(AsFd::as_fd)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .into_iter()
            .chain([PollFd::new(self.down.as_fd(), PollFlags::POLLIN)])
            .collect::<Vec<_>>();
        match ppoll(&mut watched, timeout, None) {
            Ok(_) => Ok(watched[2].any().unwrap_or(true)),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Way {
    fn new(from: &File, to: &File) -> Result<Self, String> {
        let duplicate = |file: &File| {
            let file = file.try_clone();
            file.map_err(|error| format!("a second descriptor: {error}"))
        };
        Ok(Self {
            from: duplicate(from)?,
            to: duplicate(to)?,
            packets: VecDeque::new(),
            spare: Vec::new(),
        })
    }

    /// Returns the due time of the next packet.
    fn due(&self) -> Option<Tick> {
        self.packets.front().map(|(due, _)| *due)
    }

    /// Reads every packet that is available.
    fn take(&mut self, delay: Duration) -> io::Result<()> {
        loop {
            let mut packet = self.spare.pop().unwrap_or_default();
            packet.resize(MTU, 0);
            match self.from.read(&mut packet) {
                Ok(len) => {
                    packet.truncate(len);
                    self.packets.push_back((now() + delay, packet));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.spare.push(packet);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Delivers every packet that is due; returns their number.
    fn give(&mut self, now: Tick) -> io::Result<u64> {
        let mut given = 0;
        while self.due().is_some_and(|due| due <= now) {
            let (_, packet) = self.packets.pop_front().expect("one is due");
            // A device always accepts a packet, within the call.
            self.to.write_all(&packet)?;
            self.spare.push(packet);
            given += 1;
        }
        Ok(given)
    }
}

/// Returns the server's end as an address to listen on, with port 0.
pub fn listen_any_port() -> String {
    format!("{}:0", IpAddr::V4(SERVER))
}
