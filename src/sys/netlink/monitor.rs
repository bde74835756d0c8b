//! What happens to interfaces and addresses, whoever does it.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockFlag, recv, setsockopt, sockopt};

use super::address::local_route;
use super::{Address, BUFFER_BYTES, Interface, messages, route_socket};

/// Room for what happens while nobody reads: some thousand changes.
const QUEUE_BYTES: usize = 1 << 20;

/// One change, or the news that some were missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface is there, and this is how it is now; also if nothing in it is new.
    Link(Interface),
    /// An interface is gone.
    LinkGone(Interface),
    /// An address is there; also each time its lifetime is renewed.
    Address(Address),
    /// An address is gone: removed by somebody, or its lifetime has ended.
    AddressGone(Address),
    /// The kernel takes in packets for this IPv6 address because of the interface with this index.
    LocalRoute(Ipv6Addr, u32),
    /// It no longer does.
    LocalRouteGone(Ipv6Addr, u32),
    /// Something was missed, or could not be read: look again at everything.
    Missed,
}

/// A stream of [`Change`]s of one network namespace. Its file descriptor is readable when there are some.
#[derive(Debug)]
pub struct Monitor {
    socket: OwnedFd,
    buffer: Box<[u8]>,
}

impl Monitor {
    /// Hears of interfaces and addresses from now on. Look at how they are *after* opening it.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> io::Result<Monitor> {
        Monitor::hearing(libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR)
    }

    /// Hears of IPv6 routes of local addresses too. The kernel tells of all IPv6 routes then: nothing for a router.
    ///
    /// # Errors
    /// What the system says.
    pub fn open_with_routes() -> io::Result<Monitor> {
        let routes = libc::RTMGRP_IPV6_ROUTE;
        Monitor::hearing(libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR | routes)
    }

    fn hearing(groups: libc::c_int) -> io::Result<Monitor> {
        let socket = route_socket(SockFlag::SOCK_NONBLOCK, groups.cast_unsigned())?;
        // A queue that is too small costs a look at everything, nothing else.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES);
        Ok(Monitor { socket, buffer: vec![0; BUFFER_BYTES].into() })
    }

    /// Hands all changes since the last call to `take`, oldest first. Does not wait.
    ///
    /// # Errors
    /// What the system says. That the kernel had no room for a change is no error but [`Change::Missed`].
    pub fn drain(&mut self, mut take: impl FnMut(Change)) -> io::Result<()> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => messages(&self.buffer[..length])
                    .map(|message| message.map_or(Some(Change::Missed), |message| change(message.payload)))
                    .for_each(|change| change.into_iter().for_each(&mut take)),
                Err(Errno::ENOBUFS) => take(Change::Missed),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `None` for what is of no interest: other routes, wireless events.
fn change(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    let NetlinkPayload::InnerMessage(message) = payload else { return None };
    match &message {
        RouteNetlinkMessage::NewLink(link) => Some(Change::Link(Interface::from(link))),
        RouteNetlinkMessage::DelLink(link) => Some(Change::LinkGone(Interface::from(link))),
        RouteNetlinkMessage::NewAddress(address) => Address::read(address).map(Change::Address),
        RouteNetlinkMessage::DelAddress(address) => Address::read(address).map(Change::AddressGone),
        RouteNetlinkMessage::NewRoute(_) => {
            local_route(&message).map(|(address, index)| Change::LocalRoute(address, index))
        }
        RouteNetlinkMessage::DelRoute(_) => {
            local_route(&message).map(|(address, index)| Change::LocalRouteGone(address, index))
        }
        _ => None,
    }
}
