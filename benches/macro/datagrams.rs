//! The load as datagrams: of one sender, or of ten thousand.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, sendmsg};

use crate::generator::{Plan, TICK, precise_sleep};
use crate::measure::{Deadline, now_ns};
use crate::message::{MESSAGE_BYTES, Stamp, unstamped, write_stamp};

/// Addresses of [`send_datagrams_of_many`], and the first of them.
const SOURCES: u32 = 10_000;
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 0);

/// Datagrams to a `sendmmsg`. More gains nothing measurable and arrives in lumps.
const DATAGRAMS: usize = 64;

/// Sends the plan's one stream from one address. One `sendmmsg` for all that are due, and no segmentation offload: the
/// relay must not be spared what datagrams of many senders would cost it.
pub fn send_datagrams(relay: SocketAddr, plan: &Plan, deadline: Deadline) -> Result<()> {
    precise_sleep()?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(relay)?;
    let mut block = unstamped().repeat(DATAGRAMS);
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(DATAGRAMS, None);

    let start_ns = now_ns();
    let mut made = 0;
    while made < plan.total() {
        let (due, due_ns) = plan.due(start_ns, made);
        let count = ((due - made) as usize).min(DATAGRAMS);
        if count == 0 {
            deadline.pause(TICK, "sending datagrams")?;
            continue;
        }
        deadline.check("sending datagrams")?;
        for (message, sequence) in block.chunks_exact_mut(MESSAGE_BYTES).take(count).zip(made as u32..) {
            write_stamp(message, Stamp { stream: 0, sequence }, due_ns);
        }
        let slices: Vec<_> =
            block.chunks_exact(MESSAGE_BYTES).take(count).map(|message| [IoSlice::new(message)]).collect();
        let sent = sendmmsg(socket.as_raw_fd(), &mut headers, &slices, [None; DATAGRAMS], [], MsgFlags::empty())
            .context("sending datagrams to the relay")?
            .count();
        if sent == 0 {
            bail!("the kernel took no datagram");
        }
        made += sent as u64;
    }
    Ok(())
}

/// Sends the plan's one stream from [`SOURCES`] addresses of the loopback network in turn, so that no two datagrams in a
/// row have the same: a relay that remembers its last sender is not spared either.
///
/// One socket and IP_PKTINFO rather than ten thousand sockets. A `sendmsg` for each, because nix gives all datagrams of a
/// `sendmmsg` the same control message; the system call is little beside what the kernel does for a datagram.
pub fn send_datagrams_of_many(relay: SocketAddr, plan: &Plan, deadline: Deadline) -> Result<()> {
    precise_sleep()?;
    let SocketAddr::V4(relay) = relay else { bail!("the relay is not on IPv4") };
    let relay = SockaddrIn::from(relay);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut message = unstamped();

    let start_ns = now_ns();
    let mut made = 0;
    while made < plan.total() {
        let (due, due_ns) = plan.due(start_ns, made);
        if due == made {
            deadline.pause(TICK, "sending datagrams")?;
            continue;
        }
        deadline.check("sending datagrams")?;
        for sequence in made as u32..due as u32 {
            write_stamp(&mut message, Stamp { stream: 0, sequence }, due_ns);
            let source = u32::from(FIRST_SOURCE) + sequence % SOURCES;
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: source.to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let from = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(socket.as_raw_fd(), &[IoSlice::new(&message)], &from, MsgFlags::empty(), Some(&relay))
                .context("sending a datagram to the relay")?;
        }
        made = due;
    }
    Ok(())
}
