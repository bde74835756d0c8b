//! Addresses: adding a virtual one in the only way that is safe, removing exactly it, finding where it is.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, Request, is_absence};

/// Between two looks for a local route: the kernel's work queue takes some hundred microseconds when it is idle.
const ROUTE_PAUSE: Duration = Duration::from_micros(200);

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address itself.
    pub address: IpAddr,
    /// Its prefix length: 32 or 128 for a virtual IP.
    pub prefix: u8,
    /// The interface that has it.
    pub index: u32,
    /// How long the kernel will keep it, counted from when it was asked.
    pub valid: Lifetime,
    /// The kernel does not choose it as source of new connections: a preferred lifetime of 0.
    pub is_deprecated: bool,
    /// Not usable yet: IPv6 still looks for duplicates, or has found one.
    pub is_tentative: bool,
}

/// How long the kernel keeps an address without being told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until somebody removes it.
    Forever,
    /// Whole seconds, at least 1. The kernel removes it up to half a second late.
    Seconds(u32),
}

impl Lifetime {
    /// What the kernel calls for ever.
    const INFINITE: u32 = u32::MAX;

    fn from_seconds(seconds: u32) -> Lifetime {
        if seconds == Lifetime::INFINITE { Lifetime::Forever } else { Lifetime::Seconds(seconds) }
    }

    fn seconds(self) -> u32 {
        match self {
            Lifetime::Forever => Lifetime::INFINITE,
            // The kernel refuses 0, which could only mean "not at all".
            Lifetime::Seconds(seconds) => seconds.max(1),
        }
    }
}

/// What came of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It was there, and is not any more.
    Now,
    /// It was not there, or the whole interface is gone.
    WasAbsent,
}

/// The removal of one address, made ahead of time: carrying it out allocates nothing.
#[derive(Clone, Debug)]
pub struct Removal {
    request: Request,
}

impl Removal {
    /// The removal of exactly this address with its host prefix. An address beside it, the same one with another
    /// prefix, or the same one on another interface, stays.
    #[must_use]
    pub fn of(address: IpAddr, index: u32) -> Removal {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = host_prefix(address);
        message.header.index = index;
        message.attributes = names(address);
        Removal { request: Request::new(RouteNetlinkMessage::DelAddress(message), 0) }
    }
}

