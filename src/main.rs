//! The program: parse, run, exit code; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    uppercased::cli::run(std::env::args_os())
}
