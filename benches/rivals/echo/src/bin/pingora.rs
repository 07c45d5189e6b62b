//! Answers every byte with its upper case, on pingora: an upgrade passes the listener to a new
//! process.

use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{Server, ShutdownWatch};
use pingora_core::services::listening::Service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use uppercased_rivals::Arguments;

struct Uppercase;

#[async_trait]
impl ServerApp for Uppercase {
    async fn process_new(
        self: &Arc<Self>,
        mut client: Stream,
        _shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let mut buffer = [0; 16 << 10];
        loop {
            let length = client
                .read(&mut buffer)
                .await
                .ok()
                .filter(|length| *length > 0)?;
            buffer[..length].make_ascii_uppercase();
            client.write_all(&buffer[..length]).await.ok()?;
            client.flush().await.ok()?;
        }
    }
}

fn main() {
    let arguments = Arguments::read();
    let options = Opt {
        upgrade: arguments.is_upgrade,
        ..Opt::default()
    };
    let configuration = ServerConf {
        threads: arguments.threads,
        upgrade_sock: arguments.folder.join("upgrade").display().to_string(),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(options, configuration);
    server.bootstrap();
    let mut service = Service::new("uppercase".to_owned(), Uppercase);
    service.add_tcp(&arguments.address);
    server.add_service(service);
    server.run_forever();
}
