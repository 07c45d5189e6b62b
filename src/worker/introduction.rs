//! What a worker needs to be adopted by a later supervisor.

use std::os::fd::OwnedFd;

use crate::channel::rendezvous::Rendezvous;
use crate::wire::{Adoptable, Start};
use uppercased_ctl::clock::millis;
use uppercased_ctl::status::Sandboxed;

/// The rendezvous of a worker, and what it shows there.
#[derive(Debug)]
pub(super) struct Adoption {
    pub(super) rendezvous: Rendezvous,
    /// The user that started this process.
    pub(super) owner: u32,
    pub(super) introduction: Adoptable,
}

impl Adoption {
    /// Takes it from the descriptors of the start message; `None` if no supervisor is to adopt the
    /// worker.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub(super) fn of(
        start: &Start,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<Option<Self>, &'static str> {
        if !start.adoptable {
            return Ok(None);
        }
        let rendezvous = descriptors.next();
        let rendezvous = rendezvous.ok_or("the start message has no rendezvous")?;
        Ok(Some(Self {
            rendezvous: Rendezvous::over(rendezvous),
            owner: nix::unistd::geteuid().as_raw(),
            introduction: Adoptable {
                drain_timeout_ms: millis(start.config.drain_timeout),
                listen: Vec::new(),
                sandbox: Sandboxed::default(),
                lent: Vec::new(),
                passed: Vec::new(),
                is_handing_over: false,
                leaves_within_ms: None,
            },
        }))
    }
}
