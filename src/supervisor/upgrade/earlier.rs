//! The earlier binary of this process: its saved state, and the return to it.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use crate::sys::fd::{Inherited, duplicate_inherited};
use crate::sys::image::Image;
use uppercased_ctl::process::STATE_VARIABLE;

#[derive(Debug)]
pub(crate) struct EarlierBinary {
    /// The number of the state's descriptor.
    state: RawFd,
    /// The number of the earlier binary's file.
    image: RawFd,
    /// Set when this program *is* the earlier one, resumed: the reason why the other could not take
    /// over.
    pub(crate) cause: Option<String>,
}

/// Returns whether an earlier binary of this process has left its state.
#[must_use]
pub fn is_resuming() -> bool {
    std::env::var_os(STATE_VARIABLE).is_some()
}

impl EarlierBinary {
    /// Returns the text by which the next program finds the earlier one.
    pub(crate) fn name(state: &OwnedFd, image: RawFd) -> String {
        format!("{}:{image}", state.as_raw_fd())
    }

    /// # Errors
    /// There is none.
    pub(crate) fn find() -> Result<Self, String> {
        let text = std::env::var(STATE_VARIABLE).map_err(|error| error.to_string())?;
        let mut parts = text.splitn(3, ':');
        let mut number = || parts.next()?.parse().ok();
        let numbers = number().zip(number());
        let (state, image) =
            numbers.ok_or_else(|| format!("{STATE_VARIABLE} is {text:?}: not two descriptors"))?;
        Ok(Self {
            state,
            image,
            cause: parts.next().map(str::to_owned),
        })
    }

    /// Takes the descriptor of the state, and checks that the program's file exists.
    ///
    /// # Errors
    /// One of them is missing.
    pub(crate) fn take_state(&self, inherited: &mut Inherited) -> io::Result<OwnedFd> {
        inherited.take(self.image.into())?;
        inherited.take(self.state.into())
    }

    /// Executes the earlier binary. The descriptors survive this exec as they did the last.
    ///
    /// # Errors
    /// The reason why that is impossible.
    pub(crate) fn exec(&self, cause: &str) -> io::Result<Infallible> {
        let image = Image::from(duplicate_inherited(self.image)?);
        let text = format!("{}:{}:{cause}", self.state, self.image);
        let arguments: Vec<OsString> = std::env::args_os().collect();
        Err(image.replace_this_process(arguments, &text, &[]))
    }
}
