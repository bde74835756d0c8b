//! What an address does, and when it goes.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use twinlog::sys::link_layer::ClaimListener;
use twinlog::sys::netlink::{Arp, Change, Kind, Lifetime, Monitor, Removed};

use super::lab::traffic::Counter;
use super::lab::{Host, SOON, Switch, VIP_V4, VIP_V6, VIPS, wait_until};

/// Adds an address and waits until it works.
fn add(host: &Host, address: IpAddr, index: u32) {
    let mut netlink = host.netlink();
    netlink.add(address, index, Lifetime::Forever).unwrap();
    assert!(netlink.wait_for_local_route(address, index, SOON).unwrap());
}

/// Sends a datagram from a host.
fn send(from: &Host, to: IpAddr) {
    let any: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let socket = from.visit(|| UdpSocket::bind((any, 0))).unwrap();
    socket.send_to(&0u64.to_be_bytes(), (to, 5514)).unwrap();
}

/// Whether `host` answers when `client` asks who has `address`. The host's own address is asked for afterwards: when that
/// is answered, the answer to the first question would have come before it.
fn is_answered(client: &Host, host: &Host, address: IpAddr) -> bool {
    client.ip("neighbor flush all");
    let (index, own) = (client.eth0().index, if address.is_ipv4() { host.v4().into() } else { host.v6().into() });
    let mut answers = client.visit(|| match (address, own) {
        (IpAddr::V4(address), IpAddr::V4(own)) => ClaimListener::arp(index, &[address, own]).unwrap(),
        (IpAddr::V6(address), IpAddr::V6(own)) => {
            ClaimListener::neighbor_advertisements("eth0", &[address, own]).unwrap()
        }
        _ => unreachable!("of one family"),
    });
    send(client, address);
    send(client, own);
    let claim = loop {
        let ready = poll(&mut [PollFd::new(answers.as_fd(), PollFlags::POLLIN)], PollTimeout::try_from(SOON).unwrap());
        assert_eq!(ready, Ok(1), "the host's own address is answered");
        if let Some(claim) = answers.receive().unwrap() {
            break claim;
        }
    };
    assert_eq!(claim.mac, Some(host.mac()));
    claim.address == address
}

#[test]
fn an_address_on_lo_receives_and_answers_nobody() {
    let switch = Switch::new();
    let (a, client) = (switch.host("a"), switch.host("client"));
    a.netlink().set_arp(a.eth0().index, Arp::QUIET).unwrap();
    let counter = Counter::start(&a);
    for vip in VIPS {
        add(&a, vip, a.lo().index);
        assert!(!is_answered(&client, &a, vip), "{vip} on lo is answered");
        let mac = a.eth0().mac.unwrap().map(|byte| format!("{byte:02x}")).join(":");
        client.ip(&format!("neighbor replace {vip} lladdr {mac} dev eth0 nud permanent"));
        let before = counter.taken();
        send(&client, vip);
        wait_until("an address on lo receives", || counter.taken() > before);
        client.ip(&format!("neighbor del {vip} dev eth0"));

        add(&a, vip, a.eth0().index);
        assert!(is_answered(&client, &a, vip), "{vip} on the link is not answered");
    }
}

#[test]
fn without_quiet_arp_an_address_on_lo_is_answered() {
    let switch = Switch::new();
    let (a, client) = (switch.host("a"), switch.host("client"));
    add(&a, VIP_V4.into(), a.lo().index);
    assert!(is_answered(&client, &a, VIP_V4.into()));
}

#[test]
fn arp_settings_are_read_back_and_undone() {
    let switch = Switch::new();
    let a = switch.host("a");
    let (mut netlink, index) = (a.netlink(), a.eth0().index);
    let before = netlink.arp(index).unwrap().unwrap();
    assert_ne!(before, Arp::QUIET);
    netlink.set_arp(index, Arp::QUIET).unwrap();
    assert_eq!(netlink.arp(index).unwrap(), Some(Arp::QUIET));
    netlink.set_arp(index, before).unwrap();
    assert_eq!(netlink.arp(index).unwrap(), Some(before));
    assert_eq!(netlink.arp(999).unwrap(), None);
}

