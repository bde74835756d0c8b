//! Moving a live TCP connection to another host: `TCP_REPAIR` (tcp(7) is silent about it; Linux, `net/ipv4/tcp.c`).
//!
//! A socket in repair mode sends nothing, whatever is done to it: its numbers can be read and set, it connects without a
//! handshake and closes without a word. In this order, `→` on the old host, `←` on the new one:
//!
//! ```text
//! → freeze      nothing more is heard, so nothing more is acknowledged. Wait 0.3 ms: a segment can be past the filter
//! → (read)      until nothing is there; what was read is the old owner's, or travels with the image
//! → dump        in repair mode from here on, and never again heard of unless taken back
//! ← restore     the same connection, in repair mode
//! → unchanged?  or else take_back: what came in between is acknowledged, and the new host does not know it
//!   (the address moves)
//! ← go_live     one window probe; the client's answer sets everything going
//! → (close)     dropping a socket in repair mode is silent
//! ```
//!
//! Up to the last step [`take_back`] undoes everything. Linux 4.8; needs `CAP_NET_ADMIN` for the namespace, all else
//! nothing.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use libc::c_int;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;

use super::socket_filter;
use crate::proto::tcp_image::{Image, ImageError, SEND_QUEUE_BYTES_MAX, Window};

/// `nf_conntrack_tcp_loose`: whether a firewall that follows connections picks up one that it has not seen begin.
const CONNTRACK_LOOSE: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose";

// linux/tcp.h; `libc` has some of them, for some targets.
const TCP_REPAIR: c_int = 19;
const TCP_REPAIR_QUEUE: c_int = 20;
const TCP_QUEUE_SEQ: c_int = 21;
const TCP_REPAIR_OPTIONS: c_int = 22;
const TCP_TIMESTAMP: c_int = 24;
const TCP_REPAIR_WINDOW: c_int = 29;
const SIOCOUTQNSD: libc::c_ulong = 0x894b;

const REPAIR_ON: c_int = 1;
/// Leaves repair mode with a window probe.
const REPAIR_OFF: c_int = 0;
/// Leaves it without. Linux 4.19.
const REPAIR_OFF_SILENTLY: c_int = -1;

const ESTABLISHED: u8 = 1;
const HAS_TIMESTAMPS: u8 = 1;
const HAS_SACK: u8 = 2;
const HAS_SCALES: u8 = 4;

/// Kinds of TCP options (RFC 9293, 3.1; RFC 7323; RFC 2018).
const OPTION_MSS: u32 = 2;
const OPTION_SCALES: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMPS: u32 = 8;

/// How far the new owner's timestamps begin ahead: a delayed acknowledgement may leave the old one after the dump, and the
/// client drops what seems older than it (RFC 7323, 5). Since Linux 6.7 the lowest bit of the clock tells its unit.
const AHEAD_MILLISECONDS: u32 = 200;
const AHEAD_MICROSECONDS: u32 = 200_000;

/// Bytes that are put into a send queue at once.
const PIECE_BYTES: usize = 32 * 1024;
/// What a send buffer needs beside its bytes.
const SEND_BUFFER_MORE: usize = 256 * 1024;

