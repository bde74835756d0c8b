//! The promises of a pair, round after round under full load: 20 000 datagrams/s, thousands of lines/s over live TCP
//! connections, rsyslog with omfwd and omrelp, forward clients that want acknowledgements.
//!
//! The long runs are `netns-tests/rounds.sh`; the gate has two rounds.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use super::aggregators::{Aggregator, Client, Datagrams, pair, said};
use super::lab::{Switch, VIP_V4, wait_until};
use super::ledger::{Account, Ledger};
use super::lines::Lines;
use super::rsyslog::Rsyslog;

const CONNECTIONS: usize = 20;
const RELP: &str = "[[input.relp]]\nname = \"relp\"\nlisten = \":2514\"\n";

/// The actions of an rsyslog that forwards by omfwd and by omrelp.
fn plain_and_relp() -> [(&'static str, String); 2] {
    [
        ("omfwd", format!("type=\"omfwd\" target=\"{VIP_V4}\" port=\"1514\" protocol=\"tcp\"")),
        ("omrelp", format!("type=\"omrelp\" target=\"{VIP_V4}\" port=\"2514\" timeout=\"10\"")),
    ]
}

fn rounds(usual: usize) -> usize {
    std::env::var("TWINLOG_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}

/// Moves everything there and back, round after round.
fn drains(rounds: usize, connections: usize, datagrams: u32, lines: u32) {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let ledger = Ledger::start(&c);
    let nodes = pair([&a, &b], RELP);
    let mut rsyslog = Rsyslog::start(&d, "", &plain_and_relp(), lines / 8);
    let clients = [Client::start(&d, VIP_V4.into(), "one"), Client::start(&d, VIP_V4.into(), "two")];
    let datagrams = Datagrams::start(&d, datagrams);
    let tcp = Lines::start(&d, connections, lines);
    let mut received = 0;
    for round in 0..rounds {
        clients[0].wait_for_more(30);
        let from = &nodes[(round + 1) % 2];
        nodes.iter().for_each(|node| assert_eq!(node.ask(&["await", "synced", "--timeout", "30s"]).0, Some(0)));
        let (status, said) = from.ask(&["drain", "--json", "--quiet"]);
        assert_eq!(status, Some(0), "round {round}: {said}");
        let receipt: serde_json::Value = serde_json::from_str(&said).unwrap();
        println!("round {round}: {} {} {}", receipt["verdict"], receipt["connections"], receipt["stages"]);
        assert_eq!(receipt["verdict"], "ZERO LOSS");
        // Those of the generator and omfwd's.
        assert_eq!(receipt["connections"]["moved"], connections + 1);
        assert_eq!(receipt["connections"]["cut"], 0);
        let count = |key: &str| receipt["messages"][key].as_u64().unwrap();
        assert_eq!(count("received"), count("delivered") + count("handed_over"));
        received += count("received");
        assert_eq!(from.ask(&["undrain"]).0, Some(0));
        assert_eq!(from.ask(&["await", "standby", "--timeout", "30s"]).0, Some(0));
    }
    clients[0].wait_for_more(30);
    let [one, two] = clients.map(Client::stop);
    let (sent, by_rsyslog, udp) = (tcp.stop(), rsyslog.stop(), datagrams.stop());
    println!("{received} messages were in the receipts' windows");
    assert_eq!(sent.broken, [""; 0], "no client sees a reset or an end");
    let senders = [("udp", udp), ("tcp", sent.lines), ("one", one), ("two", two)];
    let senders = senders.into_iter().chain(by_rsyslog);
    let accounts: Vec<_> = senders.map(|(name, count)| (name, count, ledger.account(name, count))).collect();
    accounts.iter().for_each(|(name, count, account)| println!("{name}: {count} sent or acknowledged, {account:?}"));
    println!("longest pause of a UDP flow: {:.1} ms", ledger.longest_pause("udp", 1));
    println!("longest pause of a TCP connection: {:.1} ms", ledger.longest_pause("tcp", connections));
    assert!(accounts.iter().all(|(_, _, account)| *account == Account::default()));
}

#[test]
fn everything_moves_with_the_addresses() {
    drains(2, 20, 5_000, 1_000);
}

#[test]
#[ignore = "twenty rounds, two minutes: netns-tests/rounds.sh"]
fn twenty_connections_move_round_after_round() {
    drains(rounds(20), 20, 20_000, 4_000);
}

#[test]
#[ignore = "twenty rounds, two minutes: netns-tests/rounds.sh"]
fn a_hundred_connections_move_round_after_round() {
    drains(rounds(20), 100, 20_000, 4_000);
}

/// SIGKILL to the daemon alone; its guardian lives to see it.
fn kill_the_daemon(node: &mut Aggregator<'_>) {
    let daemon = *node.program().processes().last().expect("there is a daemon");
    kill(daemon, Signal::SIGKILL).unwrap();
}

#[test]
#[ignore = "twenty rounds, two minutes: netns-tests/rounds.sh"]
fn daemons_are_killed_round_after_round() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let ledger = Ledger::start(&c);
    let mut nodes = pair([&a, &b], RELP);
    let mut rsyslog = Rsyslog::start(&d, "", &plain_and_relp(), 500);
    let clients = [Client::start(&d, VIP_V4.into(), "one"), Client::start(&d, VIP_V4.into(), "two")];
    let mut silences = Vec::new();
    let (mut lost, mut sent) = (0, 0);
    for round in 0..rounds(20) {
        nodes.iter().for_each(|node| assert_eq!(node.ask(&["await", "synced", "--timeout", "30s"]).0, Some(0)));
        // Datagrams of their own in each round: the gap between two of them is the time without an answer.
        let name: &'static str = format!("udp{round}").leak();
        let datagrams = Datagrams::named(&d, name, 20_000);
        clients[0].wait_for_more(30);
        let killed = (round + 1) % 2;
        kill_the_daemon(&mut nodes[killed]);
        clients[0].wait_for_more(50);
        let count = datagrams.stop();
        let account = ledger.account(name, count);
        silences.push(ledger.longest_pause(name, 1));
        println!("round {round}: silent for {:.1} ms, {} of {count} datagrams lost", silences[round], account.lost);
        (lost, sent) = (lost + account.lost, sent + count);
        nodes[killed].restart();
    }
    let [one, two] = clients.map(Client::stop);
    let by_rsyslog = rsyslog.stop();
    silences.sort_by(f64::total_cmp);
    println!("silence: median {:.1} ms, longest {:.1} ms", silences[silences.len() / 2], silences[silences.len() - 1]);
    println!("{lost} of {sent} datagrams lost");
    for (name, count) in by_rsyslog.into_iter().chain([("one", one), ("two", two)]) {
        let account = ledger.account(name, count);
        println!("{name}: {count} sent or acknowledged, {account:?}");
        assert!(account.lost == 0 || name == "omfwd", "{name} is acknowledged");
    }
    nodes.iter().for_each(|node| assert_eq!(node.ask(&["await", "synced", "--timeout", "30s"]).0, Some(0)));
}

/// One of the two dies at some moment of a drain, while connections move; the other goes on with what it has.
fn deaths_in_the_middle_of_a_move(rounds: usize) {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let ledger = Ledger::start(&c);
    let mut nodes = pair([&a, &b], "");
    let client = Client::start(&d, VIP_V4.into(), "one");
    let bin = TempDir::with_prefix("twinlog-").unwrap();
    for round in 0..rounds {
        nodes.iter().for_each(|node| assert_eq!(node.ask(&["await", "synced", "--timeout", "30s"]).0, Some(0)));
        let from = nodes.iter().position(Aggregator::is_active).unwrap();
        let name: &'static str = format!("move{round}").leak();
        let lines = Lines::named(&d, name, CONNECTIONS, 2_000);
        client.wait_for_more(50);
        let drain = nodes[from].begin_to_ask(&["drain"], bin.path());
        // It takes 40 to 90 ms from the command's start to the last connection's.
        let after = Duration::from_millis((round * 100 / rounds) as u64);
        std::thread::sleep(after);
        let victim = if round % 2 == 0 { from } else { 1 - from };
        kill_the_daemon(&mut nodes[victim]);
        let (_, said) = said(drain.wait_with_output().unwrap());
        client.wait_for_more(50);
        nodes[victim].restart();
        nodes.iter().for_each(|node| assert_eq!(node.ask(&["await", "synced", "--timeout", "30s"]).0, Some(0)));
        // It had drained before it, or the peer came back in time for it to go on.
        nodes.iter().for_each(|node| drop(node.ask(&["undrain"])));
        wait_until("one is active", || nodes.iter().filter(|node| node.is_active()).count() == 1);
        let sent = lines.stop();
        for last in &sent.last {
            wait_until("what goes on is heard", || ledger.has(name, *last));
        }
        let account = ledger.account(name, sent.lines);
        let who = if victim == from { "giver" } else { "taker" };
        println!(
            "round {round}: the {who} killed after {} ms: {} of {CONNECTIONS} connections go on, {} of {} lines lost; {}",
            after.as_millis(),
            sent.last.len(),
            account.lost,
            sent.lines,
            said.lines().last().unwrap_or_default()
        );
        assert_eq!(account.resent, 0, "no line is taken twice");
        if said.contains("before it had taken over") {
            assert_eq!((sent.last.len(), account.lost), (CONNECTIONS, 0), "nobody had taken anything");
        }
    }
    let acknowledged = client.stop();
    let account = ledger.account("one", acknowledged);
    println!("{acknowledged} events acknowledged, {account:?}");
    assert_eq!(account.lost, 0);
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_move_costs_nothing_acknowledged() {
    deaths_in_the_middle_of_a_move(4);
}

#[test]
#[ignore = "forty rounds, four minutes: netns-tests/rounds.sh"]
fn nodes_die_at_every_moment_of_a_move() {
    deaths_in_the_middle_of_a_move(2 * rounds(20));
}

#[test]
#[ignore = "ten rounds, two minutes: netns-tests/rounds.sh"]
fn disks_are_lost_round_after_round() {
    (0..rounds(10)).for_each(|_| super::mirror::what_is_acknowledged_survives_the_node_and_its_disk());
}
