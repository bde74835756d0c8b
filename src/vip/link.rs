//! The interface: its sockets, its own addresses, and putting the shared ones on it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::config::Pair;
use crate::proto::vrrp::Family;
use crate::proto::vrrp::advertisement::{Advertisement, Dialect};
use crate::proto::vrrp::announcement::{self, MacAddr};
use crate::proto::vrrp::settings::Member;
use crate::proto::vrrp::vip_list::VipList;
use crate::sys::link_layer::{ClaimListener, FrameSender};
use crate::sys::netlink::{Address, Arp, Interface, Lifetime, Netlink};
use crate::sys::vrrp_socket::VrrpSocket;

/// How long IPv6 may take to route to a new address before it is announced all the same.
pub(super) const ROUTE_LIMIT: Duration = Duration::from_millis(50);

/// What is open on the interface while it is there.
#[derive(Debug)]
pub(super) struct Link {
    /// As it was last seen.
    pub(super) interface: Interface,
    sockets: Vec<(Family, VrrpSocket)>,
    frames: FrameSender,
    announcements: Vec<Vec<u8>>,
    pub(super) claims: Vec<ClaimListener>,
    /// How it treated ARP before, to be put back.
    arp_before: Option<Arp>,
}

impl Link {
    /// Opens everything on an interface, and makes it quiet about addresses that are on `lo` alone.
    pub(super) fn open(netlink: &mut Netlink, interface: Interface, pair: &Pair) -> io::Result<Link> {
        let (name, index, vrid) = (interface.name.as_str(), interface.index, Some(pair.vrid.get()));
        let mut sockets = Vec::new();
        let mut claims = Vec::new();
        let v4: Vec<Ipv4Addr> = pair.addresses().filter_map(v4).collect();
        let v6: Vec<Ipv6Addr> = pair.addresses().filter_map(v6).collect();
        if !v4.is_empty() {
            sockets.push((Family::V4, VrrpSocket::v4(name, index, vrid)?));
            claims.push(ClaimListener::arp(index, &v4)?);
        }
        if !v6.is_empty() {
            sockets.push((Family::V6, VrrpSocket::v6(name, index, vrid)?));
            claims.push(ClaimListener::neighbor_advertisements(name, &v6)?);
        }
        let arp_before = netlink.arp(index)?;
        netlink.set_arp(index, Arp::QUIET)?;
        let frames = FrameSender::open(index)?;
        let mut link = Link { interface, sockets, frames, announcements: Vec::new(), claims, arp_before };
        link.prepare_announcements(pair);
        Ok(link)
    }

    /// Takes over what is new about the same interface.
    pub(super) fn update(&mut self, interface: Interface, pair: &Pair) {
        let same_mac = self.interface.mac == interface.mac;
        self.interface = interface;
        if !same_mac {
            self.prepare_announcements(pair);
        }
    }

    fn prepare_announcements(&mut self, pair: &Pair) {
        // An interface without a MAC has no neighbours to tell.
        self.announcements = self.interface.mac.map_or_else(Vec::new, |mac| {
            let mac = MacAddr::from(mac);
            pair.addresses().flat_map(|vip| announcement::frames(mac, vip, false)).collect()
        });
    }

    /// Whether it carries.
    pub(super) fn carries(&self) -> bool {
        self.interface.is_up && self.interface.has_carrier
    }