/// Why connections cannot be moved from or to this host.
#[derive(Debug, Error)]
pub enum Why {
    /// The right is missing.
    #[error("TCP_REPAIR needs CAP_NET_ADMIN")]
    Capability,
    /// Linux before 4.8, or another kernel that has it not.
    #[error("this kernel has no TCP_REPAIR_WINDOW")]
    Kernel,
    /// A firewall here would drop what comes on a connection that it has not seen begin.
    #[error("net.netfilter.nf_conntrack_tcp_loose is 0: moved connections would be dropped as invalid")]
    StrictConntrack,
    /// It could not be tried.
    #[error("trying TCP_REPAIR: {0}")]
    System(#[from] io::Error),
}

/// Why one connection cannot be moved. It is as before, still frozen: [`take_back`] has it go on.
#[derive(Debug, Error)]
pub enum DumpError {
    /// One of the sides has closed, or it has not begun: the state in the kernel's numbers.
    #[error("the connection is not established (state {0})")]
    State(u8),
    /// So many bytes are there to be read first.
    #[error("{0} bytes are not read yet")]
    Unread(u32),
    /// So many bytes wait to be sent: more than are carried.
    #[error("{0} bytes wait to be sent")]
    SendQueue(usize),
    /// What the kernel says of it cannot be carried, as a link-local address.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What the system says.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Whether connections can be moved from or to this host, as far as it can tell itself.
///
/// # Errors
/// Why not: connections then end in the old way, with FIN.
pub fn is_possible() -> Result<(), Why> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let no = |error: io::Error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => Why::Capability,
        Some(Errno::ENOPROTOOPT) => Why::Kernel,
        _ => Why::System(error),
    };
    set_int(&socket, TCP_REPAIR, REPAIR_ON).map_err(no)?;
    get::<20>(&socket, TCP_REPAIR_WINDOW).map_err(no)?;
    // Not there: nobody follows connections.
    let loose = fs::read_to_string(CONNTRACK_LOOSE).unwrap_or_default();
    if loose.trim() == "0" { Err(Why::StrictConntrack) } else { Ok(()) }
}

/// Has the connection hear nothing more. Read it to its end, then [`dump`] it or [`take_back`].
///
/// # Errors
/// What the system says.
pub fn freeze(stream: &impl AsFd) -> io::Result<()> {
    socket_filter::drop_all(stream)
}

/// What another host needs to go on with a frozen connection that was read to its end. From now on it is in repair mode, and
/// silent.
///
/// # Errors
/// It cannot be moved, and is not in repair mode.
pub fn dump(stream: &impl AsFd) -> Result<Image, DumpError> {
    set_int(stream, TCP_REPAIR, REPAIR_ON)?;
    let dumped = read_image(stream);
    if dumped.is_err() {
        leave_silently(stream)?;
    }
    dumped
}

fn read_image(stream: &impl AsFd) -> Result<Image, DumpError> {
    let info: [u8; 8] = get(stream, libc::TCP_INFO)?;
    let (state, options, scales) = (info[0], info[5], info[6]);
    if state != ESTABLISHED {
        return Err(DumpError::State(state));
    }
    let unread = queued(stream, libc::FIONREAD)?;
    if unread > 0 {
        return Err(DumpError::Unread(unread));
    }
    let send_queue = send_queue(stream)?;
    let window = get::<20>(stream, TCP_REPAIR_WINDOW)?;
    let window = |field: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| window[field * 4 + byte]));
    let timestamp = (options & HAS_TIMESTAMPS != 0).then(|| get_u32(stream, TCP_TIMESTAMP)).transpose()?;
    let image = Image {
        local: address(SockRef::from(stream).local_addr()?)?,
        peer: address(SockRef::from(stream).peer_addr()?)?,
        rcv_nxt: queue_begin(stream, Queue::Receive)?,
        snd_una: queue_begin(stream, Queue::Send)?.wrapping_sub(send_queue.len() as u32),
        unsent: queued(stream, SIOCOUTQNSD)?,
        send_queue,
        // In repair mode this is what the client asked for, and not what fits the path.
        mss: u16::try_from(get_u32(stream, libc::TCP_MAXSEG)?).unwrap_or(u16::MAX),
        sack: options & HAS_SACK != 0,
        // A bit field: theirs comes first, in the lower bits.
        scales: (options & HAS_SCALES != 0).then_some((scales & 15, scales >> 4)),
        timestamp: timestamp.map(ahead),
        window: Window {
            snd_wl1: window(0),
            snd_wnd: window(1),
            max_window: window(2),
            rcv_wnd: window(3),
            rcv_wup: window(4),
        },
    };
    image.check()?;
    Ok(image)
}

