//! Tests of the repository's rules: layering, documentation and packages agree with the program.

mod docs;
mod imports;
mod links;
mod names;
mod packaging;
mod tidy;
