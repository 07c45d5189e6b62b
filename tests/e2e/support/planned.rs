//! A server for tests of planned operations: it runs a copy of the program that a test may replace,
//! and its workers are read from its status.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::image::Image;
use super::server::{Server, ServerBuilder};

/// A server with its own program file and configuration file.
#[derive(Debug)]
pub struct Planned {
    pub server: Server,
    program: PathBuf,
    config: PathBuf,
    folder: TempDir,
}

/// The workers of a server, from its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers(pub Vec<Worker>);

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Process ID.
    pub pid: u64,
    /// Generation within its slot.
    pub generation: u64,
    /// Release.
    pub release: u64,
    /// State, as in the status.
    pub state: String,
}

impl Planned {
    /// Starts a server on a free port with `args`, from a copy of the program, and with an empty
    /// configuration file.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        Self::start_with(args, |builder| builder)
    }

    /// Like [`Self::start`], with changes to the builder.
    #[track_caller]
    pub fn start_with(args: &[&str], more: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        let folder = tempfile::tempdir().expect("a folder of its own");
        let program = folder.path().join("uppercased");
        Image::copy(folder.path()).replace(&program);
        let config = folder.path().join("uppercased.toml");
        std::fs::write(&config, "").expect("write an empty configuration");
        let builder = Server::builder()
            .program(&program)
            .args(["--config", config.to_str().expect("a plain path")])
            .args(args);
        Self {
            server: more(builder).start(),
            program,
            config,
            folder,
        }
    }

    /// Returns the path of the program executed by a reload or an upgrade.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Returns a directory for images that may replace the program.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Replaces the program with `image`.
    #[track_caller]
    pub fn install(&self, image: Image) {
        image.replace(&self.program);
    }

    /// Replaces the program with a copy of the one as built.
    #[track_caller]
    pub fn install_good(&self) {
        self.install(Image::copy(self.folder()));
    }

    /// Replaces the configuration file.
    #[track_caller]
    pub fn configure(&self, text: &str) {
        std::fs::write(&self.config, text).expect("write the configuration");
    }

    /// Returns the workers, from the status.
    #[track_caller]
    pub fn workers(&self) -> Workers {
        Workers::of(&self.server)
    }
}

impl Workers {
    /// Returns the active workers of `server`, ordered by slot.
    #[track_caller]
    pub fn of(server: &Server) -> Self {
        let status = server.status_json();
        let slots = status["slots"].as_array().expect("a list of slots");
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let worker = |slot: &Value| Worker {
            pid: number(&slot["pid"]),
            generation: number(&slot["generation"]),
            release: number(&slot["release"]),
            state: slot["state"].as_str().unwrap_or_default().to_owned(),
        };
        Self(slots.iter().map(worker).collect())
    }

    /// Asserts that each of them serves.
    #[track_caller]
    pub fn assert_serving(&self) {
        let idle = self.0.iter().find(|worker| worker.state != "serving");
        assert_eq!(idle, None, "{self:?}");
    }

    /// Asserts that every slot has another process than in `before`, which serves.
    #[track_caller]
    pub fn assert_replaced_since(&self, before: &Self) {
        self.assert_serving();
        assert_eq!(self.0.len(), before.0.len());
        for (now, then) in self.0.iter().zip(&before.0) {
            assert!(
                now.pid != then.pid && now.generation > then.generation,
                "not renewed: {now:?} after {then:?}"
            );
        }
    }

    /// Asserts that every slot has the same process as in `before`.
    #[track_caller]
    pub fn assert_untouched_since(&self, before: &Self) {
        self.assert_serving();
        let pids = |workers: &Self| workers.0.iter().map(|it| it.pid).collect::<Vec<_>>();
        assert_eq!(pids(self), pids(before), "{self:?} after {before:?}");
    }
}
