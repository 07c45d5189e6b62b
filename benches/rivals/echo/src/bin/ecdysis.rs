//! Answers every byte with its upper case, on ecdysis: an upgrade passes the listener to a new
//! process.

use std::net::SocketAddr;
use std::time::Duration;

use ecdysis::tokio_ecdysis::{SignalKind, StopOnShutdown, TokioEcdysisBuilder};
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uppercased_rivals::Arguments;

/// Time for which a replaced process serves its connections; as in the library's example.
const DRAIN: Duration = Duration::from_secs(60);

/// Room for connections that are not accepted yet.
const BACKLOG: i32 = 4096;

async fn serve(mut client: TcpStream) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        buffer[..length].make_ascii_uppercase();
        if client.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn run(arguments: Arguments) {
    let mut builder = TokioEcdysisBuilder::new(SignalKind::hangup()).expect("handle SIGHUP");
    builder.set_pid_file(arguments.folder.join("pid"));
    let address: SocketAddr = arguments.address.parse().expect("an address");
    let mut clients = builder
        .build_listen_tcp(StopOnShutdown::Yes, address, |socket, address| {
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .expect("listen");
    let (_upgrader, replaced) = builder.ready().expect("report ready");
    let accepting = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Some(client) = clients.next().await {
            let Ok(client) = client else { continue };
            let _ = client.set_nodelay(true);
            connections.spawn(serve(client));
        }
        connections.join_all().await;
    });
    let _ = replaced.await;
    let _ = tokio::time::timeout(DRAIN, accepting).await;
}

fn main() {
    let arguments = Arguments::read();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.threads)
        .enable_all()
        .build()
        .expect("start the threads");
    runtime.block_on(run(arguments));
}
