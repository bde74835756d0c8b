//! Advertisements over raw sockets: the bytes that keepalived 2.2.7 sent in a capture, and keepalived itself.

use std::net::IpAddr;
use std::time::Instant;

use twinlog::sys::vrrp_socket::{GROUP_V4, GROUP_V6, PACKET_BYTES, Received, VrrpSocket};

use super::lab::{Host, Switch, VIP_V4, VIP_V6, wait_until};

/// VRRPv2 with a password: virtual router 77, priority 100, one second, 10.77.0.100.
const V2: [u8; 20] = [
    0x21, 0x4d, 0x64, 0x01, 0x01, 0x01, 0x64, 0xe5, 0x0a, 0x4d, 0x00, 0x64, 0x73, 0x33, 0x63, 0x72, 0x33, 0x74, 0x00,
    0x00,
];
/// VRRPv3 over IPv6: virtual router 77, priority 100, half a second, fe80::77:100 and fd77::100.
const V3: [u8; 40] = [
    0x31, 0x4d, 0x64, 0x02, 0x00, 0x32, 0x6e, 0x67, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77, 0x01, 0x00,
    0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x00,
];
const VRID: u8 = 77;

fn socket(host: &Host, is_ipv4: bool, vrid: Option<u8>) -> VrrpSocket {
    let (index, open) = (host.eth0().index, if is_ipv4 { VrrpSocket::v4 } else { VrrpSocket::v6 });
    host.visit(|| open("eth0", index, vrid)).unwrap()
}

/// The next packet, with its message.
fn next(socket: &VrrpSocket) -> (Received, Vec<u8>) {
    let mut buffer = vec![0; PACKET_BYTES];
    let mut received = None;
    wait_until("an advertisement comes", || {
        received = socket.receive(&mut buffer).unwrap();
        received.is_some()
    });
    let received = received.unwrap();
    (received, buffer[received.begin..received.end].to_vec())
}

/// Sends `message` both to the group and to the peer alone, and looks at what comes.
fn there_and_back(message: &[u8], is_ipv4: bool) {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let (source, peer, group): (IpAddr, IpAddr, IpAddr) = if is_ipv4 {
        (a.v4().into(), b.v4().into(), GROUP_V4.into())
    } else {
        (a.link_local().into(), b.link_local().into(), GROUP_V6.into())
    };
    let (sender, receiver) = (socket(&a, is_ipv4, Some(VRID)), socket(&b, is_ipv4, Some(VRID)));
    // Other virtual routers do not wake this one.
    let other = [&[message[0], VRID + 1], &message[2..]].concat();
    let before = Instant::now();
    for destination in [group, peer] {
        sender.send(&other, source, destination).unwrap();
        sender.send(message, source, destination).unwrap();
    }
    for destination in [group, peer] {
        let (received, bytes) = next(&receiver);
        assert_eq!(bytes, message);
        assert_eq!((received.source, received.destination, received.ttl), (source, destination, 255));
        assert!((before..=Instant::now()).contains(&received.at));
    }
    let mut buffer = vec![0; PACKET_BYTES];
    assert_eq!(receiver.receive(&mut buffer).unwrap(), None, "others are filtered out");
    assert_eq!(sender.receive(&mut buffer).unwrap(), None, "nobody hears himself");
}

#[test]
fn a_captured_v2_advertisement_goes_over_ipv4_as_it_is() {
    there_and_back(&V2, true);
}

#[test]
fn a_captured_v3_advertisement_goes_over_ipv6_as_it_is() {
    there_and_back(&V3, false);
}

#[test]
fn an_advertisement_carries_the_source_that_was_asked_for() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let (sender, receiver) = (socket(&a, true, None), socket(&b, true, None));
    a.ip("address add 203.0.113.200/24 dev eth0");
    for source in [IpAddr::from([203, 0, 113, 200]), a.v4().into()] {
        sender.send(&V2, source, GROUP_V4.into()).unwrap();
        assert_eq!(next(&receiver).0.source, source);
    }
    let foreign = sender.send(&V2, [198, 51, 100, 1].into(), GROUP_V4.into());
    assert!(foreign.is_err(), "an address of nobody here");
    let mixed = sender.send(&V2, a.v6().into(), GROUP_V4.into());
    assert!(mixed.is_err(), "addresses of two families");
}

#[test]
fn packets_keep_the_time_of_their_arrival_and_survive_a_pause() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let (sender, receiver) = (socket(&a, true, Some(VRID)), socket(&b, true, Some(VRID)));
    let send = || sender.send(&V2, a.v4().into(), GROUP_V4.into()).unwrap();
    // Until a work queue of the kernel has switched the stamps on, it is the time of reading.
    wait_until("a packet has the time before it was read", || {
        send();
        let between = Instant::now();
        next(&receiver).0.at < between
    });
    // What ten seconds of adverts every 10 ms pile up, while nobody reads.
    (0..1000).for_each(|_| send());
    for _ in 0..1000 {
        assert_eq!(next(&receiver).1, V2);
    }
}

#[test]
fn keepalived_is_heard_over_both_families() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let directory = tempfile::TempDir::with_prefix("twinlog-").unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let configuration = format!(
        "global_defs {{ vrrp_version 3\n vrrp_garp_master_repeat 1 }}\n\
         vrrp_instance four {{ interface eth0\n virtual_router_id 77\n priority 100\n advert_int 0.1\n\
         virtual_ipaddress {{ {VIP_V4} }} }}\n\
         vrrp_instance six {{ interface eth0\n virtual_router_id 77\n priority 100\n advert_int 0.1\n\
         virtual_ipaddress {{ fe80::100\n {VIP_V6} }} }}\n"
    );
    std::fs::write(file("keepalived.conf"), configuration).unwrap();
    let sockets = [true, false].map(|is_ipv4| socket(&b, is_ipv4, Some(VRID)));
    let arguments =
        ["-n", "-l", "-D", "-P", "-f", &file("keepalived.conf"), "-p", &file("pid"), "-r", &file("vrrp.pid")];
    let _keepalived = a.start("keepalived", arguments);

    let (received, bytes) = next(&sockets[0]);
    assert_eq!((received.source, received.destination, received.ttl), (a.v4().into(), GROUP_V4.into(), 255));
    // Version 3, virtual router 77, priority 100, one address, 10 cs.
    assert_eq!(bytes[..6], [0x31, 77, 100, 1, 0, 10]);
    assert_eq!(bytes[8..], VIP_V4.octets());

    let (received, bytes) = next(&sockets[1]);
    assert_eq!((received.source, received.destination, received.ttl), (a.link_local().into(), GROUP_V6.into(), 255));
    assert_eq!(bytes[..6], [0x31, 77, 100, 2, 0, 10]);
    assert_eq!(bytes[24..], VIP_V6.octets());
}
