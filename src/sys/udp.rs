//! UDP sockets for receiving: large buffers, several sockets for one address, many datagrams in one call, and the
//! kernel's own count of what it dropped.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrLike, SockaddrStorage, recvmmsg, recvmsg,
    sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Largest datagram; a buffer of this size never cuts one (RFC 5426, 3.2 asks for 2048 at least).
pub const DATAGRAM_BYTES: usize = 65_536;
/// Datagrams taken in one call.
const DATAGRAMS: usize = 64;

/// Opens `count` sockets on one address, between which the kernel spreads senders. A sender's datagrams all go to the
/// same socket, so its order is kept. `[::]` takes IPv4 too.
///
/// The receive buffer is forced to `buffer_bytes` where the capability allows (`CAP_NET_ADMIN`), else as far as
/// `net.core.rmem_max` goes; [`receive_buffer`] tells what it became.
///
/// # Errors
/// What the system says, foremost that the address is in use or needs a privilege.
pub fn bind(address: SocketAddr, count: usize, buffer_bytes: usize) -> io::Result<Vec<UdpSocket>> {
    let mut sockets: Vec<UdpSocket> = Vec::new();
    for _ in 0..count {
        // With port 0 the first socket is given a port, and the others join it.
        let address = sockets.first().map_or(Ok(address), UdpSocket::local_addr)?;
        sockets.push(bind_one(address, buffer_bytes)?);
    }
    Ok(sockets)
}

fn bind_one(address: SocketAddr, buffer_bytes: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != IpAddr::from([0u16; 8]))?;
    }
    socket.set_reuse_port(true)?;
    let socket = UdpSocket::from(socket);
    set_receive_buffer(&socket, buffer_bytes)?;
    SockRef::from(&socket).bind(&address.into())?;
    Ok(socket)
}

/// Sets the size of the receive buffer as [`bind`] does. What is in it stays.
///
/// # Errors
/// What the system says.
pub fn set_receive_buffer(socket: &UdpSocket, bytes: usize) -> io::Result<()> {
    // The kernel doubles the value it is given, for its own overhead: half of it makes the size that was asked for.
    if setsockopt(socket, sockopt::RcvBufForce, &(bytes / 2)).is_err() {
        SockRef::from(socket).set_recv_buffer_size(bytes / 2)?;
    }
    Ok(())
}

/// Size of the receive buffer in bytes, as the kernel accounts it.
///
/// # Errors
/// What the system says.
pub fn receive_buffer(socket: &UdpSocket) -> io::Result<usize> {
    SockRef::from(socket).recv_buffer_size()
}

/// Memory of a socket as the kernel counts it (`SO_MEMINFO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes in the receive queue.
    pub queue_bytes: u32,
    /// Its limit.
    pub queue_limit_bytes: u32,
    /// Datagrams dropped because the queue was full, since the socket was opened; wraps at 2^32.
    pub drops: u32,
}

/// Reads a socket's counters. Exact at any time, while `SO_RXQ_OVFL` speaks only with the next datagram (measured).
///
/// # Errors
/// What the system says.
pub fn memory_info(socket: &impl AsRawFd) -> io::Result<MemoryInfo> {
    const RMEM_ALLOC: usize = 0;
    const RCVBUF: usize = 1;
    const DROPS: usize = 8;
    let mut info = [0u32; DROPS + 1];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is that long and has no invalid values.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(MemoryInfo { queue_bytes: info[RMEM_ALLOC], queue_limit_bytes: info[RCVBUF], drops: info[DROPS] })
}

/// Tells once that a socket has datagrams, and nothing more until it is armed again: an epoll of one socket, itself a
/// file descriptor to wait for.
///
/// A runtime that watches a socket directly is woken by every single datagram, also while nobody waits for it: at
/// 100 000 a second that cost as much as receiving them.
#[derive(Debug)]
pub struct Bell {
    epoll: Epoll,
}

