//! A network that is not as it should be, and pairs that are not the usual one.

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use twinlog::sys::link_layer::FrameSender;
use twinlog::sys::vrrp_socket::{PACKET_BYTES, VrrpSocket};

use super::lab::frames::{advertisement, sum_up, to_the_group};
use super::lab::traffic::{Account, Counter, Generator};
use super::lab::twin::{Keys, PLAIN, Twin, elected};
use super::lab::{Host, Switch, VIP_V4, VIP_V6, wait_until};

const VRID: u8 = 77;
const V4_ALONE: Keys<'static> = Keys { vip: "\"203.0.113.100\"", ..PLAIN };

/// Two nodes that know each other, of which `b` is master.
fn pair<'a>(a: &'a Host, b: &'a Host, keys: &Keys<'_>) -> (Twin<'a>, Twin<'a>) {
    let (mut one, mut other) = (Twin::new(a, keys), Twin::new(b, keys));
    other.start();
    wait_until("b is master", || other.holds());
    one.start();
    wait_until("they know each other", || one.knows_its_peer() && other.knows_its_peer());
    (one, other)
}

#[test]
fn addresses_that_an_earlier_run_left_are_removed_at_the_start() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let (mut one, mut other) = (Twin::new(&a, &PLAIN), Twin::new(&b, &PLAIN));
    other.start();
    wait_until("b is master", || other.holds());
    a.ip(&format!("address add {VIP_V4}/32 dev eth0"));
    a.ip(&format!("address add {VIP_V6}/128 dev lo"));
    one.start();
    wait_until("nothing is left", || one.is_bare() && a.netlink().places_of(VIP_V6.into()).unwrap().is_empty());
    wait_until("it is told", || {
        let said = one.ask(&["events"]).1;
        [VIP_V4.to_string(), VIP_V6.to_string()].iter().all(|vip| said.contains(&format!("stale vip removed  {vip}")))
    });
    assert!(other.holds());
}

#[test]
fn a_unicast_pair_advertises_to_nobody_else() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let index = client.eth0().index;
    let socket = client.visit(|| VrrpSocket::v4("eth0", index, None)).unwrap();
    let (one, mut other) = pair(&a, &b, &Keys { more: "unicast = true", ..V4_ALONE });
    let heard = |node: &Twin<'_>| node.status()["vrrp"]["adverts_received"].as_u64().unwrap();
    wait_until("a hears b", || heard(&one) > 5);
    assert_eq!(socket.receive(&mut vec![0; PACKET_BYTES]).unwrap(), None);
    other.await_sync();
    assert_eq!(other.ask(&["failover"]).0, Some(0));
    wait_until("a has taken over", || one.holds() && other.is_bare());
    wait_until("b hears a", || heard(&other) > 5);
    other.program.take().expect("it runs").kill();
    assert!(one.holds());
    assert_eq!(socket.receive(&mut vec![0; PACKET_BYTES]).unwrap(), None);
}

#[test]
fn an_interface_that_vanished_and_came_back_is_used_again() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let (one, other) = elected(&a, &b);
    b.ip("link delete eth0");
    wait_until("a has taken over", || one.holds());
    let faults = other.status()["faults"].to_string();
    assert!(faults.contains("the interface eth0 of the pair is down or gone"), "{faults}");
    switch.connect(&b);
    wait_until("b takes part again", || other.status()["vrrp"]["state"] == "Backup");
    assert!(one.holds() && other.is_bare());
    wait_until("they know each other", || one.knows_its_peer() && other.knows_its_peer());
    one.await_sync();
    assert_eq!(one.ask(&["failover"]).0, Some(0));
    wait_until("b has taken over", || other.holds() && one.is_bare());
    assert_eq!(b.netlink().arp(b.eth0().index).unwrap().unwrap().ignore, 1, "also on the new one");
}

