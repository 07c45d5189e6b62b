//! Unit tests of `connection.rs`.

use proptest::prelude::*;

use std::sync::LazyLock;

use super::*;
use crate::options::Expect;

static UPPER: LazyLock<Truth> = LazyLock::new(|| Truth::new(Expect::Upper, 64));

/// An in-memory server that receives and sends bytes by a script.
#[derive(Debug, Default)]
struct Server {
    owed: VecDeque<u8>,
    room: usize,
    gives: usize,
    ended: bool,
    spoil: Option<usize>,
    given: usize,
}

impl Stream for Server {
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.owed.len().min(self.gives).min(into.len());
        if count == 0 {
            return if self.ended && self.owed.is_empty() {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        self.gives -= count;
        for byte in &mut into[..count] {
            *byte = self.owed.pop_front().unwrap().to_ascii_uppercase();
            if self.spoil == Some(self.given) {
                *byte ^= 0x80;
            }
            self.given += 1;
        }
        Ok(count)
    }

    fn send(&mut self, from: &[u8]) -> io::Result<usize> {
        let count = from.len().min(self.room);
        self.room -= count;
        self.owed.extend(&from[..count]);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(count)
    }

    fn end_output(&mut self) -> io::Result<()> {
        self.ended = true;
        Ok(())
    }
}

const NOW: Tick = Tick::from_millis(5);

proptest! {
    /// For any split of the bytes, every message is answered once, in order, and never before its
    /// last byte has arrived.
    #[test]
    fn messages_are_answered_in_order(
        sizes in prop::collection::vec(1u32..3000, 1..20),
        steps in prop::collection::vec((0usize..4000, 0usize..4000), 0..40),
    ) {
        let truth = &*UPPER;
        let mut connection = Connection::new(9, truth, sizes.len());
        let mut server = Server::default();
        let mut buffer = vec![0; 1000];
        let mut ends = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            connection.begin(*size, Tick::from_nanos(at as u64), NOW);
            ends.push(connection.begun);
        }
        let mut order = Vec::new();
        for (room, gives) in steps.into_iter().chain([(1 << 20, 1 << 20)]) {
            (server.room, server.gives) = (room, gives);
            connection.send(&mut server, truth).unwrap();
            while let Received::Bytes(..) =
                connection.receive(&mut server, &mut buffer, truth).unwrap()
            {
                connection.answered(|from| order.push(from.as_nanos()), NOW);
                let due = ends.iter().filter(|end| **end <= connection.received).count();
                prop_assert_eq!(order.len(), due);
            }
        }
        prop_assert!(order.iter().copied().eq(0..sizes.len() as u64));
        prop_assert_eq!(connection.in_flight(), 0);
        prop_assert_eq!(connection.waits_since(), None);
        connection.end(&mut server).unwrap();
        let end = connection.receive(&mut server, &mut buffer, truth).unwrap();
        prop_assert_eq!(end, Received::End);
    }

    #[test]
    fn connection_reports_position_of_wrong_byte(
        size in 1u32..3000, at: prop::sample::Index, gives in 1usize..500,
    ) {
        let truth = &*UPPER;
        let mut connection = Connection::new(9, truth, 1);
        let at = at.index(size as usize);
        let mut server = Server { room: 1 << 20, spoil: Some(at), ..Server::default() };
        connection.begin(size, NOW, NOW);
        connection.send(&mut server, truth).unwrap();
        let mut buffer = vec![0; 1000];
        let fault = loop {
            server.gives = gives;
            match connection.receive(&mut server, &mut buffer, truth) {
                Ok(_) => {}
                Err(fault) => break fault,
            }
        };
        prop_assert_eq!(fault.position(), Some(at as u64));
    }
}

#[test]
fn surplus_bytes_are_wrong() {
    let truth = &Truth::new(Expect::None, 64);
    let mut connection = Connection::new(0, truth, 1);
    let mut server = Server {
        room: 100,
        gives: 100,
        ..Server::default()
    };
    connection.begin(3, NOW, NOW);
    connection.send(&mut server, truth).unwrap();
    server.owed.push_back(b'!');
    let fault = connection.receive(&mut server, &mut [0; 64], truth);
    assert!(
        matches!(fault, Err(Fault::TooMuch { position: 3 })),
        "{fault:?}"
    );
}

#[test]
fn unexpected_end_is_early() {
    let truth = &*UPPER;
    let mut connection = Connection::new(0, truth, 1);
    let mut server = Server {
        ended: true,
        ..Server::default()
    };
    let fault = connection.receive(&mut server, &mut [0; 64], truth);
    assert!(
        matches!(fault, Err(Fault::Ended { owed: 0, .. })),
        "{fault:?}"
    );
}

#[test]
fn reset_connection_starts_from_zero() {
    let truth = &*UPPER;
    let mut connection = Connection::new(0, truth, 1);
    connection.begin(3, NOW, NOW);
    connection.reset(1, truth);
    assert_eq!((connection.in_flight(), connection.begun), (0, 0));
    assert_eq!(connection.start, truth.start(1));
}