#[test]
fn a_lease_that_nobody_renews_ends_by_itself() {
    let switch = Switch::new();
    let a = switch.host("a");
    let (mut netlink, index) = (a.netlink(), a.eth0().index);
    let mut monitor = a.visit(Monitor::open).unwrap();
    for vip in VIPS {
        // For ever first: a renewal also shortens.
        netlink.add(vip, index, Lifetime::Forever).unwrap();
        netlink.add(vip, index, Lifetime::Seconds(1)).unwrap();
        let [place] = netlink.places_of(vip).unwrap()[..] else { panic!("in one place") };
        assert_eq!(place.valid, Lifetime::Seconds(1));
    }
    let mut gone = Vec::new();
    wait_until("the kernel removes them", || {
        monitor.drain(|change| gone.extend(ended(change))).unwrap();
        VIPS.iter().all(|vip| gone.contains(vip))
    });
    for vip in VIPS {
        assert_eq!(netlink.places_of(vip).unwrap(), []);
    }
}

#[test]
fn a_process_that_stands_still_or_dies_loses_its_address() {
    let switch = Switch::new();
    let a = switch.host("a");
    let mut netlink = a.netlink();
    let mut is_there = || !netlink.places_of(VIP_V4.into()).unwrap().is_empty();
    let renewal = format!("ip address replace {VIP_V4}/32 dev eth0 valid_lft 2 preferred_lft 0");
    let process = a.start("sh", ["-c", &format!("while {renewal}; do sleep 0.2; done")]);
    wait_until("the process has the address", &mut is_there);
    process.pause();
    wait_until("the address is gone", || !is_there());
    process.resume();
    wait_until("the process has the address again", &mut is_there);
    process.kill();
    wait_until("the address is gone", || !is_there());
}

fn ended(change: Change) -> Option<IpAddr> {
    match change {
        Change::AddressGone(address) => Some(address.address),
        _ => None,
    }
}

#[test]
fn a_renewed_lease_outlives_the_one_that_was_not() {
    let switch = Switch::new();
    let a = switch.host("a");
    let (mut netlink, index) = (a.netlink(), a.eth0().index);
    let forgotten: IpAddr = [203, 0, 113, 101].into();
    netlink.add(forgotten, index, Lifetime::Seconds(2)).unwrap();
    netlink.add(VIP_V4.into(), index, Lifetime::Seconds(2)).unwrap();
    wait_until("the other lease ends", || {
        netlink.add(VIP_V4.into(), index, Lifetime::Seconds(2)).unwrap();
        netlink.places_of(forgotten).unwrap().is_empty()
    });
    assert_eq!(netlink.places_of(VIP_V4.into()).unwrap().len(), 1);
}

#[test]
fn exactly_one_address_is_removed() {
    let switch = Switch::new();
    let a = switch.host("a");
    let (mut netlink, eth0, lo) = (a.netlink(), a.eth0().index, a.lo().index);
    // Beside it: the same one with the prefix of the link, which some other program may have added.
    a.ip(&format!("address add {VIP_V4}/24 dev eth0"));
    for vip in VIPS {
        assert_eq!(netlink.remove(vip, eth0).unwrap(), Removed::WasAbsent);
        add(&a, vip, eth0);
        add(&a, vip, lo);
        let places = netlink.places_of(vip).unwrap().len();
        assert_eq!(netlink.remove(vip, eth0).unwrap(), Removed::Now);
        assert_eq!(netlink.remove(vip, eth0).unwrap(), Removed::WasAbsent);
        assert_eq!(netlink.remove(vip, 999).unwrap(), Removed::WasAbsent);
        assert_eq!(netlink.places_of(vip).unwrap().len(), places - 1);
    }
    let left: Vec<(u8, u32)> = netlink.places_of(VIP_V4.into()).unwrap().iter().map(|p| (p.prefix, p.index)).collect();
    assert_eq!(left, [(32, lo), (24, eth0)]);
    let own = netlink.addresses(Some(eth0)).unwrap();
    assert!(own.iter().any(|place| place.address == IpAddr::from(a.v4()) && place.prefix == 24));
}

