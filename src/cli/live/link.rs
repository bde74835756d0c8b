//! The interface of the pair and who else is on its network: masters, foreign pairs, the peer.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use super::Look;
use crate::cli::adverts::{self, Heard};
use crate::config::Pair;
use crate::proto::vrrp::advertisement::Advertisement;
use crate::proto::vrrp::{Priority, Version};
use crate::sys::netlink::{Interface, Lifetime, Netlink};

/// Three intervals of the slowest usual pair, one second, and what a busy host may be late.
const LISTEN: Duration = Duration::from_millis(3500);
/// The kernel gives up asking for a neighbour after three seconds; a filter that drops never answers.
const CONNECT: Duration = Duration::from_secs(4);

/// The interface, the own address and the virtual ones; the interface if it can be listened on.
pub(super) fn interface(pair: &Pair, looks: &mut Vec<Look>) -> Option<Interface> {
    let name = &pair.interface;
    let found = Netlink::open().and_then(|mut netlink| Ok((netlink.interface(name)?, netlink)));
    let (interface, mut netlink) = match found {
        Ok((Some(interface), netlink)) => (interface, netlink),
        Ok((None, _)) => {
            let message = format!("there is no {name}");
            looks.push(Look::error("interface", message, "name one that `ip link` shows in pair.interface"));
            return None;
        }
        Err(error) => {
            looks.push(Look::error("interface", format!("cannot ask for {name}: {error}"), "allow netlink sockets"));
            return None;
        }
    };
    looks.push(match (interface.is_up, interface.has_carrier) {
        (true, true) => Look::ok("interface", format!("{name} is up and has a carrier")),
        (false, _) => Look::error("interface", format!("{name} is down"), format!("ip link set {name} up")),
        (true, false) => Look::error("interface", format!("{name} has no carrier"), "look at its cable, or the switch"),
    });
    match addresses(pair, &interface, &mut netlink) {
        Ok(of_addresses) => looks.extend(of_addresses),
        Err(error) => looks.push(Look::error("address", format!("cannot ask for addresses: {error}"), "try again")),
    }
    interface.is_up.then_some(interface)
}

fn addresses(pair: &Pair, interface: &Interface, netlink: &mut Netlink) -> io::Result<Vec<Look>> {
    let (own, name) = (pair.own_node(), &interface.name);
    let places = netlink.places_of(own.address)?;
    let mut looks = vec![match places.iter().find(|place| place.index == interface.index) {
        Some(place) if place.is_tentative => {
            let fix = "look for another host with that address";
            Look::error("address", format!("{} on {name} is not usable: somebody else may have it", own.address), fix)
        }
        Some(_) => Look::ok("address", format!("{}, of {}, is on {name}", own.address, own.name)),
        None if places.is_empty() => {
            let fix = format!("ip address add {} dev {name}, or correct pair.nodes", own.address);
            Look::error("address", format!("this host does not have {}, the address of {}", own.address, own.name), fix)
        }
        None => {
            let message = format!("{}, of {}, is on another interface than {name}", own.address, own.name);
            Look::error("address", message, "correct pair.interface")
        }
    }];
    for vip in pair.addresses() {
        for place in netlink.places_of(vip)? {
            let host_prefix = if vip.is_ipv4() { 32 } else { 128 };
            if place.prefix != host_prefix {
                let fix =
                    format!("ip address del {vip}/{} dev {name}, and remove it from the network's files", place.prefix);
                looks.push(Look::error("vip", format!("{vip} is a fixed address of this host"), fix));
            } else if place.valid == Lifetime::Forever && pair.vip_lease.is_some() && place.index == interface.index {
                let fix = "stop what has put it there (keepalived?), or remove it with: ip address del";
                looks.push(Look::warning("vip", format!("{vip} is on {name} without a lease, so not by twinlog"), fix));
            }
        }
    }
    Ok(looks)
}

/// Who else there is: listens and asks the peer at the same time.
pub(super) fn neighbours(pair: &Pair, interface: &Interface, daemon: Option<u32>) -> Vec<Look> {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| reach(pair));
        let heard = adverts::listen(interface, LISTEN);
        let reached = asked.join().unwrap_or(Reached::Unknown);
        let mut looks = vec![peer(pair, &reached)];
        match heard {
            Ok(heard) => looks.extend(judge(pair, &heard, daemon.is_some(), &reached)),
            Err(error) => {
                let message = format!("cannot listen for advertisements on {}: {error}", interface.name);
                looks.push(Look::warning("adverts", message, "run this as root"));
            }
        }
        looks
    })
}

/// What came of a connection to the peer.
#[derive(Debug, PartialEq, Eq)]
enum Reached {
    /// Its daemon answers.
    Daemon,
    /// Its kernel answers.
    Host,
    /// It does not answer ARP, or no route leads there.
    Nobody(String),
    /// Nothing came back.
    Unknown,
}

fn reach(pair: &Pair) -> Reached {
    match TcpStream::connect_timeout(&SocketAddr::new(pair.peer_node().address, pair.port), CONNECT) {
        Ok(_) => Reached::Daemon,
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Reached::Host,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Reached::Unknown,
            _ => Reached::Nobody(error.to_string()),
        },
    }
}