fn ahead(timestamp: u32) -> u32 {
    timestamp.wrapping_add(if timestamp & 1 == 1 { AHEAD_MICROSECONDS } else { AHEAD_MILLISECONDS })
}

/// What was written and is not acknowledged; stays where it is.
fn send_queue(stream: &impl AsFd) -> Result<Vec<u8>, DumpError> {
    let length = queued(stream, libc::TIOCOUTQ)? as usize;
    if length > SEND_QUEUE_BYTES_MAX {
        return Err(DumpError::SendQueue(length));
    }
    if length == 0 {
        return Ok(Vec::new());
    }
    set_int(stream, TCP_REPAIR_QUEUE, Queue::Send as c_int)?;
    let mut bytes = vec![0; length];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let read = recv(stream.as_fd().as_raw_fd(), &mut bytes, flags).map_err(io::Error::from)?;
    if read == length { Ok(bytes) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) }
}

/// Whether nothing came in since the dump: the last look before the new host may go on.
#[must_use]
pub fn unchanged(stream: &impl AsFd, image: &Image) -> bool {
    let rcv_nxt = queue_begin(stream, Queue::Receive);
    rcv_nxt.is_ok_and(|rcv_nxt| rcv_nxt == image.rcv_nxt)
        && queued(stream, libc::FIONREAD).is_ok_and(|unread| unread == 0)
}

/// Has a frozen connection go on here, dumped or not. The client hears a window probe, and sends again what was not heard.
///
/// # Errors
/// What the system says.
pub fn take_back(stream: &impl AsFd) -> io::Result<()> {
    socket_filter::remove(stream)?;
    leave(stream, REPAIR_OFF)
}

/// Closes a connection without a word to the client, who has it elsewhere.
///
/// # Errors
/// What the system says; the connection is then closed as any other.
pub fn close_silently(stream: TcpStream) -> io::Result<()> {
    set_int(&stream, TCP_REPAIR, REPAIR_ON)
}

/// A connection that was rebuilt here and is still silent. Dropped, it is gone without a word.
#[derive(Debug)]
pub struct Restored {
    socket: Socket,
    /// What the old host never sent.
    unsent: Vec<u8>,
}

