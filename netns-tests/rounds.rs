//! The promises of a pair, round after round under full load: 20 000 datagrams/s, thousands of lines/s over live TCP connections,
//! rsyslog with omfwd and omrelp, forward clients that want acknowledgements.
//!
//! The long runs are `netns-tests/rounds.sh`; the gate has two rounds.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use super::aggregators::{Aggregator, Client, Datagrams, pair};
use super::lab::{Host, Program, Switch, VIP_V4, wait_until};
use super::ledger::{Account, Ledger};
use super::lines::Lines;

const RELP: &str = "[[input.relp]]\nname = \"relp\"\nlisten = \":2514\"\n";
const RELP_PORT: u16 = 2514;
/// Where rsyslog hears what it forwards.
const LOCAL_PORT: u16 = 5140;

fn rounds(usual: usize) -> usize {
    std::env::var("TWINLOG_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}

/// A device's rsyslog: what comes to its local port leaves by omfwd or omrelp, as it came.
struct Rsyslog {
    _program: Program,
    _directory: TempDir,
    stop: Arc<AtomicBool>,
    feeders: Vec<JoinHandle<u64>>,
}

impl Rsyslog {
    /// Sends so many lines a second by each of the two.
    fn start(host: &Host, per_second: u32) -> Rsyslog {
        let directory = TempDir::with_prefix("rsyslog-").unwrap();
        let mut config = String::from(
            "module(load=\"imptcp\")\nmodule(load=\"omrelp\")\ntemplate(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n",
        );
        for (at, action) in [
            format!("type=\"omfwd\" target=\"{VIP_V4}\" port=\"1514\" protocol=\"tcp\""),
            format!("type=\"omrelp\" target=\"{VIP_V4}\" port=\"{RELP_PORT}\" timeout=\"10\""),
        ]
        .iter()
        .enumerate()
        {
            let port = LOCAL_PORT + at as u16;
            write!(
                config,
                "input(type=\"imptcp\" port=\"{port}\" ruleset=\"r{at}\")\nruleset(name=\"r{at}\") {{ action({action} template=\"raw\" \
                 queue.type=\"LinkedList\" queue.size=\"200000\" action.resumeRetryCount=\"-1\" action.resumeInterval=\"1\") }}\n"
            )
            .unwrap();
        }
        let file = directory.path().join("rsyslog.conf");
        std::fs::write(&file, config).unwrap();
        let (file, pid) = (file.display().to_string(), directory.path().join("pid").display().to_string());
        let program = host.start("rsyslogd", ["-n", "-f", &file, "-i", &pid]);
        let stop = Arc::new(AtomicBool::new(false));
        let feeders = [("omfwd", LOCAL_PORT), ("omrelp", LOCAL_PORT + 1)].map(|(name, port)| {
            let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, port));
            wait_until("rsyslog listens", || host.visit(|| connect().is_ok()));
            let mut stream = host.visit(connect).unwrap();
            let stopping = stop.clone();
            std::thread::spawn(move || {
                let (begin, mut sent) = (Instant::now(), 0);
                while !stopping.load(Ordering::SeqCst) {
                    let due = (begin.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
                    let mut lines = String::new();
                    while sent < due {
                        writeln!(lines, "<13>1 - - app - - - event-{name}-{sent}").unwrap();
                        sent += 1;
                    }
                    stream.write_all(lines.as_bytes()).unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                }
                sent
            })
        });
        Rsyslog { _program: program, _directory: directory, stop, feeders: feeders.into() }
    }

    /// Stops feeding; how many lines were sent by omfwd and by omrelp.
    fn stop(&mut self) -> [u64; 2] {
        self.stop.store(true, Ordering::SeqCst);
        let mut sent = self.feeders.drain(..).map(|feeder| feeder.join().unwrap());
        [sent.next().unwrap(), sent.next().unwrap()]
    }
}

/// Moves everything there and back, round after round.
fn drains(rounds: usize, connections: usize, datagrams: u32, lines: u32) {
    let switch = Switch::new();
    let (a, b, c, d) = (switch.host("a"), switch.host("b"), switch.host("c"), switch.host("d"));
    let ledger = Ledger::start(&c);
    let nodes = pair([&a, &b], RELP);
    let mut rsyslog = Rsyslog::start(&d, lines / 10);
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
    let senders = [
        ("udp", udp),
        ("tcp", sent.lines),
        ("omfwd", by_rsyslog[0]),
        ("omrelp", by_rsyslog[1]),
        ("one", one),
        ("two", two),
    ];
    let accounts = senders.map(|(name, count)| (name, count, ledger.account(name, count)));
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
    let mut rsyslog = Rsyslog::start(&d, 500);
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
    let [omfwd, omrelp] = rsyslog.stop();
    silences.sort_by(f64::total_cmp);
    println!("silence: median {:.1} ms, longest {:.1} ms", silences[silences.len() / 2], silences[silences.len() - 1]);
    println!("{lost} of {sent} datagrams lost");
    for (name, count) in [("omfwd", omfwd), ("omrelp", omrelp), ("one", one), ("two", two)] {
        let account = ledger.account(name, count);
        println!("{name}: {count} sent or acknowledged, {account:?}");
        assert!(account.lost == 0 || name == "omfwd", "{name} is acknowledged");
    }
    nodes.iter().for_each(|node| assert_eq!(node.ask(&["await", "synced", "--timeout", "30s"]).0, Some(0)));
}

#[test]
#[ignore = "ten rounds, two minutes: netns-tests/rounds.sh"]
fn disks_are_lost_round_after_round() {
    (0..rounds(10)).for_each(|_| super::mirror::what_is_acknowledged_survives_the_node_and_its_disk());
}
