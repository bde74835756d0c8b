//! A node is drained while messages come: nothing is lost, nothing comes twice, and the receipt says so.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::aggregators::{Aggregator, Client, Datagrams, Destination, assert_arrived, pair, said};
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

/// A `systemctl` that answers with what stands in files, and leaves the restart to the test.
struct Manager(TempDir);

impl Manager {
    fn new() -> Manager {
        let directory = TempDir::with_prefix("twinlog-").unwrap();
        let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\"; echo \"$*\" >>asked\n\
            case $1 in show) exec cat main ;; esac\n\
            : >wanted; until [ -e done ]; do sleep 0.01; done; rm wanted; status=$(cat done); rm done; exit \"$status\"\n";
        let path = directory.path().join("systemctl");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Manager(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Says that its service runs this node.
    fn runs(&self, node: &Aggregator<'_>) {
        fs::write(self.file("main"), node.status()["nodes"][0]["pid"].to_string()).unwrap();
    }

    /// Ends the restart that is wanted.
    fn finish(&self, status: &str) {
        // At once or not at all: the script looks all the time.
        fs::write(self.file("new"), status).unwrap();
        fs::rename(self.file("new"), self.file("done")).unwrap();
    }

    /// What it was asked since the last time.
    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.file("asked")).unwrap_or_default();
        let _ = fs::remove_file(self.file("asked"));
        asked.lines().map(str::to_owned).collect()
    }
}

const SHOW: &str = "show --property=MainPID --value twinlog.service";
const RESTART: &str = "restart twinlog.service";

#[test]
fn a_drain_with_restart_has_the_service_restarted_and_ends_when_the_node_is_back_in_sync() {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let destination = Destination::start(&c);
    let mut nodes = pair([&a, &b], "");
    let client = Client::start(&d, VIP_V4.into(), "one");
    let manager = Manager::new();
    // The active node, then the one that took over, then that one as a standby that is drained already.
    for (round, node) in [1, 0, 0].into_iter().enumerate() {
        client.wait_for_more(30);
        wait_until("both are in sync", || nodes.iter().all(Aggregator::is_in_sync));
        let node = &mut nodes[node];
        manager.runs(node);
        assert_eq!(node.is_active(), round < 2);
        if round == 2 {
            assert_eq!(node.ask(&["drain", "--quiet"]).0, Some(0));
        }
        let asking = node.begin_to_ask(&["drain", "--restart", "--deadline", "60s"], manager.path());
        wait_until("the restart is asked for", || manager.file("wanted").exists());
        assert_eq!(node.status()["nodes"][0]["stage"], "drained");
        node.stop();
        node.start();
        manager.finish("0");
        let (status, said) = said(asking.wait_with_output().unwrap());
        assert_eq!(status, Some(0), "{said}");
        let (receipt, back) = (said.find("ZERO LOSS").unwrap(), said.find("is back after").unwrap());
        assert!(receipt < back, "{said}");
        assert!(said.contains("standby, in sync with its peer\n"), "{said}");
        assert!(node.is_in_sync() && !node.is_active());
        assert_eq!(manager.asked(), [SHOW, RESTART]);
    }
    let acknowledged = client.stop();
    assert_eq!(assert_arrived(&destination, "one", acknowledged), 0, "acknowledged events come once");
}

#[test]
fn what_cannot_be_restarted_is_not_drained_and_a_restart_that_fails_is_told() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    let nodes = pair([&a, &b], "");
    let (manager, node) = (Manager::new(), &nodes[1]);
    let refused = |status, why: &str| {
        let asking = node.begin_to_ask(&["drain", "--restart"], manager.path());
        let (code, said) = said(asking.wait_with_output().unwrap());
        assert_eq!(code, Some(status), "{said}");
        assert!(said.contains(why), "{said}");
        assert_eq!(node.status()["nodes"][0]["stage"], "serving");
        assert_eq!(manager.asked(), [SHOW]);
    };
    refused(1, "does not run this daemon");
    fs::write(manager.file("main"), "0").unwrap();
    refused(1, "does not run this daemon");
    manager.runs(node);
    let config = fs::read_to_string(node.file("twinlog.toml")).unwrap();
    fs::write(node.file("twinlog.toml"), config.clone() + "[[output.stdout]]\nnonsense = 1\n").unwrap();
    refused(78, "nothing was drained");
    fs::write(node.file("twinlog.toml"), config).unwrap();

    let asking = node.begin_to_ask(&["drain", "--restart"], manager.path());
    wait_until("the restart is asked for", || manager.file("wanted").exists());
    manager.finish("1");
    let (status, said) = said(asking.wait_with_output().unwrap());
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("ZERO LOSS") && said.contains("the service did not come back"), "{said}");
    assert_eq!(node.status()["nodes"][0]["stage"], "drained");
}

#[test]
fn after_a_receipt_that_is_not_clean_only_force_restarts() {
    let switch = Switch::new();
    let (a, b) = (switch.host("a"), switch.host("b"));
    // Nobody to hand over to, and no destination: what comes is on this node only.
    let mut alone = Aggregator::new(&a, KEY, "");
    alone.start();
    wait_until("it is active", || alone.is_active());
    let datagrams = Datagrams::start(&b, 100);
    let backlog = |node: &Aggregator<'_>| node.status()["nodes"][0]["outputs"]["siem"]["backlog_messages"].as_u64();
    wait_until("it holds messages", || backlog(&alone).is_some_and(|messages| messages > 0));
    datagrams.stop();
    assert_eq!(alone.ask(&["drain", "--force", "--deadline", "1s"]).0, Some(6));

    let manager = Manager::new();
    manager.runs(&alone);
    let asking = alone.begin_to_ask(&["drain", "--restart"], manager.path());
    let (status, answer) = said(asking.wait_with_output().unwrap());
    assert_eq!(status, Some(6), "{answer}");
    assert!(answer.contains("not restarted") && answer.contains("--force"), "{answer}");
    assert_eq!(manager.asked(), [SHOW]);

    let asking = alone.begin_to_ask(&["drain", "--restart", "--force", "--json"], manager.path());
    wait_until("the restart is asked for", || manager.file("wanted").exists());
    alone.stop();
    alone.start();
    manager.finish("0");
    let (status, answer) = said(asking.wait_with_output().unwrap());
    assert_eq!(status, Some(6), "{answer}");
    let lines: Vec<serde_json::Value> = answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["verdict"].as_str().unwrap().starts_with("UNPROVEN"), "{answer}");
    assert_eq!((&lines[1]["node"], &lines[1]["in_sync"]), (&"a".into(), &false.into()), "{answer}");
    assert_eq!(alone.status()["nodes"][0]["stage"], "serving");
    assert!(backlog(&alone).is_some_and(|messages| messages > 0), "they wait for their destination");
}
