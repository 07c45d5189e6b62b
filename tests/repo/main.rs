//! Rules of the repository: layering, documentation and packages agree with the program.

mod docs;
mod links;
mod packaging;
mod tidy;