#[test]
fn both_families_move_as_one() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let (one, other) = elected(&a, &b);
    let counters = [&a, &b].map(Counter::start);
    let traffic = Generator::start(&client, VIP_V6.into(), 10_000);
    traffic.wait_for(2_000);
    other.await_sync();
    assert_eq!(other.ask(&["failover"]).0, Some(0));
    wait_until("a has both", || one.holds() && other.is_bare());
    let settled = traffic.sent() + 2_000;
    traffic.wait_for(settled);
    let sent = traffic.stop();
    std::thread::sleep(std::time::Duration::from_millis(100));
    println!("planned move over IPv6: {:?}", Account::of(sent, &counters.map(Counter::stop)));
    kill(one.daemon(), Signal::SIGKILL).unwrap();
    wait_until("b has both", || other.holds() && one.is_bare());
}

#[test]
fn a_pair_over_ipv6_alone_learns_each_others_link_local_addresses() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    // So slow that a proof of death comes long before the silence counts.
    let keys = Keys { vip: "\"2001:db8::100\"", more: "advert_interval = \"1s\"", ..PLAIN };
    let (one, mut other) = pair(&a, &b, &keys);
    wait_until("a hears b", || one.status()["vrrp"]["master"] == b.link_local().to_string());
    let noted = one.status()["vrrp"]["adverts_noted"].clone();
    assert_eq!(noted, serde_json::json!({}), "it is the peer and no stranger");
    other.program.take().expect("it runs").kill();
    wait_until("a has taken over", || one.holds());
    wait_until("the cause is told", || one.ask(&["events"]).1.contains("became master  master_died"));
}

/// What a node rejected, by reason.
fn rejected(node: &Twin<'_>, reason: &str) -> u64 {
    node.status()["vrrp"]["adverts_rejected"][reason].as_u64().unwrap_or_default()
}

#[test]
fn hostile_packets_are_counted_and_change_nothing() {
    let switch = Switch::new();
    let (a, b, client) = (switch.host("a"), switch.host("b"), switch.host("client"));
    let (one, other) = pair(&a, &b, &V4_ALONE);
    let frames = client.visit(|| FrameSender::open(client.eth0().index)).unwrap();
    let source = client.v4();
    // Of the highest priority, for our address: whoever believed it would give way.
    let sound = || advertisement(source, VRID, 255, 10, VIP_V4);
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut message = sound();
        change(&mut message);
        sum_up(source, &mut message);
        message
    };
    let mut wrong_sum = sound();
    wrong_sum[6] ^= 0xff;
    // CARP: the same protocol number and group, and the first byte of version 2.
    let carp = [&[0x21, VRID, 0, 7, 0, 1, 0, 0][..], &[0; 28]].concat();
    let hostile: [(&str, u8, Vec<u8>); 9] = [
        ("ttl", 254, sound()),
        ("ttl", 1, sound()),
        ("checksum", 255, wrong_sum),
        ("interval", 255, changed(|message| message[5] = 0)),
        ("truncated", 255, changed(|message| message[3] = 2)),
        ("trailing", 255, changed(|message| message.extend([0; 8]))),
        ("type", 255, changed(|message| message[0] = 0x32)),
        ("version", 255, carp),
        ("foreign", 255, advertisement(source, VRID, 255, 10, [203, 0, 113, 200].into())),
    ];
    let state = |node: &Twin<'_>| -> [Value; 3] {
        let vrrp = node.status()["vrrp"].clone();
        ["state", "transitions", "master"].map(|key| vrrp[key].clone())
    };
    wait_until("a hears b", || one.status()["vrrp"]["master"] == b.v4().to_string());
    let before = [&one, &other].map(state);
    for (reason, ttl, message) in &hostile {
        let counted = [&one, &other].map(|node| rejected(node, reason));
        frames.send(&to_the_group(client.mac(), source, *ttl, message)).unwrap();
        wait_until(reason, || [&one, &other].map(|node| rejected(node, reason)) == counted.map(|count| count + 1));
    }
    assert_eq!([&one, &other].map(state), before);
    assert!(other.holds() && one.is_bare());

    frames.send(&to_the_group(client.mac(), source, 255, &hostile[8].2)).unwrap();
    let warning = "another pair uses our vrid 77 on eth0: 203.0.113.3";
    wait_until("an operator sees the foreign pair", || one.ask(&["status"]).1.contains(warning));
}
