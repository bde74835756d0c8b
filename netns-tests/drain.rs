//! A node is drained while messages come: nothing is lost, nothing comes twice, and the receipt says so.

use super::aggregators::{Aggregator, Client, Datagrams, Destination, assert_arrived, pair};
use super::lab::{KEY, Switch, VIP_V4, wait_until};
use super::lines::Lines;

const PER_SECOND: u32 = 2_000;
const CONNECTIONS: usize = 20;

#[test]
fn nodes_are_drained_in_turn_and_nothing_is_lost_or_doubled() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let destination = Destination::start(&c);
    let nodes = pair([&a, &b], "");
    let client = Client::start(&d, VIP_V4.into(), "one");
    let datagrams = Datagrams::start(&d, PER_SECOND);
    let lines = Lines::start(&d, CONNECTIONS, PER_SECOND);
    for round in 0..4 {
        client.wait_for_more(30);
        let (from, to) = (&nodes[(round + 1) % 2], &nodes[round % 2]);
        wait_until("both are in sync", || from.is_in_sync() && to.is_in_sync());
        let (status, said) = from.ask(&["drain", "--json", "--quiet"]);
        assert_eq!(status, Some(0), "round {round}: {said}");
        let receipt: serde_json::Value = serde_json::from_str(&said).unwrap();
        println!("round {round}: {receipt}");
        assert_eq!(receipt["verdict"], "ZERO LOSS");
        let messages = &receipt["messages"];
        let count = |key: &str| messages[key].as_u64().unwrap();
        assert_eq!(count("received"), count("delivered") + count("handed_over"));
        assert_eq!(receipt["connections"]["moved"], CONNECTIONS);
        assert_eq!(receipt["connections"]["cut"], 0);
        assert_eq!(from.status()["nodes"][0]["stage"], "drained");
        assert!(to.is_active());
        assert_eq!(from.ask(&["undrain"]).0, Some(0));
        assert_eq!(from.ask(&["await", "standby", "--timeout", "10s"]).0, Some(0));
        assert_eq!(from.ask(&["await", "synced", "--timeout", "10s"]).0, Some(0));
    }
    client.wait_for_more(30);
    let (acknowledged, sent, lines) = (client.stop(), datagrams.stop(), lines.stop());
    assert_eq!(lines.broken, [""; 0], "no client sees a reset or an end");
    assert_eq!(assert_arrived(&destination, "one", acknowledged), 0, "acknowledged events come once");
    assert_eq!(assert_arrived(&destination, "udp", sent), 0, "datagrams come once");
    assert_eq!(assert_arrived(&destination, "tcp", lines.lines), 0, "lines come once");
    println!("{} lines sent", lines.lines);
    println!("{acknowledged} events acknowledged, {sent} datagrams sent");
    let receipts = nodes[0].ask(&["receipts", "ls"]).1;
    assert_eq!(receipts.lines().count(), 2, "{receipts}");
}

#[test]
fn a_drain_that_would_not_be_safe_is_refused_and_one_that_fails_is_called_off() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let mut alone = Aggregator::new(&a, KEY, "");
    alone.start();
    wait_until("it is active", || alone.is_active());
    let (status, said) = alone.ask(&["drain"]);
    assert_eq!(status, Some(5), "{said}");
    assert!(said.contains("--force"), "{said}");
    assert_eq!(alone.ask(&["undrain"]).0, Some(1));
    let (status, said) = alone.ask(&["drain", "--force", "--deadline", "3s"]);
    assert_eq!(status, Some(0), "it holds nothing: {said}");
    assert!(!alone.is_active());
    assert_eq!(alone.ask(&["undrain"]).0, Some(0));
    wait_until("it is active again", || alone.is_active());
    drop(b);
}

#[test]
fn connections_that_cannot_move_are_closed_and_not_reset() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let _destination = Destination::start(&c);
    let nodes = pair([&a, &b], "");
    let lines = Lines::start(&d, CONNECTIONS, PER_SECOND);
    let client = Client::start(&d, VIP_V4.into(), "one");
    client.wait_for_more(20);
    // Nobody to rebuild them: the other node does not hear of them.
    super::hard_cases::cut_the_link(&a);
    wait_until("it is alone", || !nodes[1].is_in_sync());
    assert_eq!(nodes[1].ask(&["failover"]).0, Some(5));
    assert_eq!(nodes[1].ask(&["failover", "--force"]).0, Some(0));
    wait_until("the other is active", || nodes[0].is_active());
    client.wait_for_more(20);
    client.stop();
    assert_eq!(lines.stop().broken, ["closed"; CONNECTIONS]);
    let undone = nodes[1].ask(&["drain", "--force", "--until", "handover"]);
    assert_eq!(undone.0, Some(0), "nothing here is nowhere else: {}", undone.1);
}
