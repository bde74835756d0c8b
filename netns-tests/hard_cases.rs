//! What a pair does when parts of the network between its nodes are gone: nothing acknowledged is lost, and after it has
//! healed there is one active node and nothing left to deliver.

use std::process::Command;

use super::aggregators::{Aggregator, Client, Datagrams, Destination, assert_arrived, pair};
use super::lab::{Host, Switch, VIP_V4, succeed, wait_until};

/// Has a host lose packets of the pair, both ways; each of `what` is a match of nftables.
fn filter(host: &Host, what: &[&str]) {
    let rules: String = what.iter().map(|what| format!("{what} drop\n")).collect();
    let chain = |hook: &str| format!("chain {hook} {{\ntype filter hook {hook} priority 0;\n{rules}}}\n");
    let table = format!("table inet cut {{\n{}{}}}\n", chain("input"), chain("output"));
    host.visit(|| succeed(Command::new("nft").arg(table)));
}

/// The nodes no longer talk; they hear each other's advertisements.
pub fn cut_the_link(host: &Host) {
    filter(host, &["tcp dport 8514", "tcp sport 8514"]);
}

fn heal(host: &Host) {
    host.visit(|| succeed(Command::new("nft").args(["delete", "table", "inet", "cut"])));
}

const ADVERTISEMENTS: [&str; 1] = ["meta l4proto 112"];

#[track_caller]
fn assert_healed(nodes: &[Aggregator<'_>; 2]) {
    wait_until("both are in sync", || nodes.iter().all(Aggregator::is_in_sync));
    wait_until("one is active", || nodes.iter().filter(|node| node.is_active()).count() == 1);
    wait_until("nothing is left to deliver", || {
        let left = |node: &Aggregator<'_>| {
            let status = node.status();
            let journals = status["nodes"][0]["journals"].as_array().cloned().unwrap_or_default();
            journals.iter().all(|journal| journal["delivered"] == journal["durable"])
        };
        nodes.iter().all(left)
    });
}

fn is_degraded(node: &Aggregator<'_>) -> bool {
    node.status()["nodes"][0]["faults"].to_string().contains("degraded")
}

#[test]
fn a_lost_host_costs_nothing_that_was_acknowledged() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let destination = Destination::start(&c);
    let nodes = pair([&a, &b], "");
    let client = Client::start(&d, VIP_V4.into(), "one");
    client.wait_for_more(50);
    switch.disable_port(&b);
    wait_until("the other is active", || nodes[0].is_active());
    client.wait_for_more(50);
    switch.enable_port(&b);
    assert_healed(&nodes);
    client.wait_for_more(50);
    let repeats = assert_arrived(&destination, "one", client.stop());
    println!("{repeats} repeats");
}

#[test]
fn without_the_link_the_active_node_goes_on_alone_and_both_say_degraded() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let destination = Destination::start(&c);
    let nodes = pair([&a, &b], "");
    let client = Client::start(&d, VIP_V4.into(), "one");
    client.wait_for_more(50);
    cut_the_link(&a);
    wait_until("both say so", || nodes.iter().all(is_degraded));
    client.wait_for_more(50);
    assert!(nodes[1].is_active() && !nodes[0].is_active(), "the addresses stay where they are");
    heal(&a);
    assert_healed(&nodes);
    assert!(!nodes.iter().any(is_degraded));
    client.wait_for_more(50);
    assert_eq!(assert_arrived(&destination, "one", client.stop()), 0, "nobody else delivered");
}

#[test]
fn without_advertisements_each_node_delivers_its_own_and_healing_repeats_nothing() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let destination = Destination::start(&c);
    let nodes = pair([&a, &b], "");
    let clients = [Client::start(&d, VIP_V4.into(), "one"), Client::start(&d, a.v4().into(), "two")];
    clients.iter().for_each(|client| client.wait_for_more(50));
    filter(&a, &ADVERTISEMENTS);
    wait_until("both are active", || nodes.iter().all(Aggregator::is_active));
    clients.iter().for_each(|client| client.wait_for_more(100));
    heal(&a);
    assert_healed(&nodes);
    clients.iter().for_each(|client| client.wait_for_more(50));
    for (name, client) in ["one", "two"].into_iter().zip(clients) {
        assert_eq!(assert_arrived(&destination, name, client.stop()), 0);
    }
}

#[test]
fn parted_nodes_serve_both_and_lose_nothing_when_they_meet_again() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let destination = Destination::start(&c);
    let nodes = pair([&a, &b], "");
    let clients = [Client::start(&d, b.v4().into(), "one"), Client::start(&d, a.v4().into(), "two")];
    clients.iter().for_each(|client| client.wait_for_more(50));
    switch.part([&a, &b]);
    wait_until("both are active", || nodes.iter().all(Aggregator::is_active));
    clients.iter().for_each(|client| client.wait_for_more(100));
    switch.heal([&a, &b]);
    assert_healed(&nodes);
    clients.iter().for_each(|client| client.wait_for_more(50));
    for (name, client) in ["one", "two"].into_iter().zip(clients) {
        let repeats = assert_arrived(&destination, name, client.stop());
        println!("{name}: {repeats} repeats");
        // Each knows what the other has delivered, but for the last moment: some, of the hundred that came meanwhile.
        assert!(repeats < 50);
    }
}

/// The standby is away while so many messages come, and catches up while more come.
fn a_standby_catches_up(messages: u64, per_second: u32) {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let ledger = super::ledger::Ledger::start(&c);
    let mut nodes = pair([&a, &b], "");
    nodes[0].die();
    let datagrams = Datagrams::start(&d, per_second);
    ledger.wait_for_within("udp", messages as usize, 4 * messages / u64::from(per_second) + 30);
    nodes[0].start();
    let began = std::time::Instant::now();
    assert_eq!(nodes[1].ask(&["await", "synced", "--timeout", "120s"]).0, Some(0));
    println!("caught up with {messages} messages in {:.1} s", began.elapsed().as_secs_f64());
    let count = datagrams.stop();
    let account = ledger.account("udp", count);
    println!("{count} datagrams sent, {account:?}");
    println!("longest pause: {:.1} ms", ledger.longest_pause("udp", 1));
    assert_eq!(account, super::ledger::Account::default());
    assert_healed(&nodes);
}

#[test]
fn a_standby_that_was_away_catches_up_under_load() {
    a_standby_catches_up(20_000, 5_000);
}

#[test]
#[ignore = "a million messages: netns-tests/rounds.sh"]
fn a_standby_catches_up_with_a_million_messages() {
    a_standby_catches_up(1_000_000, 40_000);
}
