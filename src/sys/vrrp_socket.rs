//! Raw sockets for IP protocol 112, over which advertisements travel (RFC 9568, 5.1).
//!
//! One socket for each interface, family and virtual router. It sends to the group or to unicast peers from a source
//! that the caller names, and hands out what came with the header fields that a receiver must check. What the bytes mean,
//! their checksum included, is the codec's: `IPV6_CHECKSUM` stays off, or the kernel would drop a packet with a wrong one
//! before anybody could count it.
//!
//! Needs `CAP_NET_RAW`; for the filter `CAP_NET_ADMIN` on some kernels.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recv, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// IP protocol number of VRRP.
pub const PROTOCOL: i32 = 112;
/// Whither advertisements go over IPv4 (RFC 9568, 5.1.1.2).
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// Whither advertisements go over IPv6 (RFC 9568, 5.1.2.2).
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// An advertisement with another TTL or hop limit has crossed a router (RFC 9568, 5.1.1.3).
pub const TTL: u8 = 255;

/// Longest packet that is handed out whole: 255 IPv6 addresses, the header and an authentication trailer fit.
pub const PACKET_BYTES: usize = 4608;

/// Internetwork control, as keepalived sends it; nobody checks it.
const TRAFFIC_CLASS: u32 = 0xc0;
/// What a pause may pile up: adverts of 10 ms for some ten seconds, which the kernel accounts at 768 bytes each.
const QUEUE_BYTES: usize = 1 << 20;

/// What came with a packet. Its bytes are in the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Who sent it, as the IP header says.
    pub source: IpAddr,
    /// To whom: the group, or an address of this host.
    pub destination: IpAddr,
    /// TTL or hop limit on arrival. 0 if the kernel did not tell.
    pub ttl: u8,
    /// When the kernel received it, however long it waited in the queue afterwards. Read from two clocks, so some
    /// microseconds late, and as wrong as the system's clock was set while it waited; never in the future. In the first
    /// moments after the host's first such socket was opened it is the time of reading: the kernel begins to stamp
    /// packets when a work queue comes to it.
    pub at: Instant,
    /// Begin of the VRRP message in the buffer.
    pub begin: usize,
    /// Its end.
    pub end: usize,
}

/// A raw socket for one virtual router on one interface.
///
/// Its descriptor is readable when there are packets. It does not hear what this host sends.
#[derive(Debug)]
pub struct VrrpSocket {
    socket: Socket,
    index: u32,
    family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl VrrpSocket {
    /// Opens it for IPv4 on the interface of this name and index, in the group. Packets of other virtual routers than
    /// `vrid` do not wake anybody; `None` takes all.
    ///
    /// # Errors
    /// What the system says: `EPERM` without `CAP_NET_RAW`, `ENODEV` without the interface.
    pub fn v4(name: &str, index: u32, vrid: Option<u8>) -> io::Result<VrrpSocket> {
        let socket = bound(Domain::IPV4, name)?;
        socket.set_tos_v4(TRAFFIC_CLASS)?;
        socket.set_ttl_v4(TTL.into())?;
        socket.set_multicast_ttl_v4(TTL.into())?;
        socket.set_multicast_loop_v4(false)?;
        // Only the group joined here, not those that others on this host have joined.
        socket.set_multicast_all_v4(false)?;
        socket.join_multicast_v4_n(&GROUP_V4, &socket2::InterfaceIndexOrAddress::Index(index))?;
        opened(socket, index, Family::V4, vrid)
    }

    /// The same for IPv6.
    ///
    /// # Errors
    /// As [`VrrpSocket::v4`].
    pub fn v6(name: &str, index: u32, vrid: Option<u8>) -> io::Result<VrrpSocket> {
        let socket = bound(Domain::IPV6, name)?;
        socket.set_tclass_v6(TRAFFIC_CLASS)?;
        socket.set_unicast_hops_v6(TTL.into())?;
        socket.set_multicast_hops_v6(TTL.into())?;
        socket.set_multicast_loop_v6(false)?;
        socket.set_multicast_all_v6(false)?;
        socket.set_multicast_if_v6(index)?;
        socket.join_multicast_v6(&GROUP_V6, index)?;
        socket.set_recv_hoplimit_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        opened(socket, index, Family::V6, vrid)
    }

    /// Sends a VRRP message, without an IP header, from an address of this host to the group or a peer.
    ///
    /// # Errors
    /// What the system says: `EADDRNOTAVAIL` or `EINVAL` if the source is not an address of the interface, `ENETDOWN` if
    /// that is down, `EAFNOSUPPORT` if the addresses are not both of the socket's family.
    pub fn send(&self, message: &[u8], source: IpAddr, destination: IpAddr) -> io::Result<()> {
        match (self.family, source, destination) {
            (Family::V4, IpAddr::V4(source), IpAddr::V4(destination)) => self.send_v4(message, source, destination),
            (Family::V6, IpAddr::V6(source), IpAddr::V6(destination)) => self.send_v6(message, source, destination),
            _ => Err(Errno::EAFNOSUPPORT.into()),
        }
    }

    fn send_v4(&self, message: &[u8], source: Ipv4Addr, destination: Ipv4Addr) -> io::Result<()> {
        // The source goes with each packet: binding the socket to it would shut out the group.
        let information = libc::in_pktinfo {
            ipi_ifindex: self.index.cast_signed(),
            ipi_spec_dst: libc::in_addr { s_addr: source.to_bits().to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
        let control = [ControlMessage::Ipv4PacketInfo(&information)];
        sendmsg(self.socket.as_raw_fd(), &[IoSlice::new(message)], &control, MsgFlags::empty(), Some(&to))?;
        Ok(())
    }

    fn send_v6(&self, message: &[u8], source: Ipv6Addr, destination: Ipv6Addr) -> io::Result<()> {
        let information =
            libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: self.index };
        let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, self.index));
        let control = [ControlMessage::Ipv6PacketInfo(&information)];
        sendmsg(self.socket.as_raw_fd(), &[IoSlice::new(message)], &control, MsgFlags::empty(), Some(&to))?;
        Ok(())
    }

