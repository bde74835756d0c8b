//! Making a network: a bridge, cables, addresses of hosts. For `twinlog demo`; a node makes no interface.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Netlink;

impl Netlink {
    /// Makes a learning bridge: a switch.
    ///
    /// # Errors
    /// What the system says: `EPERM` without `CAP_NET_ADMIN`, `EEXIST` if the name is taken.
    pub fn make_bridge(&mut self, name: &str) -> io::Result<()> {
        self.make(named(name), vec![LinkInfo::Kind(InfoKind::Bridge)])
    }

    /// Makes a cable: one end here, the other in another network namespace.
    ///
    /// # Errors
    /// As [`Netlink::make_bridge`].
    pub fn make_cable(&mut self, here: &str, there: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let mut other = named(there);
        other.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        let ends = InfoData::Veth(InfoVeth::Peer(other));
        self.make(named(here), vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(ends)])
    }

    fn make(&mut self, mut link: LinkMessage, what: Vec<LinkInfo>) -> io::Result<()> {
        link.attributes.push(LinkAttribute::LinkInfo(what));
        self.change(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    /// What the system says.
    pub fn plug_in(&mut self, index: u32, bridge: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::Controller(bridge));
        self.change(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Switches an interface on or off.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.change_mask = LinkFlags::Up;
        link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.change(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Gives an interface an address of its own, and the host the route to its network.
    ///
    /// # Errors
    /// What the system says.
    pub fn add_own(&mut self, address: Ipv4Addr, prefix: u8, index: u32) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}
