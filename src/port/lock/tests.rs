//! Unit tests of `lock.rs`.

use super::super::tests::{listen, own_port};
use super::*;

fn try_lock(addr: &str, port: u16) -> Result<Vec<Lock>, Error> {
    lock(&[listen(&format!("{addr}:{port}"))])
}

#[test]
fn second_lock_is_refused_until_first_is_gone() {
    let (_socket, port) = own_port();
    let held = try_lock("127.0.0.1", port).unwrap();
    let refused = try_lock("127.0.0.1", port).unwrap_err();
    let own_pid = std::process::id().cast_signed();
    assert!(
        matches!(&refused, Error::Held { holder, .. } if holder.pid == Some(own_pid)),
        "{refused}"
    );
    assert!(!held[0].discard_checks());
    drop(held);
    try_lock("127.0.0.1", port).unwrap();
}

#[test]
fn wildcard_conflicts_with_its_families_in_either_order() {
    let (_socket, port) = own_port();
    let cases = [
        ("[::]", "[::1]", true),
        ("[::]", "127.0.0.1", false),
        ("0.0.0.0", "127.0.0.1", true),
        ("127.0.0.1", "127.0.0.2", false),
        ("*", "127.0.0.1", true),
        ("*", "[::1]", true),
        ("*", "0.0.0.0", true),
        ("*", "[::]", true),
        ("*", "*", true),
    ];
    for (one, other, conflict) in cases {
        for (first, second) in [(one, other), (other, one)] {
            let _held = try_lock(first, port).unwrap();
            let refused = try_lock(second, port).is_err();
            assert_eq!(refused, conflict, "{first}, then {second}");
        }
    }
}

#[test]
fn only_one_of_several_starts_wins() {
    let (_socket, port) = own_port();
    let addresses = ["*", "127.0.0.1", "0.0.0.0", "*"];
    for round in 0..50 {
        let start = std::sync::Barrier::new(addresses.len());
        let won: Vec<_> = std::thread::scope(|scope| {
            let all = addresses.map(|address| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    try_lock(address, port)
                })
            });
            let all = all.into_iter().map(|one| one.join().unwrap());
            all.filter_map(Result::ok).collect()
        });
        assert_eq!(won.len(), 1, "in round {round}");
    }
}

/// Needs the privilege to change the user, as root has.
#[test]
fn lock_of_another_user_is_ignored() {
    if !geteuid().is_root() {
        return;
    }
    let (_socket, port) = own_port();
    let as_nobody = move || {
        let nobody = rustix::process::Uid::from_raw(65_534);
        // For this thread only.
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        try_lock("127.0.0.1", port).unwrap()
    };
    let _others = std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap());
    try_lock("127.0.0.1", port).unwrap();
}

#[test]
fn only_own_names_are_claims() {
    let claim = Claim {
        address: "[fe80::1%3]:80".parse().unwrap(),
        phase: Phase::Starting,
        ticket: Ticket::new(),
    };
    assert_eq!(Claim::parse(&claim.name()), Some(claim));
    for wrong in [
        "",
        "uppercased:",
        "uppercased:127.0.0.1:80/1/2/x",
        "a:1/1/1/s",
    ] {
        assert_eq!(Claim::parse(wrong), None, "{wrong:?}");
    }
    let line = format!(
        "ffff0: 00000002 00000000 00010000 0001 01 42 @{}",
        claim.name()
    );
    let published = Published::parse(line.as_bytes()).unwrap();
    assert_eq!((published.claim, published.inode), (claim, 42));
    assert!(Published::parse(b"Num RefCount Protocol Flags Type St Inode Path").is_none());
}
