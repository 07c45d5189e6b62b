//! Unit tests of `channel.rs`.

use std::io::{Read, Seek, Write};

use rustix::net::SendFlags;

use super::*;
use crate::wire::ToWorker;
use uppercased_ctl::identity::{Generation, SlotId, WorkerId};

/// Either end may send it here.
fn pair() -> (Channel<ToWorker, ToWorker>, Channel<ToWorker, ToWorker>) {
    Channel::pair().unwrap()
}

fn lend(slot: u16) -> Envelope<ToWorker> {
    let worker = WorkerId {
        slot: SlotId(0),
        generation: Generation(1),
    };
    Envelope {
        worker,
        message: ToWorker::Lend { slot: SlotId(slot) },
    }
}

#[test]
fn messages_arrive_whole_with_their_descriptors() {
    let (mut here, mut there) = pair();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"shared").unwrap();
    here.send(&lend(1), &[]).unwrap();
    here.send(&lend(2), &[file.as_fd(), file.as_fd()]).unwrap();
    let first = there.receive().unwrap().unwrap();
    assert_eq!((first.envelope, first.descriptors.len()), (lend(1), 0));
    let second = there.receive().unwrap().unwrap();
    assert_eq!((second.envelope, second.descriptors.len()), (lend(2), 2));
    let mut same = std::fs::File::from(second.descriptors.into_iter().next().unwrap());
    let mut text = String::new();
    same.rewind().unwrap();
    same.read_to_string(&mut text).unwrap();
    assert_eq!(text, "shared");
    assert!(there.receive().unwrap().is_none());
}

#[test]
fn descriptors_are_announced_before_they_arrive() {
    let (mut here, mut there) = pair();
    let file = tempfile::tempfile().unwrap();
    let mut announced = |expected: usize| {
        let mut calls = 0;
        let received = there.receive_after(|| calls += 1);
        assert_eq!(calls, expected);
        received
    };
    assert!(announced(0).unwrap().is_none());
    here.send(&lend(1), &[]).unwrap();
    here.send(&lend(2), &[file.as_fd()]).unwrap();
    assert_eq!(announced(0).unwrap().unwrap().envelope, lend(1));
    assert_eq!(announced(1).unwrap().unwrap().descriptors.len(), 1);
    drop(here);
    assert!(matches!(announced(0), Err(Error::Closed)));
}

#[test]
fn peer_sees_end_after_last_message() {
    let (mut here, mut there) = pair();
    here.send(&lend(1), &[]).unwrap();
    drop(here);
    assert!(there.receive().unwrap().is_some());
    assert!(matches!(there.receive(), Err(Error::Closed)));
    assert!(matches!(there.send(&lend(2), &[]), Err(Error::Closed)));
}

#[test]
fn messages_of_dead_peer_are_received() {
    let (mut here, mut there) = pair();
    here.send(&lend(1), &[]).unwrap();
    there.send(&lend(2), &[]).unwrap();
    drop(there);
    let received = here.receive().unwrap().unwrap();
    assert_eq!(received.envelope, lend(2));
    assert!(matches!(here.receive(), Err(Error::Closed)));
}

#[test]
fn unread_channel_queues_bounded_messages() {
    let (mut here, mut there) = pair();
    let mut sent = 0;
    let refused = loop {
        match here.send(&lend(sent), &[]) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::QueueFull));
    for expected in 0..sent {
        let got = loop {
            match there.receive().unwrap() {
                Some(got) => break got,
                None => here.flush().unwrap(),
            }
        };
        assert_eq!(got.envelope, lend(expected));
    }
}

#[test]
fn missing_descriptors_are_an_error() {
    let (here, mut there) = pair();
    let frame = lend(1).encode(1).unwrap();
    rustix::net::send(here.as_fd(), &frame, SendFlags::empty()).unwrap();
    let refused = there.receive().unwrap_err();
    assert!(matches!(refused, Error::Descriptors { wanted: 1, got: 0 }));
}

#[test]
fn channel_refuses_noise() {
    let (here, mut there) = pair();
    rustix::net::send(here.as_fd(), b"noise", SendFlags::empty()).unwrap();
    assert!(matches!(there.receive(), Err(Error::Wire(_))));
}
