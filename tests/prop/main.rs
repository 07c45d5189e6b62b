//! Property tests of the cores of the serving path, on a model of the kernel.

mod connection;
mod memory;
mod model;
mod proxy_header;
mod service;
mod strategy;
mod uppercase;
