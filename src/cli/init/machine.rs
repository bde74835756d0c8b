//! What this machine proposes: the interface of the default route, its address, a free election.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::sys::netlink::{Interface, Kind, Lifetime, Netlink};

/// An interface and the addresses on it.
#[derive(Debug)]
pub(super) struct Link {
    pub interface: Interface,
    pub addresses: Vec<IpNet>,
}

/// The interface of this name; without a name that of the default route, else the only one with an address.
pub(super) fn link(name: Option<&str>) -> Option<Link> {
    let mut netlink = Netlink::open().ok()?;
    let interfaces = netlink.interfaces().ok()?;
    let addresses = netlink.addresses(None).ok()?;
    let link = |interface: Interface| {
        let own = addresses.iter().filter(|address| address.index == interface.index);
        // A virtual address is not one to know the host by: it is on a lease, or has the prefix of a host.
        let own =
            own.filter(|own| !own.is_deprecated && own.valid == Lifetime::Forever && !is_host(own.prefix, own.address));
        let addresses = own.filter_map(|own| IpNet::new(own.address, own.prefix).ok()).collect();
        Link { interface, addresses }
    };
    let default = name.map(str::to_owned).or_else(|| {
        let route = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        default_interface(&route)
    });
    if let Some(name) = default {
        return interfaces.into_iter().find(|interface| interface.name == name).map(link);
    }
    let candidates = interfaces.into_iter().filter(|interface| interface.kind != Kind::Loopback && interface.is_up);
    let mut candidates = candidates.map(link).filter(|link| !link.addresses.is_empty());
    candidates.next().filter(|_| candidates.next().is_none())
}

fn is_host(prefix: u8, address: IpAddr) -> bool {
    prefix == if address.is_ipv4() { 32 } else { 128 }
}

/// The interface of the default route in the text of `/proc/net/route`: interface, destination, gateway…
fn default_interface(routes: &str) -> Option<String> {
    let mut lines = routes.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .find(|words| words.get(1) == Some(&"00000000") && words.get(7) == Some(&"00000000"))
        .map(|words| words[0].to_owned())
}

impl Link {
    /// The address on the network of `vip`, else the first that others can reach.
    pub(super) fn own_address(&self, vip: Option<IpAddr>) -> Option<IpAddr> {
        let beside = |network: &&IpNet| vip.is_some_and(|vip| network.contains(&vip));
        let usable = |network: &&IpNet| !is_link_local(network.addr());
        let found = self.addresses.iter().find(beside).or_else(|| self.addresses.iter().find(usable));
        found.map(IpNet::addr)
    }

    /// The prefix length of the network that an address is in.
    pub(super) fn prefix_of(&self, address: IpAddr) -> Option<u8> {
        self.addresses.iter().find(|network| network.contains(&address)).map(IpNet::prefix_len)
    }

    /// Whether the address is this machine's.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|network| network.addr() == address)
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => Ipv4Addr::is_link_local(&address),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_the_one_to_everywhere() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                      eth1\t0071000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                      eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(default_interface(routes).as_deref(), Some("eth0"));
        assert_eq!(default_interface("Iface\n"), None);
    }
}
