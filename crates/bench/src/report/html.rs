//! Formats reports as pages for the browser: one file that needs no network and no script, follows
//! the reader's preference for light or dark, fits a phone, and can be printed.
//!
//! Invariants: every text of an outcome passes through [`page::escaped`]; a page's size is bounded by
//! named limits for any outcome; no information depends on colour; every chart is described in
//! words, and every table has a caption and heads, for a screen reader. It must not compute
//! figures.

mod axis;
mod chart;
mod comparison;
mod curves;
mod measurement;
mod page;
mod ticks;

pub use comparison::comparison_html;
pub use measurement::html;
