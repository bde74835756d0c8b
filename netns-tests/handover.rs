//! An address moves from one host to another while datagrams come, and none is lost.

use std::net::IpAddr;

use twinlog::sys::link_layer::FrameSender;
use twinlog::sys::netlink::{Arp, Lifetime, Netlink, Removed};

use super::lab::frames::announcement;
use super::lab::traffic::{Account, Counter, Generator};
use super::lab::{Host, SOON, Switch, VIP_V4, VIP_V6};

const PER_SECOND: u32 = 10_000;

/// One of the two hosts between which the address moves, as the election will see it.
pub struct Node {
    netlink: Netlink,
    frames: FrameSender,
    /// The interface of the network, and that of nobody.
    pub link: u32,
    pub lo: u32,
    mac: [u8; 6],
}

impl Node {
    pub fn of(host: &Host) -> Node {
        let (link, lo) = (host.eth0().index, host.lo().index);
        let mut netlink = host.netlink();
        netlink.set_arp(link, Arp::QUIET).unwrap();
        let frames = host.visit(|| FrameSender::open(link)).unwrap();
        Node { netlink, frames, link, lo, mac: host.mac() }
    }

    /// Adds the address, and waits until it receives.
    pub fn add(&mut self, vip: IpAddr, place: u32) {
        self.netlink.add(vip, place, Lifetime::Forever).unwrap();
        assert!(self.netlink.wait_for_local_route(vip, place, SOON).unwrap());
    }

    /// Removes it.
    pub fn remove(&mut self, vip: IpAddr, place: u32) {
        assert_eq!(self.netlink.remove(vip, place).unwrap(), Removed::Now);
    }

    /// Tells the neighbours that it is here.
    pub fn announce(&self, vip: IpAddr) {
        self.frames.send(&announcement(vip, self.mac)).unwrap();
    }
}

/// Moves the address: able to receive on both sides before it leaves the one link for the other, and on the old side
/// until the neighbours have learnt. A hundred datagrams come `between` two steps: no state on the way loses any.
fn hand_over(vip: IpAddr, from: &mut Node, to: &mut Node, between: impl Fn()) {
    to.add(vip, to.lo);
    between();
    from.add(vip, from.lo);
    between();
    from.remove(vip, from.link);
    between();
    to.add(vip, to.link);
    between();
    to.announce(vip);
    between();
    from.remove(vip, from.lo);
    between();
    to.remove(vip, to.lo);
}

fn moves_without_loss(vip: IpAddr) {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let mut nodes = [Node::of(&a), Node::of(&b)];
    let counters = [Counter::start(&a), Counter::start(&b)];
    nodes[0].add(vip, nodes[0].link);
    nodes[0].announce(vip);
    let traffic = Generator::start(&client, vip, PER_SECOND);
    let datagrams = |count| traffic.wait_for(traffic.sent() + count);
    datagrams(1000);
    // There, back and there again.
    for _ in 0..3 {
        let [from, to] = &mut nodes;
        hand_over(vip, from, to, || datagrams(100));
        datagrams(1000);
        nodes.swap(0, 1);
    }
    let sent = traffic.stop();
    let account = Account::of(sent, &counters.map(Counter::stop));
    println!("{account:?}");
    assert_eq!((account.lost, account.doubled), (0, 0), "{account:?}");
    assert!(account.by_receiver.iter().all(|received| *received > 1000), "{account:?}");
}

#[test]
fn no_datagram_is_lost_when_an_ipv4_address_moves() {
    moves_without_loss(VIP_V4.into());
}

#[test]
fn no_datagram_is_lost_when_an_ipv6_address_moves() {
    moves_without_loss(VIP_V6.into());
}
