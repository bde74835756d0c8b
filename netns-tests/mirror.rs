//! What is acknowledged arrives, whatever happens to either aggregator.

use std::time::Duration;

use super::aggregators::{Aggregator, Client, Destination, assert_arrived, pair};
use super::lab::{KEY, Switch, VIP_V4, wait_until};

#[test]
pub fn what_is_acknowledged_survives_the_node_and_its_disk() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let mut destination = Destination::new(&c);
    let [first, mut second] = pair([&a, &b], "");
    let client = Client::start(&d, VIP_V4.into(), "one");
    client.wait_for_more(200);
    second.die();
    second.wipe();
    client.wait_for_more(50);
    assert!(first.is_active());
    let acknowledged = client.stop();
    destination.open();
    let repeats = assert_arrived(&destination, "one", acknowledged);
    println!("{acknowledged} acknowledged, all arrived from the survivor; {repeats} repeats");
    // It comes back with a new disk, in sync, and its last life's mirror is gone: that is delivered.
    second.start();
    wait_until("both are in sync again", || first.is_in_sync() && second.is_in_sync());
    wait_until("one mirror is left", || {
        let status = first.status();
        status["nodes"][0]["journals"].as_array().is_some_and(|journals| journals.len() == 2)
    });
}

#[test]
fn a_planned_move_loses_nothing_and_repeats_nothing() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let destination = Destination::start(&c);
    let nodes = pair([&a, &b], "");
    let client = Client::start(&d, VIP_V4.into(), "one");
    for round in 0..6 {
        client.wait_for_more(50);
        let (from, to) = (&nodes[(round + 1) % 2], &nodes[round % 2]);
        wait_until("both are in sync", || from.is_in_sync() && to.is_in_sync());
        assert_eq!(from.ask(&["failover"]).0, Some(0), "round {round}");
        wait_until("the other is active", || to.is_active());
    }
    client.wait_for_more(50);
    let acknowledged = client.stop();
    let repeats = assert_arrived(&destination, "one", acknowledged);
    println!("{acknowledged} acknowledged, {repeats} repeats");
    assert_eq!(repeats, 0, "what was in flight is known before the other one goes on");
}

#[test]
fn a_killed_node_costs_repeats_at_most_and_comes_back_without_a_hole() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let destination = Destination::start(&c);
    let mut nodes = pair([&a, &b], "");
    let client = Client::start(&d, VIP_V4.into(), "one");
    for round in 0..6 {
        client.wait_for_more(50);
        let killed = (round + 1) % 2;
        wait_until("both are in sync", || nodes.iter().all(Aggregator::is_in_sync));
        nodes[killed].die();
        client.wait_for_more(50);
        nodes[killed].start();
    }
    let acknowledged = client.stop();
    let repeats = assert_arrived(&destination, "one", acknowledged);
    println!("{acknowledged} acknowledged, {repeats} repeats");
    wait_until("both are in sync", || nodes.iter().all(Aggregator::is_in_sync));
}

#[test]
fn a_standby_delivers_nothing_and_the_active_one_delivers_what_it_gets() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let destination = Destination::start(&c);
    let nodes = pair([&a, &b], "");
    let client = Client::start(&d, a.v4().into(), "direct");
    client.wait_for_more(100);
    let acknowledged = client.stop();
    assert_arrived(&destination, "direct", acknowledged);
    let status = nodes[0].status();
    let named = status["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap());
    assert_eq!(named.collect::<Vec<_>>(), ["a", "b"], "either node shows both");
    assert!(status["nodes"][0]["link"]["rtt_ms"].is_number());
    let sent = |node: &Aggregator<'_>| node.status()["nodes"][0]["outputs"]["siem"]["sent"].as_u64().unwrap();
    assert_eq!(sent(&nodes[0]), 0);
    assert!(sent(&nodes[1]) >= acknowledged);
    wait_until("the standby knows that it is delivered", || {
        nodes[0].status()["nodes"][0]["outputs"]["siem"]["backlog_messages"] == 0
    });
}

#[test]
fn a_node_that_stops_has_left_everything_to_the_other() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let destination = Destination::start(&c);
    let [first, mut second] = pair([&a, &b], "");
    let client = Client::start(&d, VIP_V4.into(), "one");
    client.wait_for_more(100);
    second.stop();
    second.wipe();
    client.wait_for_more(50);
    let acknowledged = client.stop();
    let repeats = assert_arrived(&destination, "one", acknowledged);
    assert_eq!(repeats, 0);
    assert!(first.is_active());
}

#[test]
fn nodes_with_different_keys_do_not_talk_and_say_so() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let other = KEY.replace("MDEy", "OTk5");
    let (mut first, mut second) = (Aggregator::new(&a, KEY, ""), Aggregator::new(&b, &other, ""));
    first.start();
    second.start();
    wait_until("the reason is in the status", || {
        let faults = first.status()["nodes"][0]["faults"].to_string();
        faults.contains("degraded") && !faults.contains("have not met yet")
    });
    for node in [&first, &second] {
        assert_eq!(node.status()["nodes"][0]["link"]["connected"], false);
        assert_eq!(node.ask(&["status", "--check"]).0, Some(4), "degraded");
    }
}

#[test]
fn without_a_peer_stop_acknowledges_nothing() {
    let switch = Switch::new();
    let (a, b, d) = (switch.host("a"), switch.host("b"), switch.host("d"));
    let [_first, mut second] = pair([&a, &b], "on_peer_loss = \"stop\"");
    let client = Client::start(&d, VIP_V4.into(), "one");
    client.wait_for_more(20);
    second.die();
    // Whatever was under way is answered or lost with its connection.
    std::thread::sleep(Duration::from_millis(500));
    let before = client.acknowledged();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(client.acknowledged(), before);
    second.start();
    client.wait_for_more(20);
}
