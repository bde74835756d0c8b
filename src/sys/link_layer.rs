//! The link below IP: sending whole Ethernet frames, and hearing who else speaks for an address.
//!
//! Announcing an address is a gratuitous ARP or an unsolicited neighbor advertisement; their bytes are made elsewhere.
//! A second holder of an address gives itself away with the same packets, and a [`ClaimListener`] hears only those.
//!
//! Not through pnet's datalink channel: its socket listens to every frame of the link (`ETH_P_ALL`), so at 500 000
//! datagrams a second the kernel would run our filter as often. What is opened here listens to nothing, to ARP, or to
//! neighbor advertisements.
//!
//! Needs `CAP_NET_RAW`; the filters need `CAP_NET_ADMIN` on some kernels (measured on 6.18). Open these sockets before a
//! fork and keep them open in the parent: a process that dies with the last reference to a packet socket takes 60 to
//! 950 ms longer to die (measured).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

/// Longest claim: an ARP packet has 42 bytes, an advertisement with one option 32; both may be padded.
const CLAIM_BYTES: usize = 256;

/// Sends frames on one interface and receives none.
#[derive(Debug)]
pub struct FrameSender {
    socket: Socket,
}

impl FrameSender {
    /// Opens it on the interface with this index.
    ///
    /// # Errors
    /// What the system says: `EPERM` without `CAP_NET_RAW`, `ENODEV` without the interface.
    pub fn open(index: u32) -> io::Result<FrameSender> {
        // Protocol 0: nothing is received; for what is sent the kernel reads the frame's own type.
        Ok(FrameSender { socket: packet_socket(index, 0)? })
    }

    /// Sends one whole frame, Ethernet header included. Allocates nothing.
    ///
    /// # Errors
    /// What the system says: `ENETDOWN` if the interface is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }
}

/// Somebody else says that an address is his.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// Where he says that it is; `None` for an advertisement that leaves it out.
    pub mac: Option<[u8; 6]>,
}

/// Hears claims of certain addresses by others on one interface. What this host sends is not heard.
///
/// Its descriptor is readable when there are some.
#[derive(Debug)]
pub struct ClaimListener {
    socket: Socket,
    addresses: Vec<IpAddr>,
    read: fn(&[u8]) -> Option<Claim>,
}

impl ClaimListener {
    /// Hears ARP packets, requests as well as replies, whose sender has one of these addresses.
    ///
    /// # Errors
    /// As [`FrameSender::open`].
    pub fn arp(index: u32, addresses: &[Ipv4Addr]) -> io::Result<ClaimListener> {
        const ETH_P_ARP: u16 = libc::ETH_P_ARP as u16;
        let socket = packet_socket(index, ETH_P_ARP)?;
        let wanted: Vec<u32> = addresses.iter().map(|address| address.to_bits()).collect();
        let addresses = addresses.iter().copied().map(IpAddr::V4).collect();
        socket.attach_filter(&filter(&[], arp::SENDER_AT, &wanted))?;
        Ok(ClaimListener { socket, addresses, read: arp::claim })
    }

    /// Hears neighbor advertisements for these addresses, also those that nobody asked for.
    ///
    /// # Errors
    /// As [`FrameSender::open`].
    pub fn neighbor_advertisements(name: &str, addresses: &[Ipv6Addr]) -> io::Result<ClaimListener> {
        let socket = Socket::new(Domain::IPV6, Type::RAW.nonblocking(), Some(Protocol::ICMPV6))?;
        // Until it is bound it receives from every interface; what came before the filter is thrown away.
        socket.attach_filter(&filter(&[], 0, &[]))?;
        socket.bind_device(Some(name.as_bytes()))?;
        while recv(socket.as_raw_fd(), &mut [0; CLAIM_BYTES], MsgFlags::MSG_DONTWAIT).is_ok() {}
        // The end of an address tells more addresses apart than its begin.
        let wanted: Vec<u32> = addresses.iter().map(|address| address.to_bits() as u32).collect();
        let addresses = addresses.iter().copied().map(IpAddr::V6).collect();
        socket.attach_filter(&filter(&neighbor::CONDITIONS, neighbor::TARGET_END_AT, &wanted))?;
        Ok(ClaimListener { socket, addresses, read: neighbor::claim })
    }

