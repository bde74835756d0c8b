//! twinlog beside keepalived: the same faults on the same network, measured in the same way. Not a test that passes or
//! fails: a program that prints a table. `netns-tests/compare.sh` runs it; BENCHMARKS.md has its newest output.
//!
//! Two nodes on a switch, `b` with the higher priority, and a client that sends 10 000 numbered datagrams a second to the
//! virtual address. Whoever has the address receives and counts. Of every run:
//!
//! - *gap*: the longest run of numbers in a row that nobody received, as a time;
//! - *both*: how long the address was on both links at once, by the kernels' own word;
//! - *lost*: the numbers that nobody received.
//!
//! When a process is killed or its host lost, what that host would still receive counts as lost: with twinlog it is the
//! application that dies, and keepalived is there for one that dies.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use super::lab::keepalived::keepalived;
use super::lab::traffic::{Account, Counter, Generator};
use super::lab::twin::{Keys, Twin};
use super::lab::watch::{Watch, both_hold};
use super::lab::{Host, Program, Switch, VIP_V4, succeed, wait_until};

const PER_SECOND: u32 = 10_000;
/// Of `a` and `b`.
const PRIORITIES: [u8; 2] = [100, 150];
/// After the fault: what is not over by then counts as if it had ended.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// What goes wrong, or is meant to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happening {
    PlannedMove,
    Killed,
    HostLost,
    LinkPulled,
    Stopped,
    Parted,
    Returned,
    AddressDeleted,
    StartedAtOnce,
}

/// One row of the table.
struct Scenario {
    name: &'static str,
    happening: Happening,
    interval_ms: u32,
    /// What twinlog is meant to do.
    wanted: &'static str,
}

const SCENARIOS: [Scenario; 11] = {
    use Happening::*;
    const fn row(name: &'static str, happening: Happening, interval_ms: u32, wanted: &'static str) -> Scenario {
        Scenario { name, happening, interval_ms, wanted }
    }
    [
        row("planned move", PlannedMove, 100, "0 lost"),
        row("process killed, 1 GiB of heap", Killed, 100, "gap ≤ 20 ms"),
        row("host lost", HostLost, 100, "gap ≤ 360 ms"),
        row("host lost", HostLost, 30, "gap ≤ 110 ms"),
        row("host lost", HostLost, 10, "–"),
        row("link pulled", LinkPulled, 100, "–"),
        row("stopped for 5 s, continued", Stopped, 100, "both ≤ 2 500 ms"),
        row("parted for 6 s, healed", Parted, 100, "gap ≤ 200 ms"),
        row("higher priority comes back", Returned, 100, "–"),
        row("address deleted by hand", AddressDeleted, 100, "gap ≤ 100 ms"),
        row("both started at once", StartedAtOnce, 100, "–"),
    ]
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Product {
    Twinlog,
    Keepalived,
}

/// What came of one run.
struct Measured {
    gap_ms: f64,
    /// `None` where one of the two hosts is gone.
    both_ms: Option<f64>,
    lost: f64,
}

#[test]
#[ignore = "takes a quarter of an hour and judges nothing: netns-tests/compare.sh"]
fn twinlog_beside_keepalived() {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<usize>().unwrap());
    let repeats = number("TWINLOG_REPEATS").unwrap_or(5);
    let only = std::env::var("TWINLOG_ONLY").unwrap_or_default();
    let ballast = TempDir::with_prefix("twinlog-").unwrap();
    let ballast = compile_ballast(&ballast);
    println!(
        "| what happens | interval ms | wanted of twinlog | twinlog: gap ms | both ms | lost | keepalived: gap ms | both ms | lost |"
    );
    println!("|---|--:|---|--:|--:|--:|--:|--:|--:|");
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.name.contains(&only)) {
        let mut row = format!("| {} | {} | {} |", scenario.name, scenario.interval_ms, scenario.wanted);
        for product in [Product::Twinlog, Product::Keepalived] {
            let runs: Vec<Measured> = (0..repeats).map(|_| measure(product, scenario, &ballast)).collect();
            let column = |of: fn(&Measured) -> Option<f64>| median_and_worst(runs.iter().filter_map(of).collect());
            let columns = [column(|run| Some(run.gap_ms)), column(|run| run.both_ms), column(|run| Some(run.lost))];
            row += &format!(" {} |", columns.join(" | "));
        }
        println!("{row}");
    }
}

