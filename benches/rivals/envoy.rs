//! Envoy, if the program is installed. Every operation is a hot restart: a process of the next epoch
//! takes the listeners of its parent over, which keeps its connections.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::clients::PATIENCE;
use super::group::{Group, await_some, free_port, installed, send, version_of};
use super::prefork::{Prefork, listeners};
use super::server::{Server, WORKERS};

const PROGRAM: &str = "envoy";

pub(crate) struct Envoy {
    program: PathBuf,
    address: SocketAddr,
    admin: SocketAddr,
    configuration: PathBuf,
    threads: usize,
    epoch: u32,
    main: u32,
    group: Group,
    _backend: Prefork,
}

impl Envoy {
    pub(crate) fn version() -> String {
        version_of(Path::new(PROGRAM), "--version")
    }

    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        let program = installed(PROGRAM)?;
        let backend = Prefork::backend(folder)?;
        let [address, admin] =
            [free_port()?, free_port()?].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let configuration = folder.join("conf.json");
        let text = configured(address, admin, backend.address()).to_string();
        fs::write(&configuration, text)?;
        let mut envoy = Self {
            program,
            address,
            admin,
            configuration,
            threads: WORKERS,
            epoch: 0,
            main: 0,
            group: Group::default(),
            _backend: backend,
        };
        envoy.launch()?;
        Ok(envoy)
    }

    /// Starts the process of the epoch, and waits until it serves.
    fn launch(&mut self) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("--config-path").arg(&self.configuration);
        // The base ID is unique on this machine, as it names memory that the epochs share.
        for (flag, value) in [
            ("--base-id", self.address.port().to_string()),
            ("--restart-epoch", self.epoch.to_string()),
            ("--concurrency", self.threads.to_string()),
        ] {
            command.arg(flag).arg(value);
        }
        self.main = self.group.start(&mut command)?;
        let (admin, epoch) = (self.admin, self.epoch);
        await_some("its readiness", || is_live(admin, epoch).then_some(()))
    }

    fn restart(&mut self) -> io::Result<()> {
        self.epoch += 1;
        self.launch()
    }
}

impl Server for Envoy {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn group(&mut self) -> &mut Group {
        &mut self.group
    }

    fn main(&mut self) -> Option<u32> {
        Some(self.main)
    }

    fn reload(&mut self) -> io::Result<()> {
        self.restart()
    }

    fn scale(&mut self, threads: usize) -> io::Result<()> {
        self.threads = threads;
        self.restart()
    }

    fn kill(&mut self) -> io::Result<()> {
        send(self.main, Signal::SIGKILL)
    }

    fn recover(&mut self) -> io::Result<()> {
        let is_scaled = self.threads != WORKERS;
        self.threads = WORKERS;
        if !self.group.pids().contains(&self.main) {
            self.group = Group::default();
            self.epoch = 0;
            return self.launch();
        }
        // The old process stays for 15 minutes, with clients or without, or until the next restart.
        if is_scaled {
            self.restart()?;
        }
        await_some("the end of its parent's listeners", || {
            (listeners(self.address.port()) == WORKERS).then_some(())
        })
    }
}

/// Returns whether the process of this epoch serves.
fn is_live(admin: SocketAddr, epoch: u32) -> bool {
    let request = b"GET /server_info HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n";
    let read = || -> io::Result<String> {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request)?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    };
    let page = read().unwrap_or_default();
    page.contains("\"state\": \"LIVE\"") && page.contains(&format!("\"restart_epoch\": {epoch},"))
}

/// Returns the configuration of a proxy between two addresses.
fn configured(listen: SocketAddr, admin: SocketAddr, backend: SocketAddr) -> Value {
    let address =
        |at: SocketAddr| json!({"socket_address": {"address": at.ip(), "port_value": at.port()}});
    let proxy = json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "all",
            "cluster": "floor",
        },
    });
    json!({
        "admin": {"address": address(admin)},
        "static_resources": {
            "listeners": [{
                "name": "all",
                "address": address(listen),
                "filter_chains": [{"filters": [proxy]}],
            }],
            "clusters": [{
                "name": "floor",
                "type": "STATIC",
                "load_assignment": {
                    "cluster_name": "floor",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(backend)}}]}],
                },
            }],
        },
    })
}
