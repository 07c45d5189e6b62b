//! The command line of both servers.

use std::fs;
use std::path::PathBuf;

/// The arguments `ADDRESS FOLDER [--upgrade]`.
pub struct Arguments {
    pub address: String,
    /// Contains the file `threads`, and the files that the server creates.
    pub folder: PathBuf,
    pub threads: usize,
    pub is_upgrade: bool,
}

impl Arguments {
    pub fn read() -> Self {
        let mut words = std::env::args().skip(1);
        let (Some(address), Some(folder)) = (words.next(), words.next()) else {
            panic!("usage: ADDRESS FOLDER [--upgrade]");
        };
        let folder = PathBuf::from(folder);
        let threads = fs::read_to_string(folder.join("threads")).expect("the number of threads");
        Self {
            address,
            threads: threads.trim().parse().expect("a number of threads"),
            folder,
            is_upgrade: words.next().is_some_and(|word| word == "--upgrade"),
        }
    }
}