    /// The next claim. `None` when there is no more; call it until then.
    ///
    /// # Errors
    /// What the system says.
    pub fn receive(&mut self) -> io::Result<Option<Claim>> {
        let mut bytes = [0; CLAIM_BYTES];
        loop {
            match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    let claim = (self.read)(&bytes[..length]);
                    if let Some(claim) = claim.filter(|claim| self.addresses.contains(&claim.address)) {
                        return Ok(Some(claim));
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsRawFd for ClaimListener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for ClaimListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// ARP over Ethernet (RFC 826), with the frame's header before it.
mod arp {
    use super::{Claim, IpAddr, Ipv4Addr};

    /// Sender's protocol address: after 14 bytes of Ethernet, 8 of ARP's fixed part and the sender's hardware address.
    pub const SENDER_AT: usize = 28;
    const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

    pub fn claim(frame: &[u8]) -> Option<Claim> {
        if *frame.get(14..20)? != ETHERNET_AND_IPV4 {
            return None;
        }
        let address: [u8; 4] = frame.get(SENDER_AT..SENDER_AT + 4)?.try_into().ok()?;
        let mac = frame.get(22..28)?.try_into().ok();
        Some(Claim { address: IpAddr::V4(Ipv4Addr::from(address)), mac })
    }
}

/// Neighbor advertisement (RFC 4861, 4.4), from the ICMPv6 header on. Its checksum was looked at by the kernel.
mod neighbor {
    use super::{Claim, IpAddr, Ipv6Addr};

    /// An advertisement, and from this link: no router has lowered its hop limit (RFC 4861, 7.1.2).
    pub const CONDITIONS: [(u32, u8); 2] = [(0, 136), (libc::SKF_NET_OFF.cast_unsigned() + 7, 255)];
    const TARGET_AT: usize = 8;
    /// The last four bytes of the target.
    pub const TARGET_END_AT: usize = TARGET_AT + 12;
    const OPTIONS_AT: usize = TARGET_AT + 16;
    /// Target link-layer address, one unit of eight bytes.
    const LINK_LAYER_OPTION: [u8; 2] = [2, 1];

    pub fn claim(message: &[u8]) -> Option<Claim> {
        let target: [u8; 16] = message.get(TARGET_AT..OPTIONS_AT)?.try_into().ok()?;
        let option = message.get(OPTIONS_AT..OPTIONS_AT + 8).filter(|option| option[..2] == LINK_LAYER_OPTION);
        let mac = option.and_then(|option| option[2..].try_into().ok());
        Some(Claim { address: IpAddr::V6(Ipv6Addr::from(target)), mac })
    }
}

/// A classic BPF program: lets through what has all these bytes at these places, and one of `wanted` as the big-endian
/// word at `at`.
fn filter(conditions: &[(u32, u8)], at: usize, wanted: &[u32]) -> Vec<SockFilter> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = Vec::new();
    for (place, byte) in conditions {
        program.push(SockFilter::new(LOAD_BYTE, 0, 0, *place));
        program.push(SockFilter::new(JUMP_IF_EQUAL, 1, 0, u32::from(*byte)));
        program.push(SockFilter::new(RETURN, 0, 0, 0));
    }
    program.push(SockFilter::new(LOAD_WORD, 0, 0, at as u32));
    for word in wanted {
        // Each match is followed by its own "take all of it", so that no jump is longer than a byte can say.
        program.push(SockFilter::new(JUMP_IF_EQUAL, 0, 1, *word));
        program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    }
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}

/// A packet socket on one interface, for frames of one type; 0 for none.
fn packet_socket(index: u32, ethernet_type: u16) -> io::Result<Socket> {
    // With a type it would receive from every interface until it is bound; so it gets both at once.
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?;
    socket.bind(&link_address(index, ethernet_type)?)?;
    Ok(socket)
}

fn link_address(index: u32, ethernet_type: u16) -> io::Result<SockAddr> {
    let index = i32::try_from(index).map_err(|_| io::Error::from(nix::errno::Errno::ENODEV))?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is a plain C structure whose every bit pattern is valid, and the storage is larger and aligned.
    let address: &mut libc::sockaddr_ll = unsafe { storage.view_as() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = ethernet_type.to_be();
    address.sll_ifindex = index;
    // SAFETY: the storage holds a sockaddr_ll of this length, as its family says.
    Ok(unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) })
}