fn peer(pair: &Pair, reached: &Reached) -> Look {
    let peer = pair.peer_node();
    let (name, address, port) = (&peer.name, peer.address, pair.port);
    match reached {
        Reached::Daemon => Look::ok("peer", format!("{name} answers on {address}, port {port}")),
        Reached::Host => Look::ok("peer", format!("{name} answers on {address}; nothing listens on port {port}")),
        Reached::Nobody(error) => {
            let fix = "switch it on, or look at the cable, the VLAN and pair.nodes";
            Look::warning("peer", format!("{name} does not answer on {address}: {error}"), fix)
        }
        Reached::Unknown => {
            let fix = format!("let {} reach TCP and UDP port {port} of {address}, and back", pair.own_node().address);
            Look::warning("peer", format!("nothing came back from {name}, {address} port {port}"), fix)
        }
    }
}

/// What the advertisements mean for this pair.
fn judge(pair: &Pair, heard: &[Heard], daemon_runs: bool, reached: &Reached) -> Vec<Look> {
    let mut looks: Vec<Look> =
        heard.iter().filter_map(|heard| judge_one(pair, heard, heard_all(heard, pair))).collect();
    let foreign =
        |heard: &&Heard| heard.said.as_ref().is_ok_and(|said| said.vrid == pair.vrid) && !is_peer(pair, heard);
    if let Some(free) = heard.iter().find(foreign).and_then(|_| adverts::free_vrid(heard, pair.vrid.get())) {
        looks
            .iter_mut()
            .filter(|look| look.fix == PICK_ANOTHER)
            .for_each(|look| look.fix = format!("set vrid = {free} on both nodes"));
    }
    let multicast = heard.iter().any(|heard| heard.to_group);
    looks.push(if multicast {
        Look::ok("adverts", "multicast arrives here")
    } else if pair.unicast || *reached != Reached::Daemon || daemon_runs {
        Look::ok("adverts", format!("nobody else advertised within {:.1} s", LISTEN.as_secs_f64()))
    } else {
        let message = format!("{} runs, and no multicast from it arrives", pair.peer_node().name);
        Look::warning("adverts", message, "let the switch pass 224.0.0.18, or set unicast = true on both nodes")
    });
    looks
}

/// Replaced by a number that is free.
const PICK_ANOTHER: &str = "set another vrid on both nodes";

fn is_peer(pair: &Pair, heard: &Heard) -> bool {
    // Over IPv6 it speaks from its link-local address, which no file has.
    heard.source == pair.peer_node().address
}

/// Whether the advertisement shares an address with this pair.
fn heard_all(heard: &Heard, pair: &Pair) -> bool {
    heard.said.as_ref().is_ok_and(|said| said.vips.iter().any(|vip| pair.addresses().any(|own| own == vip)))
}

fn judge_one(pair: &Pair, heard: &Heard, shares: bool) -> Option<Look> {
    let source = heard.source;
    let said = match &heard.said {
        Ok(said) => said,
        Err(rejection) => {
            let message = format!("{source} sends protocol 112, and no sound advertisement ({})", rejection.as_str());
            return Some(Look::warning("adverts", message, "look at that host: CARP, or a broken implementation"));
        }
    };
    let own_vrid = said.vrid == pair.vrid;
    let shown = describe(said);
    if said.priority == Priority::LEAVING && !own_vrid {
        return None;
    }
    Some(match (own_vrid, is_peer(pair, heard), shares) {
        (true, true, _) if said.interval.version() != pair.interval.version() => {
            let message = format!("{}, {source}, speaks another version: {shown}", pair.peer_node().name);
            Look::error("adverts", message, "give both nodes the same vrrp_version")
        }
        (true, true, false) => {
            let message = format!("{}, {source}, is master of other addresses: {shown}", pair.peer_node().name);
            Look::error("adverts", message, "copy the same configuration to both nodes")
        }
        (true, true, true) => Look::ok("adverts", format!("{}, {source}, is master: {shown}", pair.peer_node().name)),
        (true, false, true) if source.is_ipv6() => Look::ok("adverts", format!("{source} is master: {shown}")),
        (true, false, true) => {
            let message = format!("{source}, which is no node of this pair, is master of our addresses: {shown}");
            Look::error("adverts", message, "stop it there (keepalived?), or correct pair.nodes")
        }
        (true, false, false) => {
            Look::error("adverts", format!("a foreign pair uses our vrid: {source}, {shown}"), PICK_ANOTHER)
        }
        (false, _, true) => {
            let message = format!("{source} is master of our addresses in another election: {shown}");
            Look::error("adverts", message, "two pairs cannot share an address: stop one, or give them one vrid")
        }
        (false, _, false) => Look::ok("adverts", format!("another pair: {source}, {shown}")),
    })
}

fn describe(said: &Advertisement) -> String {
    let version = if said.interval.version() == Version::V2 { "VRRPv2" } else { "VRRPv3" };
    let vips: Vec<String> = said.vips.iter().map(|vip: IpAddr| vip.to_string()).collect();
    let interval = said.interval.duration();
    format!("vrid {}, {}, priority {}, {version} every {interval:?}", said.vrid, vips.join(" "), said.priority)
}
