//! Unit tests of `steering.rs`.

use std::net::{SocketAddr, TcpListener, TcpStream};

use super::*;

fn listener(at: SocketAddr) -> TcpListener {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(128).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// Connects `count` times; returns the number of connections of each listener.
fn spread(group: &[TcpListener], count: usize) -> Vec<usize> {
    let at = group[0].local_addr().unwrap();
    let clients: Vec<_> = (0..count)
        .map(|_| TcpStream::connect(at).unwrap())
        .collect();
    let taken = group
        .iter()
        .map(|listener| std::iter::from_fn(|| listener.accept().ok()).count())
        .collect();
    drop(clients);
    taken
}

#[test]
fn first_sockets_get_all_until_reset() {
    let first = listener("127.0.0.1:0".parse().unwrap());
    let at = first.local_addr().unwrap();
    let group = [first, listener(at), listener(at), listener(at)];
    steer_to_first(&group[3], 2).unwrap();
    let taken = spread(&group, 60);
    assert_eq!(taken[2..], [0, 0]);
    assert_eq!(taken.iter().sum::<usize>(), 60);
    assert!(taken[0] > 5 && taken[1] > 5, "{taken:?}");

    steer_to_first(&group[0], 1).unwrap();
    assert_eq!(spread(&group, 20), [20, 0, 0, 0]);

    unsteer(&group[0]).unwrap();
    let taken = spread(&group, 200);
    assert!(taken.iter().all(|&count| count > 5), "{taken:?}");
    unsteer(&group[0]).unwrap();
}

/// Returns the program's results for a packet on this CPU, for every random number from 0 on in
/// turn.
fn answers(program: &[libc::sock_filter], cpu: u16) -> Vec<u32> {
    let run = |random: u32| {
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let libc::sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match u32::from(code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    accumulator = if k == CPU { cpu.into() } else { random };
                }
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += usize::from(if accumulator == k { jt } else { jf });
                }
                code if code == libc::BPF_RET | libc::BPF_K => return k,
                code if code == libc::BPF_RET | BPF_A => return accumulator,
                code => match code & 0xf0 {
                    libc::BPF_MOD => accumulator %= k,
                    libc::BPF_MUL => accumulator *= k,
                    libc::BPF_ADD => accumulator += k,
                    _ => panic!("an instruction that was not meant: {code:#x}"),
                },
            }
        }
    };
    let mut answers: Vec<u32> = (0..64).map(run).collect();
    answers.sort_unstable();
    answers.dedup();
    answers
}

#[test]
fn each_cpu_gets_its_workers_sockets() {
    // One socket per CPU, numbered from 0: by number, without a table.
    let plain = by_cpu(4, &[0, 1, 2, 3]);
    assert_eq!(plain.len(), 3);
    for cpu in 0..4 {
        assert_eq!(answers(&plain, cpu), [u32::from(cpu)]);
    }
    // Every second CPU; by number, only the first and third sockets would get connections.
    let odd = by_cpu(4, &[1, 3, 5, 7]);
    for (socket, cpu) in [(0, 1), (1, 3), (2, 5), (3, 7), (2, 6)] {
        assert_eq!(answers(&odd, cpu), [socket], "CPU {cpu}");
    }
    // More sockets than CPUs: 0, 3 and 6 on the first one, and so on.
    let many = by_cpu(8, &[4, 5, 9]);
    assert_eq!(answers(&many, 4), [0, 3, 6]);
    assert_eq!(answers(&many, 5), [1, 4, 7]);
    assert_eq!(answers(&many, 9), [2, 5]);
    // More CPUs than sockets: a CPU without a socket selects one by its number.
    let few = by_cpu(2, &[3, 4, 5]);
    let by_cpu_of = |cpu| answers(&few, cpu);
    assert_eq!([3, 4, 5].map(by_cpu_of), [[0], [1], [1]]);
}

#[test]
fn every_program_fits_the_kernel_limit() {
    let odd: Vec<u16> = (0..2048).map(|cpu| 2 * cpu + 1).collect();
    for (sockets, cpus) in [(1024, 400), (1024, 700), (1024, 2048), (1, 0), (3, 1)] {
        let program = by_cpu(sockets, &odd[..cpus]);
        assert!(program.len() <= INSTRUCTIONS_MAX, "{sockets} on {cpus}");
        let listener = listener("127.0.0.1:0".parse().unwrap());
        steer_by_cpu(&listener, sockets, &odd[..cpus]).unwrap();
    }
}

#[test]
fn client_cpu_selects_the_socket() {
    let cpus = crate::sys::cpus::usable().unwrap();
    let first = listener("127.0.0.1:0".parse().unwrap());
    let at = first.local_addr().unwrap();
    let group: Vec<_> = std::iter::once(first)
        .chain(cpus.iter().skip(1).map(|_| listener(at)))
        .collect();
    steer_by_cpu(&group[0], group.len() as u16, &cpus).unwrap();
    // Over loopback a packet is handled by the CPU that sends it.
    for (socket, &cpu) in cpus.iter().enumerate() {
        let taken = std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                crate::sys::cpus::pin(cpu).unwrap();
                spread(&group, 20)
            });
            there.join().unwrap()
        });
        let mut expected = vec![0; cpus.len()];
        expected[socket] = 20;
        assert_eq!(taken, expected, "CPU {cpu} of {cpus:?}");
    }
}

#[test]
fn steering_to_no_socket_is_refused() {
    let listener = listener("127.0.0.1:0".parse().unwrap());
    for refused in [
        steer_to_first(&listener, 0),
        steer_by_cpu(&listener, 0, &[0]),
    ] {
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
