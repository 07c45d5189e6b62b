//! A server whose new workers wait before they start, so that an operation lasts as long as its test
//! needs, on a machine of any speed.

use std::fs::{File, remove_file};
use std::path::PathBuf;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::planned::Planned;

/// Workers that start while the hold exists wait for its end.
#[derive(Debug)]
pub struct Hold {
    fifo: PathBuf,
    _folder: TempDir,
}

impl Hold {
    /// Starts a server with `args`, and then holds every further worker at its start.
    #[track_caller]
    pub fn start(args: &[&str]) -> (Planned, Self) {
        let folder = tempfile::tempdir().expect("a folder of its own");
        let fifo = folder.path().join("hold");
        let plan = format!("worker.starting=hold:{}", fifo.display());
        let args = [args, &["--start-timeout=10m"]].concat();
        let planned = Planned::start_with(&args, |builder| builder.env("FAULT_POINTS", &plan));
        mkfifo(&fifo, Mode::S_IRWXU).expect("make the FIFO");
        let hold = Self {
            fifo,
            _folder: folder,
        };
        (planned, hold)
    }

    /// Lets the held workers, and all later ones, start.
    #[track_caller]
    pub fn end(self) {
        // Open in both directions, which waits for nobody; each waiting worker continues, and one
        // that comes later finds no FIFO, or one with a writer.
        let writer = File::options().read(true).write(true).open(&self.fifo);
        remove_file(&self.fifo).expect("remove the FIFO");
        drop(writer.expect("open the FIFO"));
    }
}
