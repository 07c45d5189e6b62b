//! Placeholder.
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<String> = args
        .into_iter()
        .filter_map(|arg| arg.into_string().ok())
        .collect();
    match args.as_slice() {
        [_, name, target] if name == "client" => crate::client::run(crate::client::Options {
            target: target.clone(),
        }),
        _ => ExitCode::SUCCESS,
    }
}
