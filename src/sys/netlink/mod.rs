//! rtnetlink(7): interfaces, addresses, and what must be true of a device before a virtual IP moves over it.
//!
//! Synchronous and small: it is called from a control thread that must not wait for a runtime, and by a guardian after
//! a fork. The kernel answers while the request is being sent, so no call here waits for anything but the kernel's own
//! lock. Message bytes are those of `netlink-packet-route`; the socket is ours.
//!
//! The virtual IP follows one rule: *on `lo` = able to receive, on the link = announced*. With [`Arp::QUIET`] on the
//! link, an address on `lo` receives but answers nobody who asks for it.
//!
//! Needs `CAP_NET_ADMIN` for everything that changes something, nothing for asking. Nothing here writes `/proc/sys`.

mod address;
mod interface;
mod monitor;
mod network;

pub use address::{Address, Lifetime, Removal, Removed};
pub use interface::{Arp, Interface, Kind};
pub use monitor::{Change, Monitor};

use std::fmt::Display;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// The kernel cuts a dump into pieces of at most this size.
const BUFFER_BYTES: usize = 32 * 1024;
/// An answer comes at once or, if the kernel had no memory for it, never.
const ANSWER_SECONDS: i64 = 1;
/// A dump that was overtaken by a change is asked for again, this often at most.
const DUMP_ATTEMPTS: usize = 8;

/// A connection to the kernel's routing tables, for one request at a time. A process after a fork opens one of its own:
/// two that share it would take each other's answers.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Box<[u8]>,
}

impl Netlink {
    /// Opens it for the network namespace of the calling thread; it stays there.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> io::Result<Netlink> {
        let socket = route_socket(SockFlag::empty(), 0)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
        let _ = dump_strictly(&socket);
        Ok(Netlink { socket, sequence: 0, buffer: vec![0; BUFFER_BYTES].into() })
    }

    /// Has the kernel do something.
    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(&mut Request::new(message, flags), |_| {}).map(drop)
    }

    /// Asks for one thing.
    fn ask(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        self.exchange(&mut Request::new(message, 0), |answer| answers.push(answer))?;
        Ok(answers)
    }

    /// Asks for all there is of a kind.
    fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = Request::new(message, NLM_F_DUMP);
        for _ in 0..DUMP_ATTEMPTS {
            let mut answers = Vec::new();
            if self.exchange(&mut request, |answer| answers.push(answer))? == Consistency::Whole {
                return Ok(answers);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the kernel's tables change faster than they can be read"))
    }

    fn exchange(
        &mut self,
        request: &mut Request,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<Consistency> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.socket.as_raw_fd(), request.numbered(self.sequence), MsgFlags::empty())?;
        let mut consistency = Consistency::Whole;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                length => length?,
            };
            for message in messages(&self.buffer[..length]) {
                let message = message?;
                // The rest of an answer that an earlier call gave up.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                if message.header.flags & NLM_F_DUMP_INTR != 0 {
                    consistency = Consistency::Overtaken;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => take(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(done) if done.code != 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(consistency),
                    _ => {}
                }
            }
        }
    }
}

/// Whether the kernel's table changed while it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Consistency {
    Whole,
    Overtaken,
}

/// A request in the kernel's form; only its number is missing.
#[derive(Clone, Debug)]
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// Where struct nlmsghdr has the sequence number.
    const NUMBER_AT: usize = 8;

    fn new(message: RouteNetlinkMessage, flags: u16) -> Request {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        Request { bytes }
    }

    fn numbered(&mut self, sequence: u32) -> &[u8] {
        self.bytes[Request::NUMBER_AT..][..4].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

/// The messages in what one `recv` brought.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let whole = NetlinkBuffer::new_checked(bytes).map(|buffer| buffer.length() as usize);
        let (message, rest) = match whole {
            Ok(length) => (
                NetlinkMessage::deserialize(&bytes[..length]),
                bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
            ),
            Err(error) => (Err(error), &[][..]),
        };
        bytes = rest;
        Some(message.map_err(undecodable))
    })
}

fn undecodable(error: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a message of the kernel: {error}"))
}

/// A bound rtnetlink socket that hears the multicast groups of this mask.
fn route_socket(flags: SockFlag, groups: u32) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Makes the filters in a dump's request count. Linux 4.20; without it the kernel dumps more than was asked for, and
/// what is too much is left out here.
fn dump_strictly(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads as many bytes of `on` as the length says, and keeps nothing of it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_GET_STRICT_CHK,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Nothing there, in the words of the kernel: no such address, no such device.
fn is_absence(error: &io::Error) -> bool {
    [Errno::EADDRNOTAVAIL, Errno::ENODEV].iter().any(|absence| error.raw_os_error() == Some(*absence as i32))
}
