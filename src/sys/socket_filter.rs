//! Filters that make a TCP socket deaf: what it does not hear it neither takes in nor answers.
//!
//! A dropped segment vanishes as on a bad network: no acknowledgement, no reset, and whoever sent it sends it again. That
//! holds a connection still while it moves to another host, and keeps new ones away without turning them down. Classic BPF:
//! no netfilter, no program to load.
//!
//! Some kernels ask for `CAP_NET_ADMIN` (measured on 6.18).

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use socket2::{SockFilter, SockRef};

const ALL: u32 = u32::MAX;
const NOTHING: u32 = 0;

/// Has the socket hear nothing. On a listening socket that is every segment of its port that belongs to no connection: also
/// those of connections that were just closed, which would be answered with a reset.
///
/// # Errors
/// What the system says.
pub fn drop_all(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).attach_filter(&[returning(NOTHING)])
}

/// Has a listening socket hear no new connection; handshakes that have begun come to their end. Who is not heard asks again
/// after a second.
///
/// # Errors
/// What the system says.
pub fn drop_syn(listener: &impl AsFd) -> io::Result<()> {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    /// Of the TCP header, where the filter of such a socket begins to count.
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        returning(NOTHING),
        returning(ALL),
    ])
}

/// Has the socket hear everything again. One that has no filter stays as it is.
///
/// # Errors
/// What the system says.
pub fn remove(socket: &impl AsFd) -> io::Result<()> {
    match SockRef::from(socket).detach_filter() {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
        result => result,
    }
}

fn returning(bytes: u32) -> SockFilter {
    SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, bytes)
}