impl Bell {
    /// An armed bell of `socket`.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(socket: &UdpSocket) -> io::Result<Bell> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(socket, Bell::event())?;
        Ok(Bell { epoll })
    }

    /// Has the runtime at hand watch the bell.
    ///
    /// # Errors
    /// What the system says.
    pub fn watched(self) -> io::Result<AsyncFd<Bell>> {
        // SAFETY: the bell owns its epoll for all its life, never exchanges it, and always answers with its descriptor.
        Ok(unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }?)
    }

    /// Arms it again; it rings at once if datagrams are waiting.
    ///
    /// # Errors
    /// What the system says.
    pub fn arm(&self, socket: &UdpSocket) -> io::Result<()> {
        Ok(self.epoll.modify(socket, &mut Bell::event())?)
    }

    /// Whether it rang; it is then no longer armed.
    ///
    /// # Errors
    /// What the system says.
    pub fn rang(&self) -> io::Result<bool> {
        Ok(self.epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO)? > 0)
    }

    fn event() -> EpollEvent {
        EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, 0)
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }
}

/// Takes many datagrams from a socket in one call, into memory that is reused.
pub struct Receiver {
    buffers: Box<[u8]>,
    headers: MultiHeaders<SockaddrStorage>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

// SAFETY: the headers hold pointers only into their own heap memory, and only while `receive` runs do they point into
// `buffers`; nothing is tied to the thread that made them.
unsafe impl Send for Receiver {}

impl Default for Receiver {
    fn default() -> Receiver {
        Receiver::new()
    }
}

impl Receiver {
    /// Room for 64 datagrams of any size: 4 MiB of address space, of which only what arrives is ever touched.
    #[must_use]
    pub fn new() -> Receiver {
        Receiver {
            buffers: vec![0; DATAGRAMS * DATAGRAM_BYTES].into(),
            headers: MultiHeaders::preallocate(DATAGRAMS, None),
        }
    }

    /// Hands each waiting datagram to `take`, at most 64; returns how many there were.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none; else what the system says.
    pub fn receive(&mut self, socket: RawFd, mut take: impl FnMut(SocketAddr, &[u8])) -> io::Result<usize> {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.buffers.chunks_mut(DATAGRAM_BYTES).map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let datagrams = recvmmsg(socket, &mut self.headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        let mut count = 0;
        for datagram in datagrams {
            count += 1;
            let Some(source) = datagram.address.as_ref().and_then(source_address) else { continue };
            take(source, datagram.iovs().next().unwrap_or_default());
        }
        Ok(count)
    }
}

/// Which of this host's addresses a datagram was sent to, in the form in which an answer leaves from it.
#[derive(Clone, Copy, Debug)]
pub struct Destination(PacketInfo);

#[derive(Clone, Copy, Debug)]
enum PacketInfo {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

/// Opens a socket whose datagrams tell where they were sent to: [`receive_one`] and [`answer`] go with it. `[::]` takes
/// IPv4 too.
///
/// # Errors
/// What the system says, foremost that the address is in use or needs a privilege.
pub fn bind_answering(address: SocketAddr) -> io::Result<UdpSocket> {
    const BUFFER_BYTES: usize = 1024 * 1024;
    let socket = bind_one(address, BUFFER_BYTES)?;
    make_answering(&socket)?;
    Ok(socket)
}

/// Has the datagrams of a bound socket tell where they were sent to, from now on.
///
/// # Errors
/// What the system says.
pub fn make_answering(socket: &UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv6() {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    Ok(())
}

/// Takes one datagram into `buffer`, as far as it fits: its length, from whom, and to which address it was sent; `None`
/// if the kernel does not say.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if there is none; else what the system says.
pub fn receive_one(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<(usize, Option<(SocketAddr, Destination)>)> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
    let datagram = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let destination = datagram.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(Destination(PacketInfo::V4(info))),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Destination(PacketInfo::V6(info))),
        _ => None,
    });
    Ok((datagram.bytes, datagram.address.as_ref().and_then(source_address).zip(destination)))
}

/// Sends `bytes` to `to` from the address that `from` names. A client behind which the address matters, because it knows
/// us by a virtual one, would not know an answer from another.
///
/// # Errors
/// What the system says.
pub fn answer(socket: &impl AsRawFd, bytes: &[u8], to: SocketAddr, from: Destination) -> io::Result<()> {
    let slices = [IoSlice::new(bytes)];
    let to = SockaddrStorage::from(to);
    let send = |control| sendmsg(socket.as_raw_fd(), &slices, &[control], MsgFlags::MSG_DONTWAIT, Some(&to));
    match from.0 {
        // The interface is left to the routes: the address alone is promised.
        PacketInfo::V4(info) => send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo { ipi_ifindex: 0, ..info })),
        PacketInfo::V6(info) => {
            let link_local = info.ipi6_addr.s6_addr[0] == 0xfe && info.ipi6_addr.s6_addr[1] & 0xc0 == 0x80;
            let ipi6_ifindex = if link_local { info.ipi6_ifindex } else { 0 };
            send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo { ipi6_ifindex, ..info }))
        }
    }?;
    Ok(())
}