    /// The next packet, into a buffer of [`PACKET_BYTES`]. `None` when there is no more; call it until then, and judge
    /// them by [`Received::at`].
    ///
    /// # Errors
    /// What the system says.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        loop {
            match self.receive_one(buffer) {
                // Not what it says it is: the kernel lets none through, so there is nobody to tell.
                Ok(None) | Err(Errno::EINTR) => {}
                Ok(received) => return Ok(received),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive_one(&self, buffer: &mut [u8]) -> nix::Result<Option<Received>> {
        // Room for the three that are switched on: time, destination, hop limit.
        let mut control = [0; 128];
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut slices, Some(control.as_mut_slice()), flags)?;
        let (mut at, mut destination, mut ttl) = (None, None, 0);
        for part in message.cmsgs()? {
            match part {
                ControlMessageOwned::ScmTimestampns(time) => at = Some(Duration::from(time)),
                ControlMessageOwned::Ipv6PacketInfo(information) => {
                    destination = Some(IpAddr::from(information.ipi6_addr.s6_addr));
                }
                ControlMessageOwned::Ipv6HopLimit(limit) => ttl = u8::try_from(limit).unwrap_or_default(),
                _ => {}
            }
        }
        let source = message.address.as_ref().and_then(SockaddrStorage::as_sockaddr_in6).map(SockaddrIn6::ip);
        let (end, at) = (message.bytes, on_the_monotonic_clock(at));
        if self.family == Family::V4 {
            return Ok(ipv4_header(&buffer[..end], at));
        }
        let addresses = source.map(IpAddr::V6).zip(destination);
        Ok(addresses.map(|(source, destination)| Received { source, destination, ttl, at, begin: 0, end }))
    }
}

impl AsRawFd for VrrpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for VrrpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A raw socket on one interface that receives nothing yet: until it is bound it would hear all of them.
fn bound(domain: Domain, name: &str) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(PROTOCOL)))?;
    socket.attach_filter(&[RETURN_NOTHING])?;
    socket.bind_device(Some(name.as_bytes()))?;
    if setsockopt(&socket, sockopt::RcvBufForce, &(QUEUE_BYTES / 2)).is_err() {
        socket.set_recv_buffer_size(QUEUE_BYTES / 2)?;
    }
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    Ok(socket)
}

/// Empties it of what came before it was bound, and lets in what it is for.
fn opened(socket: Socket, index: u32, family: Family, vrid: Option<u8>) -> io::Result<VrrpSocket> {
    while recv(socket.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT).is_ok() {}
    match vrid {
        Some(vrid) => socket.attach_filter(&filter(family, vrid))?,
        None => socket.detach_filter()?,
    }
    Ok(VrrpSocket { socket, index, family })
}

pub(super) const RETURN_NOTHING: SockFilter = SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
const RETURN_ALL: SockFilter = SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, u32::MAX);

/// A classic BPF program that lets through messages whose second byte is `vrid`.
fn filter(family: Family, vrid: u8) -> [SockFilter; 5] {
    const LENGTH_OF_IPV4_HEADER: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
    const LOAD_X: u16 = (libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM) as u16;
    const LOAD_BYTE_AFTER_X: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_IND) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    // Over IPv4 a raw socket is given the IP header too, over IPv6 it is not.
    let begin = if family == Family::V4 { LENGTH_OF_IPV4_HEADER } else { LOAD_X };
    [
        SockFilter::new(begin, 0, 0, 0),
        SockFilter::new(LOAD_BYTE_AFTER_X, 0, 0, 1),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, vrid.into()),
        RETURN_ALL,
        RETURN_NOTHING,
    ]
}

/// What the IPv4 header says; `None` for what has none.
fn ipv4_header(packet: &[u8], at: Instant) -> Option<Received> {
    let header = packet.first_chunk::<20>()?;
    let begin = usize::from(header[0] & 0x0f) * 4;
    if begin < header.len() || begin > packet.len() {
        return None;
    }
    let address = |at: usize| IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    Some(Received { source: address(12), destination: address(16), ttl: header[8], at, begin, end: packet.len() })
}

/// The kernel stamps packets with the system's clock, which may be set; deadlines run on the monotonic one.
fn on_the_monotonic_clock(stamp: Option<Duration>) -> Instant {
    // In this order: if the thread is interrupted in between, the packet seems later, never earlier than what caused it.
    let waited = stamp.and_then(|stamp| SystemTime::now().duration_since(UNIX_EPOCH + stamp).ok());
    let now = Instant::now();
    waited.and_then(|waited| now.checked_sub(waited)).unwrap_or(now)
}