#[test]
fn no_connection_begins_at_a_virtual_address() {
    let switch = Switch::new();
    let (a, client) = (switch.host("a"), switch.host("client"));
    let far: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8:ffff::1".parse().unwrap()];
    // The worst cases: it was there first, and the default route names no gateway that a source would have to fit.
    a.ip("address flush dev eth0 scope global");
    for place in [a.eth0().index, a.lo().index] {
        VIPS.into_iter().for_each(|vip| add(&a, vip, place));
    }
    a.ip(&format!("address add {}/24 dev eth0", a.v4()));
    a.ip(&format!("address add {}/64 dev eth0 nodad", a.v6()));
    a.ip("route add default dev eth0");
    a.ip("-6 route add default dev eth0");
    for (near, far, own) in
        [(IpAddr::from(client.v4()), far[0], IpAddr::from(a.v4())), (client.v6().into(), far[1], a.v6().into())]
    {
        for to in [near, far] {
            assert_eq!(a.source_towards(to), own, "towards {to}");
            let any: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
            let socket = a.visit(|| UdpSocket::bind((any, 0))).unwrap();
            socket.connect((to, 9)).unwrap();
            assert_eq!(socket.local_addr().unwrap().ip(), own, "towards {to}");
        }
    }
    let places = a.netlink().places_of(VIP_V6.into()).unwrap();
    assert!(places.iter().all(|place| place.is_deprecated && !place.is_tentative));
}

#[test]
fn connections_to_a_virtual_address_work() {
    let switch = Switch::new();
    let (a, client) = (switch.host("a"), switch.host("client"));
    let listener = a.visit(|| TcpListener::bind("[::]:5514")).unwrap();
    for vip in VIPS {
        add(&a, vip, a.eth0().index);
        let mut there = client.visit(|| TcpStream::connect((vip, 5514))).unwrap();
        let (mut here, from) = listener.accept().unwrap();
        here.write_all(b"answer").unwrap();
        drop(here);
        let mut answer = String::new();
        there.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        let own = if vip.is_ipv4() { IpAddr::from(client.v4()) } else { client.v6().into() };
        assert_eq!(from.ip().to_canonical(), own);
    }
}

#[test]
fn interfaces_are_described_and_their_changes_told() {
    let switch = Switch::new();
    let a = switch.host("a");
    let (eth0, lo) = (a.eth0(), a.lo());
    assert_eq!((lo.kind, eth0.kind), (Kind::Loopback, Kind::Virtual("veth".into())));
    assert_eq!((eth0.mac, eth0.mtu_bytes, lo.mac), (Some(a.mac()), 1500, None));
    assert!(eth0.is_up && eth0.is_running && eth0.has_carrier);
    assert_eq!(a.netlink().interface("no-such-link").unwrap(), None);
    assert_eq!(a.netlink().interfaces().unwrap().len(), 2);

    let mut monitor = a.visit(Monitor::open_with_routes).unwrap();
    let mut told = Vec::new();
    switch.pull_cable(&a);
    wait_until("the lost carrier is told", || {
        monitor.drain(|change| told.push(change)).unwrap();
        told.iter().any(|change| matches!(change, Change::Link(link) if link.is_up && !link.has_carrier))
    });
    switch.plug_cable(&a);
    wait_until("the carrier is told", || {
        monitor.drain(|change| told.push(change)).unwrap();
        matches!(told.iter().rfind(|change| matches!(change, Change::Link(_))), Some(Change::Link(link)) if link.has_carrier)
    });
    told.clear();
    for vip in VIPS {
        add(&a, vip, eth0.index);
        a.netlink().remove(vip, eth0.index).unwrap();
    }
    wait_until("all changes are told", || {
        monitor.drain(|change| told.push(change)).unwrap();
        told.contains(&Change::LocalRouteGone(VIP_V6, eth0.index))
    });
    assert!(told.contains(&Change::LocalRoute(VIP_V6, eth0.index)));
    for vip in VIPS {
        assert!(told.iter().any(|change| matches!(change, Change::Address(place) if place.address == vip)));
        assert!(told.iter().any(|change| matches!(change, Change::AddressGone(place) if place.address == vip)));
    }
}

#[test]
fn changes_that_found_no_room_are_reported_as_missed() {
    let switch = Switch::new();
    let a = switch.host("a");
    let mut monitor = a.visit(Monitor::open).unwrap();
    let (mut netlink, index) = (a.netlink(), a.lo().index);
    for _ in 0..4000 {
        netlink.add(VIP_V4.into(), index, Lifetime::Forever).unwrap();
    }
    let mut told = Vec::new();
    monitor.drain(|change| told.push(change)).unwrap();
    assert!(told.contains(&Change::Missed), "{} changes told", told.len());
}
