//! Neighbours learn where an address is, and a holder hears of another.

use std::net::IpAddr;

use twinlog::sys::link_layer::{Claim, ClaimListener, FrameSender};

use super::lab::frames::{announcement, arp};
use super::lab::{Switch, VIP_V4, VIP_V6, VIPS, wait_until};

#[test]
fn an_announcement_moves_the_entry_of_a_neighbor() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let senders = [&a, &b].map(|host| host.visit(|| FrameSender::open(host.eth0().index)).unwrap());
    for vip in VIPS {
        // The entry is there: an announcement creates none.
        client.ip(&format!("neighbor replace {vip} lladdr 02:00:00:00:00:aa dev eth0 nud reachable"));
        for (host, sender) in [(&a, &senders[0]), (&b, &senders[1]), (&a, &senders[0])] {
            sender.send(&announcement(vip, host.mac())).unwrap();
            wait_until("the client has learnt", || client.neighbor(vip) == Some(host.mac()));
        }
    }
}

#[test]
fn another_holder_is_heard_and_nobody_else() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let index = a.eth0().index;
    let mut of_arp = a.visit(|| ClaimListener::arp(index, &[VIP_V4])).unwrap();
    let mut of_neighbors = a.visit(|| ClaimListener::neighbor_advertisements("eth0", &[VIP_V6])).unwrap();
    let ours = a.visit(|| FrameSender::open(index)).unwrap();
    let theirs = b.visit(|| FrameSender::open(b.eth0().index)).unwrap();

    for vip in VIPS {
        ours.send(&announcement(vip, a.mac())).unwrap();
    }
    // Somebody asks for the address, others announce others; none of them claims ours.
    theirs.send(&arp(1, b.mac(), b.v4(), [0; 6], VIP_V4)).unwrap();
    theirs.send(&announcement(b.v4().into(), b.mac())).unwrap();
    theirs.send(&announcement(b.v6().into(), b.mac())).unwrap();
    // The same last four bytes in another network.
    let similar: IpAddr = "2001:db8:1::100".parse().unwrap();
    theirs.send(&announcement(similar, b.mac())).unwrap();
    // Both forms of ARP, and the advertisement.
    theirs.send(&announcement(VIP_V4.into(), b.mac())).unwrap();
    theirs.send(&arp(2, b.mac(), VIP_V4, [0xff; 6], VIP_V4)).unwrap();
    theirs.send(&announcement(VIP_V6.into(), b.mac())).unwrap();

    let (mut heard_arp, mut heard_neighbors) = (Vec::new(), Vec::new());
    wait_until("all claims are heard", || {
        heard_arp.extend(std::iter::from_fn(|| of_arp.receive().unwrap()));
        heard_neighbors.extend(std::iter::from_fn(|| of_neighbors.receive().unwrap()));
        heard_arp.len() >= 2 && !heard_neighbors.is_empty()
    });
    let claim = |vip: IpAddr| Claim { address: vip, mac: Some(b.mac()) };
    assert_eq!(heard_arp, [claim(VIP_V4.into()); 2]);
    assert_eq!(heard_neighbors, [claim(VIP_V6.into())]);
}

#[test]
fn the_link_being_down_is_an_error_of_sending() {
    let switch = Switch::new();
    let a = switch.host("a");
    let sender = a.visit(|| FrameSender::open(a.eth0().index)).unwrap();
    a.ip("link set eth0 down");
    assert_eq!(sender.send(&announcement(VIP_V4.into(), a.mac())).unwrap_err().kind(), std::io::ErrorKind::NetworkDown);
}