/// Rebuilds a connection. The address needs not be on the link yet, but on this host: on `lo` is enough.
///
/// # Errors
/// What the system says. Nothing has been sent.
pub fn restore(image: &Image) -> io::Result<Restored> {
    let socket = Socket::new(Domain::for_address(image.local), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    set_int(&socket, TCP_REPAIR, REPAIR_ON)?;
    if image.local.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // In repair mode: the listener on the same port is not in the way, and nothing is sent.
    socket.bind(&image.local.into())?;
    set_queue_begin(&socket, Queue::Send, image.snd_una)?;
    set_queue_begin(&socket, Queue::Receive, image.rcv_nxt)?;
    socket.connect(&image.peer.into())?;
    // Before any data: newer kernels refuse it afterwards.
    set(&socket, TCP_REPAIR_OPTIONS, &options(image))?;
    if let Some(timestamp) = image.timestamp {
        set(&socket, TCP_TIMESTAMP, &timestamp.to_ne_bytes())?;
    }
    let (sent, unsent) = image.send_queue.split_at(image.send_queue.len().saturating_sub(image.unsent as usize));
    if !image.send_queue.is_empty() {
        setsockopt(&socket, sockopt::SndBufForce, &(image.send_queue.len() * 2 + SEND_BUFFER_MORE))?;
    }
    set_int(&socket, TCP_REPAIR_QUEUE, Queue::Send as c_int)?;
    send_all(&socket, sent)?;
    let Window { snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup } = image.window;
    set(&socket, TCP_REPAIR_WINDOW, &joined([snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup]))?;
    Ok(Restored { socket, unsent: unsent.to_vec() })
}

/// `struct tcp_repair_opt`s. The scales always: `connect` chose one of its own, and without scaling every window that we
/// tell would be read too small.
fn options(image: &Image) -> Vec<u8> {
    let (theirs, ours) = image.scales.unwrap_or_default();
    let mut options = vec![[OPTION_SCALES, u32::from(theirs) | u32::from(ours) << 16], [OPTION_MSS, image.mss.into()]];
    if image.sack {
        options.push([OPTION_SACK, 0]);
    }
    if image.timestamp.is_some() {
        options.push([OPTION_TIMESTAMPS, 0]);
    }
    options.into_iter().flat_map(joined).collect()
}

impl Restored {
    /// Has it go on: the address is here, and announced. A window probe asks the client where it is.
    ///
    /// # Errors
    /// What the system says; the client then hears a reset.
    pub fn go_live(self) -> io::Result<TcpStream> {
        leave(&self.socket, REPAIR_OFF)?;
        send_all(&self.socket, &self.unsent)?;
        Ok(self.socket.into())
    }
}

/// The buffer was made large enough.
fn send_all(socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    for piece in bytes.chunks(PIECE_BYTES) {
        let mut at = 0;
        while at < piece.len() {
            at += send(socket.as_raw_fd(), &piece[at..], MsgFlags::MSG_NOSIGNAL)?;
        }
    }
    Ok(())
}

/// Leaves repair mode in one of its ways. That clears `SO_REUSEADDR`, without which a daemon that starts anew could not
/// listen on the port while the connection is there. A process that is killed between the two would leave such a connection
/// behind for a minute and a half, until its FIN is given up; without a time to linger it ends with its process.
fn leave(stream: &impl AsFd, way: c_int) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_linger(Some(Duration::ZERO))?;
    set_int(stream, TCP_REPAIR, way)?;
    socket.set_reuse_address(true)?;
    socket.set_linger(None)
}

fn leave_silently(stream: &impl AsFd) -> io::Result<()> {
    leave(stream, REPAIR_OFF_SILENTLY).or_else(|_| leave(stream, REPAIR_OFF))
}

fn address(address: socket2::SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// The queues that repair mode opens.
#[derive(Clone, Copy)]
enum Queue {
    Receive = 1,
    Send = 2,
}

/// Where the receive queue ends, if it is empty; where the send queue ends.
fn queue_begin(stream: &impl AsFd, queue: Queue) -> io::Result<u32> {
    set_int(stream, TCP_REPAIR_QUEUE, queue as c_int)?;
    get_u32(stream, TCP_QUEUE_SEQ)
}

fn set_queue_begin(socket: &Socket, queue: Queue, number: u32) -> io::Result<()> {
    set_int(socket, TCP_REPAIR_QUEUE, queue as c_int)?;
    set(socket, TCP_QUEUE_SEQ, &number.to_ne_bytes())
}

fn joined<const N: usize>(numbers: [u32; N]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn set_int(socket: &impl AsFd, option: c_int, value: c_int) -> io::Result<()> {
    set(socket, option, &value.to_ne_bytes())
}

fn get_u32(socket: &impl AsFd, option: c_int) -> io::Result<u32> {
    get(socket, option).map(u32::from_ne_bytes)
}

fn set(socket: &impl AsFd, option: c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads at most as many bytes as it is told that `value` has.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// The option's first `N` bytes.
fn get<const N: usize>(socket: &impl AsFd, option: c_int) -> io::Result<[u8; N]> {
    let mut value = [0; N];
    let mut length = N as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`, which is that long and has no invalid values.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    if length as usize == N { Ok(value) } else { Err(Errno::ENOPROTOOPT.into()) }
}

/// Bytes in a queue.
fn queued(socket: &impl AsFd, queue: libc::c_ulong) -> io::Result<u32> {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes one int to the place it is given.
    Errno::result(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), queue as _, &raw mut bytes) })?;
    Ok(u32::try_from(bytes).unwrap_or_default())
}
