//! TCP sockets: listening for both families, keepalive, and how much of what was sent the peer has acknowledged.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::vrrp_socket::RETURN_NOTHING;

/// Connections that may wait for `accept`. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Opens a listening socket. `[::]` takes IPv4 too.
///
/// # Errors
/// What the system says, foremost that the address is in use or needs a privilege.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != IpAddr::from([0u16; 8]))?;
    }
    // A restarted daemon takes its port again although connections of the last run are still in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Makes a listening socket deaf: every packet to it is dropped before the kernel answers, as on a bad line, so that who
/// connects tries again. Connections that wait for `accept` stay. It holds for all duplicates of the socket.
///
/// # Errors
/// What the system says.
pub fn ignore(listener: &TcpListener) -> io::Result<()> {
    // Linux sends what reaches a listening socket through its filter, SYN and the last ACK of a handshake alike. This one
    // keeps no byte of any packet.
    SockRef::from(listener).attach_filter(&[RETURN_NOTHING])
}

/// Has a listening socket hear again after [`ignore`].
///
/// # Errors
/// What the system says; it is no error that it heard.
pub fn hear(listener: &TcpListener) -> io::Result<()> {
    match SockRef::from(listener).detach_filter() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Finds a peer that vanished without a word: probes after a minute of silence, every 10 s, gone after six.
///
/// # Errors
/// What the system says.
pub fn keep_alive<S: std::os::fd::AsFd>(stream: &S) -> io::Result<()> {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(6);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Reads what is there, without waiting and without asking a runtime; 0 at the stream's end.
///
/// # Errors
/// What the system says; `WouldBlock` if nothing is there.
pub fn read_now(stream: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(stream.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
}

/// Has the kernel tell of a connection as readable when so many bytes are there, or its end; 1 is usual (`SO_RCVLOWAT`).
///
/// # Errors
/// What the system says.
pub fn tell_from(stream: &impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the kernel reads one int from the place it is given.
    let result = unsafe {
        libc::setsockopt(
            stream.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// What a connection's TCP knows of its peer (`TCP_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Bytes that the peer's TCP has acknowledged, the SYN included. Only grows, and still tells the truth after a
    /// reset, when the send queue is gone.
    pub acknowledged: u64,
    /// For how long nothing at all was heard while bytes are being sent again and again; `None` while all is well, and
    /// while a peer that is alive has no room.
    pub silence: Option<Duration>,
    /// The smoothed time from sending a byte to its acknowledgement.
    pub round_trip: Duration,
}

/// Asks the kernel how far a connection's bytes have come. Linux 4.1.
///
/// # Errors
/// What the system says.
pub fn delivery(stream: &impl AsRawFd) -> io::Result<Delivery> {
    // struct tcp_info, of which `libc` knows only the begin: 8 bytes of small fields, 24 u32, then u64.
    const RETRANSMITS_AT: usize = 2;
    const LAST_ACK_RECEIVED_AT: usize = 8 + 12 * 4;
    const ROUND_TRIP_AT: usize = 8 + 15 * 4;
    const BYTES_ACKED_AT: usize = 8 + 24 * 4 + 2 * 8;
    let mut info = [0u8; BYTES_ACKED_AT + 8];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is that long and has no invalid values.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    if (length as usize) < size_of_val(&info) {
        return Err(Errno::ENOTSUP.into());
    }
    let acknowledged = u64::from_ne_bytes(info[BYTES_ACKED_AT..].try_into().expect("eight bytes"));
    let u32_at = |at: usize| u32::from_ne_bytes(info[at..][..4].try_into().expect("four bytes"));
    let silence = Duration::from_millis(u32_at(LAST_ACK_RECEIVED_AT).into());
    let repeating = info[RETRANSMITS_AT] > 0;
    let round_trip = Duration::from_micros(u32_at(ROUND_TRIP_AT).into());
    Ok(Delivery { acknowledged, silence: repeating.then_some(silence), round_trip })
}

/// Bytes that a connection's kernel has taken, in the terms of [`Delivery::acknowledged`]: once that is reached, all of
/// them have arrived.
///
/// # Errors
/// What the system says.
pub fn taken(stream: &impl AsRawFd) -> io::Result<u64> {
    let queued = || -> io::Result<u64> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the kernel writes one int to the place it is given.
        Errno::result(unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    };
    // Two looks: an acknowledgement between them would be counted twice, or not at all.
    loop {
        let before = queued()?;
        let acknowledged = delivery(stream)?.acknowledged;
        if queued()? == before {
            return Ok(acknowledged + before);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_deaf_listener_answers_nobody_and_keeps_whom_it_has_answered() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let early = TcpStream::connect(address).unwrap();
        ignore(&listener).unwrap();
        let late = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        late.set_nonblocking(true).unwrap();
        late.connect(&address.into()).unwrap_err();
        assert_eq!(listener.accept().unwrap().1, early.local_addr().unwrap());
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // The kernel repeats the first packet after a second.
        hear(&listener).unwrap();
        hear(&listener).unwrap();
        listener.set_nonblocking(false).unwrap();
        assert_eq!(Some(listener.accept().unwrap().1), late.local_addr().unwrap().as_socket());
    }

    #[test]
    fn acknowledged_follows_what_the_peers_tcp_took() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let before = delivery(&sender).unwrap().acknowledged;
        sender.write_all(&[b'x'; 1000]).unwrap();
        assert_eq!(taken(&sender).unwrap() - before, 1000);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while delivery(&sender).unwrap().acknowledged - before < 1000 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert_eq!(delivery(&sender).unwrap().acknowledged - before, 1000);
    }
}