fn median_and_worst(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let show = |value: f64| if value < 10.0 && value > 0.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    match values.last() {
        Some(worst) => format!("{} / {}", show(values[values.len() / 2]), show(*worst)),
        None => "–".to_owned(),
    }
}

/// Builds the library that makes a process large; returns its path.
fn compile_ballast(directory: &TempDir) -> String {
    let library = directory.path().join("ballast.so").to_str().expect("text").to_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/netns-tests/compare/ballast.c");
    succeed(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o", &library, source]));
    library
}

/// A node of either product.
enum Node<'a> {
    Twinlog { twin: Twin<'a>, preload: Option<String> },
    Keepalived { host: &'a Host, instance: String, running: Option<(Program, TempDir)> },
}

impl<'a> Node<'a> {
    fn new(product: Product, host: &'a Host, number: usize, scenario: &Scenario, ballast: &str) -> Node<'a> {
        let (interval, returns) = (scenario.interval_ms, scenario.happening == Happening::Returned);
        if product == Product::Keepalived {
            // It takes over from a lower priority unless told otherwise.
            let (priority, seconds) = (PRIORITIES[number], f64::from(interval) / 1e3);
            let instance = format!("priority {priority}\n advert_int {seconds}\n virtual_ipaddress {{ {VIP_V4}/24 }}");
            return Node::Keepalived { host, instance, running: None };
        }
        let preempt = if returns { "preempt = true\npreempt_delay = \"0s\"\n" } else { "" };
        let more = format!("advert_interval = \"{interval}ms\"\n{preempt}");
        let keys = Keys { vip: "\"203.0.113.100/24\"", more: &more, priorities: PRIORITIES };
        let preload = scenario.happening == Happening::Killed && number == 1;
        Node::Twinlog { twin: Twin::new(host, &keys), preload: preload.then(|| format!("LD_PRELOAD={ballast}")) }
    }

    fn start(&mut self) {
        match self {
            Node::Twinlog { twin, preload: None } => twin.start(),
            Node::Twinlog { twin, preload: Some(preload) } => twin.start_with(&["env", preload]),
            Node::Keepalived { host, instance, running } => *running = Some(keepalived(host, instance, 3)),
        }
    }

    fn host(&self) -> &'a Host {
        match self {
            Node::Twinlog { twin, .. } => twin.host,
            Node::Keepalived { host, .. } => host,
        }
    }

    fn holds(&self) -> bool {
        let index = self.host().eth0().index;
        self.host().netlink().places_of(VIP_V4.into()).unwrap().iter().any(|place| place.index == index)
    }

    fn program(&self) -> &Program {
        match self {
            Node::Twinlog { twin, .. } => twin.program(),
            Node::Keepalived { running, .. } => &running.as_ref().expect("it was started").0,
        }
    }

    /// Kills what serves: of twinlog the daemon, whose guardian lives; of keepalived all there is.
    fn kill_what_serves(&self) {
        match self {
            Node::Twinlog { twin, .. } => kill(twin.daemon(), Signal::SIGKILL).unwrap(),
            Node::Keepalived { .. } => self.program().signal(Signal::SIGKILL),
        }
    }

    /// Gives the address to the other node, as an operator does it.
    fn hand_over(&self) {
        match self {
            Node::Twinlog { twin, .. } => assert_eq!(twin.ask(&["failover"]).0, Some(0)),
            Node::Keepalived { .. } => self.program().signal(Signal::SIGTERM),
        }
    }
}

fn measure(product: Product, scenario: &Scenario, ballast: &str) -> Measured {
    use Happening::*;
    let switch = Switch::new();
    let hosts = [switch.host("a"), switch.host("b")];
    let client = switch.host("client");
    let [a, b] = [0, 1].map(|number| Node::new(product, &hosts[number], number, scenario, ballast));
    let mut nodes = [a, b];
    match scenario.happening {
        StartedAtOnce => {}
        Returned => start_and_wait(&mut nodes[0]),
        _ => {
            start_and_wait(&mut nodes[1]);
            nodes[0].start();
            know_each_other(&nodes);
        }
    }
    let counters = [&hosts[0], &hosts[1]].map(Counter::start);
    let watches = [&hosts[0], &hosts[1]].map(|host| Watch::start(host, VIP_V4.into()));
    let traffic = Generator::start(&client, VIP_V4.into(), PER_SECOND);
    if scenario.happening != StartedAtOnce {
        traffic.wait_for(2_000);
    }
    // At any moment between two advertisements.
    std::thread::sleep(Duration::from_millis(fastrand::u64(..u64::from(scenario.interval_ms))));
    let begin = Instant::now();
    let died = happen(scenario.happening, &switch, &mut nodes, &traffic);
    std::thread::sleep(AFTERWARDS);
    let sent = traffic.stop();
    std::thread::sleep(Duration::from_millis(100));
    let end = Instant::now();
    let held = watches.map(Watch::stop);
    let mut received = counters.map(Counter::stop);
    if let Some(died) = died {
        received[1].retain(|number| *number < died);
    }
    let account = Account::of(sent, &received);
    let both = both_hold(&held, begin, end).as_secs_f64() * 1e3;
    Measured {
        gap_ms: account.longest_gap as f64 / f64::from(PER_SECOND) * 1e3,
        both_ms: (scenario.happening != HostLost).then_some(both),
        lost: account.lost as f64,
    }
}

fn start_and_wait(node: &mut Node<'_>) {
    node.start();
    wait_until("it is master", || node.holds());
}

fn know_each_other(nodes: &[Node<'_>; 2]) {
    for node in nodes {
        if let Node::Twinlog { twin, .. } = node {
            wait_until("they know each other", || twin.knows_its_peer());
        }
    }
    // keepalived does not say whether it listens.
    std::thread::sleep(Duration::from_secs(1));
    assert!(nodes[1].holds() && !nodes[0].holds());
}

/// What happens to `b`. Returns the first number that it no longer counts, if what serves there has died.
fn happen(happening: Happening, switch: &Switch, nodes: &mut [Node<'_>; 2], traffic: &Generator) -> Option<u64> {
    match happening {
        Happening::PlannedMove => nodes[1].hand_over(),
        Happening::Killed => {
            nodes[1].kill_what_serves();
            return Some(traffic.sent());
        }
        Happening::HostLost => {
            // In this order: the kernel of a host that lived on without its processes would tell of their death.
            switch.pull_cable(nodes[1].host());
            nodes[1].program().signal(Signal::SIGKILL);
            return Some(traffic.sent());
        }
        Happening::LinkPulled => switch.pull_cable(nodes[1].host()),
        Happening::Stopped => {
            nodes[1].program().pause();
            std::thread::sleep(Duration::from_secs(5));
            nodes[1].program().resume();
        }
        Happening::Parted => {
            let hosts = [nodes[0].host(), nodes[1].host()];
            switch.part(hosts);
            std::thread::sleep(Duration::from_secs(6));
            switch.heal(hosts);
            // Until a client's entry has aged, if nobody tells it otherwise.
            std::thread::sleep(Duration::from_secs(4));
        }
        Happening::Returned => start_and_wait(&mut nodes[1]),
        Happening::AddressDeleted => {
            let places = nodes[1].host().netlink().places_of(VIP_V4.into()).unwrap();
            let prefix = places.first().expect("the master has it").prefix;
            nodes[1].host().ip(&format!("address del {VIP_V4}/{prefix} dev eth0"));
        }
        Happening::StartedAtOnce => nodes.iter_mut().for_each(Node::start),
    }
    None
}