fn source_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    match address.family()? {
        nix::sys::socket::AddressFamily::Inet => address.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into())),
        nix::sys::socket::AddressFamily::Inet6 => address.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datagram_arrives_whole_with_its_source() {
        let receiver = bind("127.0.0.1:0".parse().unwrap(), 1, 4 << 20).unwrap().remove(0);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sent: Vec<Vec<u8>> = (0..100usize).map(|n| vec![n as u8; n * 300]).collect();
        for datagram in &sent {
            sender.send_to(datagram, receiver.local_addr().unwrap()).unwrap();
        }
        let mut many = Receiver::new();
        let mut seen = Vec::new();
        while many
            .receive(receiver.as_raw_fd(), |source, bytes| {
                assert_eq!(source, sender.local_addr().unwrap());
                seen.push(bytes.to_vec());
            })
            .is_ok()
        {}
        assert_eq!(seen, sent);
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        for (bound, asked) in [("0.0.0.0:0", "127.0.0.2"), ("[::]:0", "127.0.0.3"), ("[::]:0", "::1")] {
            let server = bind_answering(bound.parse().unwrap()).unwrap();
            let asked = SocketAddr::new(asked.parse().unwrap(), server.local_addr().unwrap().port());
            let any = if asked.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
            let client = UdpSocket::bind(any).unwrap();
            client.send_to(b"\0", asked).unwrap();
            let (length, known) = receive_one(&server, &mut [0; 8]).unwrap();
            let (source, destination) = known.unwrap();
            assert_eq!((length, source.port()), (1, client.local_addr().unwrap().port()));
            answer(&server, b"\0", source, destination).unwrap();
            assert_eq!(client.recv_from(&mut [0; 8]).unwrap(), (1, asked));
        }
    }

    #[test]
    fn a_bell_rings_once_for_many_datagrams_and_again_when_armed() {
        let receiver = bind("127.0.0.1:0".parse().unwrap(), 1, 4 << 20).unwrap().remove(0);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let bell = Bell::new(&receiver).unwrap();
        assert!(!bell.rang().unwrap());
        for _ in 0..3 {
            sender.send_to(b"x", receiver.local_addr().unwrap()).unwrap();
        }
        assert!(bell.rang().unwrap());
        assert!(!bell.rang().unwrap());
        bell.arm(&receiver).unwrap();
        assert!(bell.rang().unwrap());
    }

    #[test]
    fn dropped_datagrams_are_counted_exactly() {
        let receiver = bind("127.0.0.1:0".parse().unwrap(), 1, 8192).unwrap().remove(0);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..500 {
            sender.send_to(&[b'x'; 200], receiver.local_addr().unwrap()).unwrap();
        }
        let mut many = Receiver::new();
        let mut received = 0;
        while let Ok(count) = many.receive(receiver.as_raw_fd(), |_, _| {}) {
            received += count;
        }
        let drops = memory_info(&receiver).unwrap().drops as usize;
        assert!(drops > 0);
        assert_eq!(received + drops, 500);
    }
}
