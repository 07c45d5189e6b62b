//! Any bytes on the control socket decode to requests and replies or are refused; a decoded one
//! survives being sent again, and no line is longer than allowed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uppercased::config::CONTROL_REQUEST_MAX_BYTES;
use uppercased_ctl::control::protocol::Incoming;
use uppercased_ctl::control::{Reply, Request};

/// Bytes received at once, so that lines arrive in pieces.
const PIECE: usize = 7;

fuzz_target!(|bytes: &[u8]| {
    let mut incoming = Incoming::new(CONTROL_REQUEST_MAX_BYTES);
    let mut lines = Vec::new();
    for piece in bytes.chunks(PIECE) {
        if incoming.take(piece).is_err() {
            break;
        }
        while let Some(line) = incoming.line() {
            assert!(line.len() <= CONTROL_REQUEST_MAX_BYTES);
            lines.push(line);
        }
    }
    lines.extend(incoming.rest());
    for line in lines {
        if let Ok(request) = Request::decode(&line) {
            let again = request.encode().expect("what was decoded can be encoded");
            assert_eq!(Request::decode(&again).expect("and decoded"), request);
        }
        if let Ok(reply) = Reply::decode(&line) {
            let again = reply.encode().expect("what was decoded can be encoded");
            let same = Reply::decode(&again).expect("and decoded");
            // A long text is truncated once and then stays the same.
            assert_eq!(same.encode().expect("again"), again);
        }
    }
});