impl Netlink {
    /// Adds a virtual address to an interface, or renews it: as /32 or /128, without a prefix route, never chosen as
    /// source of a connection, IPv6 without duplicate detection (the old holder may still have it).
    ///
    /// IPv4 works when this returns. IPv6 works a moment later: see [`Netlink::wait_for_local_route`].
    ///
    /// # Errors
    /// What the system says: `EPERM` without `CAP_NET_ADMIN`, `ENODEV` if there is no such interface.
    pub fn add(&mut self, address: IpAddr, index: u32, valid: Lifetime) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = host_prefix(address);
        message.header.index = index;
        message.header.scope = scope(address);
        let mut flags = AddressFlags::Noprefixroute;
        if address.is_ipv6() {
            flags |= AddressFlags::Nodad;
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        let mut lifetimes = CacheInfo::default();
        lifetimes.ifa_valid = valid.seconds();
        message.attributes = names(address);
        message.attributes.extend([AddressAttribute::Flags(flags), AddressAttribute::CacheInfo(lifetimes)]);
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a virtual address from an interface: [`Removal::of`].
    ///
    /// # Errors
    /// What the system says; that it was not there is no error.
    pub fn remove(&mut self, address: IpAddr, index: u32) -> io::Result<Removed> {
        self.carry_out(&mut Removal::of(address, index))
    }

    /// Removes what was prepared; as often as wanted.
    ///
    /// # Errors
    /// As [`Netlink::remove`].
    pub fn carry_out(&mut self, removal: &mut Removal) -> io::Result<Removed> {
        match self.exchange(&mut removal.request, |_| {}) {
            Ok(_) => Ok(Removed::Now),
            Err(error) if is_absence(&error) => Ok(Removed::WasAbsent),
            Err(error) => Err(error),
        }
    }

    /// All addresses of all interfaces, or of one.
    ///
    /// # Errors
    /// What the system says.
    pub fn addresses(&mut self, index: Option<u32>) -> io::Result<Vec<Address>> {
        let mut wanted = AddressMessage::default();
        wanted.header.index = index.unwrap_or_default();
        let answers = match self.dump(RouteNetlinkMessage::GetAddress(wanted)) {
            Err(error) if is_absence(&error) => Vec::new(),
            answers => answers?,
        };
        let all = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Address::read(message),
            _ => None,
        });
        Ok(all.filter(|address| index.is_none_or(|index| address.index == index)).collect())
    }

    /// Where an address is: on the link, on `lo`, left over from an earlier run somewhere else.
    ///
    /// # Errors
    /// What the system says.
    pub fn places_of(&mut self, address: IpAddr) -> io::Result<Vec<Address>> {
        let mut places = self.addresses(None)?;
        places.retain(|place| place.address == address);
        Ok(places)
    }

    /// Whether the kernel takes in packets for an address because of this interface.
    ///
    /// # Errors
    /// What the system says.
    pub fn has_local_route(&mut self, address: Ipv6Addr, index: u32) -> io::Result<bool> {
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = AddressFamily::Inet6;
        wanted.header.table = libc::RT_TABLE_LOCAL;
        wanted.header.kind = RouteType::Local;
        wanted.attributes.push(RouteAttribute::Oif(index));
        let answers = self.dump(RouteNetlinkMessage::GetRoute(wanted))?;
        Ok(answers.iter().filter_map(local_route).any(|route| route == (address, index)))
    }

    /// Waits until packets for an address are taken in because of this interface; `false` if that took longer than
    /// `limit`. IPv4 is ready with the answer to [`Netlink::add`]. IPv6 is not: the kernel acknowledges the address, and
    /// a work queue inserts its route later. Announcing it, or removing it elsewhere, before that loses packets.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait_for_local_route(&mut self, address: IpAddr, index: u32, limit: Duration) -> io::Result<bool> {
        let IpAddr::V6(address) = address else { return Ok(true) };
        let begin = Instant::now();
        while !self.has_local_route(address, index)? {
            if begin.elapsed() > limit {
                return Ok(false);
            }
            std::thread::sleep(ROUTE_PAUSE);
        }
        Ok(true)
    }
}

impl Address {
    /// `None` for what has no address in it.
    pub(super) fn read(message: &AddressMessage) -> Option<Address> {
        let (mut local, mut remote) = (None, None);
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        let mut valid = Lifetime::Forever;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => remote = Some(*address),
                AddressAttribute::Flags(all) => flags = *all,
                AddressAttribute::CacheInfo(lifetimes) => valid = Lifetime::from_seconds(lifetimes.ifa_valid),
                _ => {}
            }
        }
        Some(Address {
            // On a point-to-point link the two differ, and the first is ours.
            address: local.or(remote)?,
            prefix: message.header.prefix_len,
            index: message.header.index,
            valid,
            is_deprecated: flags.contains(AddressFlags::Deprecated),
            is_tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
        })
    }
}

/// Destination and interface of an IPv6 route that says "this is ours".
pub(super) fn local_route(message: &RouteNetlinkMessage) -> Option<(Ipv6Addr, u32)> {
    let (RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) = message else { return None };
    if route.header.kind != RouteType::Local || route.header.destination_prefix_length != 128 {
        return None;
    }
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(*address),
        _ => None,
    });
    let index = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    destination.zip(index)
}

/// The attributes that say which address is meant.
fn names(address: IpAddr) -> Vec<AddressAttribute> {
    let mut names = vec![AddressAttribute::Address(address)];
    if address.is_ipv4() {
        // Without it the kernel would remove the first address that the prefix fits.
        names.push(AddressAttribute::Local(address));
    }
    names
}

/// IPv4 has no preferred lifetime that counts: the kernel takes the first address of the device that is wide enough in
/// scope, a virtual one included. With the narrowest scope it never qualifies; it is received and answered all the same.
fn scope(address: IpAddr) -> AddressScope {
    if address.is_ipv4() { AddressScope::Host } else { AddressScope::Universe }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
