//! Which sockets of a `SO_REUSEPORT` group get new connections: a classic BPF program of three
//! instructions on the group.
//!
//! The program returns an index; the kernel counts the group's sockets in the order of their
//! `listen` calls, and a closed one's place is taken by the last (`reuseport_detach_sock`,
//! net/core/sock_reuseport.c). So "the first N" means the first N slots as long as slots listen in
//! order and only the last one ever closes, which the supervisor sees to. The program belongs to
//! the group and is replaced as one (RCU); it needs no privilege, but the group must be ours alone.
//!
//! It must not decide who gets connections; it must not touch a socket beyond that option.
#![expect(
    unsafe_code,
    reason = "the option that detaches a program has no safe wrapper"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

/// A random number for each packet (`SKF_AD_OFF + SKF_AD_RANDOM`, linux/filter.h).
const RANDOM: u32 = 0xffff_f000 + 56;

/// Gives new connections of the group of `listener` to its first `sockets` sockets only, at random.
/// Handshakes already begun stay where they are.
///
/// # Errors
/// `InvalidInput` for no sockets at all, else what `setsockopt` returned.
pub fn steer_to_first(listener: &impl AsFd, sockets: u16) -> io::Result<()> {
    if sockets == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let instruction = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets.into()),
        instruction(libc::BPF_RET | BPF_A, 0),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // The kernel copies the program within the call.
    Ok(setsockopt(
        listener,
        sockopt::AttachReusePortCbpf,
        &program,
    )?)
}

/// Return the accumulator (linux/bpf_common.h calls it `BPF_A`; the constant is not in libc).
const BPF_A: u32 = 0x10;

/// Gives new connections of the group of `listener` to all its sockets again, by the kernel's hash.
/// Without a program there is nothing to do.
///
/// # Errors
/// What `setsockopt` returned.
pub fn unsteer(listener: &impl AsFd) -> io::Result<()> {
    let number = listener.as_fd().as_raw_fd();
    let unused: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as `listener` is borrowed, the value is one
    // readable int that the option ignores, and its length is given.
    let result = unsafe {
        libc::setsockopt(
            number,
            libc::SOL_SOCKET,
            libc::SO_DETACH_REUSEPORT_BPF,
            std::ptr::from_ref(&unused).cast(),
            size_of_val(&unused) as libc::socklen_t,
        )
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
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

    /// Connects `count` times and says how many each listener got.
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
    fn the_first_sockets_get_everything_until_it_is_undone() {
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

    #[test]
    fn steering_to_nobody_is_refused() {
        let refused = steer_to_first(&listener("127.0.0.1:0".parse().unwrap()), 0);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
