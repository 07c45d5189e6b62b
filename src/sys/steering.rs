//! Selects the sockets of a `SO_REUSEPORT` group that get new connections, with a small classic BPF
//! program on the group.
//!
//! The program returns an index; the kernel numbers the group's sockets in the order of their
//! `listen` calls, and the last socket replaces a closed one (`reuseport_detach_sock`,
//! net/core/sock_reuseport.c). So "the first N" means the first N slots as long as slots listen in
//! order and only the last one ever closes, which the supervisor ensures. For an index beyond the
//! last socket the kernel falls back to its hash. The program belongs to the group and is replaced
//! atomically (RCU); it needs no privilege, but the group must belong to this server alone.
//!
//! It must not decide which slot gets connections, or change any other socket option.
#![expect(
    unsafe_code,
    reason = "the option that detaches a program has no safe wrapper"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

/// A random number per packet (`SKF_AD_OFF + SKF_AD_RANDOM`, linux/filter.h).
const RANDOM: u32 = ANCILLARY + 56;
/// The CPU that handles the packet (`SKF_AD_OFF + SKF_AD_CPU`).
const CPU: u32 = ANCILLARY + 36;
const ANCILLARY: u32 = 0xffff_f000;

/// Return the accumulator (linux/bpf_common.h calls it `BPF_A`; the constant is not in libc).
const BPF_A: u32 = 0x10;

/// Maximum number of instructions (`BPF_MAXINSNS`, linux/bpf_common.h).
const INSTRUCTIONS_MAX: usize = 4096;

/// Distributes new connections of the group of `listener` at random over its first `sockets`
/// sockets. Handshakes in progress are not affected.
///
/// # Errors
/// `InvalidInput` without sockets, else the error of `setsockopt`.
pub fn steer_to_first(listener: &impl AsFd, sockets: u16) -> io::Result<()> {
    if sockets == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    attach(listener, &mut one_of(0, 1, sockets))
}

/// Gives each new connection of the group of `listener` to the socket of the CPU that handles its
/// first packet. Of `sockets` sockets the i-th belongs to the i-th of `cpus`, starting over with
/// the first CPU if there are more sockets. Sockets of the same CPU share at random. A CPU without
/// a socket, or not in `cpus`, selects a socket by its number.
///
/// # Errors
/// `InvalidInput` without sockets, else the error of `setsockopt`.
pub fn steer_by_cpu(listener: &impl AsFd, sockets: u16, cpus: &[u16]) -> io::Result<()> {
    if sockets == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    attach(listener, &mut by_cpu(sockets, cpus))
}

/// Returns a jump table: for each CPU a comparison and its return value, then the rule for all
/// others. CPUs that this rule already serves need no entry, so with CPUs numbered from 0 and one
/// socket each there is no table.
fn by_cpu(sockets: u16, cpus: &[u16]) -> Vec<libc::sock_filter> {
    let by_number = [
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets.into()),
        instruction(libc::BPF_RET | BPF_A, 0),
    ];
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, CPU)];
    let step = u16::try_from(cpus.len()).unwrap_or(u16::MAX);
    for (first, &cpu) in (0..sockets).zip(cpus) {
        let count = (sockets - first).div_ceil(step);
        if count == 1 && cpu % sockets == first {
            continue;
        }
        let entry = one_of(first, step, count);
        // If a machine has too many irregular CPUs, the remaining ones are served by number.
        if program.len() + 1 + entry.len() + by_number.len() > INSTRUCTIONS_MAX {
            break;
        }
        program.push(libc::sock_filter {
            // At most five instructions are jumped over.
            jf: entry.len() as u8,
            ..instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, cpu.into())
        });
        program.extend(entry);
    }
    program.extend(by_number);
    program
}

/// Returns `first`, or one of `first`, `first + step`, … at random, `count` in total.
fn one_of(first: u16, step: u16, count: u16) -> Vec<libc::sock_filter> {
    if count == 1 {
        return vec![instruction(libc::BPF_RET | libc::BPF_K, first.into())];
    }
    let arithmetic = |operation: u32, operand: u16| {
        instruction(libc::BPF_ALU | operation | libc::BPF_K, operand.into())
    };
    vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM),
        arithmetic(libc::BPF_MOD, count),
        arithmetic(libc::BPF_MUL, step),
        arithmetic(libc::BPF_ADD, first),
        instruction(libc::BPF_RET | BPF_A, 0),
    ]
}

const fn instruction(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn attach(listener: &impl AsFd, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // The kernel copies the program during the call.
    Ok(setsockopt(
        listener,
        sockopt::AttachReusePortCbpf,
        &program,
    )?)
}

/// Distributes new connections of the group of `listener` over all its sockets again, by the
/// kernel's hash. Does nothing without a program.
///
/// # Errors
/// The error of `setsockopt`.
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
mod tests;