    /// The sockets, to wait for.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &VrrpSocket> {
        self.sockets.iter().map(|(_, socket)| socket)
    }

    /// Every descriptor to wait for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets().map(AsFd::as_fd).chain(self.claims.iter().map(AsFd::as_fd))
    }

    /// Sends an advertisement from our address to the peers if it goes to them alone, else to the group.
    pub(super) fn transmit(
        &self,
        advertisement: &Advertisement,
        dialect: &Dialect,
        member: &Member,
        unicast: bool,
    ) -> io::Result<()> {
        let family = advertisement.vips.family();
        let socket = self.sockets.iter().find(|(of, _)| *of == family).map(|(_, socket)| socket);
        let Some(socket) = socket else { return Ok(()) };
        let group = [family.group()];
        for to in if unicast { &member.peers[..] } else { &group[..] } {
            socket.send(&advertisement.encode(dialect, member.address, *to), member.address, *to)?;
        }
        Ok(())
    }

    /// Tells the LAN where the addresses are; goes on after an error, and tells the last one.
    pub(super) fn announce(&self) -> io::Result<()> {
        let sent = self.announcements.iter().map(|frame| self.frames.send(frame));
        each(sent)
    }

    /// Puts the addresses on the link, or renews them; goes on after an error, and tells the last one.
    pub(super) fn take(&self, netlink: &mut Netlink, pair: &Pair) -> io::Result<()> {
        let index = self.interface.index;
        let lease = pair.vip_lease.and_then(|lease| u32::try_from(lease.as_secs()).ok());
        let valid = lease.map_or(Lifetime::Forever, Lifetime::Seconds);
        let added = each(pair.addresses().map(|vip| netlink.add(vip, index, valid)));
        for vip in pair.addresses() {
            netlink.wait_for_local_route(vip, index, ROUTE_LIMIT)?;
        }
        added
    }

    /// Renews them.
    pub(super) fn renew(&self, netlink: &mut Netlink, pair: &Pair) -> io::Result<()> {
        let Some(lease) = pair.vip_lease.and_then(|lease| u32::try_from(lease.as_secs()).ok()) else { return Ok(()) };
        let index = self.interface.index;
        let added = pair.addresses().map(|vip| netlink.add(vip, index, Lifetime::Seconds(lease)));
        each(added)
    }

    /// Takes them off; goes on after an error, and tells the last one.
    pub(super) fn release(&self, netlink: &mut Netlink, pair: &Pair) -> io::Result<()> {
        let removed = pair.addresses().map(|vip| netlink.remove(vip, self.interface.index).map(drop));
        each(removed)
    }

    /// Puts them on `lo` for a moment: what neighbours still send here is received, and nobody who asks is answered
    /// ([`Arp::QUIET`]). The kernel ends it.
    pub(super) fn linger(netlink: &mut Netlink, pair: &Pair) -> io::Result<()> {
        let Some(lo) = netlink.interface("lo")? else { return Ok(()) };
        each(pair.addresses().map(|vip| netlink.add(vip, lo.index, Lifetime::Seconds(1))))
    }

    /// Whether all of them are on it.
    pub(super) fn holds(&self, netlink: &mut Netlink, pair: &Pair) -> io::Result<bool> {
        let there = netlink.addresses(Some(self.interface.index))?;
        Ok(pair.addresses().all(|vip| there.iter().any(|place| place.address == vip)))
    }

    /// Puts back how the interface treated ARP.
    pub(super) fn restore(&self, netlink: &mut Netlink) -> io::Result<()> {
        self.arp_before.map_or(Ok(()), |arp| netlink.set_arp(self.interface.index, arp))
    }
}

/// Does all of them, and tells the last error.
fn each(outcomes: impl Iterator<Item = io::Result<()>>) -> io::Result<()> {
    let mut last = Ok(());
    for outcome in outcomes {
        if outcome.is_err() {
            last = outcome;
        }
    }
    last
}

/// The families of the election, and whether all of them have their own address on the interface: over IPv4 the
/// configured one, over IPv6 the link's own, which is what advertisements come from (RFC 9568, 5.1.2.1). `told` is what
/// the peer says that it advertises from: it counts where the configuration does not know.
pub(crate) fn members(pair: &Pair, there: &[Address], told: &[IpAddr]) -> (Vec<Member>, bool) {
    let mut complete = true;
    let first = pair.vips.first().map(|vip| Family::of(vip.address));
    let mut families = vec![Family::V4, Family::V6];
    // The first address decides ties.
    families.sort_by_key(|family| Some(*family) != first);
    let members = families.into_iter().filter_map(|family| {
        let vips: Vec<IpAddr> = pair.addresses().filter(|vip| Family::of(*vip) == family).collect();
        let vips = VipList::new(&vips).ok()?;
        let known = Family::of(pair.own_node().address) == family && (family == Family::V4 || pair.unicast);
        let usable = there.iter().filter(|place| !place.is_tentative && Family::of(place.address) == family);
        let mut usable =
            usable.map(|place| place.address).filter(|address| !pair.addresses().any(|vip| vip == *address));
        let found = match family {
            _ if known => usable.find(|address| *address == pair.own_node().address),
            Family::V4 => usable.next(),
            Family::V6 => usable.find(|address| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())),
        };
        complete &= found.is_some();
        let unknown = || if known { pair.own_node().address } else { unspecified(family) };
        let of_family = || told.iter().copied().filter(|peer| Family::of(*peer) == family && found != Some(*peer));
        let peers = if known { vec![pair.peer_node().address] } else { of_family().collect() };
        Some(Member { address: found.unwrap_or_else(unknown), peers, vips })
    });
    let members = members.collect();
    (members, complete)
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(address) = address { Some(address) } else { None }
}

fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(address) = address { Some(address) } else { None }
}
