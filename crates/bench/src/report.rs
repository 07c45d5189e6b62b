//! Reports of a measurement: a summary on the terminal, a page for the browser, and the comparison
//! of several.
//!
//! Invariants: a report depends only on [`Outcome`]s; whatever an outcome contains (it may come
//! from an untrusted file), no line of text is wider than [`COLUMNS`] or contains a control
//! character, and none of its text becomes markup. It must not measure, or read a clock. Only
//! [`load()`] touches a file.

mod advice;
mod capacity;
mod compare;
mod export;
pub(crate) mod figures;
mod file;
mod html;
mod layout;
mod summary;

pub use advice::Advice;
pub use compare::{Comparison, Run, Warning, compare};
pub(crate) use compare::{Conclusion, ratio};
pub use export::{csv, hgrm, json, markdown};
pub use file::{Error, FILE_MAX_BYTES, load, parse};
pub use html::{comparison_html, html};
pub use summary::summary;

#[cfg(doc)]
use super::outcome::Outcome;

/// Width of the text reports, in characters.
pub const COLUMNS: usize = 80;
